"""Choose what a question is shown again before it is asked: evicted chunks that it wants to look at."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kvvideo.session.index import Found
from kvvideo.types import Chunk, Hit
from kvvideo.video.again import Again

Stretch = tuple[float, float]


@dataclass(frozen=True)
class Recall:
    """Look again with every question.

    Attributes:
        count: most stretches that a question is shown again.
        frames: where their frames are to be had.
    """

    count: int
    frames: Again


@dataclass(frozen=True)
class Shown:
    """Chunks that a question's fork is shown.

    Attributes:
        hits: stretches that the question has found, in order of time.
        chunks: their frames.
    """

    hits: tuple[Hit, ...] = ()
    chunks: tuple[Chunk, ...] = ()


def wanted(events: Iterable[Found], count: int, whole_from: float) -> list[Hit]:
    """Return the best entries of the first ``count`` events that the cache does not hold in full, best first.

    Args:
        events: the best first.
        count: how many.
        whole_from: moment in seconds from which on nothing was evicted yet.
    """
    found: list[Hit] = []
    for event in events:
        if len(found) == count:
            break
        if event.best.end <= whole_from + 1e-6:
            found.append(event.best)
    return found


def fetched(hits: Sequence[Sequence[Hit]], frames: Again) -> dict[Stretch, Chunk]:
    """Return the frames of all ``hits``, by stretch."""
    stretches = [*dict.fromkeys((hit.start, hit.end) for some in hits for hit in some)]
    chunks = frames.chunks(stretches) if stretches else []
    return {stretch: chunk for stretch, chunk in zip(stretches, chunks, strict=True) if chunk is not None}


def chosen(hits: Sequence[Hit], chunks: dict[Stretch, Chunk], size: Callable[[Chunk], int], room: int) -> Shown:
    """Return the best hits that fit, in order of time.

    Args:
        hits: the best first.
        chunks: their frames.
        size: returns the tokens of a chunk.
        room: tokens that there is room for.
    """
    best: list[tuple[Hit, Chunk]] = []
    for hit in hits:
        chunk = chunks.get((hit.start, hit.end))
        if chunk is not None and size(chunk) <= room:
            room -= size(chunk)
            best.append((hit, chunk))
    best.sort(key=lambda pair: pair[0].start)
    return Shown(tuple(hit for hit, _ in best), tuple(chunk for _, chunk in best))
