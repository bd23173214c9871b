"""All of rich: readable answers on stdout, and progress on stderr."""

import io
import math
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kvvideo.cli import everywhere, log, screen
from kvvideo.cli.everywhere import Way
from kvvideo.cli.stop import Stop
from kvvideo.outputs import jsons
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
_NAMES = 12
"""Columns of the names in a prediction."""
_BAR_COLUMNS, _LEAST_BAR_COLUMNS = 20, 4
_WIDE = 1000
"""Columns of a line that nothing cuts."""
_RECORD_SECONDS = 1.0
"""Seconds between two records of progress."""

Drawn = Callable[[int | None], RenderableType]


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


def aside(text: str) -> None:
    """Print a line on stderr about what went as it should, unless only what went wrong is to be said."""
    log.told(text)
    if not everywhere.is_quiet():
        err.print(Text(text, style="dim"), soft_wrap=True)


def summary(record: dict[str, Any], named: bool = False) -> None:
    """Print the last record as one line on stderr, with the strategy's name if ``named``."""
    cache = record["cache"]
    held = "" if cache is None else f"; cache {_cache_line(cache)}"
    length = record["end"] - record["start"]
    name = f"{record['strategy']}: " if named else ""
    # Of several strategies the first would seem to be the slowest.
    loading = record.get("load_seconds", 0.0) if named else 0.0
    took = _took(record | {"seconds": record["seconds"] - loading})
    took += f", after {loading:.1f} s of loading" if loading else ""
    aside(
        f"{name}{counted(record['answers'], 'answer')}, {format_time(length)} of video, "
        f"{counted(record['frames'], 'frame')} {took}{held}"
    )


def ingested(record: dict[str, Any]) -> None:
    """Print the record of ``ingest`` as one line on stderr."""
    length = record["end"] - record["start"]
    since = "" if record["resumed_from"] is None else f", resumed from {format_time(record['resumed_from'])}"
    file = "" if record["bytes"] is None else f"{clean(record['output'])}: {size(record['bytes'])}, "
    aside(
        f"{file}{counted(record['checkpoints'], 'checkpoint')}; {format_time(length)} of video, "
        f"{counted(record['frames'], 'frame')} {_took(record)}{since}; cache {_cache_line(record['cache'])}"
    )


def prediction(record: dict[str, Any]) -> None:
    """Print what a run will take, in lines of the terminal's width, or of 80 columns."""
    rows = {
        "time": _time(record),
        "frames": f"{record['frames']} of {record['width']}x{record['height']}, in {record['chunks']} chunks; the "
        f"source has {record['source_width']}x{record['source_height']}",
        "text": _legible(record),
        "remembers": _remembers(record),
        "cache": f"{size(record['bytes'])}, at most {record['peak_tokens']} tokens ({record['strategy']}); all tokens "
        f"would be {size(record['full_bytes'])}",
        "GPU" if record["reserve_bytes"] else "memory": _in_all(record),
        "positions": f"up to {record['last_position']}; the model was trained to {record['trained_positions']}",
    }
    if "subtitles" in record:
        rows["words"] = f"{counted(record['words_tokens'], 'token')} of {record['subtitles']}"
    if record.get("index_bytes"):
        rows["index"] = f"{size(record['index_bytes'])} of host memory, by which questions find chunks again"
    if "file_bytes" in record:
        rows["file"] = (
            f"at most {size(record['file_bytes'])}: the end, and {record['kept_checkpoints']} of "
            f"{record['checkpoints']} checkpoints of up to {size(record['checkpoint_bytes'])}"
        )
        if "frame_bytes" in record:
            rows["its frames"] = f"about {size(record['frame_bytes'])} more"
        rows["disk"] = f"{size(2 * (record['file_bytes'] + record.get('frame_bytes', 0)))} until the file is complete"
    width = screen.size(sys.stdout)[0] if sys.stdout.isatty() else 80
    for name, value in rows.items():
        first, *more = textwrap.wrap(value, max(width - _NAMES, 20), break_on_hyphens=False)
        out.print(Text(f" {name:<{_NAMES - 1}}", style="bold") + Text(first, style="not bold"))
        for line in more:
            out.print(Text(" " * _NAMES + line))


def _time(record: dict[str, Any]) -> str:
    """Return how long the run will take, and how that is known."""
    pace = record["pace"]
    if pace is None:
        return "not known here yet: run it once, or a minute of it (--to 1:00), and then this says it"
    day = time.strftime("%Y-%m-%d", time.localtime(pace["at"]))
    asked = f", {record['answers']} answers at {pace['answer_seconds']:.2g} s" if pace["answer_seconds"] else ""
    # Attention to more tokens takes longer.
    more = record["peak_tokens"] > 2 * pace["tokens"]
    held = f"; it held {pace['tokens']} tokens, and more take longer" if more else ""
    return (
        f"about {format_time(round(record['run_seconds']))}: loading {pace['load_seconds']:.0f} s, {record['chunks']} "
        f"chunks at {pace['chunk_seconds']:.2g} s{asked}; as in the last run like this here, on {day}{held}"
    )


def _legible(record: dict[str, Any]) -> str:
    """Return how small letters may be to be read."""
    seen, tokens = f"{record['frame_tokens']} tokens a pair of frames", record["legible_frame_tokens"]
    if tokens is None:
        return f"{seen}: letters of {record['legible_pixels']} pixels in the source can be read"
    return (
        f"{seen}: letters below {record['legible_pixels']} pixels in the source cannot be read, as in most subtitles "
        f"and slides; --frame-tokens {tokens} shows them, and takes longer"
    )


def _remembers(record: dict[str, Any]) -> str:
    """Return which share of the video stays in memory."""
    tokens, peak, budget = record["tokens"], record["peak_tokens"], record["budget_tokens"]
    if peak >= tokens and budget is None:
        return f"all of it, {tokens} tokens"
    if budget is None:
        return f"{_share(peak, tokens)} of it, {peak} of {tokens} tokens, read anew for each question"
    again = (
        "; a question finds the rest and is shown that again (--recall)"
        if record["index_bytes"]
        else "; the rest is gone, for no question looks again (--recall 4 would)"
    )
    return (
        f"{_share(peak, tokens)} of it at most, {peak} of {tokens} tokens, and {_share(budget, tokens)} after each of "
        f"{record['compactions']} compactions{again}"
    )


def _in_all(record: dict[str, Any]) -> str:
    """Return the memory that the model, its cache and all else take together."""
    weights, pool, reserve = record["weight_bytes"], record["pool_bytes"], record["reserve_bytes"]
    rest = f", about {size(reserve)} to compute with" if reserve else " and what computing takes"
    if pool is None:
        return f"weights {size(weights)}, the cache what else is free{rest}"
    total = weights + pool + reserve
    return f"about {size(total)} in all: weights {size(weights)}, cache and questions {size(pool)}{rest}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2g} %"


def whole(table: Table) -> None:
    """Print ``table`` with no cell cut or wrapped, whatever the width of what it goes to."""
    width = Measurement.get(out, out.options.update(max_width=_WIDE), table).maximum
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
    """The progress of a command on stderr, while it is entered, in the way that ``--progress`` says.

    It is a live part of a terminal, a line a minute, or JSON objects for programs.
    """

    def __init__(self) -> None:
        way = everywhere.way()
        if way is Way.auto:
            way = Way.auto if screen.is_live() else Way.plain
        self._bottom = screen.bottom if way is Way.auto else None
        self._minutes = screen.Minutes() if way is Way.plain else None
        self._records = way is Way.jsonl
        self._began, self._told = time.monotonic(), -math.inf
        self._doing: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for shown in (self._bottom, self._minutes):
            if shown:
                shown.end()

    def say(self, text: str) -> None:
        """Show ``text`` until the next update."""
        self._show(lambda _: Text(clean(text), style="dim"), {"doing": text})

    def wait(self, text: str) -> None:
        """Show ``text`` until the next update, and for how long: nobody knows how long it will be."""
        begun = time.monotonic()
        self._show(
            lambda _: Text(f"{clean(text)} {time.monotonic() - begun:.0f} s", style="dim"),
            {"doing": text},
            ticking=True,
            at_once=True,
        )

    def loading(self, model: str, stop: Stop, tidy: Callable[[], None] = lambda: None) -> None:
        """Show that ``model`` is loaded; meanwhile Ctrl-C ends the command at once, after ``tidy``."""
        stop.at_once(tidy)
        self.wait(f"loading {model} …")

    def _show(self, what: Drawn, record: dict[str, Any], ticking: bool = False, at_once: bool = False) -> None:
        """Show what is drawn for so many columns, or ``record``.

        Args:
            what: of columns, or of None for a line without a bar; of several lines its last one is such a line.
            record: the same for programs.
            ticking: it is drawn anew every second.
            at_once: ``record`` is told even if another was told within the last second.
        """
        if self._bottom:
            self._bottom.show(lambda columns, rows: _lines(what(columns), columns, rows), ticking)
        elif self._minutes:
            self._minutes.show(lambda: _plain(what(None)))
        elif self._records and (
            at_once
            or (self._doing is None) != (record["doing"] is None)
            or time.monotonic() - self._told >= _RECORD_SECONDS
        ):
            self._told, self._doing = time.monotonic(), record["doing"]
            whole = {"type": "progress", "schema": 1, "seconds": round(self._told - self._began, 3), **record}
            print(jsons.line(whole), end="", file=sys.stderr, flush=True)


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
        left = self._left(now.position, now.end)
        details = [
            *(f"{time:.0f} s {what}" for time, what in late if time >= 0.5),
            "" if now.rate is None else f"{now.rate:.1f} frames/s",
            f"{now.cache.live}{bound} tokens",
            size(now.cache.bytes),
            f"{now.cache.evicted} evicted",
        ]
        shown = [text for text in details if text]
        # The last frame stands for a while after the end; but some files go on after the end that they give.
        is_known = now.end is not None and self._start < now.end and now.position <= now.end + _BEYOND_SECONDS
        end = now.end if is_known else None
        line = _Line(self._start, now.position if end is None else min(now.position, end), end, left, shown)
        self._show(line.drawn, self._record(now, line), at_once=line.share == 1.0)

    def _left(self, at: float, end: float | None) -> float | None:
        """Return the seconds that the rest will take, at the pace so far; None if that is not known."""
        now = time.monotonic()
        if self._pace is None or at < self._at:
            self._pace = at, now  # it begins anew, under another strategy
        (since, began), self._at = self._pace, at
        if end is None or now - began < _PACE_SECONDS or at <= since:
            return None
        return max(end - at, 0.0) * (now - began) / (at - since)

    def _record(self, now: "types.Progress", line: "_Line") -> dict[str, Any]:
        """Return the record of a position."""
        return {
            "doing": None,
            "start": self._start,
            "position": line.at,
            "end": line.end,
            "share": None if line.share is None else round(line.share, 4),
            "left_seconds": None if line.left is None else round(line.left, 1),
            "frames_per_second": None if now.rate is None else round(now.rate, 1),
            "behind_seconds": now.behind,
            "dropped_seconds": now.dropped,
            "live": now.cache.live,
            "max_tokens": now.max_tokens,
            "evicted": now.cache.evicted,
            "bytes": now.cache.bytes,
        }


@dataclass(frozen=True)
class _Line:
    """The line of a stream's position.

    Attributes:
        start, at, end: in seconds; ``end`` is None if nobody knows it.
        left: seconds that the rest will take; None if that is not known.
        details: texts after that, of which the first that fit are shown.
    """

    start: float
    at: float
    end: float | None
    left: float | None
    details: Sequence[str]

    @property
    def share(self) -> float | None:
        """Share of the part that is read; None if nobody knows its end."""
        return None if self.end is None else min(max((self.at - self.start) / (self.end - self.start), 0.0), 1.0)

    def drawn(self, width: int | None) -> Text:
        """Return the line for so many columns, or without a bar and as long as it is."""
        at, share = format_time(math.floor(self.at)), self.share
        line = Text(at, "bold")
        left = "" if self.left is None else f"{format_time(round(self.left))} left"
        if self.end is not None and share is not None:
            percent, total = f"{math.floor(share * 100 + 1e-6):4d}%", f" / {format_time(math.floor(self.end))}"
            needed = cell_len(at + percent) + (len(_GAP + left) if left else 0)
            # Time left is worth more than the end, which goes first where there is no room for both.
            if width is None or width - needed - len(total) >= _LEAST_BAR_COLUMNS + 1:
                line.append(total)
                needed += len(total)
            if width is not None and width - needed > _LEAST_BAR_COLUMNS:
                line.append(" ").append_text(_bar(share, min(_BAR_COLUMNS, width - needed - 1)))
            if width is None or width >= line.cell_len + len(percent):
                line.append(percent)
        for text in filter(None, (left, *self.details)):
            if width is not None and line.cell_len + len(_GAP) + cell_len(text) > width:
                break
            line.append(f"{_GAP}{text}")
        return line


def _bar(share: float, columns: int) -> Text:
    """Return a bar of so many columns, filled to ``share``."""
    drawn = ProgressBar(1.0, share, width=columns, style="bright_black", complete_style="cyan", finished_style="cyan")
    bar = Text()
    for part in _live.render(drawn, _live.options):
        bar.append(part.text.strip("\n"), part.style)
    bar.pad_right(columns - bar.cell_len)  # without colours, what is to come is not drawn
    return bar


def _lines(what: RenderableType, columns: int, rows: int) -> list[str]:
    """Return ``what`` as at most ``rows`` lines for a terminal, none longer than ``columns``."""
    _live.width = columns
    with _live.capture() as drawn:
        _live.print(what, no_wrap=True, overflow="ellipsis", end="")
    return drawn.get().rstrip("\n").split("\n")[:rows]


def _plain(what: RenderableType) -> str:
    """Return the last line of ``what``, without colours."""
    console = Console(file=io.StringIO(), width=_WIDE, color_system=None, highlight=False)
    with console.capture() as drawn:
        console.print(what)
    return drawn.get().rstrip().rpartition("\n")[2].strip()
