"""Values that flow between the parts: frames, stretches found, what a cache holds, how far a stream has come."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Chunk:
    """A few seconds of video, decoded, sampled and resized: what a session ingests in one go.

    Attributes:
        frames: ``uint8 [n, height, width, 3]``, RGB; ``n`` is even, because Qwen2.5-VL merges
            frames in pairs, and both sides are multiples of 28.
        times: presentation time of each frame in seconds of the source, never decreasing.
        start: first moment of the source this chunk stands for, in seconds.
        end: first moment after it; ``start`` of the next chunk.
        fps: frames per second after sampling; it spaces M-RoPE's temporal positions.
        words: what is said in it; empty for nothing.
        said: pairs of a moment, in seconds of the source, and the length of ``words`` that is said or begun by then,
            both ascending. Without them only the whole chunk has its words.
    """

    frames: npt.NDArray[np.uint8]
    times: tuple[float, ...]
    start: float
    end: float
    fps: float
    words: str = ""
    said: tuple[tuple[float, int], ...] = ()

    def until(self, time: float) -> "Chunk | None":
        """Return the part of this chunk shown up to and including ``time``, in seconds; None if that is nothing.

        An odd last frame is shown twice, so that the count stays even. Words that begin later are left out.
        """
        shown = sum(t <= time + 1e-6 for t in self.times)
        if shown == 0:
            return None
        said = tuple(one for one in self.said if one[0] <= time + 1e-6)
        if shown == len(self.times):
            return self if said == self.said else replace(self, words=self.words[: _length(said)], said=said)
        index = [*range(shown)] + ([shown - 1] if shown % 2 else [])
        return Chunk(
            frames=self.frames[index],
            times=tuple(self.times[i] for i in index),
            start=self.start,
            end=min(time, self.end),
            fps=self.fps,
            words=self.words[: _length(said)],
            said=said,
        )


def _length(said: tuple[tuple[float, int], ...]) -> int:
    return said[-1][1] if said else 0


@dataclass(frozen=True)
class Hit:
    """A stretch of video that a question wants to look at.

    Attributes:
        start, end: the stretch, in seconds of the source.
        score: share of the question's attention over the whole index that goes there, 0 to 1.
    """

    start: float
    end: float
    score: float


@dataclass(frozen=True)
class CacheStats:
    """Statistics of the cache of one request.

    Attributes:
        seen: tokens computed so far, evicted ones included.
        live: tokens held.
        evicted: tokens gone.
        blocks: blocks held.
        compactions: times the cache was compacted.
        bytes: memory of those blocks over all layers, side state and what else the strategy remembers included.
        index_bytes: host memory of the vectors that chunks are found by.
    """

    seen: int
    live: int
    evicted: int
    blocks: int
    compactions: int
    bytes: int
    index_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Position of a stream, and the contents of its cache there.

    Attributes:
        position: moment stood at, in seconds of the source.
        end: where the stream ends, in seconds; None if that is not known.
        rate: frames ingested per second; None if that says nothing.
        cache: what the cache holds.
        max_tokens: tokens at which it is compacted; None for a cache without bound.
        behind: seconds of live video that have arrived and were not ingested.
        dropped: seconds of live video that never will be.
    """

    position: float
    end: float | None
    rate: float | None
    cache: CacheStats
    max_tokens: int | None
    behind: float = 0.0
    dropped: float = 0.0
