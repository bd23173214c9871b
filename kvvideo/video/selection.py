"""Select the packets that must be decoded to show the frames of a grid, while reading.

Compressed video is a chain: a frame needs others, and comes out of order. Packets are read a little
ahead (about one grid step), without decoding, until it is certain which frame each moment shows. Then

- frames nobody refers to are skipped unless they are wanted, and
- everything between the last wanted frame and the next place where decoding can begin is dropped.

Reading ahead, rather than indexing the whole file first, starts at once on a long film, reads it only
once, and works on pipes. Nothing here knows a container or a codec.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from kvvideo.video.sampling import EPSILON, Grid

P = TypeVar("P")

REORDER = 16
"""Frames that may be stored before one shown earlier: the most that H.264 and HEVC allow."""
MAX_HELD = 64 * 2**20
"""Bytes of packets read ahead at most; beyond that they are decoded although some may not be needed."""


@dataclass(frozen=True, slots=True)
class Coded(Generic[P]):
    """One compressed frame, in the order of the file.

    Attributes:
        payload: what the decoder is fed.
        time: when it is shown, in seconds.
        size: in bytes.
        restarts: True if decoding can begin here, so that it and all frames shown later come out right.
        hidden: True if it is only decoded for others and never shown.
        joins: True if a decoder may lose here the frames that it still holds.
        anew: True if it needs none of them, so that the decoder may give them out first.
    """

    payload: P
    time: float
    size: int = 0
    restarts: bool = False
    hidden: bool = False
    joins: bool = False
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Step(Generic[P]):
    """One compressed frame to feed to the decoder.

    Attributes:
        whole: True if it must come out; if not, it may be skipped unless others refer to it.
        fresh: True if packets before it were dropped: the decoder must be emptied and begin anew.
    """

    coded: Coded[P]
    whole: bool
    fresh: bool

    @property
    def due(self) -> float:
        """Time up to which frames must come out, in seconds; -inf if none must."""
        return self.coded.time if self.whole and not self.coded.hidden else -math.inf


def select(source: Iterator[Coded[P]], grid: Grid) -> Iterator[Step[P]]:
    """Yield what to feed so that the decoder gives, at least, every frame ``pick`` needs for ``grid``."""
    window = _Window(source)
    fed: list[float] = []  # times of fed frames, from the one shown at the latest moment on
    count = math.inf if grid.count is None else grid.count
    index = 0
    while index < count:
        moment = grid.time(index) + EPSILON
        window.fill(moment)
        shown = max((time for time in fed if time <= moment), default=-math.inf)
        fed = [time for time in fed if time >= shown]
        wanted = window.wanted(moment)
        overflow = window.held > MAX_HELD
        steps = window.take(wanted if wanted > shown else -math.inf, everything=overflow)
        for step in steps:
            fed += [] if step.coded.hidden else [step.coded.time]
            yield step
        if window.exhausted_at(moment):
            return
        if not overflow:
            index += 1


class _Window(Generic[P]):
    """Hold the packets that were read and not yet fed, in the order of the file.

    Attributes:
        held: their size in bytes.
    """

    def __init__(self, source: Iterator[Coded[P]]) -> None:
        self.held = 0
        self._source = source
        self._coded: list[Coded[P]] = []
        self._exhausted = False
        self._fed = False  # True if anything was ever fed
        self._fresh = False  # True if packets were dropped since
        self._floor = -math.inf  # frames before the point where decoding began cannot be decoded

    def fill(self, moment: float) -> None:
        """Read on until no packet to come can hold a frame shown by ``moment``."""
        # The times of hidden frames say nothing of those to come: a part that was cut out stands anywhere.
        ahead = sum(coded.time > moment and not coded.hidden for coded in self._coded)
        while ahead <= REORDER and self.held <= MAX_HELD:
            coded = next(self._source, None)
            if coded is None:
                self._exhausted = True
                return
            if coded.restarts and coded.time <= moment and self._coded:
                # Nothing read before can be shown at this moment or later.
                self._coded.clear()
                ahead = self.held = 0
                self._fresh = True
            if coded.restarts and not self._coded and (self._fresh or not self._fed):
                self._floor = coded.time
            if coded.hidden or coded.time >= self._floor:
                self._coded.append(coded)
                self.held += coded.size
                ahead += coded.time > moment and not coded.hidden

    def wanted(self, moment: float) -> float:
        """Return the time of the frame here shown at ``moment``; -inf if that frame is not here."""
        times = [coded.time for coded in self._coded if not coded.hidden]
        first = -math.inf if self._fed else min(times, default=-math.inf)
        return max((time for time in times if time <= moment), default=first)

    def take(self, wanted: float, everything: bool) -> list[Step[P]]:
        """Remove what must be fed to get the frame shown at ``wanted``, and return it; -inf for none."""
        times = [math.nan if coded.hidden else coded.time for coded in self._coded]
        until = len(times) if everything else times.index(wanted) + 1 if wanted in times else 0
        # Frames shown later may be wanted too: that is not known yet. If the wanted one is lost, so is one before it.
        earliest = -math.inf if any(coded.joins for coded in self._coded) else wanted
        steps = [
            Step(coded, whole=coded.hidden or coded.time >= earliest, fresh=self._fresh and i == 0)
            for i, coded in enumerate(self._coded[:until])
        ]
        if steps:
            self._fed, self._fresh = True, False
        self.held -= sum(step.coded.size for step in steps)
        del self._coded[:until]
        return steps

    def exhausted_at(self, moment: float) -> bool:
        """Return True if all was read and nothing is left that is shown after ``moment``."""
        return self._exhausted and not any(coded.time > moment and not coded.hidden for coded in self._coded)
