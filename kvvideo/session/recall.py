"""Choose what a question is shown again before it is asked: evicted chunks that it wants to look at, and the newest."""

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
        chunks: in order of time, so that the last one is the present.
        hits: those of them that the question has found.
    """

    chunks: tuple[Chunk, ...] = ()
    hits: tuple[Hit, ...] = ()


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


def fetched(hits: Sequence[Sequence[Hit]], newest: Stretch | None, frames: Again) -> dict[Stretch, Chunk]:
    """Return the frames of all ``hits``, and of the ``newest`` chunk if it is to be fetched too, by stretch."""
    stretches = [*dict.fromkeys((hit.start, hit.end) for some in hits for hit in some)]
    if stretches and newest is not None and newest not in stretches:
        stretches.append(newest)
    chunks = frames.chunks(stretches) if stretches else []
    return {stretch: chunk for stretch, chunk in zip(stretches, chunks, strict=True) if chunk is not None}


def chosen(
    hits: Sequence[Hit], chunks: dict[Stretch, Chunk], newest: Chunk | None, size: Callable[[Chunk], int], room: int
) -> Shown:
    """Return the best hits that fit, in order of time, and after them the newest chunk.

    Args:
        hits: the best first.
        chunks: their frames.
        newest: shown at the end, if it is not None.
        size: returns the tokens of a chunk.
        room: tokens that there is room for.
    """
    left = room - (0 if newest is None else size(newest))
    best: list[tuple[Hit, Chunk]] = []
    for hit in hits:
        chunk = chunks.get((hit.start, hit.end))
        # The newest is shown anyway.
        needed = 0 if chunk is None or (newest is not None and chunk.start == newest.start) else size(chunk)
        if chunk is not None and needed <= left:
            left -= needed
            best.append((hit, chunk))
    best.sort(key=lambda pair: pair[0].start)
    if not best:
        return Shown()
    earlier = [chunk for _, chunk in best if newest is None or chunk.start < newest.start]
    return Shown((*earlier, *([] if newest is None else [newest])), tuple(hit for hit, _ in best))
