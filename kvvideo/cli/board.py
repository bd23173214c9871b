"""The tables of ``kvvideo batch``: of the videos at hand while it runs, of the results, and of ``--check``."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.table import Table
from rich.text import Text

from kvvideo.batch.lengths import Lengths
from kvvideo.batch.run import Counts
from kvvideo.batch.streams import Answered, Ended, Event, Moved
from kvvideo.batch.tasks import Task
from kvvideo.cli import render
from kvvideo.cli.line import GAP, Line, Rest
from kvvideo.outputs import clean
from kvvideo.outputs.figures import counted
from kvvideo.times import format_time
from kvvideo.types import Progress

_DRAWN_SECONDS = 0.1
"""Seconds that the board stays as it is at least."""
_HEAD = ("job", "strategy", "answers")
_MOST = (0.25, 0.15, 0.09)
"""Shares of a terminal's columns that these take at most."""
_WIDE = 60
"""Columns of a terminal that has room for more than the first of them."""


class Board(render.Transient):
    """A live table of the videos at hand, and a line about the whole batch.

    Args:
        progress: counts of the batch.
        done: questions that were answered earlier.
        tasks: that are to be done.
    """

    def __init__(self, progress: Counts, done: int, tasks: Sequence[Task]) -> None:
        super().__init__()
        self._progress, self._done = progress, done
        self._drawn = -math.inf
        self._streams: dict[str, _Stream] = {}
        self._answers: dict[str, int] = {}
        self._lengths, self._rest = Lengths(tasks), Rest()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._lengths.close()

    def show(self, event: Event) -> None:
        """Note ``event``, and show it unless the last one was shown just now."""
        key = event.task.key
        if isinstance(event, Answered):
            self._answers[key] = self._answers.get(key, 0) + len(event.asked)
            self._done += len(event.asked)
        elif isinstance(event, Moved):
            self._streams.setdefault(key, _Stream(event.task)).move(event.progress)
            if self.is_shown:
                self._lengths.look()
        elif isinstance(event, Ended):
            self._streams.pop(key, None)
        self._lengths.note(event)
        # Events may come much faster than one can see, or a terminal draw.
        last = self._done >= self._progress.questions
        if (now := time.monotonic()) - self._drawn >= _DRAWN_SECONDS or last:
            self._drawn = now
            self._draw(last)

    def _draw(self, last: bool) -> None:
        whole, counts = self._whole(), {"done": self._done, "of": self._progress.questions}
        # Another thread may draw meanwhile.
        streams = [(stream.cells(self._answers.get(key, 0)), stream.line) for key, stream in self._streams.items()]
        videos = [stream.record(self._answers.get(key, 0)) for key, stream in self._streams.items()]
        record = {"doing": "answering", **counts, **whole.record, "videos": videos}
        self._show(lambda columns: _drawn(streams, whole, columns), record, at_once=last)

    def _whole(self) -> Line:
        """Return the line of the batch, by seconds of video."""
        total, done, ingested = self._lengths.total, self._lengths.done, self._lengths.ingested
        left = self._rest.seconds(ingested, None if total is None else ingested + total - done)
        progress = self._progress
        return Line.of(
            0.0,
            done,
            total,
            left,
            [f"{self._done}/{progress.questions} questions", f"{progress.ended}/{progress.tasks} videos"],
        )


@dataclass
class _Stream:
    """A video at hand.

    Attributes:
        task: what it is read for.
        line: where it is.
        now: the same, and what the cache holds.
    """

    task: Task
    line: Line = field(init=False)
    now: Progress = field(init=False)
    _rest: Rest = field(default_factory=Rest, init=False)

    def move(self, now: Progress) -> None:
        """Note where it is."""
        self.now, left = now, self._rest.seconds(now.position, now.end)
        bound = "" if now.max_tokens is None else f"/{now.max_tokens}"
        self.line = Line.of(
            self.task.source.start or 0.0, now.position, now.end, left, [f"{now.cache.live}{bound} tokens"]
        )

    def cells(self, answers: int) -> tuple[str, str, str]:
        """Return what stands before the line."""
        names = ", ".join(job.id for job in self.task.jobs)
        return clean.line(names), self.task.cache.strategy, f"{answers}/{len(self.task.wants)}"

    def record(self, answers: int) -> dict[str, Any]:
        """Return the same for programs."""
        return {
            "jobs": [job.id for job in self.task.jobs],
            "strategy": self.task.cache.strategy,
            **self.line.record,
            "live": self.now.cache.live,
            "max_tokens": self.now.max_tokens,
            "done": answers,
            "of": len(self.task.wants),
        }


def _drawn(streams: Sequence[tuple[Sequence[str], Line]], whole: Line, columns: int | None) -> Text:
    """Return the board for so many columns, or its last line alone."""
    if columns is None or not streams:
        return whole.drawn(columns)
    rows = [_HEAD, *(cells for cells, _ in streams)]
    rows = [cells if columns >= _WIDE else cells[:1] for cells in rows]
    shares = _MOST[: len(rows[0])]
    widths = [
        min(max(Text(cell).cell_len for cell in column), round(columns * share))
        for column, share in zip(zip(*rows, strict=True), shares, strict=True)
    ]
    room = columns - sum(widths) - len(GAP) * len(widths)
    board = Text()
    for cells, line in zip(rows, [Text("at"), *(line.drawn(room) for _, line in streams)], strict=True):
        for cell, width in zip(cells, widths, strict=True):
            text = Text(cell)
            text.truncate(width, overflow="ellipsis", pad=True)
            board.append_text(text).append(GAP)
        board.append_text(line).append("\n")
    board.stylize("bold", 0, len(board.plain.partition("\n")[0]))
    return board.append_text(whole.drawn(columns))


def summary(record: dict[str, Any]) -> None:
    """Print the results of a batch as a table."""
    table = Table("strategy", "answered of those scored", "right", box=None, header_style="bold")
    for name, score in record["strategies"].items():
        right = "" if score["accuracy"] is None else f"{score['right']} ({score['accuracy']:.1%})"
        table.add_row(name, str(score["scored"]), right)
    if record["scored"]:
        render.whole(table)
    now = record["now"]
    videos = f"{now['complete']} of " * (now["complete"] < now["ingests"]) + f"{now['ingests']} videos"
    speed = f", {now['video_seconds'] / now['seconds']:.1f} x as fast as they play" if now["video_seconds"] else ""
    render.out.print(
        f"{record['answered']} of {record['questions']} questions answered, {record['failed']} failed, "
        f"{record['left']} left; {counted(record['jobs'], 'job')}, {counted(record['videos'], 'video')}"
    )
    render.aside(
        f"now: {videos} to their end, {format_time(now['video_seconds'])} of video, "
        f"{counted(now['frames'], 'frame')} in {now['seconds']:.1f} s{speed}"
    )


def check(records: list[dict[str, Any]], total: dict[str, Any]) -> None:
    """Print what a batch will take, as a table."""
    table = Table("jobs", "video", "length", "frames", "tokens", "cache at most", box=None, header_style="bold")
    for record in records:
        known = "tokens" in record
        length = record.get("seconds")
        table.add_row(
            _names(record["jobs"]),
            Text(clean.line(record["video"])),
            "?" if length is None else format_time(round(length)),
            str(record["frames"]) if known else "",
            str(record["tokens"]) if known else "",
            render.size(record["bytes"]) if known else "",
        )
    render.whole(table)
    pool = "" if total["pool_bytes"] is None else f" in a pool of {render.size(total['pool_bytes'])}"
    render.out.print(
        f"{counted(total['questions'], 'question')}, {counted(len(records), 'ingest')}, "
        f"{total['sessions']} at once{pool}; {format_time(round(total['seconds']))} of video, "
        f"{total['frames']} frames, {total['tokens']} tokens"
    )


def _names(ids: list[str]) -> Text:
    """Return the names of jobs as a cell of a table."""
    names = ", ".join(ids)
    return Text(clean.line(names if len(names) <= 40 else names[:39] + "…"))
