"""The default decoder: PyAV, decoding only what ``selection`` says is needed, by presentation time.

Times are seconds of the source: the container's start time is subtracted, so that the first frame is at
about 0, as players show it. Damaged packets are skipped; the frame before stands in for what they held.
Packets are dropped, groups decoded at once, and places sought only where ``bitstream`` proves that it changes nothing.
"""

import itertools
import logging
import math
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Interpolation, VideoReformatter

from kvvideo.errors import VideoError
from kvvideo.times import format_time
from kvvideo.video.bitstream import Access
from kvvideo.video.decoder import Decoder, Progress, check_file, reason
from kvvideo.video.geometry import MAX_PICTURE, check_picture, displayed_size, fitted
from kvvideo.video.lanes import Done, Lanes, parts
from kvvideo.video.plan import VideoInfo
from kvvideo.video.sampling import CLOCK_SLACK, EPSILON, Grid, pick
from kvvideo.video.selection import Coded, Step, select
from kvvideo.video.timeline import JUMP_SECONDS, Placed, Timeline

logger = logging.getLogger("kvvideo.video")

UNTIMED = frozenset({"avi"})
"""Containers whose times give the order of storage, not of display."""
PICTURES = frozenset({"image2", "tty"})
"""Formats FFmpeg reads as video that are not: still images (also ``*_pipe``) and text."""
LISTS = frozenset({"concat", "dash", "hls", "imf", "rtsp", "sdp", "vobsub", "webm_dash_manifest"})
"""Formats that name other files or hosts. A file that a stranger calls a video must not reach for those."""
BOUNDED = {"max_pixels": str(MAX_PICTURE)}
"""Settings of every codec."""
LENIENT = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
"""Settings of ``av.open`` with which a file may say what it likes about itself. PyAV 19 needs none and takes none."""
DEFAULT_FPS = 25.0
"""Frame rate where a stream without times does not tell its own; FFmpeg assumes the same."""
PEEK = 500
"""Packets of the picture that may fail before the first frame."""
SOUGHT = ("mov", "matroska", "mpegts", "flv")
"""Beginnings of the names of containers in which places are sought: others give packets after that wrong times."""
CONFIGURED = ("mov", "matroska")
"""Beginnings of the names of containers that hold parameter sets apart from the frames, and give the right ones after a
seek. Of others, and of these where sets stand among the frames, a place is sought only if it holds all sets itself."""
READ_BYTES = 128 << 20
"""Files up to this size are read from the beginning, which takes less than a second: nothing need be believed."""
BACK_SECONDS = (0.0, 10.0, 60.0)
"""How long before the first moment decoding begins: farther back where nothing comes out of what is nearer."""
GAP_SECONDS, GAPS_TOLD = 60.0, 3
"""A stretch without a frame that is told of, and how many of them."""
CLOCKED = frozenset({"mpeg", "mpegts"})
"""Containers whose length is the difference of two times."""
LEAST_RATE = 100
"""Bytes a second that they have at least: with fewer the clock was set back between the two."""
READ_ERRORS = 20
"""Errors in a row after which reading a file is given up."""
LOST_SECONDS, LOST_PACKETS = 30.0, 100
"""Decoding is given up when this much of the video gave no frame."""
LATE_PICTURE_SECONDS = 1.0
"""A picture that begins this long after the sound is told of."""
PAUSE_SLACK = 0.5
"""Seconds by which two counts of the same length may differ."""
SILENT = "the data from there on is damaged; get another copy"
ENCRYPTED = "kvvideo cannot play what is protected; use a copy that is not"
LONGEST_SECONDS = 30 * 86400.0
"""A video that says it is longer than this is damaged, and how long it is is not known."""
SAME_TIME = 16
"""Packets that may belong to one moment."""
PACKET_BYTES = 1024
"""What a packet takes in memory besides its data."""
MOST_LANES = 16
"""Groups of pictures that are decoded at once at most."""
CORES = 0.75
"""Share of the cores that decode them: with all of sixteen a GPU's engine is no less idle, and slower (docs/gpu.md)."""
LANE_PICTURES = 20
"""Pictures that a decoder holds at most, some of them handed out."""
LANES_BYTES = 2 << 30
"""What all of them may take."""
UNKNOWN_BITS = 24
"""Of a pixel, where the format does not tell: that of pictures on a GPU. Ten bits a sample take as many."""
SHORT_SECONDS, SHORT_SHARE = 1.0, 0.02
"""How much earlier than its container says a video may end before it counts as cut short."""


class PyavDecoder(Decoder):
    """Decodes whatever FFmpeg can, from files and from pipes."""

    name = "pyav"
    abreast: ClassVar[bool] = True
    """Whether groups of pictures may be decoded at once: whether the source can be opened many times."""
    hwaccel: Any = None
    """What FFmpeg is to decode with, if not with the CPU."""

    def __init__(self, path: str, progress: Progress) -> None:
        self._path = path
        self._progress = progress
        self._reformatter = VideoReformatter()
        self._origin = self._pause = 0.0
        self._container: Any = None
        self._file: int | None = None  # held open: by then it may be called otherwise, or another be called so
        self._kind: str | None = None  # format of the file
        self._reset()
        self._open()
        try:
            self._head, first = self._peek()
            self._bits = first.format.padded_bits_per_pixel or UNKNOWN_BITS
            self._turned, self._mirrored, self._flipped = _orientation(first)
            self._stored = first.height, first.width
            self.info = self._describe(first)
            self._picture(first, 28, 28, self._reformatter)
        except BaseException:
            self.close()
            raise

    def _size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file).st_size if self._file is not None else 0

    @property
    def segmented(self) -> bool:
        """Whether an edit list shows several parts of the track: then its index is in no order of time."""
        shown = again = False
        for entry in self._stream.index_entries:
            if entry.is_discard:
                again = again or (shown and entry.is_keyframe)
            elif again:
                return True
            else:
                shown = True
        return False

    def _reset(self) -> None:
        """Forget what was read and decoded."""
        self._clock: deque[float] = deque()  # times of packets not yet decoded, where frames have none
        self._last = -math.inf  # time of the newest decoded frame
        self._fed = -math.inf  # time of the newest frame the decoder was asked for
        self._newest = 0.0  # time of the last frame, as far as the video was read
        self._end = 0.0  # where the video ends, as far as it was read
        self._reached = 0.0  # the same over all streams: audio may go on longer
        self._decoded_to = -math.inf  # time of decoding of the last packet that was read, in ticks
        self._cut_out = 0.0  # seconds that an edit list does not show
        self._complete = False  # whether everything was read
        self._broken: str | None = None  # why it could not be
        self._set_anew = False  # whether the clock was, on the way
        self._gaps = 0  # stretches without a frame that were told of
        self._followed: Any = None  # the codec that ``_access`` follows
        self._from_first = False  # whether the first frame of the video is decoded
        self._errors = self._marked = 0

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def sample(self, grid: Grid, height: int, width: int) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
        for back in (*BACK_SECONDS, math.inf):
            samples = self._sampled(grid, height, width, back)
            first = next(samples, None)
            if first is None:
                break
            if self._from_first:
                self.first = first[0]
            honest = first[0] <= max(grid.time(0) + EPSILON, self.first)
            if honest or back == math.inf or not self._is_regular():
                yield first
                yield from samples
                break
            # Nothing came out of the frames before this moment: begin at earlier ones.
            samples.close()
            self._reopen()
        if self._errors or self._marked:
            logger.warning(
                "%r is damaged: %d packets could not be decoded, %d frames show faults",
                self._path,
                self._errors,
                self._marked,
            )

    def _sampled(
        self, grid: Grid, height: int, width: int, back: float
    ) -> Generator[tuple[float, npt.NDArray[np.uint8]], None, None]:
        """As ``sample``, where decoding begins ``back`` seconds before the first moment, or earlier."""
        count = self._lanes()
        if count > 1:
            yield from pick(self._abreast(grid, count, height, width, back), grid)
            return
        latest = picture = None
        for time, frame in pick(self._frames(grid, back), grid):
            if picture is None or frame is not latest:
                latest, picture = frame, self._picture(frame, height, width, self._reformatter)
            yield time, picture

    def _reopen(self) -> None:
        """Begin anew, at the beginning of the file."""
        self._container.close()
        self._reset()
        self._open()
        self._head = []

    def _open(self) -> None:
        """Open the file at its beginning."""
        if self._file is None:
            self._file = _held_open(self._path)
        try:
            self._container, self._stream = self._opened()
        except BaseException:
            self.close()
            raise
        if self._file is not None:
            self._kind = self._container.format.name.partition(",")[0]
        self._decode_with(self._stream.codec_context)
        self._tick = float(self._stream.time_base)
        self._pixel_ratio = float(self._stream.sample_aspect_ratio or 1)
        if self._container.start_time is not None:
            self._origin = self._container.start_time / av.time_base
        rate = self._stream.guessed_rate or self._stream.average_rate
        self._span = frame_seconds(rate)
        self._packets = self._read()

    def _opened(self) -> tuple[Any, Any]:
        """The file, opened once more, and its video."""
        path = self._path if self._kind is None else f"/proc/self/fd/{self._file}"
        try:
            # "file:" and the whitelist keep names and playlists from reaching for other files or hosts.
            container: Any = av.open(
                f"file:{path}",
                format=self._kind,
                options=BOUNDED,
                container_options={"protocol_whitelist": "file", "format_whitelist": _formats()},
                hwaccel=self.hwaccel,
                **LENIENT,
            )
        except av.error.ArgumentError:
            raise VideoError(f"{self._path!r} is a list of other files, or damaged; name a video file") from None
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(
                f"{self._path!r} is not a video that FFmpeg can read ({reason(error)}); "
                "it may be cut short, damaged or of another kind"
            ) from None
        try:
            if container.format.name == "webp_pipe" and _is_animated(self._path):
                raise VideoError(
                    f"{self._path!r} is an animated WebP, which this FFmpeg cannot read; convert it, for instance with "
                    "ImageMagick: convert in.webp out.gif"
                )
            return container, choose(container, self._path)
        except VideoError:
            container.close()
            raise

    def _decode_with(self, codec: Any) -> None:
        self._decoder = codec
        self._decoder.thread_type = "AUTO"
        self._decoder.thread_count = min(8, os.cpu_count() or 1)

    def _peek(self) -> tuple[list[Any], Any]:
        """The first frame, and all packets of the picture that were read for it."""
        head: list[Any] = []
        frames: list[Any] = []
        failed = 0
        for packet in self._packets:
            if packet.has_sidedata("encryption_info"):
                raise VideoError(f"{self._path!r} is encrypted: {ENCRYPTED}")
            head.append(packet)
            frames = self._decode(packet)
            # Of a part that was cut out, what stands before it is decoded for the rest.
            failed += not packet.is_discard
            if frames or failed > PEEK:
                break
        frames = frames or self._drain()
        self._decoder.flush_buffers()
        self._errors = 0
        if not head:
            raise VideoError(f"the picture track of {self._path!r} is empty; {self._broken or 'get another copy'}")
        if not frames:
            raise VideoError(f"no frame of {self._path!r} can be decoded; the file is damaged or incomplete")
        return head, frames[0]

    def _describe(self, first: Any) -> VideoInfo:
        stream, container = self._stream, self._container
        height, width = displayed_size(first.height, first.width, self._pixel_ratio)
        if self._turned:
            height, width = width, height
        kind = container.format.name
        times = [packet.pts for packet in self._head if packet.pts is not None]
        if container.start_time is None and times:
            self._origin = times[0] * self._tick
        duration = self._duration()
        timed = bool(times) and kind not in UNTIMED
        if not timed:
            logger.warning("%r carries no display times: frames are spaced evenly", self._path)
            self._origin = 0.0
        elif first.pts is not None:
            self.first = self._time(first)
            if self.first > LATE_PICTURE_SECONDS:
                logger.warning(
                    "the picture of %r begins at %s; before that its first frame is shown",
                    self._path,
                    format_time(self.first),
                )
        rate = stream.average_rate if timed else stream.guessed_rate or stream.average_rate
        return VideoInfo(
            path=self._path,
            width=width,
            height=height,
            duration=duration,
            fps=float(rate) if rate else None,
            codec=stream.codec_context.codec.canonical_name,
            container=kind,
            timed=timed,
        )

    def _duration(self) -> float | None:
        """How long the picture lasts by what the file says, in seconds; None where it says nothing that can be."""
        stream, container = self._stream, self._container
        # FFmpeg gives a Matroska track that tells its length that of the file all the same.
        if (told := _told_duration(stream.metadata)) is not None:
            begins = (self._head[0].pts or 0) * self._tick
            end = told + (begins if "_STATISTICS_TAGS" in stream.metadata else 0.0)
        elif stream.duration is not None:
            pause = (stream.start_time or 0) * self._tick
            end = stream.duration * self._tick + pause
            if container.format.name.startswith("mov") and pause > PAUSE_SLACK:
                # FFmpeg counts a pause before the first frame twice if the track was cut, too.
                times = [entry.timestamp for entry in stream.index_entries if not entry.is_discard]
                last = max(times, default=-math.inf) * self._tick + self._span
                self._pause = pause if abs(end - pause - last) < PAUSE_SLACK else 0.0
                end -= self._pause
        elif container.duration is not None:
            # Matroska states the time at which the last frame ends, not how long the file plays.
            end = container.duration / av.time_base
            end += 0.0 if container.format.name.startswith("matroska") else self._origin
        else:
            return None
        duration: float = end - self._origin
        if self._is_regular() and container.format.name in CLOCKED:
            longest = self._size() / LEAST_RATE
        else:
            longest = LONGEST_SECONDS
        return duration if 0 < duration <= longest else None

    def _frames(self, grid: Grid, back: float) -> Iterator[tuple[float, Any]]:
        """``(time, frame)`` of all frames ``grid`` needs and some more, then ``(end, None)``."""
        silence = _Silence()
        for step in self._steps(grid, back):
            if step.fresh or step.coded.anew:
                yield from self._timed(self._drain())
            self._decoder.skip_frame = "DEFAULT" if step.whole else "NONREF"
            before = self._last
            for packet in step.coded.payload:
                yield from self._timed(self._decode(packet))
            self._fed = max(self._fed, step.due)
            if silence.lost([step], heard=self._last > before):
                self._broken = self._broken or SILENT
                break
        yield from self._timed(self._drain())
        yield self._finish(), None

    def _lanes(self) -> int:
        """How many groups of pictures to decode at once."""
        if not (self.abreast and self.info.timed and self._is_regular()):
            return 1
        codec = self._stream.codec_context
        fitting = LANES_BYTES // (LANE_PICTURES * max(1, codec.width * codec.height * self._bits // 8))
        return min(MOST_LANES, self._threads(), int(fitting))

    def _threads(self) -> int:
        """How many threads decode at once: of many cores some are left to whoever takes the pictures."""
        return math.ceil(len(os.sched_getaffinity(0)) * CORES)

    def _abreast(
        self, grid: Grid, count: int, height: int, width: int, back: float
    ) -> Iterator[tuple[float, npt.NDArray[np.uint8] | None]]:
        """As ``_frames``, with pictures ``[height, width, 3]`` of all frames that may be shown."""
        silence = _Silence()
        with Lanes(count, grid, lambda: _Slot(self, height, width), self._progress) as lanes:
            for part, done in lanes.decoded(parts(self._steps(grid, back), 3 * height * width)):
                self._errors += done.errors
                self._marked += done.marked
                for time, picture in done.shown:
                    if time > self._last:
                        self._last = time
                        yield time, picture
                self._fed = max([self._fed, *(step.due for step in part.steps)])
                if silence.lost(part.steps, done.heard):
                    self._broken = self._broken or SILENT
                    break
        yield self._finish(), None

    def _is_regular(self) -> bool:
        """Whether the source is a file in which one can go back, and no pipe."""
        return self._file is not None

    def _steps(self, grid: Grid, back: float = 0.0) -> Iterator[Step[list[Any]]]:
        start = grid.time(0)
        if self.info.timed:
            steps = select(self._coded(self._from(start, back), start, back), grid)
        else:
            self._from_first = True
            steps = (Step(coded, whole=True, fresh=False) for coded in self._spaced())
        for number, step in enumerate(steps):
            if number == 0:
                self._from_first = self._from_first and not step.fresh
            yield step

    def _finish(self) -> float:
        """Where the video ends; sets ``failure`` if it should have gone on."""
        decoded_to = self._last + self._span
        if self._fed - self._last > SHORT_SECONDS:
            return self._fail(decoded_to, SILENT)
        if self._broken is not None:
            return self._fail(decoded_to if self._broken is SILENT else self._end, self._broken)
        total = (self._container.duration or 0) / av.time_base - self._pause
        reached = self._reached + self._cut_out + max(0.0, self._origin)  # duration counts from either beginning
        if (
            self._complete
            and not self._set_anew
            and not self._is_indexed()
            and LONGEST_SECONDS > total > reached + max(SHORT_SECONDS, SHORT_SHARE * total)
        ):
            return self._fail(self._end, "the file is cut short; get a complete copy")
        end = self._end
        if self.info.duration is not None and self._newest < self.info.duration:
            # A packet's duration counts in the order of storage: it may be too long for the last frame.
            end = min(end, self.info.duration)
        return max(end, self._newest + CLOCK_SLACK + 2 * EPSILON)

    def _is_indexed(self) -> bool:
        """Whether the last frame of the container's index was read: then nothing is missing."""
        entries = self._stream.index_entries
        whole = self._container.format.name.startswith("mov") and self._stream.frames and len(entries)
        return bool(whole) and entries[len(entries) - 1].timestamp <= self._decoded_to

    def _fail(self, end: float, why: str) -> float:
        end = max(0.0, end)
        whole = "" if self.info.duration is None else f" of {format_time(self.info.duration)}"
        self.failure = VideoError(f"decoding of {self._path!r} stopped at {format_time(end)}{whole}: {why}")
        return end

    def _read(self) -> Iterator[Any]:
        """All packets of the picture, in the order of the file, as far as it can be read."""
        errors = 0
        why = ""
        while errors <= READ_ERRORS:
            try:
                for packet in self._container.demux():
                    errors = 0
                    if packet.size == 0:
                        continue  # the mark of a stream's end, or of a frame that was dropped
                    at = packet.pts if packet.pts is not None else packet.dts
                    if at is not None:
                        end = float((at + (packet.duration or 0)) * packet.time_base) - self._origin
                        self._reached = max(self._reached, end)
                    if packet.stream_index == self._stream.index:
                        # Fragments count what was cut out as part of the length.
                        self._cut_out += self._length(packet) if packet.is_discard else 0.0
                        self._decoded_to = max(self._decoded_to, -math.inf if packet.dts is None else packet.dts)
                        yield packet
                self._complete = True
                return
            except av.error.FFmpegError as error:
                errors += 1
                logger.debug("%r: reading failed: %s", self._path, error)
                why = reason(error)
        self._broken = f"the file cannot be read further ({why})"

    def _from(self, start: float, back: float) -> Iterator[Any]:
        """Packets from a place where decoding can begin and that is shown ``back`` seconds before ``start``."""
        large = start > 0 and self._size() > READ_BYTES
        kind = self._container.format.name
        if large and kind.startswith(SOUGHT) and not self.segmented:
            configured = kind.startswith(CONFIGURED)
            for packet in self._head:
                self._restarts(packet)
            # Indexes point by time of decoding, which is earlier than that of display: look back if need be.
            for margin in BACK_SECONDS:
                if margin < back:
                    continue
                packets = self._sought(start - margin)
                for packet in packets:
                    if packet.pts is None:
                        continue
                    if self._time(packet) > start - back:
                        break
                    self._restarts(packet)
                    access = self._access
                    if access.seen.key and (access.complete or (configured and access.steady)):
                        return itertools.chain([packet], packets)
            self._reopen()
        self._from_first = True
        return itertools.chain(self._head, self._packets)

    def _sought(self, time: float) -> Iterator[Any]:
        """Packets from the place that the container's index gives for ``time``."""
        try:
            self._container.seek(int((time + self._origin) / self._tick), stream=self._stream)
        except (av.error.FFmpegError, OverflowError):
            return iter(())
        return self._read()

    def _coded(self, packets: Iterable[Any], start: float, back: float) -> Iterator[Coded[list[Any]]]:
        """The video's packets, on one line of time.

        Decoding does not begin anew in the ``back`` seconds before ``start``.
        """
        believed = self.info.container.startswith(CONFIGURED)
        timeline: Timeline[Coded[list[Any]]] = Timeline(start, (self.info.duration or 0.0) * believed)

        def straight(placed: list[Placed[Coded[list[Any]]]]) -> Iterator[Coded[list[Any]]]:
            self._tell_of_breaks(timeline)
            for coded in map(self._straightened, placed):
                yield replace(coded, restarts=coded.restarts and not start - back < coded.time <= start)

        for time, frame in _joined(packets, self._time):
            first = frame[0]
            if first.has_sidedata("encryption_info"):
                self._broken = f"it is encrypted from there on; {ENCRYPTED}"
                break
            restarts = self._restarts(first) and first.pts is not None
            seen, joins = self._access.seen, self._access.joins
            # The first may have no time: they are decoded for others.
            hidden = seen.lost or first.pts is None
            for packet in frame[1:]:
                self._restarts(packet)
            size = sum(packet.size + PACKET_BYTES for packet in frame)
            if first.is_discard:  # it stands before or after a part that was cut out, and has no place of its own
                yield from straight(timeline.rest())
                yield Coded(frame, time, size, hidden=True, joins=True)
                continue
            coded = Coded(frame, time, size, restarts, hidden, joins or not seen.tells, joins and seen.key)
            yield from straight(timeline.place(coded, time, self._length(first)))
            if timeline.damaged > LOST_PACKETS:
                self._broken = "its times are damaged from there on; remux it"
                break
        yield from straight(timeline.rest())

    def _straightened(self, placed: Placed[Coded[list[Any]]]) -> Coded[list[Any]]:
        """Put the packets of a frame where they belong on the line of time."""
        coded = placed.item
        if placed.shift is None:
            self._marked += 1
            return replace(coded, time=self._newest, restarts=False, hidden=True)
        ticks = round(placed.shift / self._tick)
        for packet in coded.payload if ticks else ():
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
        time = round(coded.time + ticks * self._tick, 6)
        if self._end and time > self._end + GAP_SECONDS and self._gaps < GAPS_TOLD:
            self._gaps += 1
            logger.warning(
                "%r has no frame from %s to %s; the one before stands for them",
                self._path,
                format_time(self._end),
                format_time(time),
            )
        self._progress(time)
        self._newest = max(self._newest, time)
        self._end = max(self._end, time + self._length(coded.payload[0]))
        return replace(coded, time=time)

    def _tell_of_breaks(self, timeline: Timeline[Any]) -> None:
        for anew in timeline.breaks:
            self._set_anew = True
            logger.warning(
                "the clock of %r goes %s by %s at %s, as in joined recordings; time goes on from there",
                self._path,
                "back" if anew.by < 0 else "ahead",
                format_time(abs(anew.by)),
                format_time(anew.at),
            )
        timeline.breaks.clear()

    def _spaced(self) -> Iterator[Coded[list[Any]]]:
        """The video's packets where none tells when it is shown: one after the other."""
        for packet in itertools.chain(self._head, self._packets):
            time = self._end if packet.dts is None else packet.dts * self._tick
            if time > self._end + JUMP_SECONDS:
                time = self._end
            self._progress(time)
            self._newest = time
            self._end = max(self._end, time + self._length(packet))
            self._clock.append(time)
            yield Coded([packet], time, packet.size + PACKET_BYTES)

    def _timed(self, frames: Iterable[Any]) -> Iterator[tuple[float, Any]]:
        """Frames with their times, without those that go back or leap far ahead."""
        for frame in frames:
            if not self.info.timed:
                time = self._clock.popleft() if self._clock else self._last + self._span
            elif frame.pts is None:
                time = self._last + self._span
            else:
                time = self._time(frame)
            if time <= self._last or time > self._newest + JUMP_SECONDS:
                logger.debug("%r: a frame at %s after %s is ignored", self._path, time, self._last)
                continue
            self._marked += frame.is_corrupt
            self._last = time
            yield time, frame

    def _decode(self, packet: Any) -> list[Any]:
        frames = self._decoded(self._decoder, packet)
        if frames is None:
            self._errors += 1
            if self._clock:
                self._clock.pop()
        return frames or []

    def _decoded(self, codec: Any, packet: Any) -> list[Any] | None:
        """The frames that come out of ``codec`` for ``packet``; None if it cannot be decoded."""
        try:
            frames: list[Any] = codec.decode(packet)
        except av.error.FFmpegError as error:
            logger.debug("%r: %r: %s", self._path, packet, error)
            return None
        return frames

    def _drain(self) -> list[Any]:
        """The frames the decoder still holds; it can begin anew afterwards."""
        frames = self._decode(None)
        self._decoder.flush_buffers()
        return frames

    def _time(self, timed: Any) -> float:
        """When a packet or a frame is shown. Not ``frame.time``: PyAV leaves it out of drained frames."""
        seconds: float = timed.pts * self._tick - self._origin
        return round(seconds, 6) + 0.0  # no -0.0

    def _length(self, packet: Any) -> float:
        """How long a packet's frame is shown, if it says something possible."""
        length: float = (packet.duration or 0) * self._tick
        return length if 0 < length <= JUMP_SECONDS else self._span

    def _restarts(self, packet: Any) -> bool:
        """Whether decoding can begin at a packet as well as at those before it; to be asked of each, in order."""
        codec = packet.stream.codec_context
        if codec is not self._followed:
            self._followed = codec
            self._access = Access(codec.codec.canonical_name, codec.extradata)
        new = bytes(packet.get_sidedata("new_extradata")) if packet.has_sidedata("new_extradata") else None
        return self._access.read(bytes(packet), new)

    def _picture(self, frame: Any, height: int, width: int, reformatter: VideoReformatter) -> npt.NDArray[np.uint8]:
        """``frame`` as displayed, ``[height, width, 3]`` RGB."""
        high, wide = height, width
        if (frame.height, frame.width) != self._stored:  # it changes on the way: its shape stays
            size = displayed_size(frame.height, frame.width, self._pixel_ratio)
            box = self.info.height, self.info.width
            high, wide = fitted(size[::-1] if self._turned else size, box, (height, width))
        try:
            scaled: Any = reformatter.reformat(
                frame,
                width=high if self._turned else wide,
                height=wide if self._turned else high,
                format="rgb24",
                interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
                threads=1,
            )
            stored: npt.NDArray[np.uint8] = scaled.to_ndarray()
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoError(
                f"{self._path!r} has pictures of a kind that cannot be converted to RGB "
                f"({frame.format.name}: {reason(error)}); convert it to H.264"
            ) from None
        if self._turned:
            stored = stored.transpose(1, 0, 2)
        upright = stored[:: -1 if self._flipped else 1, :: -1 if self._mirrored else 1]
        if (high, wide) == (height, width):
            return upright
        picture = np.zeros((height, width, 3), np.uint8)
        top, left = (height - high) // 2, (width - wide) // 2
        picture[top : top + high, left : left + wide] = upright
        return picture


class _Silence:
    """How long no frame has come out."""

    def __init__(self) -> None:
        self._steps = 0
        self._heard: float | None = None  # time of the packet that last made a frame come out

    def lost(self, steps: list[Step[Any]], heard: bool) -> bool:
        """Whether that is too long now, after ``steps`` of which a frame was ``heard`` or not."""
        times = [step.coded.time for step in steps if not step.coded.hidden]
        if times:
            self._steps += len(times)
            if self._heard is None or heard:
                self._steps, self._heard = 0, times[-1]
            return self._steps > LOST_PACKETS and times[-1] - self._heard > LOST_SECONDS
        return False


class _Slot:
    """A decoder for ``Lanes``, on one thread."""

    def __init__(self, of: PyavDecoder, height: int, width: int) -> None:
        self._of, self._size = of, (height, width)
        self._container, stream = of._opened()
        self._codec = stream.codec_context
        self._codec.thread_count = 1
        self._codec.open()  # before anything is to be skipped: some decoders look at that only now
        self._reformatter = VideoReformatter()
        self._last = -math.inf

    def decode(self, step: Step[list[Any]], done: Done) -> list[tuple[float, Any]]:
        self._codec.skip_frame = "DEFAULT" if step.whole else "NONREF"
        return [timed for packet in step.coded.payload for timed in self._fed(packet, done)]

    def drain(self, done: Done) -> list[tuple[float, Any]]:
        frames = self._fed(None, done)
        self._codec.flush_buffers()
        return frames

    def picture(self, frame: Any) -> npt.NDArray[np.uint8]:
        return self._of._picture(frame, *self._size, self._reformatter)

    def close(self) -> None:
        self._container.close()

    def _fed(self, packet: Any, done: Done) -> list[tuple[float, Any]]:
        frames = self._of._decoded(self._codec, packet)
        done.errors += frames is None
        timed = []
        for frame in frames or ():
            self._last = self._last + self._of._span if frame.pts is None else self._of._time(frame)
            if self._last <= self._of._newest + JUMP_SECONDS:
                done.marked += frame.is_corrupt
                timed.append((self._last, frame))
        return timed


def _joined(packets: Iterable[Any], time_of: Callable[[Any], float]) -> Iterator[tuple[float, list[Any]]]:
    """Packets of one moment together, with that: one without a time is the second field of the frame before it."""
    frame: list[Any] = []
    early: list[Any] = []  # before the first that has a time
    time = 0.0
    for packet in packets:
        if frame and (packet.pts is None or time_of(packet) == time):
            if len(frame) == SAME_TIME:
                yield time, frame
                frame = []
            frame.append(packet)
            continue
        if frame:
            yield time, frame
        elif packet.pts is None:
            early.append(packet)
            if len(early) == SAME_TIME:
                early.clear()
            continue
        frame, time = [packet], time_of(packet)
        if early:
            yield time, early
            early = []
    if frame:
        yield time, frame


def _told_duration(metadata: dict[str, str]) -> float | None:
    """Seconds that the tag of a Matroska track states, as ``00:00:21.000000000``."""
    for key, value in metadata.items():
        if key.upper().partition("-")[0] == "DURATION" and (
            found := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", value)
        ):
            hours, minutes, seconds = found.groups()
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    return None


def choose(container: Any, name: str) -> Any:
    """The largest video stream that is not cover art; ``name`` is for the VideoError if there is none."""
    kind = container.format.name
    if kind in PICTURES or kind.endswith("_pipe"):
        raise VideoError(f"{name!r} is an image or text, not a video; name a video file")
    streams = container.streams
    videos = [s for s in streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not videos:
        what = "only audio" if streams.audio else "no video"
        raise VideoError(f"{name!r} holds {what}; name a file with moving pictures")
    stream = max(videos, key=lambda s: (s.codec_context is not None and s.width * s.height, s.frames))
    if stream.codec_context is None:
        raise VideoError(f"{name!r} uses a codec this FFmpeg cannot decode; convert it to H.264")
    check_picture(stream.height, stream.width, name)
    stream.codec_context.options = BOUNDED
    return stream


def _is_animated(path: str) -> bool:
    """Whether a WebP holds several pictures: its extended header has a bit for that."""
    with open(path, "rb") as file:
        head = file.read(21)
    return head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


def _held_open(path: str) -> int | None:
    """A descriptor of the file called ``path``; None of what is no regular file."""
    check_file(path)
    try:
        return os.open(path, os.O_RDONLY) if stat.S_ISREG(os.stat(path).st_mode) else None
    except OSError as error:
        raise VideoError(f"{path!r} cannot be read: {reason(error)}") from None


def frame_seconds(rate: Any) -> float:
    """How long a frame that tells no duration is shown, at ``rate`` a second; it may be unknown, or impossible."""
    return 1 / float(rate) if rate and rate * JUMP_SECONDS >= 1 else 1 / DEFAULT_FPS


@cache
def _formats() -> str:
    """The formats a file may have, for FFmpeg."""
    return ",".join(sorted(av.formats_available - LISTS))


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """How to display a stored picture: swap rows and columns; then left and right; top and bottom.

    Asked of the first frame only: PyAV frames whose side data was looked at form a cycle, and pile up
    by the hundred until the garbage collector comes by.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    # A stored pixel (x, y) is shown at (ax + cy, bx + dy), up to a shift.
    (a, b), (c, d) = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2].tolist()
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)
