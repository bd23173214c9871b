"""All of rich: readable answers on stdout, progress on stderr and only on a terminal."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kvvideo.cli import screen
from kvvideo.outputs.clean import text as clean_text
from kvvideo.outputs.evidence import looked_again
from kvvideo.outputs.figures import counted
from kvvideo.sizes import format_size
from kvvideo.times import format_time

if TYPE_CHECKING:
    from kvvideo import types

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False)
# A live part is drawn while others print; what they have begun must not get into it.
_live = Console(stderr=True, highlight=False)
size, clean = format_size, clean_text

_MUCH = 0.1
"""Share of a run's time that waiting for frames must take to be worth a word."""
_PACE_SECONDS = 2.0
"""Seconds that a stream must have gone on before its pace says anything."""
_BEYOND_SECONDS = 10.0
"""Seconds that the last frame may reach beyond the end of a video."""
_GAP, _LEAST_CELLS = "  ", 8
_BAR_COLUMNS, _LEAST_BAR_COLUMNS = 20, 4


def _question(record: dict[str, Any]) -> Text:
    since = "" if record.get("since") is None else f"{format_time(record['since'])} to "
    # What a task asks is the same all along.
    words = "" if record.get("task") else " " + clean(record["question"])
    return Text(f"[{since}{format_time(record['asked_at'])}]{words}", style="bold")


def answer(record: dict[str, Any]) -> None:
    """Print one answer record as text."""
    said = clean(record["answer"]) or "(no answer)"
    if record.get("task"):
        out.print(_question(record) + Text(f" {said}", style="not bold"))
    else:
        out.print(_question(record))
        out.print(Text(f"  {said}"))
    if record["finish_reason"] == "length":
        out.print(Text("  … cut here; --max-answer-tokens allows longer answers", style="dim"))
    if again := looked_again(record):
        out.print(Text(f"  {again}", style="dim"))


def comparison(records: list[dict[str, Any]]) -> None:
    """Print answer records of several strategies: each question once, with a line for each strategy."""
    width = max(len(record["strategy"]) for record in records)
    asked: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for record in sorted(records, key=lambda record: float(record["asked_at"])):
        asked.setdefault((record["asked_at"], record["question"]), []).append(record)
    for same in asked.values():
        out.print(_question(same[0]))
        for record in same:
            said = clean(" ".join(record["answer"].split())) or "(no answer)"
            cut = " …" if record["finish_reason"] == "length" else ""
            again = f"  ({words})" if (words := looked_again(record)) else ""
            out.print(Text(f"  {record['strategy']:<{width}}  {said}{cut}") + Text(again, style="dim"))


class Answers:
    """Writes records as text: answers to stdout, and a line about each run to stderr.

    Args:
        compared: they are of several strategies, and shown side by side, at the end.
    """

    def __init__(self, compared: bool = False) -> None:
        self._compared = compared
        self._kept: list[dict[str, Any]] = []

    def write(self, record: dict[str, Any]) -> None:
        """Print ``record``, or keep it for the comparison."""
        if record["type"] != "answer":
            summary(record, named=self._compared)
        elif self._compared:
            self._kept.append(record)
        else:
            answer(record)

    def close(self) -> None:
        """Print the comparison, if there is one."""
        kept, self._kept = self._kept, []
        if kept:
            comparison(kept)


def summary(record: dict[str, Any], named: bool = False) -> None:
    """Print the last record as one line on stderr, with the strategy's name if ``named``."""
    cache = record["cache"]
    held = "" if cache is None else f"; cache {_cache_line(cache)}"
    length = record["end"] - record["start"]
    name = f"{record['strategy']}: " if named else ""
    err.print(
        Text(
            f"{name}{counted(record['answers'], 'answer')}, {format_time(length)} of video, "
            f"{counted(record['frames'], 'frame')} {_took(record)}{held}",
            style="dim",
        ),
        soft_wrap=True,
    )


def ingested(record: dict[str, Any]) -> None:
    """Print the record of ``ingest`` as one line on stderr."""
    length = record["end"] - record["start"]
    since = "" if record["resumed_from"] is None else f", resumed from {format_time(record['resumed_from'])}"
    file = "" if record["bytes"] is None else f"{clean(record['output'])}: {size(record['bytes'])}, "
    err.print(
        Text(
            f"{file}{counted(record['checkpoints'], 'checkpoint')}; {format_time(length)} of video, "
            f"{counted(record['frames'], 'frame')} {_took(record)}{since}; cache {_cache_line(record['cache'])}",
            style="dim",
        ),
        soft_wrap=True,
    )


def prediction(record: dict[str, Any]) -> None:
    """Print what a run will take, as a small table."""
    table = Table(box=None, show_header=False)
    rows = {
        "frames": f"{record['frames']} of {record['width']}x{record['height']}, in "
        f"{counted(record['chunks'], 'chunk')}",
        "tokens": f"{record['tokens']}",
        "cache": f"{size(record['bytes'])}, at most {record['peak_tokens']} tokens; "
        f"{counted(record['compactions'], 'compaction')} ({record['strategy']})",
        "without": f"{size(record['full_bytes'])} without compression",
        "positions": f"up to {record['last_position']}; the model was trained to {record['trained_positions']}",
    }
    if record.get("index_bytes"):
        rows["index"] = f"{size(record['index_bytes'])} of host memory, by which questions find chunks again"
    if "file_bytes" in record:
        rows["file"] = (
            f"at most {size(record['file_bytes'])}, with {counted(record['checkpoints'], 'checkpoint')} of up to "
            f"{size(record['checkpoint_bytes'])}"
        )
    if "frame_bytes" in record:
        rows["its frames"] = f"about {size(record['frame_bytes'])} more"
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), value)
    out.print(table)


def whole(table: Table) -> None:
    """Print ``table`` with no cell cut or wrapped, whatever the width of what it goes to."""
    width = Measurement.get(out, out.options.update(max_width=1000), table).maximum
    wide = Console(highlight=False, width=max(out.width, width))
    for line in wide.render_lines(table, pad=False):
        # Blanks at the end would be a line of their own in a terminal.
        text = Text.assemble(*((part.text, part.style or "") for part in line))
        text.rstrip()
        out.print(text)


def listing(head: Sequence[str], rows: Sequence[Sequence[str | Text]], least: int = 0) -> None:
    """Print ``rows`` under ``head``, each in one line: in full, but in a terminal cut to its width.

    Earlier columns have room before later ones, of which each is left ``least`` columns of the terminal if it can be.
    The first names its row: it is whole before any other has room.
    """
    cells = [[Text(text, style="bold") for text in head]]
    cells += [[text.copy() if isinstance(text, Text) else Text(text) for text in row] for row in rows]
    widths = [max(cell.cell_len for cell in column) for column in zip(*cells, strict=True)]
    room = screen.size(sys.stdout)[0] if sys.stdout.isatty() else sum(widths) + len(_GAP) * len(widths)
    for number, width in enumerate(widths):
        later = sum(min(other, least) + len(_GAP) for other in widths[number + 1 :]) if least and number else 0
        widths[number] = min(width, room if room <= later else room - later)
        # A few letters of each say nothing.
        if number and widths[number] < min(width, _LEAST_CELLS):
            widths[number] = 0
        room = max(room - widths[number] - len(_GAP), 0)
    for row in cells:
        line = Text()
        for cell, width in zip(row, widths, strict=True):
            if width:
                cell.truncate(width, overflow="ellipsis", pad=True)
                line.append_text(cell).append(_GAP)
        line.rstrip()
        out.print(line)


def _took(record: dict[str, Any]) -> str:
    """Return how long a run took, and the wait for frames if that was much of it."""
    took = record["seconds"]
    waited = record.get("waited_seconds", 0.0)  # a record of a run that is resumed may be older than the field
    much = waited >= max(1.0, _MUCH * took)
    return f"in {took:.1f} s" + (f", {waited:.1f} of them waiting for frames" if much else "")


def _cache_line(cache: dict[str, Any]) -> str:
    """Return the cache part of a record in a few words."""
    bound = "" if cache["max_tokens"] is None else f"/{cache['max_tokens']}"
    held = f"{counted(cache['blocks'], 'block')}, {size(cache['bytes'])}"
    return f"{cache['live']}{bound} tokens, {held}, {cache['evicted']} evicted"


class Transient:
    """A live part of the terminal that is stderr, while it is entered; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._shown = screen.bottom if screen.is_live() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._shown.end()

    def say(self, text: str) -> None:
        """Show ``text`` until the next update."""
        self._show(lambda _: Text(clean(text), style="dim"))

    def wait(self, text: str) -> None:
        """Show ``text`` until the next update, and for how long: nobody knows how long it will be."""
        begun = time.monotonic()
        self._show(lambda _: Text(f"{clean(text)} {time.monotonic() - begun:.0f} s", style="dim"), ticking=True)

    def _show(self, what: Callable[[int], RenderableType], ticking: bool = False) -> None:
        """Show what rich makes for so many columns; ``ticking``: anew every second."""
        if self._shown:
            self._shown.show(lambda columns, rows: _lines(what(columns), columns, rows), ticking)


class Progress(Transient):
    """One line that shows where the stream is.

    Args:
        start: where it begins, in seconds.
    """

    def __init__(self, start: float | None = None) -> None:
        super().__init__()
        self._start = start or 0.0
        self._pace: tuple[float, float] | None = None
        self._at = self._start

    def chunk(self, now: "types.Progress") -> None:
        """Show how far the stream is, and what the cache holds; of live video also how late it is."""
        bound = "" if now.max_tokens is None else f"/{now.max_tokens}"
        late = ((now.behind, "behind"), (now.dropped, "dropped"))
        details = [
            *(f"{time:.0f} s {what}" for time, what in late if time >= 0.5),
            self._left(now.position, now.end),
            "" if now.rate is None else f"{now.rate:.1f} frames/s",
            f"{now.cache.live}{bound} tokens",
            size(now.cache.bytes),
            f"{now.cache.evicted} evicted",
        ]
        shown = [text for text in details if text]
        self._show(lambda width: _position(self._start, now.position, now.end, shown, width))

    def _left(self, at: float, end: float | None) -> str:
        """Return the time that the rest will take, at the pace so far."""
        now = time.monotonic()
        if self._pace is None or at < self._at:
            self._pace = at, now  # it begins anew, under another strategy
        (since, began), self._at = self._pace, at
        if end is None or now - began < _PACE_SECONDS or at <= since:
            return ""
        return f"{format_time(round(max(end - at, 0.0) * (now - began) / (at - since)))} left"


def _position(start: float, at: float, end: float | None, details: Sequence[str], width: int) -> Text:
    """Return the line of a stream's position: a bar if it has an end, and of ``details`` the first that fit."""
    # The last frame stands for a while after the end; but some files go on after the end that they give.
    known = end is not None and start < end and at <= end + _BEYOND_SECONDS
    line = Text().append(format_time(math.floor(min(at, end) if known and end is not None else at)), "bold")
    if known and end is not None:
        share = min(max((at - start) / (end - start), 0.0), 1.0)
        line.append(f" / {format_time(math.floor(end))} ")
        bar = min(_BAR_COLUMNS, width - line.cell_len - 5)
        if bar >= _LEAST_BAR_COLUMNS:
            until = line.cell_len + bar
            drawn = ProgressBar(
                1.0, share, width=bar, style="bright_black", complete_style="cyan", finished_style="cyan"
            )
            for part in _live.render(drawn, _live.options):
                line.append(part.text.strip("\n"), part.style)
            line.pad_right(until - line.cell_len)  # without colours, what is to come is not drawn
        line.append(f"{math.floor(share * 100 + 1e-6):4d}%")
    for text in details:
        if line.cell_len + 2 + cell_len(text) > width:
            break
        line.append(f"  {text}")
    return line


def _lines(what: RenderableType, columns: int, rows: int) -> list[str]:
    """Return ``what`` as at most ``rows`` lines for a terminal, none longer than ``columns``."""
    _live.width = columns
    with _live.capture() as drawn:
        _live.print(what, no_wrap=True, overflow="ellipsis", end="")
    return drawn.get().rstrip("\n").split("\n")[:rows]
