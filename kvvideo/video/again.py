"""Frames of a stretch of video once more, for a question that looks again."""

from typing import Protocol

from kvvideo.types import Chunk


class Again(Protocol):
    """Where frames that were streamed can be had once more."""

    def chunk(self, start: float, end: float) -> Chunk | None:
        """Return the frames from ``start`` to ``end`` seconds of the source, of a chunk's number at most.

        None if they are not to be had any more.

        Raises:
            VideoError: if the video cannot be read.
        """
