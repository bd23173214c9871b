"""How the HTML report looks: light and dark, on phones, large screens and paper."""

LIGHT = {
    "page": "#f4f5f7",
    "card": "#ffffff",
    "ink": "#171a21",
    "muted": "#5a6372",
    "line": "#dfe2e8",
    "held": "#0b756b",
    "seen": "#d5d9e0",
    "mark": "#b4530a",
    "warn": "#8a3b00",
    "warn-page": "#fff1e2",
    "bound": "#b4530a",
}
"""Colours by name."""

DARK = {
    "page": "#0f1217",
    "card": "#181c23",
    "ink": "#e9ebf0",
    "muted": "#9aa4b4",
    "line": "#2b313b",
    "held": "#2cc7b5",
    "seen": "#39414e",
    "mark": "#f5a35c",
    "warn": "#ffc795",
    "warn-page": "#33210f",
    "bound": "#f5a35c",
}
"""The same ones where the reader prefers a dark screen."""

_RULES = """
*, *::before, *::after { box-sizing: border-box }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth }
body {
  margin: 0; padding: 0 1rem; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: anywhere;
}
header, main, footer { max-width: 66rem; margin: 0 auto }
h1, h2, h3, p, dl, dd, figure { margin: 0 }
header { padding: 2.75rem 0 0 }
.brand { color: var(--held); font-size: .8125rem; font-weight: 650; letter-spacing: .02em }
h1 {
  font-size: clamp(1.5rem, 1.1rem + 1.9vw, 2.25rem); line-height: 1.2; letter-spacing: -.015em; margin: .15rem 0 0;
  text-wrap: balance;
}
.path { color: var(--muted); font-size: .875rem; margin-top: .35rem }
.notice {
  background: var(--warn-page); color: var(--warn); border-radius: .6rem; padding: .7rem 1rem; margin-top: 1.1rem;
}
.facts {
  display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 1.1rem 1.5rem;
  margin-top: 1.6rem; padding: 1.15rem 0; border: solid var(--line); border-width: 1px 0;
}
dt { color: var(--muted); font-size: .8125rem }
.facts dd { font-weight: 550; line-height: 1.4; font-variant-numeric: tabular-nums }
section { margin-top: 2.5rem }
h2 { font-size: 1.1875rem; letter-spacing: -.01em; margin-bottom: .9rem }
.panel { background: var(--card); border: 1px solid var(--line); border-radius: .8rem; padding: 1.15rem 1.25rem }
svg { display: block; width: 100%; overflow: visible }
.marks { height: 1.25rem }
.marks circle { fill: var(--mark) }
.marks line { stroke: var(--mark); stroke-width: 1.5 }
.bar { overflow: hidden; border-radius: .3rem; background: var(--page); box-shadow: inset 0 0 0 1px var(--line) }
.bar rect { shape-rendering: crispEdges }
.timeline .bar { height: 2.75rem }
.seen { fill: var(--seen) }
.held { fill: var(--held) }
.ticks {
  position: relative; height: 1.35rem; margin-top: .3rem; color: var(--muted);
  font-size: .75rem; font-variant-numeric: tabular-nums;
}
.ticks span { position: absolute; transform: translateX(-50%); white-space: nowrap }
.ticks .first { transform: none }
.ticks .last { transform: translateX(-100%) }
.legend {
  display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: .75rem 0 0; padding: 0; list-style: none;
  color: var(--muted); font-size: .875rem;
}
.legend li::before {
  content: ""; display: inline-block; width: .8rem; height: .8rem; margin-right: .5rem; vertical-align: -.06rem;
  border-radius: .2rem; background: var(--key);
}
.legend .round::before { border-radius: 50% }
.plots figure { display: flex; flex-direction: column; justify-content: space-between }
.plots { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1rem }
figcaption { font-weight: 600; font-size: .9375rem; line-height: 1.35; margin-bottom: .9rem }
figcaption span { display: block; color: var(--muted); font-weight: 400; font-size: .8125rem }
.axes { display: grid; grid-template-columns: max-content 1fr; column-gap: .6rem }
.scale {
  position: relative; min-width: 3.6rem; color: var(--muted); font-size: .75rem; font-variant-numeric: tabular-nums;
}
.scale span { position: absolute; right: 0; transform: translateY(-50%); line-height: 1; white-space: nowrap }
.axes .ticks { grid-column: 2 }
.area { height: 8.5rem }
.area path { fill: none; vector-effect: non-scaling-stroke; stroke-linecap: round; stroke-linejoin: round }
.area .grid { stroke: var(--line); stroke-width: 1; stroke-linecap: butt }
.area .fill { fill: var(--held); opacity: .13 }
.area .band { fill: var(--held); opacity: .4 }
.area .line { stroke: var(--held); stroke-width: 2 }
.area .dot { stroke: var(--held); stroke-width: 6 }
.area .bound { stroke: var(--bound); stroke-width: 1.5; stroke-dasharray: 5 4; stroke-linecap: butt }
.moment { margin-top: 1rem; scroll-margin-top: 1rem; display: grid; gap: .35rem 1.5rem }
.moment:target { border-color: var(--held); box-shadow: 0 0 0 1px var(--held) }
.moment.pictured { grid-template-columns: 17rem minmax(0, 1fr); grid-template-rows: auto 1fr auto }
.moment h3 { font-size: 1.0625rem; line-height: 1.3 }
.moment h3 a { color: var(--held); text-decoration: none; font-variant-numeric: tabular-nums }
.moment h3 a:hover { text-decoration: underline }
.moment > figure { grid-row: 1 / 4 }
.moment > figure img {
  display: block; width: 100%; max-height: 22rem; object-fit: contain; border-radius: .45rem; background: var(--page);
}
.question { color: var(--muted); font-size: .9375rem }
.answer { font-size: 1.125rem; line-height: 1.5; white-space: pre-wrap; margin-top: .1rem }
.none { color: var(--muted); font-style: italic }
.note { color: var(--muted); font-size: .8125rem; margin-top: .15rem }
.said + .said { margin-top: .8rem; padding-top: .8rem; border-top: 1px solid var(--line) }
.then { margin-top: .75rem }
.then .bar { height: .5rem; border-radius: .25rem }
.then ul {
  display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; margin: .5rem 0 0; padding: 0; list-style: none;
  color: var(--muted); font-size: .8125rem; font-variant-numeric: tabular-nums;
}
.unasked { margin: 0; list-style: none }
.unasked li + li { margin-top: .5rem; padding-top: .5rem; border-top: 1px solid var(--line) }
.unasked b { margin-right: .75rem; font-variant-numeric: tabular-nums }
footer { color: var(--muted); font-size: .8125rem; padding: 2.25rem 0 3rem }
@media (max-width: 56rem) {
  .facts { grid-template-columns: repeat(2, minmax(0, 1fr)) }
  .plots { grid-template-columns: minmax(0, 1fr) }
}
@media (max-width: 40rem) {
  header { padding-top: 1.75rem }
  .panel { padding: 1rem }
  .timeline .ticks span:nth-child(even) { display: none }
  .moment.pictured { grid-template-columns: minmax(0, 1fr); grid-template-rows: none }
  .moment > figure { grid-row: auto; order: -1; margin-bottom: .5rem }
}
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto } }
@media print {
  :root { color-scheme: light; --page: #ffffff }
  body { padding: 0; font-size: 10.5pt }
  header { padding-top: 0 }
  .panel, .plots > *, .facts { break-inside: avoid }
  h2 { break-after: avoid }
  .bar, .marks, .area, .legend, .notice { print-color-adjust: exact; -webkit-print-color-adjust: exact }
}
"""


def sheet() -> str:
    """The style sheet."""
    return (
        f":root {{ color-scheme: light dark; {_colours(LIGHT)} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_colours(DARK)} }} }}"
        f"{_RULES}"
    )


def _colours(named: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in named.items())
