"""The live panel: where the video stands, and what the cache still holds of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import groupby

from rich import box
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from kvvideo.outputs.clean import text as clean
from kvvideo.outputs.figures import counted
from kvvideo.session import Span
from kvvideo.sizes import format_size as size
from kvvideo.times import format_time
from kvvideo.types import Progress

_LEVELS = " ▁▂▃▄▅▆▇█"
_UNSEEN = "·"
_CARET = "▲"
# From dim to bright, one for each level above nothing.
_COLOURS = ("color(23)", "color(24)", "color(30)", "color(31)", "color(37)", "color(44)", "color(45)", "color(51)")
_STATES = {"playing": "▶", "paused": "‖", "waiting": "…", "ended": "■"}
_DIM, _FULL = "dim", "color(44)"
# Of a column: less than this is the rounding of a time, not a part of the video.
_SLIVER = 1e-6


@dataclass(frozen=True, kw_only=True)
class Status(Progress):
    """All that the panel and the prompt show.

    Attributes:
        state: ``playing``, ``paused``, ``waiting`` (for frames) or ``ended``.
        speed: as it was chosen: ``2x``, ``max``.
        realtime: seconds of video ingested per second.
        budget: tokens that a compaction keeps; None for a cache without bound.
        strategy: what decides what is kept.
        blocks_free: blocks of the pool that nothing holds.
        blocks_total: blocks of the pool.
        timeline: the share held of each stretch of the video.
        layer: layer that ``timeline`` is about; None for the mean of all.
        message: one more line to show; empty for none.
    """

    state: str
    speed: str
    rate: float
    realtime: float
    budget: int | None
    strategy: str
    blocks_free: int
    blocks_total: int
    timeline: tuple[Span, ...] = ()
    layer: int | None = None
    message: str = ""


def column_shares(spans: Sequence[Span], end: float, width: int) -> list[float | None]:
    """Return the share held of each of ``width`` equal stretches of [0, ``end``] seconds; None where nothing was seen.

    It is the mean over those seconds of the stretch that ``spans``, which do not overlap, tell of.
    """
    if width <= 0 or not end > 0:
        return [None] * width
    covered, held = [0.0] * width, [0.0] * width
    for span in spans:
        # In columns, so that whole ones come out as exactly 1.
        start, stop = max(span.start / end * width, 0.0), min(span.end / end * width, float(width))
        for column in range(int(start), min(math.ceil(stop), width)):
            part = min(stop, column + 1) - max(start, column)
            if part > _SLIVER:
                covered[column] += part
                held[column] += part * span.share
    return [h / c if c else None for h, c in zip(held, covered, strict=True)]


def timeline_bar(spans: Sequence[Span], end: float, width: int, at: float | None = None) -> Text:
    """Draw the video from 0 to ``end`` seconds as a bar ``width`` columns wide, as high as the share held.

    Columns of which nothing was seen are dots; one of which anything is held is never drawn empty. If ``at`` is
    given, a second line points to that moment.
    """
    bar = Text(no_wrap=True, end="")
    for column, same in groupby(map(_column, column_shares(spans, end, width))):
        bar.append(column[0] * len([*same]), column[1])
    if at is not None and width > 0:
        place = min(max(int(at / end * width), 0), width - 1) if end > 0 else 0
        bar.append("\n" + " " * place)
        bar.append(_CARET, "bold")
        bar.append(" " * (width - 1 - place))
    return bar


def _column(share: float | None) -> tuple[str, str]:
    """Return glyph and style of a column."""
    if share is None:
        return _UNSEEN, _DIM
    level = 0 if share <= 0 else min(max(1, round(share * 8)), 8)
    return _LEVELS[level], _COLOURS[level - 1] if level else ""


def panel(status: Status, width: int) -> RenderableType:
    """Draw all there is to know about the stream in a box ``width`` columns wide; nothing wraps in 40 or more."""
    inner = max(width - 4, 1)
    lines = [_heading(status), *_held(status, inner), *_flow(_details(status), inner)]
    lines += [*timeline_bar(status.timeline, _end(status), inner, status.position).split("\n"), _labels(status, inner)]
    if status.message:
        lines.append(Text(clean(" ".join(status.message.split())), style="yellow"))
    for line in lines:
        line.no_wrap, line.end = True, "\n"
        line.truncate(inner, overflow="ellipsis")
    return Panel(
        Group(*lines),
        box=box.ROUNDED,
        width=max(width, 5),
        title=Text(clean(status.strategy), style="bold"),
        title_align="left",
        border_style=_DIM,
    )


def prompt_line(status: Status, width: int | None = None) -> str:
    """Return the status in a few plain words: ``12:04/45:00 ▶ 2x · 1812/4096 · 61 fr/s``.

    Args:
        status: what there is to tell.
        width: columns that there are for it; what does not fit is left out, all of it if need be. None: any number.
    """
    at, state = _clock(status.position), _state(status)
    words = [
        f"{at}{'' if status.end is None else '/' + _clock(status.end)} {state}",
        f"{status.cache.live}{'' if status.max_tokens is None else f'/{status.max_tokens}'}",
        f"{status.rate:.0f} fr/s",
        *([f"{status.behind:.0f} s behind"] if status.behind >= 0.5 else []),
        *([f"{status.dropped:.0f} s dropped"] if status.dropped >= 0.5 else []),
    ]
    lines = [*(" · ".join(words[:count]) for count in range(len(words), 0, -1)), f"{at} {state}", at, ""]
    return next(line for line in lines if not line or width is None or cell_len(line) <= width)


def to_ansi(renderable: RenderableType, width: int) -> str:
    """Return ``renderable`` as text with colours, ``width`` columns wide, without a newline at the end."""
    # A height as well, or rich would not believe the width where the terminal is dumb.
    console = Console(
        file=StringIO(),
        force_terminal=True,
        color_system="256",
        legacy_windows=False,
        highlight=False,
        width=width,
        height=100,
    )
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().removesuffix("\n")


def _clock(seconds: float) -> str:
    """Return a time in whole seconds, rounded down: one that has passed."""
    return format_time(math.floor(seconds + 1e-6))


def _end(status: Status) -> float:
    """Return the end of the bar: a live video has no end yet, and some files go on after the end they give."""
    return max([status.end or 0.0, status.position, *(span.end for span in status.timeline)])


def _state(status: Status) -> str:
    glyph = _STATES.get(status.state, status.state)
    return f"{glyph} {status.speed}" if status.state == "playing" else glyph


def _heading(status: Status) -> Text:
    text = Text(_clock(status.position), style="bold")
    if status.end is not None:
        text.append(f" / {_clock(status.end)}", "not bold")
    text.append(f"  {_STATES.get(status.state, '')} {status.state}", "not bold")
    if status.state == "playing":
        text.append(f" {status.speed}", "not bold")
    return text


def _held(status: Status, width: int) -> list[Text]:
    """Draw the live tokens and how full they make the cache; the mark is the budget."""
    live, bound = status.cache.live, status.max_tokens
    if bound is None:
        return [Text(f"{live} tokens, no bound")]
    share = live / bound if bound > 0 else 0.0
    text, percent = Text(f"{live}/{bound} tokens "), f" {share:.0%}"
    columns = width - text.cell_len - len(percent)
    if columns >= 8:
        full = min(round(share * columns), columns)
        mark = None if status.budget is None or bound <= 0 else min(int(status.budget / bound * columns), columns - 1)
        styles = [("│", "bold") if c == mark else ("━", _FULL if c < full else _DIM) for c in range(columns)]
        for (glyph, style), same in groupby(styles):
            text.append(glyph * len([*same]), style)
    return [text.append(percent)]


def _details(status: Status) -> list[str]:
    stats = status.cache
    pieces = [
        "" if status.budget is None else f"budget {status.budget}",
        f"seen {stats.seen}",
        f"evicted {stats.evicted}",
        counted(stats.compactions, "compaction"),
        f"{stats.seen / stats.live:.1f}x smaller" if stats.live else "",
        size(stats.bytes),
        f"{counted(stats.blocks, 'block')}, {status.blocks_free} of {status.blocks_total} free",
        f"{status.rate:.0f} frames/s",
        f"{status.realtime:.1f}x real time",
        f"{status.behind:.1f} s behind" if status.behind >= 0.05 else "",
        f"{status.dropped:.1f} s dropped" if status.dropped >= 0.05 else "",
        "" if status.layer is None else f"timeline of layer {status.layer}",
    ]
    return [piece for piece in pieces if piece]


def _flow(pieces: Sequence[str], width: int) -> list[Text]:
    """Return ``pieces`` in lines of at most ``width`` columns, none cut but one that is too long for a line."""
    lines: list[str] = []
    for piece in pieces:
        if lines and len(lines[-1]) + len(piece) + 3 <= width:
            lines[-1] += f" · {piece}"
        else:
            lines.append(piece)
    return [Text(line) for line in lines]


def _labels(status: Status, width: int) -> Text:
    """Draw the times of the bar's ends, and of its middle where there is room."""
    end = _end(status)
    first, middle, last = (_clock(time) for time in (0.0, end / 2, end))
    between = width - len(first) - len(last)
    if between >= len(middle) + 4:
        left = width // 2 - len(first) - len(middle) // 2
        text = first + " " * left + middle
        return Text(text + " " * (width - len(text) - len(last)) + last, style=_DIM)
    return Text(first + " " * max(between, 1) + last, style=_DIM)
