"""All of rich: readable answers on stdout, and progress on stderr."""

import io
import math
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kvvideo.cli import everywhere, log, screen
from kvvideo.cli.everywhere import Way
from kvvideo.cli.line import GAP, Line, Rest
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
_LEAST_CELLS = 8
_NAMES = 12
"""Columns of the names in a prediction."""
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
    elif record.get("checkpoint_bytes"):
        rows["disk"] = f"up to {size(2 * record['checkpoint_bytes'])} meanwhile, for --resume"
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
    answers = counted(record["answers"], "answer")
    asked = f", {answers} at {pace['answer_seconds']:.2g} s" if pace["answer_seconds"] else ""
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
    room = screen.size(sys.stdout)[0] if sys.stdout.isatty() else sum(widths) + len(GAP) * len(widths)
    for number, width in enumerate(widths):
        later = sum(min(other, least) + len(GAP) for other in widths[number + 1 :]) if least and number else 0
        widths[number] = min(width, room if room <= later else room - later)
        # A few letters of each say nothing.
        if number and widths[number] < min(width, _LEAST_CELLS):
            widths[number] = 0
        room = max(room - widths[number] - len(GAP), 0)
    for row in cells:
        line = Text()
        for cell, width in zip(row, widths, strict=True):
            if width:
                cell.truncate(width, overflow="ellipsis", pad=True)
                line.append_text(cell).append(GAP)
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

    @property
    def is_shown(self) -> bool:
        """True if progress is shown in any way."""
        return self._records or self._bottom is not None or self._minutes is not None

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
        self._start, self._rest = start or 0.0, Rest()

    def chunk(self, now: "types.Progress") -> None:
        """Show how far the stream is, and what the cache holds; of live video also how late it is."""
        bound = "" if now.max_tokens is None else f"/{now.max_tokens}"
        late = ((now.behind, "behind"), (now.dropped, "dropped"))
        details = [
            *(f"{time:.0f} s {what}" for time, what in late if time >= 0.5),
            "" if now.rate is None else f"{now.rate:.1f} frames/s",
            f"{now.cache.live}{bound} tokens",
            size(now.cache.bytes),
            f"{now.cache.evicted} evicted",
        ]
        left = self._rest.seconds(now.position, now.end)
        line = Line.of(self._start, now.position, now.end, left, [text for text in details if text])
        record = {
            "doing": None,
            **line.record,
            "frames_per_second": None if now.rate is None else round(now.rate, 1),
            "behind_seconds": now.behind,
            "dropped_seconds": now.dropped,
            "live": now.cache.live,
            "max_tokens": now.max_tokens,
            "evicted": now.cache.evicted,
            "bytes": now.cache.bytes,
        }
        self._show(line.drawn, record, at_once=line.share == 1.0)


def _lines(what: RenderableType, columns: int, rows: int) -> list[str]:
    """Return ``what`` as at most ``rows`` lines for a terminal, none longer than ``columns``."""
    _live.width = columns
    with _live.capture() as drawn:
        _live.print(what, no_wrap=True, overflow="ellipsis", end="")
    lines = drawn.get().rstrip("\n").split("\n")
    # The last one is about the whole.
    return lines if len(lines) <= rows else [*lines[: rows - 1], lines[-1]]


def _plain(what: RenderableType) -> str:
    """Return the last line of ``what``, without colours."""
    console = Console(file=io.StringIO(), width=_WIDE, color_system=None, highlight=False)
    with console.capture() as drawn:
        console.print(what)
    return drawn.get().rstrip().rpartition("\n")[2].strip()
