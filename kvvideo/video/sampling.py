"""Choose the moments of a video that are looked at, and group them: pure arithmetic, in seconds.

Knows times and nothing of files, codecs or pixels: a "frame" here is whatever the caller passes.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kvvideo.errors import ConfigError
from kvvideo.times import LATEST, format_time, is_time
from kvvideo.types import Chunk
from kvvideo.video.geometry import FRAMES_PER_TOKEN

T = TypeVar("T")

EPSILON = 1e-6
"""A frame this little after a moment counts as shown at it: slack for binary fractions."""
CLOCK_SLACK = 0.005
"""A moment this close to the end is no new frame: containers round times to milliseconds."""


@dataclass(frozen=True)
class Grid:
    """The moments sampled: ``start``, ``start + 1/fps``, … before ``end``; build it with ``of``.

    Attributes:
        fps: moments per second.
        per_chunk: moments in a chunk, an even number.
        start: first moment, in seconds of the source.
        end: no moment at or after this one; None for all there are.
        skip: moments at the beginning that were looked at before, and are passed over. Those that come
            have the very times they would have had, to the last bit.
    """

    fps: float
    per_chunk: int
    start: float = 0.0
    end: float | None = None
    skip: int = 0

    @classmethod
    def of(
        cls, fps: float, chunk_seconds: float, start: float | None, end: float | None, skip_chunks: int = 0
    ) -> "Grid":
        """Return the grid of these settings, without its first ``skip_chunks`` chunks.

        Raises:
            ConfigError: naming the allowed values, if a chunk would not hold an even number of
                frames, or a value is out of range.
        """
        if not (math.isfinite(fps) and 0 < fps <= 1000):
            raise ConfigError(f"fps {fps:g} is not possible; it must be above 0 and at most 1000")
        if not (math.isfinite(chunk_seconds) and 0 < chunk_seconds <= 86400):
            raise ConfigError(f"chunks of {chunk_seconds:g} s are not possible; use up to a day")
        wanted = fps * chunk_seconds
        per_chunk = FRAMES_PER_TOKEN * max(1, round(wanted / FRAMES_PER_TOKEN))
        if abs(wanted - per_chunk) > 0.01:
            fewer = max(FRAMES_PER_TOKEN, FRAMES_PER_TOKEN * math.floor(wanted / FRAMES_PER_TOKEN))
            near = sorted({fewer, fewer + FRAMES_PER_TOKEN})
            allowed = " or ".join(f"{n / fps:.8g}" for n in near)
            raise ConfigError(
                f"chunks of {chunk_seconds:g} s at {fps:g} fps hold {wanted:g} frames, and the model takes "
                f"them in pairs; use chunks of {allowed} s, or any multiple of {FRAMES_PER_TOKEN / fps:.8g} s"
            )
        start = 0.0 if start is None else start
        if not is_time(start):
            raise ConfigError(
                f"the video cannot be read from {start:g} s; times begin at 0, and are below {LATEST:g} s"
            )
        if end is not None and not (is_time(end) and end > start):
            raise ConfigError(
                f"there is nothing from {format_time(start)} to {format_time(end) if is_time(end) else end}; "
                "the end must be after the start"
            )
        if skip_chunks < 0:
            raise ConfigError(f"{skip_chunks} chunks cannot be skipped; use 0 or more")
        return cls(fps, per_chunk, start, end, skip_chunks * per_chunk)

    @property
    def count(self) -> int | None:
        """Number of moments to come; None if only the video's end decides."""
        return None if self.end is None else self.count_before(self.end)

    def count_before(self, end: float) -> int:
        """Return the number of moments to come that lie before ``end``."""
        return max(0, math.ceil((end - self.start) * self.fps - EPSILON) - self.skip)

    def shows(self, begin: float, end: float) -> bool:
        """Return True if a moment to come lies from ``begin`` up to ``end``."""
        return self.time(self.count_before(begin)) < end

    def time(self, index: int) -> float:
        """Return moment number ``index`` of those to come, in seconds of the source."""
        return self.start + (self.skip + index) / self.fps


def pick(frames: Iterable[tuple[float, T | None]], grid: Grid) -> Iterator[tuple[float, T]]:
    """Yield the frame shown at each moment of ``grid``: the last that appears by then.

    Args:
        frames: ``(time, frame)`` as displayed, in order; the first also stands for what comes
            before it. ``(end, None)`` closes the video: nothing is shown from then on.
        grid: the moments.

    Yields:
        ``(time, frame)`` per moment, with the time at which that frame really appeared.
    """
    shown: tuple[float, T] | None = None
    count = math.inf if grid.count is None else grid.count
    index = 0
    for time, frame in frames:
        until = time if frame is not None else time - CLOCK_SLACK + EPSILON
        while shown is not None and index < count and grid.time(index) < until - EPSILON:
            yield shown
            index += 1
        if frame is None or index >= count:
            return
        shown = time, frame


def assemble(samples: Iterable[tuple[float, npt.NDArray[np.uint8]]], grid: Grid) -> Iterator[Chunk]:
    """Group one ``(time, frame)`` per moment of ``grid`` into chunks.

    The last chunk ends with the samples; an odd last frame is shown twice.
    """
    batch: list[tuple[float, npt.NDArray[np.uint8]]] = []
    begun = 0
    for sample in samples:
        batch.append(sample)
        if len(batch) == grid.per_chunk:
            yield _chunk(batch, begun, grid)
            begun += len(batch)
            batch = []
    if batch:
        yield _chunk(batch, begun, grid)


def _chunk(batch: list[tuple[float, npt.NDArray[np.uint8]]], begun: int, grid: Grid) -> Chunk:
    end = grid.time(begun + len(batch))
    padded = batch + batch[-1:] * (len(batch) % FRAMES_PER_TOKEN)
    return Chunk(
        frames=np.stack([frame for _, frame in padded]),
        times=tuple(time for time, _ in padded),
        start=grid.time(begun),
        end=end if grid.end is None else min(end, grid.end),
        fps=grid.fps,
    )
