"""Decode the frames that a grid needs, one packet after the other.

Damaged packets are skipped; the frame before stands in for what they held.
"""

import logging
import math
import os
from abc import abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import av
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from kvvideo.errors import VideoError
from kvvideo.times import format_time
from kvvideo.video.container import Packet
from kvvideo.video.decoder import Decoder, Progress
from kvvideo.video.packets import ENCRYPTED, LOST_PACKETS, Frame, Packets
from kvvideo.video.pictures import Picture, Pictures
from kvvideo.video.plan import VideoInfo
from kvvideo.video.sampling import Grid, pick
from kvvideo.video.selection import Coded, Step, select
from kvvideo.video.timeline import JUMP_SECONDS

logger = logging.getLogger("kvvideo.video")

PEEK = 500
"""Packets of the picture that may fail before the first frame."""
LOST_SECONDS = 30.0
"""Decoding is given up when this much of the video, in more than ``LOST_PACKETS`` packets, gave no frame."""
SILENT = "the data from there on is damaged; get another copy"


class FrameDecoder(Decoder):
    """Decode packets with FFmpeg.

    Args:
        packets: of the video, from its beginning.
        codec: what decodes them.
        pixel_ratio: width of a stored pixel over its height.
        progress: told now and then that the work goes on.
    """

    name = "pyav"
    _packets: Packets

    def __init__(self, packets: Packets, codec: VideoCodecContext, pixel_ratio: float, progress: Progress) -> None:
        self._packets, self._progress = packets, progress
        self._path = packets.name
        self._reformatter = VideoReformatter()
        self._reset()
        self._decode_with(codec)
        try:
            first = self._peek()
            self._pictures = Pictures(self._path, first, pixel_ratio)
            self.info = self._describe(first)
            self._pictures.picture(first, 28, 28, self._reformatter)
        except BaseException:
            self.close()
            raise

    def _reset(self) -> None:
        """Forget what was decoded."""
        self._clock: deque[float] = deque()  # times of packets not yet decoded, where frames have none
        self._last = -math.inf  # time of the newest decoded frame
        self._fed = -math.inf  # time of the newest frame the decoder was asked for
        self._from_first = False  # True if the first frame of the video is decoded
        self._errors = self._marked = 0

    @abstractmethod
    def _describe(self, first: VideoFrame) -> VideoInfo:
        """Return what is known of the video when its first frame is decoded."""

    @abstractmethod
    def _finish(self) -> float:
        """Return where the video ends, in seconds; set ``failure`` if it should have gone on."""

    def sample(self, grid: Grid, height: int, width: int) -> Iterator[tuple[float, Picture]]:
        """Yield the frame shown at each moment of ``grid``."""
        yield from self._sampled(grid, height, width, 0.0)
        self._tell_of_damage()

    def _sampled(
        self, grid: Grid, height: int, width: int, back: float
    ) -> Generator[tuple[float, Picture], None, None]:
        """Yield as ``sample``, where decoding begins ``back`` seconds before the first moment, or earlier."""
        begun = False
        for time, picture in self._shown(grid, height, width, back):
            if self._from_first and not begun:
                self.first = time
            begun = True
            yield time, picture

    def _shown(self, grid: Grid, height: int, width: int, back: float) -> Iterator[tuple[float, Picture]]:
        latest: VideoFrame | None = None
        for time, frame in pick(self._frames(grid, back), grid):
            if frame is not latest:
                latest, picture = frame, self._pictures.picture(frame, height, width, self._reformatter)
            yield time, picture

    def _tell_of_damage(self) -> None:
        marked = self._marked + self._packets.misplaced
        if self._errors or marked:
            logger.warning(
                "%r is damaged: %d packets could not be decoded, %d frames show faults",
                self._path,
                self._errors,
                marked,
            )

    def _decode_with(self, codec: VideoCodecContext) -> None:
        codec.thread_type = "AUTO"
        codec.thread_count = min(8, os.cpu_count() or 1)
        self._decoder = codec

    def _peek(self) -> VideoFrame:
        """Return the first frame, and leave the packets that were read for it at the head of the others."""
        packets = self._packets
        frames: list[VideoFrame] = []
        failed = 0
        for packet in packets.rest:
            if packet.has_sidedata("encryption_info"):
                raise VideoError(f"{self._path!r} is encrypted: {ENCRYPTED}")
            packets.head.append(packet)
            frames = self._decode(packet)
            # Of a part that was cut out, what stands before it is decoded for the rest.
            failed += not packet.is_discard
            if frames or failed > PEEK:
                break
        frames = frames or self._drain()
        self._decoder.flush_buffers()
        self._errors = 0
        if not packets.head:
            raise VideoError(f"the picture track of {self._path!r} is empty; {packets.broken or 'get another copy'}")
        if not frames:
            raise VideoError(f"no frame of {self._path!r} can be decoded; the file is damaged or incomplete")
        return frames[0]

    def _frames(self, grid: Grid, back: float) -> Iterator[tuple[float, VideoFrame | None]]:
        """Yield ``(time, frame)`` of all frames ``grid`` needs and some more, then ``(end, None)``."""
        silence = Silence()
        for step in self._steps(grid, back):
            if step.fresh or step.coded.anew:
                yield from self._timed(self._drain())
            self._decoder.skip_frame = "DEFAULT" if step.whole else "NONREF"
            before = self._last
            for packet in step.coded.payload:
                yield from self._timed(self._decode(packet))
            self._fed = max(self._fed, step.due)
            if silence.lost([step], heard=self._last > before):
                self._packets.broken = self._packets.broken or SILENT
                break
        yield from self._timed(self._drain())
        yield self._finish(), None

    def _steps(self, grid: Grid, back: float = 0.0) -> Iterator[Step[Frame]]:
        if self.info.timed:
            steps = select(self._coded(grid.time(0), back), grid)
        else:
            self._from_first = True
            steps = (Step(coded, whole=True, fresh=False) for coded in self._packets.spaced())
        for number, step in enumerate(steps):
            if number == 0:
                self._from_first = self._from_first and not step.fresh
            if not self.info.timed:
                self._clock.append(step.coded.time)
            yield step

    def _coded(self, start: float, back: float) -> Iterator[Coded[Frame]]:
        """Return the coded frames from a place where decoding can begin, ``back`` seconds before ``start``."""
        self._from_first = True
        return self._packets.placed(self._packets.all(), start, back)

    def _timed(self, frames: Iterable[VideoFrame]) -> Iterator[tuple[float, VideoFrame]]:
        """Yield frames with their times, without those that go back or leap far ahead."""
        for frame in frames:
            if not self.info.timed:
                time = self._clock.popleft() if self._clock else self._last + self._packets.span
            elif frame.pts is None:
                time = self._last + self._packets.span
            else:
                time = self._packets.time(frame)
            if time <= self._last or time > self._packets.newest + JUMP_SECONDS:
                logger.debug("%r: a frame at %s after %s is ignored", self._path, time, self._last)
                continue
            self._marked += frame.is_corrupt
            self._last = time
            yield time, frame

    def _decode(self, packet: Packet | None) -> list[VideoFrame]:
        frames = decoded(self._decoder, packet, self._path)
        if frames is None:
            self._errors += 1
            if self._clock:
                self._clock.pop()
        return frames or []

    def _drain(self) -> list[VideoFrame]:
        """Return the frames the decoder still holds; it can begin anew afterwards."""
        frames = self._decode(None)
        self._decoder.flush_buffers()
        return frames

    def _fail(self, end: float, why: str) -> float:
        end = max(0.0, end)
        whole = "" if self.info.duration is None else f" of {format_time(self.info.duration)}"
        self.failure = VideoError(f"decoding of {self._path!r} stopped at {format_time(end)}{whole}: {why}")
        return end


class Silence:
    """Watch for how long no frame has come out."""

    def __init__(self) -> None:
        self._steps = 0
        self._heard: float | None = None  # time of the packet that last made a frame come out

    def lost(self, steps: list[Step[Any]], heard: bool) -> bool:
        """Return True if that is too long now.

        Args:
            steps: those fed last.
            heard: True if a frame came out of them.
        """
        times = [step.coded.time for step in steps if not step.coded.hidden]
        if times:
            self._steps += len(times)
            if self._heard is None or heard:
                self._steps, self._heard = 0, times[-1]
            return self._steps > LOST_PACKETS and times[-1] - self._heard > LOST_SECONDS
        return False


def decoded(codec: VideoCodecContext, packet: Packet | None, name: str) -> list[VideoFrame] | None:
    """Return the frames that come out for a packet, or for the end if that is None; None if it cannot be decoded.

    Args:
        codec: what decodes it.
        packet: the next one.
        name: of the video, for messages.
    """
    try:
        return codec.decode(packet)
    except av.error.FFmpegError as error:
        logger.debug("%r: %r: %s", name, packet, error)
        return None
