"""Memories of earlier moments of one stream: its checkpoints, and the file that it was resumed from."""

import logging
from collections.abc import Callable

from kvvideo.errors import ConfigError
from kvvideo.session.memory import Memory
from kvvideo.storage.checkpoints import SLACK, Checkpoints
from kvvideo.storage.file import MemoryFile
from kvvideo.storage.frames import StoredFrames

logger = logging.getLogger("kvvideo.memories")


class Memories:
    """Finds the memory to go on from for a moment, and forgets those of what never happened.

    Args:
        checkpoints: takes new ones; None for none.
        saved: a file with memories of earlier moments.
    """

    def __init__(self, checkpoints: Checkpoints | None = None, saved: MemoryFile | None = None) -> None:
        self.checkpoints, self._saved, self._saved_until = checkpoints, saved, float("inf")

    def nearest(self, time: float) -> float | None:
        """Return the moment of the latest memory of ``time`` or before, in seconds; None if there is none."""
        times = [] if self.checkpoints is None else self.checkpoints.times
        return max((t for t in [*times, *self._filed()] if t <= time + SLACK), default=None)

    def frames(self) -> StoredFrames | None:
        """Return the frames in the file; None if there are none."""
        return None if self._saved is None else self._saved.frames()

    def recall(self, time: float) -> Memory | None:
        """Return the latest memory of ``time`` seconds or before; None if there is none."""
        kept = None if self.checkpoints is None else self.checkpoints.before(time)
        filed = max((t for t in self._filed() if t <= time + SLACK), default=None)
        if self._saved is None or filed is None or (kept is not None and kept.end >= filed):
            return kept
        return self._saved.before(filed)

    def keep(self, time: float, save: Callable[[], Memory]) -> None:
        """Take a checkpoint of the moment ``time`` with ``save``, unless there is one.

        Raises:
            ConfigError: if an earlier one could not be written.
        """
        if self.checkpoints is not None and not self._kept(self.checkpoints, time):
            self.checkpoints.add(save())

    def gather(self) -> None:
        """Make checkpoints of the memories in the file. Damaged ones are left out, with a warning.

        Raises:
            ConfigError: if one could not be written.
        """
        if self._saved is None or self.checkpoints is None:
            return
        for time in self._filed():
            if self._kept(self.checkpoints, time):
                continue
            try:
                memory = self._saved.before(time)
            except ConfigError as error:
                logger.warning("a checkpoint is left out: %s", error)
                continue
            self.checkpoints.add(memory)

    def forget_from(self, time: float) -> None:
        """Forget the memories of the moment ``time`` and later ones."""
        if self.checkpoints is not None:
            self.checkpoints.drop_after(time - 2 * SLACK)
        self._saved_until = min(self._saved_until, time - 2 * SLACK)

    def let_go(self) -> None:
        """Delete the checkpoints, and close the file."""
        if self.checkpoints is not None:
            self.checkpoints.clear()
        if self._saved is not None:
            self._saved.close()

    def _filed(self) -> list[float]:
        """Return the moments of the memories in the file that still count."""
        return [] if self._saved is None else [t for t in self._saved.times if t <= self._saved_until]

    @staticmethod
    def _kept(checkpoints: Checkpoints, time: float) -> bool:
        return any(abs(t - time) < SLACK for t in checkpoints.times)
