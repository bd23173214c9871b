"""The seconds of video of a batch: how many there are, are done, and were ingested by now."""

import threading
from collections.abc import Sequence

from kvvideo.batch.streams import Ended, Event, Moved
from kvvideo.batch.tasks import Task
from kvvideo.errors import KvvideoError
from kvvideo.video import probe

_JOIN_SECONDS = 5.0
"""Seconds that the end waits for a look at a video, whose decoder would be left behind."""


class Lengths:
    """Adds up the parts of videos that ``tasks`` read.

    Args:
        tasks: that are to be done.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = {task.key: task for task in tasks}
        # None stands for what is not known.
        self._lengths: dict[str, float | None] = dict.fromkeys(self._tasks)
        self._done: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._looking: threading.Thread | None = None
        self._ended = False

    @property
    def done(self) -> float:
        """Seconds that are done, by earlier runs too."""
        return sum(self._done.values())

    @property
    def ingested(self) -> float:
        """Seconds that were ingested in this run."""
        return sum(self._done.values()) - sum(self._before.values())

    @property
    def total(self) -> float | None:
        """Seconds of all; a video whose length is not known counts as the mean of the others. None if none is."""
        known = [length for length in self._lengths.values() if length is not None]
        return sum(known) / len(known) * len(self._lengths) if known else None

    def note(self, event: Event) -> None:
        """Take account of what happened."""
        key, first = event.task.key, event.task.source.start or 0.0
        if isinstance(event, Moved):
            end = event.progress.end
            self._before[key] = event.start - first
            self._done[key] = event.progress.position - first
            if end is not None:
                self._lengths[key] = end - first
                # The last frame stands until after the end.
                self._done[key] = min(self._done[key], end - first)
        elif isinstance(event, Ended) and not event.stopped:
            self._done[key] = self._lengths[key] = max(event.end - first, 0.0)

    def look(self) -> None:
        """Begin to look in a thread how long those are of which nobody knows yet; once is enough."""
        if self._looking is None:
            self._looking = threading.Thread(target=self._look, name="kvvideo-lengths", daemon=True)
            self._looking.start()

    def close(self) -> None:
        """Look no more."""
        self._ended = True
        if self._looking is not None:
            self._looking.join(_JOIN_SECONDS)

    def _look(self) -> None:
        for key, task in self._tasks.items():
            if self._ended:
                return
            if self._lengths[key] is None:
                try:
                    found = task.source.plan(probe(task.source.path, task.source.decoder)).seconds
                except KvvideoError:
                    found = 0.0  # it will fail, and be over
                if self._lengths[key] is None:
                    self._lengths[key] = found
