"""The tables of ``kvvideo batch``: of the videos at hand while it runs, of the results, and of ``--check``."""

import math
import time
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from kvvideo.batch.run import Counts
from kvvideo.batch.streams import Answered, Ended, Event, Moved
from kvvideo.batch.tasks import Task
from kvvideo.cli import render
from kvvideo.outputs import clean
from kvvideo.outputs.figures import counted
from kvvideo.times import format_time
from kvvideo.types import Progress

_DRAWN_SECONDS = 0.1
"""Seconds that the board stays as it is at least."""


class Board(render.Transient):
    """A live table of the videos at hand."""

    def __init__(self, progress: Counts, done: int) -> None:
        super().__init__()
        self._progress, self._done = progress, done
        self._began, self._drawn = time.monotonic(), -math.inf
        self._at: dict[str, Progress] = {}
        self._tasks: dict[str, Task] = {}
        self._answers: dict[str, int] = {}

    def show(self, event: Event) -> None:
        """Note ``event``, and show it unless the last one was shown just now."""
        key = event.task.key
        if isinstance(event, Answered):
            self._answers[key] = self._answers.get(key, 0) + len(event.asked)
            self._done += len(event.asked)
        elif isinstance(event, Moved):
            # Another thread may draw meanwhile.
            self._at[key], self._tasks[key] = event.progress, event.task
        elif isinstance(event, Ended):
            self._tasks.pop(key, None)
        # Events may come much faster than one can see, or a terminal draw.
        last = self._done >= self._progress.questions
        if (now := time.monotonic()) - self._drawn >= _DRAWN_SECONDS or last:
            self._drawn = now
            self._show(
                lambda _: self._table(),
                {"doing": "answering", "done": self._done, "of": self._progress.questions},
                at_once=last,
            )

    def _table(self) -> Group:
        table = Table("job", "strategy", "at", "cache", "answers", box=None, header_style="bold")
        for key, task in [*self._tasks.items()]:
            now = self._at[key]
            of = "" if now.end is None else f" / {format_time(round(now.end))}"
            table.add_row(
                _names([job.id for job in task.jobs]),
                task.cache.strategy,
                f"{format_time(round(now.position))}{of}",
                f"{now.cache.live}/{task.cache.max_tokens}",
                f"{self._answers.get(key, 0)}/{len(task.wants)}",
            )
        took = format_time(round(time.monotonic() - self._began))
        progress = self._progress
        line = f"{progress.ended}/{progress.tasks} videos, {self._done}/{progress.questions} questions, {took}"
        return Group(table, Text(line, style="dim"))


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
