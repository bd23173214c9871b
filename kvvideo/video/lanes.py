"""Decode several groups of pictures at once, each by a thread of its own: one alone is slower than a GPU's engine.

A group begins where decoding can begin, and nothing of it is shown before that. So it needs no other, and its pictures
are those of decoding one group after the other, to the last bit. Nothing here knows a codec.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from kvvideo.video.sampling import CLOCK_SLACK, Grid
from kvvideo.video.selection import Step

P = TypeVar("P")

LONGEST, LARGEST = 128, 16 * 2**20
"""Frames of a part, and bytes of its packets and pictures: of a longer group the first come before the last is read."""
AHEAD, HELD = 2, 256 * 2**20
"""Parts for each lane that are read ahead, and bytes of all of them."""
BEAT_SECONDS = 0.2
"""Seconds between looks at the work while a part is waited for."""


@dataclass(frozen=True, slots=True)
class Part(Generic[P]):
    """Steps that one lane takes one after the other.

    Attributes:
        size: bytes of their packets, and of the pictures that may come of them.
        begins: True if they need nothing before them.
        ends: True if nothing after them needs them.
    """

    steps: list[Step[P]]
    size: int
    begins: bool
    ends: bool


@dataclass(slots=True)
class Done:
    """Result of a part.

    Attributes:
        shown: times and pictures that may be shown at a moment of the grid, in order.
        heard: True if any frame came out.
        errors, marked: packets that could not be decoded, and frames that show faults.
    """

    shown: list[tuple[float, npt.NDArray[np.uint8]]] = field(default_factory=list)
    heard: bool = False
    errors: int = 0
    marked: int = 0


class Slot(Protocol):
    """Decoder, and all else that a lane needs for itself."""

    def decode(self, step: Step[Any], done: Done) -> list[tuple[float, Any]]:
        """Return the times and frames that come out when ``step`` is fed; count faults in ``done``."""

    def drain(self, done: Done) -> list[tuple[float, Any]]:
        """Return those that are left; the decoder can begin anew afterwards."""

    def picture(self, frame: Any) -> npt.NDArray[np.uint8]:
        """Return ``frame`` as it is displayed, ``[height, width, 3]`` RGB."""

    def close(self) -> None:
        """Free what it holds."""


def parts(steps: Iterable[Step[P]], picture: int = 0, longest: int = LONGEST) -> Iterator[Part[P]]:
    """Yield ``steps`` in parts, cut where a decoder can begin anew and where they become many.

    Args:
        steps: in order.
        picture: bytes of the picture that may come of one.
        longest: steps of a part at most.
    """
    waiting: tuple[list[Step[P]], int, bool] | None = None
    for group, size in _cut(steps, picture, longest):
        first = group[0]
        closed = all(step.coded.time >= first.coded.time for step in group)
        begins = waiting is None or first.fresh or (first.coded.restarts and closed)
        if waiting is not None:
            yield Part(*waiting, ends=begins)
        waiting = group, size, begins
    if waiting is not None:
        yield Part(*waiting, ends=True)


def _cut(steps: Iterable[Step[P]], picture: int, longest: int) -> Iterator[tuple[list[Step[P]], int]]:
    group: list[Step[P]] = []
    size = 0
    for step in steps:
        if group and (step.fresh or step.coded.restarts or len(group) == longest or size >= LARGEST):
            yield group, size
            group, size = [], 0
        group.append(step)
        size += step.coded.size + picture * step.whole
    if group:
        yield group, size


class Lanes:
    """Decode parts for ``grid`` on up to ``count`` threads; a context manager.

    Args:
        count: of them.
        grid: tells which frames are shown at all.
        slot: makes a decoder.
        progress: told now and then, while a part is waited for, the time of what is being decoded.
    """

    def __init__(self, count: int, grid: Grid, slot: Callable[[], Slot], progress: Callable[[float], None]) -> None:
        self._count, self._grid, self._make, self._progress = count, grid, slot, progress
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="kvvideo-lane")
        self._slots: list[Slot] = []
        self._idle: list[tuple[int, Slot]] = []  # each with the number of the lane that had it last
        self._free = threading.Lock()
        self._at: float | None = None
        self._heard = False  # True if any frame came out
        self._closed = False

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed = True
        self._pool.shutdown(cancel_futures=True)
        for slot in self._slots:
            slot.close()

    def decoded(self, source: Iterable[Part[Any]]) -> Iterator[tuple[Part[Any], Done]]:
        """Yield each part with its result, in order, read and decoded ahead.

        Raises:
            VideoError: what a slot raised.
        """
        running: _Running = deque()
        lane: _Lane | None = None
        before: Future[Done] | None = None
        for part in source:
            if lane is None or part.begins:
                while running and not self._heard:  # which frame is the first must be known
                    yield self._oldest(running)
                lane, before = _Lane(self._grid, lane.number + 1 if lane else 0, first=not self._heard), None
            before = self._pool.submit(self._run, lane, part, before)
            running.append((part, before))
            while running and (_many(running, AHEAD * self._count) or running[0][1].done()):
                yield self._oldest(running)
        while running:
            yield self._oldest(running)

    def _oldest(self, running: "_Running") -> tuple[Part[Any], Done]:
        """Take the part that was begun first, and wait for what comes of it."""
        part, future = running.popleft()
        done = self._finished(future)
        self._heard = self._heard or done.heard
        return part, done

    def _finished(self, future: "Future[Done]") -> Done:
        told: float | None = None
        while not wait([future], BEAT_SECONDS).done:
            at = self._at
            if at is not None and at != told:  # else a decoder hangs, and whoever watches this process is to see it
                told = at
                self._progress(told)
        return future.result()

    def _run(self, lane: "_Lane", part: Part[Any], before: "Future[Done] | None") -> Done:
        # The one before was begun before, so it is never one that waits for a thread.
        if before is not None:
            before.result()
        if lane.slot is None:
            lane.slot = self._take(lane.number)
        slot, done = lane.slot, Done()
        for step in part.steps:
            if self._closed:
                return done
            self._at = step.coded.time
            if step.coded.anew:
                lane.take(slot.drain(done), done)
            lane.take(slot.decode(step, done), done)
        if part.ends:
            lane.take(slot.drain(done), done)
            lane.end(done)
            with self._free:
                self._idle.append((lane.number, slot))
        return done

    def _take(self, number: int) -> Slot:
        # One that decoded what comes later may know parameter sets that are not there yet.
        with self._free:
            for at, (last, slot) in enumerate(self._idle):
                if last < number:
                    del self._idle[at]
                    return slot
        slot = self._make()
        with self._free:
            self._slots.append(slot)
        return slot


_Running = deque[tuple[Part[Any], "Future[Done]"]]


def _many(running: _Running, most: int) -> bool:
    """Return True if more than ``most`` parts wait, or more bytes than may."""
    return len(running) > most or sum(part.size for part, _ in running) > HELD


class _Lane:
    """Take frames of a group as they come, and let go of those that no moment shows."""

    def __init__(self, grid: Grid, number: int, first: bool) -> None:
        self.slot: Slot | None = None
        self.number = number
        self._grid = grid
        self._last: tuple[float, Any] | None = None
        self._first = first  # the first frame of a video stands for what comes before it

    def take(self, frames: Iterable[tuple[float, Any]], done: Done) -> None:
        for time, frame in frames:
            done.heard = True
            if self._last is not None:
                if time <= self._last[0]:
                    continue
                self._keep(done, time)
            self._last = time, frame

    def end(self, done: Done) -> None:
        if self._last is not None:
            self._keep(done, math.inf)

    def _keep(self, done: Done, until: float) -> None:
        """Make a picture of the latest frame, if it may be shown before ``until``."""
        assert self._last is not None
        assert self.slot is not None
        time, frame = self._last
        if self._first or until == math.inf or self._grid.shows(time - CLOCK_SLACK, until + CLOCK_SLACK):
            done.shown.append((time, self.slot.picture(frame)))
        self._first = False
