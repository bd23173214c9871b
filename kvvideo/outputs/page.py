"""``html``: a report in one file that needs nothing else: no script, nothing from elsewhere."""

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from html import escape
from pathlib import Path

from kvvideo._version import __version__
from kvvideo.outputs import clean, plots, style
from kvvideo.outputs.figures import count, size
from kvvideo.outputs.report import Moment, Report, asked, cut, earlier, share
from kvvideo.outputs.samples import Sample
from kvvideo.outputs.writer import AtEnd, Record
from kvvideo.times import format_time

Frame = Callable[[float], "Future[bytes | None]"]
"""The picture shown at a moment, as JPEG, when it is there; None if there is none."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for it: nothing."""


class Page:
    """Writes the report when it is closed, as ``AtEnd``.

    Args:
        path: the file; None for stdout.
        frame: asked at the first answer of each moment, in case the video cannot be read again.
        samples: read at the end.
    """

    def __init__(self, path: Path | None, frame: Frame | None = None, samples: Sequence[Sample] = ()) -> None:
        self._file = AtEnd(path, lambda records: render(records, self._ready(), samples))
        self._frame = frame
        self._pictures: dict[float, Future[bytes | None]] = {}

    def write(self, record: Record) -> None:
        self._file.write(record)
        if self._frame is not None and record["type"] == "answer" and record["asked_at"] not in self._pictures:
            self._pictures[record["asked_at"]] = self._frame(record["asked_at"])

    def close(self) -> None:
        self._file.close()

    def _ready(self) -> dict[float, bytes | None]:
        found: dict[float, bytes | None] = {}
        for at, picture in self._pictures.items():
            # A report without a picture is better than none.
            with suppress(Exception):
                found[at] = picture.result()
        return found


def render(
    records: Sequence[Record], pictures: dict[float, bytes | None] | None = None, samples: Sequence[Sample] = ()
) -> str:
    """The page.

    Args:
        records: of one strategy.
        pictures: of moments, as JPEG.
        samples: what the cache held at other moments.
    """
    report = Report.of(records)
    title = escape(report.title)
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f"<title>{title} – kvvideo</title>",
        f"<style>{style.sheet()}</style>",
        "</head>",
        "<body>",
        _header(report),
        "<main>",
        _timeline(report),
        _plots(report, records, samples),
        _answers(report, pictures or {}),
        _unasked(report),
        "</main>",
        f"<footer>Written by kvvideo {escape(__version__)}.</footer>",
        "</body>",
        "</html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _header(report: Report) -> str:
    path = "" if report.video == report.title else f'<p class="path">{_breakable(report.video)}</p>'
    notice = f'<p class="notice">{escape(report.notice)}</p>' if report.notice else ""
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in report.facts)
    return (
        f'<header><p class="brand">kvvideo report</p><h1 dir="auto">{_breakable(report.title)}</h1>{path}{notice}'
        f'<dl class="facts">{facts}</dl></header>'
    )


def _breakable(name: str) -> str:
    """The name of a file, which may be parted where its words are."""
    return re.sub(r"([/_-])(?=\w)", r"\1<wbr>", escape(name))


def _timeline(report: Report) -> str:
    if not report.moments:
        return ""
    at = format_time(report.held_at)
    held = f"{share(report.held, report.start, report.held_at):.0%}"
    label = f"At {at} something is held of {held} of the video up to then"
    moments = [(moment.at, f"moment-{number}") for number, moment in enumerate(report.moments, 1)]
    return (
        '<section aria-labelledby="timeline"><h2 id="timeline">What is remembered of the video</h2>'
        f'<div class="panel timeline">{plots.marks(moments, report.start, report.end)}'
        f"{plots.bar(report.held, report.start, report.end, report.held_at, label)}"
        f"{plots.ticks(report.start, report.end, 9)}"
        f'<ul class="legend"><li style="--key: var(--held)">still held at {at}: some of {held} of it</li>'
        '<li style="--key: var(--seen)">seen and forgotten</li>'
        '<li class="round" style="--key: var(--mark)">a question was asked</li></ul></div></section>'
    )


def _plots(report: Report, records: Sequence[Record], samples: Sequence[Sample]) -> str:
    at_end = [(r["end"], r["cache"]) for r in records if r["type"] == "done" and r["cache"] is not None]
    answered = [(moment.at, moment.cache) for moment in report.moments]
    caches = dict(sorted([*samples, *answered, *at_end], key=lambda sample: sample[0]))
    if not caches:
        return ""
    latest = [*caches.values()][-1]
    end = max(report.end, *caches)
    limit = latest["max_tokens"]
    figures = []
    for key, name, show in (
        ("live", "Tokens held", count),
        ("evicted", "Tokens evicted", count),
        ("bytes", "Memory", size),
    ):
        points = [(at, float(cache[key])) for at, cache in caches.items()]
        most, last = show(max(value for _, value in points)), show(points[-1][1])
        bound = limit if key == "live" else None
        of = "" if bound is None else f" (bound: {count(bound)})"
        about = f"{last} at the end" if key == "evicted" else f"{most} at most{of}, {last} at the end"
        label = f"{name} from {format_time(report.start)} to {format_time(end)}: {about}"
        drawn = plots.plot(points, report.start, end, label, show, bound)
        figures.append(
            f'<figure class="panel"><figcaption>{name}<span>{escape(about)}</span></figcaption>{drawn}</figure>'
        )
    return (
        '<section aria-labelledby="cache"><h2 id="cache">The cache while it watched</h2>'
        f'<div class="plots">{"".join(figures)}</div></section>'
    )


def _answers(report: Report, pictures: dict[float, bytes | None]) -> str:
    cards = [_card(number, moment, report, pictures.get(moment.at)) for number, moment in enumerate(report.moments, 1)]
    body = "\n".join(cards) or '<p class="none">Nothing was answered.</p>'
    return f'<section aria-labelledby="answers"><h2 id="answers">Answers</h2>\n{body}\n</section>'


def _card(number: int, moment: Moment, report: Report, picture: bytes | None) -> str:
    at, name = format_time(moment.at), f"moment-{number}"
    image = ""
    if picture is not None:
        source = f"data:image/jpeg;base64,{b64encode(picture).decode()}"
        image = f'<figure><img src="{source}" alt="The frame shown at {at}"></figure>'
    said = "".join(_said(record) for record in moment.answers)
    return (
        f'<article class="panel moment{" pictured" if image else ""}" id="{name}" aria-labelledby="{name}-at">{image}'
        f'<h3 id="{name}-at"><a href="#{name}">{at}</a></h3><div>{said}</div>{_then(moment, report)}</article>'
    )


def _said(record: Record) -> str:
    words = asked(record)
    question = f'<p class="question" dir="auto">{escape(words)}</p>' if words else ""
    answer = escape("\n".join(clean.lines(record["answer"])))
    said = f'<p class="answer" dir="auto">{answer}</p>' if answer else '<p class="answer none">no answer</p>'
    notes = "; ".join(filter(None, (cut(record), earlier(record))))
    note = f'<p class="note">{escape(notes)}</p>' if notes else ""
    return f'<div class="said">{question}{said}{note}</div>'


def _then(moment: Moment, report: Report) -> str:
    """What the cache held at a moment."""
    cache = moment.cache
    limit = "" if cache["max_tokens"] is None else f" of {count(cache['max_tokens'])}"
    part = f"{share(moment.held, report.start, moment.at):.0%}"
    figures = (
        f"{count(cache['live'])}{limit} tokens held",
        f"{count(cache['evicted'])} evicted",
        size(cache["bytes"]),
        f"some of {part} of what was seen",
    )
    label = f"At {format_time(moment.at)} something was held of {part} of the video up to then"
    listed = "".join(f"<li>{escape(figure)}</li>" for figure in figures)
    bar = plots.bar(moment.held, report.start, report.end, moment.at, label)
    return f'<div class="then">{bar}<ul>{listed}</ul></div>'


def _unasked(report: Report) -> str:
    if not report.unasked:
        return ""
    listed = "".join(
        f'<li><b>{escape(when)}</b><span dir="auto">{escape(clean.line(question))}</span></li>'
        for when, question in report.unasked
    )
    return (
        '<section aria-labelledby="unasked"><h2 id="unasked">Not asked</h2>'
        f'<ul class="panel unasked">{listed}</ul></section>'
    )
