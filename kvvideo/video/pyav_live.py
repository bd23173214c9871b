"""The decoder of live sources: PyAV, fed by ``capture``, which does the reading.

Everything from the choice of packets to the pictures is that of files. What differs: where packets come from,
that a new connection brings a new codec, and that time is that of ``live.Clock``.
"""

import itertools
import time
from collections.abc import Iterator

from av.video.frame import VideoFrame

from kvvideo.errors import VideoError
from kvvideo.types import Chunk
from kvvideo.video import awake
from kvvideo.video.address import Address
from kvvideo.video.capture import TICK, Capture, Report, Taken
from kvvideo.video.container import Packet
from kvvideo.video.decoder import Progress
from kvvideo.video.frames import FrameDecoder
from kvvideo.video.live import Live
from kvvideo.video.packets import SHORT_SECONDS, Packets
from kvvideo.video.plan import VideoInfo
from kvvideo.video.sampling import CLOCK_SLACK, EPSILON, Grid

POLL_SECONDS = 0.1
"""Seconds between checks of the capture thread while no packet arrives."""


class LivePackets(Packets):
    """Read the packets of a live source from ``capture``.

    Args:
        capture: reads the source; its times are those of ``live.Clock``.
        name: of the source, for messages.
        progress: told now and then that the work goes on, also while it waits.

    Attributes:
        capture: the same.
        link: the first connection.
        lost: why nothing comes any more; None if that is the end.

    Raises:
        VideoError: if no packet comes.
    """

    tick = float(TICK)

    def __init__(self, capture: Capture, name: str, progress: Progress) -> None:
        super().__init__(name, progress)
        self.capture = capture
        self.lost: VideoError | None = None
        first = self._take()
        if first is None:
            raise self.lost or VideoError(f"{name!r} ended before its first frame; see to what sends it")
        self.link = first.link
        self.span = first.link.span
        self.rest = itertools.chain([first.packet], self.rest)

    def read(self) -> Iterator[Packet]:
        """Yield packets as they come."""
        while (taken := self._take()) is not None:
            yield taken.packet

    def _take(self) -> Taken | None:
        """Wait for the next packet; return None when there will be none, with ``lost`` set if there should."""
        waiting = time.monotonic()
        capture = self.capture
        while (taken := capture.spool.get(POLL_SECONDS)) is None:
            if capture.spool.is_over:
                self.lost = capture.error
                return None
            if awake.since(max(waiting, capture.heard)) >= capture.limit:
                self.lost = capture.gave_up()
                return None
            if not capture.hangs:  # else the reader's watchdog is to act
                self._progress(self.newest)
        return taken


class LiveDecoder(FrameDecoder):
    """Decode what arrives from a pipe, a growing file, a camera or a URL.

    Args:
        path: its name.
        progress: told now and then that the work goes on, also while it waits.
        live: how to treat it.
        stdin: file descriptor of what ``-`` stands for.
        report: told where the source stands, from another thread.
    """

    _packets: LivePackets

    def __init__(self, path: str, progress: Progress, live: Live, stdin: int, report: Report) -> None:
        self._address = Address.of(path)
        self._capture = Capture(self._address, live, stdin, report)
        try:
            packets = LivePackets(self._capture, self._address.name, progress)
        except BaseException:
            self.close()
            raise
        super().__init__(packets, packets.link.codec, packets.link.pixel_ratio, progress)

    def close(self) -> None:
        """Let go of the source; safe to call twice."""
        self._capture.close()

    def chunks(self, grid: Grid, min_pixels: int, max_pixels: int) -> Iterator[Chunk]:
        """Yield the chunks of ``grid``, without those of which nothing was seen."""
        for chunk in super().chunks(grid, min_pixels, max_pixels):
            if not any(begin <= chunk.start and chunk.end <= end for begin, end in self._capture.spool.gaps.copy()):
                yield chunk

    def _peek(self) -> VideoFrame:
        try:
            return super()._peek()
        except VideoError as error:
            raise self._packets.lost or error from None

    def _describe(self, first: VideoFrame) -> VideoInfo:
        if first.pts is not None:
            self.first = self._packets.time(first)
        link = self._packets.link
        return VideoInfo(
            path=self._path,
            width=self._pictures.width,
            height=self._pictures.height,
            # What has an end and says so is a file, wherever it lies; what is piped may be of anything.
            duration=link.length if self._address.kind == "url" and link.ends else None,
            fps=link.rate,
            codec=self._decoder.codec.canonical_name,
            container=link.kind,
            timed=self._packets.head[0].pts is not None,
        )

    def _decode(self, packet: Packet | None) -> list[VideoFrame]:
        codec = self._decoder if packet is None else packet.stream.codec_context
        if codec is self._decoder:
            return super()._decode(packet)
        rest, skip = self._drain(), self._decoder.skip_frame
        if codec.is_open:
            self._decoder = codec
        else:
            self._decode_with(codec)
        self._decoder.skip_frame = skip
        return rest + super()._decode(packet)

    def _finish(self) -> float:
        packets = self._packets
        self.failure = packets.lost
        if self._fed - self._last > SHORT_SECONDS:
            return self._fail(self._last + packets.span, "what comes from there on cannot be decoded")
        return max(packets.end, packets.newest + CLOCK_SLACK + 2 * EPSILON)
