"""The decoder of live sources: PyAV, fed by ``capture``, which does the reading.

Everything from the choice of packets to the pictures is that of files. What differs: where packets come from,
that a new connection brings a new codec, and that time is that of ``live.Clock``.
"""

import itertools
import time
from collections.abc import Iterator
from typing import Any

from kvvideo.errors import VideoError
from kvvideo.types import Chunk
from kvvideo.video import awake
from kvvideo.video.address import Address
from kvvideo.video.capture import TICK, Capture, Report, Taken
from kvvideo.video.decoder import Progress
from kvvideo.video.geometry import displayed_size
from kvvideo.video.live import Live
from kvvideo.video.plan import VideoInfo
from kvvideo.video.pyav import SHORT_SECONDS, PyavDecoder
from kvvideo.video.sampling import CLOCK_SLACK, EPSILON, Grid

POLL_SECONDS = 0.1
"""How often it is looked after the reading while nothing comes."""


class LiveDecoder(PyavDecoder):
    """Decodes what arrives from a pipe, a growing file, a camera or a URL.

    Args:
        path: its name.
        progress: told now and then that the work goes on, also while it waits.
        live: how to treat it.
        stdin: file descriptor of what ``-`` stands for.
        report: told where the source stands, from another thread.
    """

    def __init__(self, path: str, progress: Progress, live: Live, stdin: int, report: Report) -> None:
        self._address = Address.of(path)
        self._live, self._stdin, self._report = live, stdin, report
        self._lost: VideoError | None = None  # why nothing comes any more
        super().__init__(self._address.name, progress)

    def close(self) -> None:
        self._capture.close()

    def chunks(self, grid: Grid, min_pixels: int, max_pixels: int) -> Iterator[Chunk]:
        """The chunks of ``grid``, without those of which nothing was seen."""
        for chunk in super().chunks(grid, min_pixels, max_pixels):
            if not any(begin <= chunk.start and chunk.end <= end for begin, end in self._capture.spool.gaps.copy()):
                yield chunk

    def _open(self) -> None:
        self._capture = Capture(self._address, self._live, self._stdin, self._report)
        self._tick, self._origin = float(TICK), 0.0
        try:
            first = self._take()
        except BaseException:
            self.close()
            raise
        if first is None:
            raise self._lost or VideoError(f"{self._path!r} ended before its first frame; see to what sends it")
        self._first = first.link
        self._span, self._pixel_ratio = first.link.span, first.link.pixel_ratio
        self._decode_with(first.link.codec)
        self._packets = itertools.chain([first.packet], self._read())

    def _peek(self) -> tuple[list[Any], Any]:
        try:
            return super()._peek()
        except VideoError as error:
            raise self._lost or error from None

    def _describe(self, first: Any) -> VideoInfo:
        height, width = displayed_size(first.height, first.width, self._pixel_ratio)
        if self._turned:
            height, width = width, height
        if first.pts is not None:
            self.first = self._time(first)
        return VideoInfo(
            path=self._path,
            width=width,
            height=height,
            duration=None,
            fps=self._first.rate,
            codec=self._decoder.codec.canonical_name,
            container=self._first.kind,
            timed=self._head[0].pts is not None,
        )

    def _take(self) -> Taken | None:
        """The next packet, waited for; None when there will be none, with ``_lost`` set if there should."""
        waiting = time.monotonic()
        spool = self._capture.spool
        while (taken := spool.get(POLL_SECONDS)) is None:
            if spool.is_over:
                self._lost = self._capture.error
                return None
            if awake.since(max(waiting, self._capture.heard)) >= self._capture.limit:
                self._lost = self._capture.gave_up()
                return None
            if not self._capture.hangs:  # else the reader's watchdog is to act
                self._progress(self._newest)
        return taken

    def _read(self) -> Iterator[Any]:
        while (taken := self._take()) is not None:
            yield taken.packet

    def _from(self, start: float, back: float) -> Iterator[Any]:
        self._from_first = True
        return itertools.chain(self._head, self._packets)

    def _decode(self, packet: Any) -> list[Any]:
        if packet is None or packet.stream.codec_context is self._decoder:
            return super()._decode(packet)
        rest, skip = self._drain(), self._decoder.skip_frame
        if packet.stream.codec_context.is_open:
            self._decoder = packet.stream.codec_context
        else:
            self._decode_with(packet.stream.codec_context)
        self._decoder.skip_frame = skip
        return rest + super()._decode(packet)

    def _finish(self) -> float:
        self.failure = self._lost
        if self._fed - self._last > SHORT_SECONDS:
            return self._fail(self._last + self._span, "what comes from there on cannot be decoded")
        return max(self._end, self._newest + CLOCK_SLACK + 2 * EPSILON)
