"""Frames of a stretch of video once more, for a question that looks again."""

import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import numpy as np

from kvvideo.errors import KvvideoError
from kvvideo.types import Chunk
from kvvideo.video.sampling import Grid
from kvvideo.video.source import Source

logger = logging.getLogger("kvvideo.video")

AT_ONCE = 4
"""Stretches that are decoded side by side, each in a process of its own, which takes 0.2 s to start."""
KEPT_BYTES = 64 << 20
"""Size of the frames that are kept for the next question: 13 chunks of 8 frames of 448 x 448 pixels; our choice."""
_SLACK = 0.01
"""Part of the time between two frames by which a stretch may miss the moments of the stream."""


class Again(Protocol):
    """Source of frames that were streamed, to be had once more."""

    def chunks(self, stretches: Sequence[tuple[float, float]]) -> list[Chunk | None]:
        """Return the frames of each stretch, from a start to an end in seconds of the source.

        A chunk has no more frames than one of the stream. It is None if they are not to be had any more.
        """


class FileAgain:
    """Decode the frames of a file again.

    A stretch that is a chunk of the stream gives that very chunk, to the last bit; one that touches several chunks
    gives frames spread evenly over them all. A file that is gone or has changed since this was made gives None, and
    so does a stretch that cannot be decoded; a warning says why, once.

    Args:
        source: the video, as it was streamed.
        max_pixels: largest area of a frame, to look closer than the stream did; None for the same frames.

    Raises:
        VideoError: if the file cannot be read now.
    """

    def __init__(self, source: Source, max_pixels: int | None = None) -> None:
        self._source, self._told = source, False
        if max_pixels is not None:
            self._source = replace(source, max_pixels=max_pixels, min_pixels=min(source.min_pixels, max_pixels))
        self._grid = Grid.of(source.fps, source.chunk_seconds, source.start, source.end)
        self._fingerprint = source.fingerprint()
        # The latest last.
        self._kept: dict[tuple[float, float], Chunk] = {}

    def chunk(self, start: float, end: float) -> Chunk | None:
        """Return the frames of the chunks that the stretch touches, of one chunk's number at most; None without."""
        return self.chunks([(start, end)])[0]

    def chunks(self, stretches: Sequence[tuple[float, float]]) -> list[Chunk | None]:
        """Return ``chunk`` of each stretch, decoded side by side, or kept since the last time."""
        if not (stretches and self._is_same()):
            return [None] * len(stretches)
        found: dict[tuple[float, float], Chunk | None] = {}
        missing = [stretch for stretch in stretches if stretch not in self._kept]
        if missing:
            with ThreadPoolExecutor(min(AT_ONCE, len(missing)), thread_name_prefix="kvvideo-again") as threads:
                decoded = list(threads.map(self._decoded, missing))
            for stretch, chunk in zip(missing, decoded, strict=True):
                if isinstance(chunk, KvvideoError):
                    self._tell(str(chunk))
                found[stretch] = chunk if isinstance(chunk, Chunk) else None
        for stretch in stretches:
            # One that is wanted again counts as new.
            chunk = found[stretch] = found.get(stretch) or self._kept.pop(stretch, None)
            if chunk is not None:
                self._kept[stretch] = chunk
        while sum(chunk.frames.nbytes for chunk in self._kept.values()) > KEPT_BYTES:
            del self._kept[next(iter(self._kept))]
        return [found[stretch] for stretch in stretches]

    def _is_same(self) -> bool:
        try:
            now = self._source.fingerprint()
        except KvvideoError as error:
            self._tell(str(error))
            return False
        if now is None:
            self._tell(f"{self._source.path!r} is gone")
        elif now != self._fingerprint:
            self._tell(f"{self._source.path!r} has changed since it was streamed")
        else:
            return True
        return False

    def _decoded(self, stretch: tuple[float, float]) -> Chunk | KvvideoError | None:
        """Return ``chunk`` of a stretch, or the reason that there is none."""
        grid, source = self._grid, self._source
        begin, end = ((time - grid.start) * grid.fps for time in stretch)
        first = max(0, math.floor(begin + _SLACK) // grid.per_chunk)
        after = max(first + 1, math.ceil((end - _SLACK) / grid.per_chunk))
        # Where the next chunk begins nothing more is decoded; the last chunk ends where the stream did.
        until = grid.time(after * grid.per_chunk)
        if source.end is not None:
            until = min(until, source.end)
        found: list[Chunk] = []
        try:
            with replace(source, end=until).open(skip_chunks=first, quiet=True) as reader:
                found.extend(reader)
        except KvvideoError as error:
            # What came before it the stream had, too.
            return spread(found) or error
        return spread(found)

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            logger.warning("some frames are not looked at again: %s", why)


def spread(chunks: Sequence[Chunk]) -> Chunk | None:
    """Return one chunk for all of ``chunks``, with as many frames as the longest has; None for no chunks.

    The frames are spread evenly over those of ``chunks``, which are in order and of one size; ``fps`` is lower
    accordingly. A single chunk is returned as it is.
    """
    if len(chunks) < 2:
        return chunks[0] if chunks else None
    count, total = max(len(chunk.frames) for chunk in chunks), sum(len(chunk.frames) for chunk in chunks)
    index = [number * total // count for number in range(count)]
    times = [time for chunk in chunks for time in chunk.times]
    return Chunk(
        frames=np.concatenate([chunk.frames for chunk in chunks])[index],
        times=tuple(times[number] for number in index),
        start=chunks[0].start,
        end=chunks[-1].end,
        fps=chunks[0].fps * count / total,
        words=" ".join(chunk.words for chunk in chunks if chunk.words),
    )
