"""``VideoReader``: chunks of a video, decoded ahead of their use in a process of its own."""

import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Literal, Self

from kvvideo.errors import ConfigError, KvvideoError
from kvvideo.times import format_time
from kvvideo.types import Chunk
from kvvideo.video import awake
from kvvideo.video.address import STDIN, Address, is_live
from kvvideo.video.cues import Subtitles
from kvvideo.video.decoder import check_decoder
from kvvideo.video.geometry import MAX_PIXELS, MIN_PIXELS, check_pixels
from kvvideo.video.live import Live, LiveStatus
from kvvideo.video.plan import VideoInfo
from kvvideo.video.process import WorkerProcess
from kvvideo.video.sampling import Grid

logger = logging.getLogger("kvvideo.video")

_TELL_SECONDS = 10.0
"""Delay of live video, in seconds, that is told of."""
STALL_SECONDS = 60.0
"""Seconds for which a decoder may be silent while it is waited for."""


class VideoReader(Iterator[Chunk]):
    """Iterate over the chunks of a video while a process decodes the next ones.

    Use it as a context manager, or call ``close``; it also closes itself at the end and on errors. All
    good chunks come before the error that ends a damaged video.

    Args:
        path: the video: a file, a named pipe, ``-`` for standard input, the number of a camera, or a URL.
        fps: frames per second to sample.
        chunk_seconds: length of a chunk; with ``fps`` it must give an even number of frames.
        start, end: the part to read, in seconds of the source; all of it by default.
        min_pixels, max_pixels: limits for the area of the resized frames.
        decoder: ``pyav``, ``nvdec`` on an NVIDIA GPU, or ``decord`` for plain H.264 in mp4.
        stall_seconds: silence after which the decoder is killed.
        queue_chunks: chunks decoded ahead.
        skip_chunks: chunks at the beginning of the part to leave out, because they were seen before; the rest
            is what it would have been, to the last bit.
        live: how a live source is treated; ``Live()`` by default for all but files, and for a file nothing
            but that it may be growing.
        what: ``chunks``; or only the ``info``; or one ``still`` picture of the start.
        quiet: warnings are for debugging only, because they were given when the video was read first.
        inherit: file descriptors that ``path`` needs, such as that of ``/proc/self/fd/5``.
        subtitles: whose words the chunks are given; None for none.

    Attributes:
        info: what is known of the video.
        position: source time, in seconds, up to which chunks were given out.
        waited: seconds that ``next`` took, but for the first time.

    Raises:
        VideoError: if the video cannot be decoded, here or while iterating.
        ConfigError: if the settings are not possible.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float = 2.0,
        chunk_seconds: float = 4.0,
        start: float | None = None,
        end: float | None = None,
        min_pixels: int = MIN_PIXELS,
        max_pixels: int = MAX_PIXELS,
        decoder: str = "pyav",
        stall_seconds: float = STALL_SECONDS,
        queue_chunks: int = 2,
        *,
        skip_chunks: int = 0,
        live: Live | None = None,
        what: Literal["chunks", "info", "still"] = "chunks",
        quiet: bool = False,
        inherit: Sequence[int] = (),
        subtitles: Subtitles | None = None,
    ) -> None:
        grid = Grid.of(fps, chunk_seconds, start, end, skip_chunks)
        check_pixels(min_pixels, max_pixels)
        check_decoder(decoder)
        if stall_seconds <= 0 or queue_chunks < 1:
            raise ConfigError("stall_seconds must be above 0, and queue_chunks at least 1")
        self.path = os.fsdecode(path)
        address = Address.of(self.path)
        self._name = address.name
        self.position = grid.time(0)
        self.waited = 0.0
        self._subtitles = subtitles
        self._begun = False
        live = _fitting(self.path, live)
        if live is not None and decoder != "pyav":
            raise ConfigError(f"{decoder} reads files only; read {self._name!r} with pyav")
        awake.watch()
        self._stall = stall_seconds
        # What is late must be told, and only what comes as it happens can be.
        self._tell_at = _TELL_SECONDS if live is not None and not address.waits else math.inf
        self._told_at_end = False
        self._drops = live is not None and live.when_behind == "drop"
        self._worker = WorkerProcess(self._name, self.position, live, self.path == STDIN, queue_chunks, inherit)
        request = {
            "path": self.path,
            "decoder": decoder,
            "grid": asdict(grid),
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
            "what": what,
            "quiet": quiet,
            "live": None if live is None else asdict(live),
        }
        try:
            self._worker.ask(request)
            info = self._worker.next(self._stall)
        except BaseException:
            self.close()
            raise
        assert isinstance(info, VideoInfo)
        self.info = info

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __next__(self) -> Chunk:
        if not self._worker.is_running:
            raise StopIteration
        began = time.monotonic()
        try:
            item = self._worker.next(self._stall)
        except KvvideoError:
            self.close()
            raise
        finally:
            if self._begun:
                self.waited += time.monotonic() - began
            self._begun = True
        if not isinstance(item, Chunk):
            self.close()
            raise StopIteration
        self.position = item.end
        self._tell_of_delay()
        return item if self._subtitles is None else self._subtitles.given(item)

    @property
    def ready(self) -> bool:
        """True if ``next`` would not wait: a chunk, the end, or an error is there."""
        return not (self._worker.is_running and self._worker.items.empty())

    @property
    def pid(self) -> int:
        """Number of the process that decodes."""
        return self._worker.pid

    @property
    def live(self) -> LiveStatus:
        """State of a live source; cheap, and for any thread. For a file nothing is ever behind."""
        pulse = self._worker.pulse
        behind = max(0.0, pulse.arrived - max(self.position, pulse.passed))
        return replace(pulse.status, behind=behind, dropped=pulse.status.dropped + pulse.dropped)

    def close(self) -> None:
        """End the worker, and free all it held; safe to call twice, and from another thread."""
        self._worker.kill()
        if (dropped := self.live.dropped) and not self._told_at_end:
            self._told_at_end = True
            logger.warning("%s of %r was dropped: it came faster than it was seen", format_time(dropped), self._name)
        self._worker.close()

    def _tell_of_delay(self) -> None:
        """Say that the video is behind, and again each time that it is behind by twice as much."""
        if (behind := self.live.behind) >= self._tell_at:
            self._tell_at = 2 * behind
            hint = "" if self._drops else "; when_behind=drop would skip what is old"
            logger.warning("%r is seen %.0f s late%s", self._name, behind, hint)


def probe(
    path: str | os.PathLike[str],
    decoder: str = "pyav",
    stall_seconds: float = STALL_SECONDS,
    live: Live | None = None,
) -> VideoInfo:
    """Return what is known of a video, after decoding its first frame, which is then gone if it came from a pipe.

    Raises:
        VideoError: if it cannot be decoded.
    """
    with VideoReader(path, decoder=decoder, stall_seconds=stall_seconds, live=live, what="info") as reader:
        return reader.info


def _fitting(path: str, live: Live | None) -> Live | None:
    """Return the settings for ``path``: a file that does not grow is no live source, whatever was asked."""
    if is_live(path):
        return live or Live()
    return live if live is not None and live.follow else None
