"""The default decoder: PyAV, decoding only what ``selection`` says is needed, by presentation time.

Packets are dropped, groups decoded at once, and places sought only where ``bitstream`` proves that it changes nothing.
"""

import logging
import math
import os
from collections.abc import Iterator
from typing import ClassVar

from av.codec.hwaccel import HWAccel
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from kvvideo.times import format_time
from kvvideo.video.container import CONFIGURED, File, Packet, is_segmented
from kvvideo.video.decoder import Progress
from kvvideo.video.frames import SILENT, FrameDecoder, Silence, decoded
from kvvideo.video.lanes import Done, Lanes, parts
from kvvideo.video.packets import BACK_SECONDS, SHORT_SECONDS, FilePackets, Frame
from kvvideo.video.pictures import Picture, Pictures
from kvvideo.video.plan import VideoInfo
from kvvideo.video.sampling import CLOCK_SLACK, EPSILON, Grid, pick
from kvvideo.video.selection import Coded, Step
from kvvideo.video.timeline import JUMP_SECONDS

logger = logging.getLogger("kvvideo.video")

LATE_PICTURE_SECONDS = 1.0
"""A picture that begins this long after the sound is told of."""
MOST_LANES = 16
"""Groups of pictures that are decoded at once at most."""
CORES = 0.75
"""Share of the cores that decode them: with all of sixteen a GPU's engine is no less idle, and slower (docs/gpu.md)."""
LANE_PICTURES = 20
"""Pictures that a decoder holds at most, some of them handed out."""
LANES_BYTES = 2 << 30
"""Bytes that all of them may take."""


class PyavDecoder(FrameDecoder):
    """Decode whatever FFmpeg can, from files and from pipes."""

    abreast: ClassVar[bool] = True
    """True if groups of pictures may be decoded at once."""
    hwaccel: HWAccel | None = None
    """Device that FFmpeg is to decode with, if not the CPU."""
    _packets: FilePackets

    def __init__(self, path: str, progress: Progress) -> None:
        self._file = File(path, self.hwaccel)
        try:
            packets = FilePackets(self._file, progress)
        except BaseException:
            self._file.close()
            raise
        super().__init__(packets, packets.stream.codec_context, packets.pixel_ratio, progress)

    @property
    def segmented(self) -> bool:
        """True if an edit list shows several parts of the track."""
        return is_segmented(self._packets.stream)

    def close(self) -> None:
        """Free the file; safe to call twice."""
        self._packets.close()
        self._file.close()

    def sample(self, grid: Grid, height: int, width: int) -> Iterator[tuple[float, Picture]]:
        """Yield the frame shown at each moment of ``grid``."""
        for back in (*BACK_SECONDS, math.inf):
            samples = self._sampled(grid, height, width, back)
            first = next(samples, None)
            if first is None:
                break
            honest = first[0] <= max(grid.time(0) + EPSILON, self.first)
            if honest or back == math.inf or not self._file.is_regular:
                yield first
                yield from samples
                break
            # Nothing came out of the frames before this moment: begin at earlier ones.
            samples.close()
            self._reopen()
        self._tell_of_damage()

    def _shown(self, grid: Grid, height: int, width: int, back: float) -> Iterator[tuple[float, Picture]]:
        count = self._lanes()
        if count == 1:
            return super()._shown(grid, height, width, back)
        return pick(self._abreast(grid, count, height, width, back), grid)

    def _reopen(self) -> None:
        """Begin anew, at the beginning of the file."""
        self._packets.reopen()
        self._reset()
        self._decode_with(self._packets.stream.codec_context)

    def _describe(self, first: VideoFrame) -> VideoInfo:
        packets = self._packets
        duration, timed = packets.settle()
        if not timed:
            logger.warning("%r carries no display times: frames are spaced evenly", self._path)
        elif first.pts is not None:
            self.first = packets.time(first)
            if self.first > LATE_PICTURE_SECONDS:
                logger.warning(
                    "the picture of %r begins at %s; before that its first frame is shown",
                    self._path,
                    format_time(self.first),
                )
        stream = packets.stream
        rate = stream.average_rate if timed else stream.guessed_rate or stream.average_rate
        return VideoInfo(
            path=self._path,
            width=self._pictures.width,
            height=self._pictures.height,
            duration=duration,
            fps=float(rate) if rate else None,
            codec=stream.codec_context.codec.canonical_name,
            container=packets.kind,
            timed=timed,
        )

    def _lanes(self) -> int:
        """Return how many groups of pictures to decode at once."""
        if not (self.abreast and self.info.timed and self._file.is_regular):
            return 1
        codec = self._packets.stream.codec_context
        fitting = LANES_BYTES // (LANE_PICTURES * max(1, codec.width * codec.height * self._pictures.bits // 8))
        return min(MOST_LANES, self._threads(), int(fitting))

    def _threads(self) -> int:
        """Return how many threads decode at once: of many cores some are left to whoever takes the pictures."""
        return math.ceil(len(os.sched_getaffinity(0)) * CORES)

    def _abreast(
        self, grid: Grid, count: int, height: int, width: int, back: float
    ) -> Iterator[tuple[float, Picture | None]]:
        """Yield as ``_frames``, with pictures ``[height, width, 3]`` of all frames that may be shown."""
        silence = Silence()

        def slot() -> _Slot:
            return _Slot(self._file, self._packets, self._pictures, (height, width))

        with Lanes(count, grid, slot, self._progress) as lanes:
            for part, done in lanes.decoded(parts(self._steps(grid, back), 3 * height * width)):
                self._errors += done.errors
                self._marked += done.marked
                for time, picture in done.shown:
                    if time > self._last:
                        self._last = time
                        yield time, picture
                self._fed = max([self._fed, *(step.due for step in part.steps)])
                if silence.lost(part.steps, done.heard):
                    self._packets.broken = self._packets.broken or SILENT
                    break
        yield self._finish(), None

    def _coded(self, start: float, back: float) -> Iterator[Coded[Frame]]:
        packets = self._packets
        known = (self.info.duration or 0.0) * packets.kind.startswith(CONFIGURED)
        if packets.is_sought(start):
            found = packets.sought(start, back)
            if found is not None:
                return packets.placed(found, start, back, known)
            self._reopen()
        self._from_first = True
        return packets.placed(packets.all(), start, back, known)

    def _finish(self) -> float:
        packets = self._packets
        decoded_to = self._last + packets.span
        if self._fed - self._last > SHORT_SECONDS:
            return self._fail(decoded_to, SILENT)
        if packets.broken is not None:
            return self._fail(decoded_to if packets.broken is SILENT else packets.end, packets.broken)
        if packets.is_cut_short:
            return self._fail(packets.end, "the file is cut short; get a complete copy")
        end = packets.end
        if self.info.duration is not None and packets.newest < self.info.duration:
            # A packet's duration counts in the order of storage: it may be too long for the last frame.
            end = min(end, self.info.duration)
        return max(end, packets.newest + CLOCK_SLACK + 2 * EPSILON)


class _Slot:
    """Decode for ``Lanes``, on one thread."""

    def __init__(self, file: File, packets: FilePackets, pictures: Pictures, size: tuple[int, int]) -> None:
        self._packets, self._pictures, self._size = packets, pictures, size
        self._container, stream = file.open()
        self._codec = stream.codec_context
        self._codec.thread_count = 1
        self._codec.open()  # before anything is to be skipped: some decoders look at that only now
        self._reformatter = VideoReformatter()
        self._last = -math.inf

    def decode(self, step: Step[Frame], done: Done) -> list[tuple[float, VideoFrame]]:
        self._codec.skip_frame = "DEFAULT" if step.whole else "NONREF"
        return [timed for packet in step.coded.payload for timed in self._fed(packet, done)]

    def drain(self, done: Done) -> list[tuple[float, VideoFrame]]:
        frames = self._fed(None, done)
        self._codec.flush_buffers()
        return frames

    def picture(self, frame: VideoFrame) -> Picture:
        return self._pictures.picture(frame, *self._size, self._reformatter)

    def close(self) -> None:
        self._container.close()

    def _fed(self, packet: Packet | None, done: Done) -> list[tuple[float, VideoFrame]]:
        packets = self._packets
        frames = decoded(self._codec, packet, packets.name)
        done.errors += frames is None
        timed = []
        for frame in frames or ():
            self._last = self._last + packets.span if frame.pts is None else packets.time(frame)
            if self._last <= packets.newest + JUMP_SECONDS:
                done.marked += frame.is_corrupt
                timed.append((self._last, frame))
        return timed
