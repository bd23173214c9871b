"""The pictures of a report: what a video showed at its moments, as JPEG."""

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from kvvideo.errors import KvvideoError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from kvvideo.types import Chunk
    from kvvideo.video import Source

PICTURES = 64 << 20
"""Bytes of JPEG in one report; browsers open larger ones slowly."""

_SIDE, _SMALL, _QUALITY = 640, 320, 82


class Stills:
    """Pictures of ``source`` at moments and of stretches, each fetched once, in the background.

    Those of a file have the size at which it is shown, up to 640 pixels, or 320 of a stretch; of what cannot be read
    again there is only what the model got to see last.

    Args:
        source: the video.
        limit: bytes of all pictures; beyond that there are no more.
    """

    def __init__(self, source: "Source", limit: int = PICTURES) -> None:
        self._source, self._left = source, limit
        self._found: dict[tuple[float, int], Future[bytes | None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvvideo-stills")
        self._latest: list[Chunk] = []

    def __call__(self, at: float, end: float | None = None) -> "Future[bytes | None]":
        """Return the picture shown at the moment ``at``, in seconds, once it is there; None if there is none.

        With ``end`` it is a small one, of the middle of the stretch from ``at``.
        """
        at, side = (at, _SIDE) if end is None else ((at + end) / 2, _SMALL)
        if (at, side) not in self._found:
            # What was seen is kept for so long only as it may be asked about.
            seen = self._seen(at) if self._latest else None
            self._found[at, side] = self._thread.submit(self._fetch, at, side, seen)
        return self._found[at, side]

    def watching(self, chunks: "Iterable[Chunk]") -> "Iterator[Chunk]":
        """Yield ``chunks`` as they are; the latest two are kept if the video cannot be read again."""
        for chunk in chunks:
            if not self._source.replayable:
                self._latest = [*self._latest[-1:], chunk]
            yield chunk

    def close(self) -> None:
        """Fetch no more."""
        self._thread.shutdown(cancel_futures=True)

    def _seen(self, at: float) -> "npt.NDArray[np.uint8] | None":
        shown = [
            frame
            for chunk in self._latest
            for frame, time in zip(chunk.frames, chunk.times, strict=True)
            if time <= at + 1e-6
        ]
        return shown[-1].copy() if shown else None

    def _fetch(self, at: float, side: int, seen: "npt.NDArray[np.uint8] | None") -> bytes | None:
        if self._left <= 0:
            return None
        picture = self._decoded(at) if self._source.replayable else seen
        if picture is None:
            return None
        data = jpeg(picture, side)
        self._left -= len(data)
        return data

    def _decoded(self, at: float) -> "npt.NDArray[np.uint8] | None":
        from kvvideo.video.still import frame_at

        # At the very end nothing is shown any more: what was seen last is a sampled frame before it.
        for time in (at, max(at - 1 / self._source.fps, 0.0)):
            with suppress(KvvideoError):
                return frame_at(self._source.path, time, self._source.decoder)[1]
        return None


def jpeg(picture: "npt.NDArray[np.uint8]", side: int = _SIDE) -> bytes:
    """Return ``uint8 [height, width, 3]`` RGB as JPEG, made smaller if it has more than ``side`` pixels in a row."""
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((side, side))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=_QUALITY, optimize=True)
    return target.getvalue()
