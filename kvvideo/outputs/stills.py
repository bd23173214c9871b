"""The pictures of a report: what a video showed at its moments, as JPEG."""

import io
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from kvvideo.errors import KvvideoError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from kvvideo.session import Recall
    from kvvideo.types import Chunk
    from kvvideo.video import Source

PICTURES = 64 << 20
"""Bytes of JPEG in one report; browsers open larger ones slowly."""

_SIDE, _SMALL, _QUALITY = 640, 320, 82
_SMALLEST, _LEAST_QUALITY = 160, 60
_SIZES = ((_SIDE, _SMALL), (_SMALL, _SMALLEST), (_SMALL, 0), (_SMALLEST, 0))
"""Sides of the pictures of moments and of stretches, in pixels, 0 for none: the first that have room are taken."""

When = tuple[float] | tuple[float, float]
"""A moment, or the start and the end of a stretch, in seconds."""

Pictures = Mapping[When, bytes]
"""JPEGs of moments and stretches."""


class Stills:
    """Pictures of ``source`` at moments and of stretches, each fetched once, in the background.

    Those of a file have the size at which it is shown, up to 640 pixels, or 320 of a stretch; of what cannot be read
    again there is what the model got to see last, and of stretches what is kept of that.

    Args:
        source: the video; None if it is not at hand.
        recall: where questions look again; what is kept there of a video that cannot be read again has pictures too.
        limit: bytes of all pictures; beyond that there are no more.
    """

    def __init__(self, source: "Source | None", recall: "Recall | None" = None, limit: int = PICTURES) -> None:
        self._file = source if source is not None and source.replayable else None
        self._recall, self._left = recall, limit
        self._found: dict[tuple[float, int], Future[bytes | None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvvideo-stills")
        self._latest: list[Chunk] = []

    def __call__(self, at: float, end: float | None = None) -> "Future[bytes | None]":
        """Return the picture shown at the moment ``at``, in seconds, once it is there; None if there is none.

        With ``end`` it is a small one, of the middle of the stretch from ``at``.
        """
        moment, side = (at, _SIDE) if end is None else ((at + end) / 2, _SMALL)
        if (moment, side) not in self._found:
            seen = None
            if self._file is None:
                # What was seen is kept for so long only as it may be asked about.
                seen = self._seen(moment) if end is None else self._kept(at, end)
            self._found[moment, side] = self._thread.submit(self._fetch, moment, side, seen)
        return self._found[moment, side]

    def watching(self, chunks: "Iterable[Chunk]") -> "Iterator[Chunk]":
        """Yield ``chunks`` as they are; the latest two are kept if the video cannot be read again."""
        for chunk in chunks:
            if self._file is None:
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

    def _kept(self, start: float, end: float) -> "npt.NDArray[np.uint8] | None":
        chunk = None if self._recall is None else self._recall.frames.chunks([(start, end)])[0]
        return self._seen((start + end) / 2) if chunk is None else chunk.frames[len(chunk.frames) // 2]

    def _fetch(self, at: float, side: int, seen: "npt.NDArray[np.uint8] | None") -> bytes | None:
        if self._left <= 0:
            return None
        picture = seen if self._file is None else _decoded(self._file, at)
        if picture is None:
            return None
        data = jpeg(picture, side)
        self._left -= len(data)
        return data


def _decoded(source: "Source", at: float) -> "npt.NDArray[np.uint8] | None":
    from kvvideo.video.still import frame_at

    # At the very end nothing is shown any more: what was seen last is a sampled frame before it.
    for time in (at, max(at - 1 / source.fps, 0.0)):
        with suppress(KvvideoError):
            return frame_at(source.path, time, source.decoder)[1]
    return None


def fitted(pictures: Pictures, uses: Mapping[When, int], room: int) -> Pictures:
    """Return ``pictures`` as large as there is room for in a page; none if there is none for the smallest.

    Args:
        pictures: of moments and stretches.
        uses: how often each is in the page.
        room: bytes of the page that they may take, where they are in base64.
    """
    for sides in _SIZES:
        shown = {when: _smaller(picture, side) for when, picture in pictures.items() if (side := sides[len(when) - 1])}
        if sum(len(picture) * uses[when] for when, picture in shown.items()) * 4 / 3 <= room:
            return shown
    return {}


def _smaller(picture: bytes, side: int) -> bytes:
    """Return a JPEG with at most ``side`` pixels in a row; as it is if it has no more, or is none."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    with suppress(UnidentifiedImageError), Image.open(io.BytesIO(picture)) as image:
        if max(image.size) > side:
            image.draft("RGB", (side, side))
            return jpeg(np.asarray(image.convert("RGB")), side, _QUALITY if side > _SMALLEST else _LEAST_QUALITY)
    return picture


def jpeg(picture: "npt.NDArray[np.uint8]", side: int = _SIDE, quality: int = _QUALITY) -> bytes:
    """Return ``uint8 [height, width, 3]`` RGB as JPEG, made smaller if it has more than ``side`` pixels in a row."""
    from PIL import Image

    image = Image.fromarray(picture)
    image.thumbnail((side, side))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=quality, optimize=True)
    return target.getvalue()
