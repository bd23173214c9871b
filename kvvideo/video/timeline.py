"""Lay the frames of a file on one line of time, though its clock may be damaged, or set anew: pure arithmetic.

A single time that cannot be is damage: its frame is decoded for others, and not shown. When as many frames follow as
may be stored out of order, and their times agree, the clock was set anew, as where recordings were joined: then time
goes on from the end of the frame before.
"""

import math
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

from kvvideo.video.selection import REORDER

P = TypeVar("P")

LATE_SECONDS = 5.0
"""A frame this long before more others than reordering allows: the clock was set back, or is damaged."""
JUMP_SECONDS = 3600.0
"""A frame this long after the one before: the clock was set forward, or is damaged."""


@dataclass(frozen=True, slots=True)
class Placed(Generic[P]):
    """A frame on the line of time: ``shift`` is seconds to add to its own; without one it is not to be shown."""

    item: P
    shift: float | None


@dataclass(frozen=True, slots=True)
class Break:
    """Place where the clock was set anew: at ``at`` seconds of the line of time, by ``by`` seconds, maybe negative."""

    at: float
    by: float


class Timeline(Generic[P]):
    """Place frames, in the order of the file.

    Args:
        start: seconds up to which the file was passed over.
        known: seconds that the file is known to last, if its times can be believed; 0 otherwise.

    Attributes:
        newest: when the newest frame is shown, in seconds.
        end: where the newest frame ends.
        breaks: where the clock was set anew.
        damaged: frames in a row, up to the latest, whose times were of no use.
    """

    def __init__(self, start: float, known: float = 0.0) -> None:
        self.newest, self.end = start, -math.inf
        self.breaks: list[Break] = []
        self.damaged = 0
        self._shift, self._known = 0.0, known
        self._before: deque[float] = deque(maxlen=REORDER + 1)
        self._held: list[tuple[P, float, float]] = []

    def place(self, item: P, time: float, length: float) -> list[Placed[P]]:
        """Return the frames that are certain now; ``time`` is the own one, and it lasts ``length`` seconds."""
        if self._fits(time + self._shift):
            placed = self._hide(len(self._held))
            self.damaged = 0
            return [*placed, self._accept(item, time, length)]
        self._held.append((item, time, length))
        if len(self._held) <= REORDER:
            return []
        return self._begin_anew() if self._agree() else self._hide(1)

    def rest(self) -> list[Placed[P]]:
        """Return the frames that are left at the end of the file."""
        return self._begin_anew() if len(self._held) > 1 and self._agree() else self._hide(len(self._held))

    def _fits(self, time: float) -> bool:
        if self._held and abs(time - self._held[-1][1] - self._shift) < abs(time - self.newest):
            return False  # it goes on from those that do not
        late = len(self._before) > REORDER and time < min(self._before) - LATE_SECONDS
        return time <= max(self.newest + JUMP_SECONDS, self._known) and not late

    def _agree(self) -> bool:
        times = [time for _, time, _ in self._held]
        return all(-LATE_SECONDS <= after - before <= JUMP_SECONDS for before, after in pairwise(times))

    def _accept(self, item: P, time: float, length: float) -> Placed[P]:
        time += self._shift
        self._before.append(time)
        self.newest = max(self.newest, time)
        self.end = max(self.end, time + length)
        return Placed(item, self._shift)

    def _hide(self, count: int) -> list[Placed[P]]:
        hidden, self._held = self._held[:count], self._held[count:]
        self.damaged += count
        return [Placed(item, None) for item, _, _ in hidden]

    def _begin_anew(self) -> list[Placed[P]]:
        held, self._held = self._held, []
        first = min(time for _, time, _ in held)
        if self.end > -math.inf:
            self.breaks.append(Break(self.end, first + self._shift - self.end))
            self._shift = self.end - first
        self._before.clear()
        self.damaged = 0
        return [self._accept(*frame) for frame in held]
