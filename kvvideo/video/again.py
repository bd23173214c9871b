"""Frames of a stretch of video once more, for a question that looks again."""

from collections.abc import Sequence
from typing import Protocol

from kvvideo.types import Chunk


class Again(Protocol):
    """Where frames that were streamed can be had once more."""

    def chunks(self, stretches: Sequence[tuple[float, float]]) -> list[Chunk | None]:
        """Return the frames of each stretch, from a start to an end in seconds of the source.

        A chunk has no more frames than one of the stream. It is None if they are not to be had any more.
        """
