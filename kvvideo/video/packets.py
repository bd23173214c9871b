"""Read the packets of a video, and lay them on one line of time.

Times are seconds of the source: the container's start time is subtracted, so that the first frame is at about 0, as
players show it. Places are sought only where ``bitstream`` proves that it changes nothing.
"""

import itertools
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import av
from av.video.frame import VideoFrame

from kvvideo.times import format_time
from kvvideo.video.bitstream import Access
from kvvideo.video.container import (
    CLOCKED,
    CONFIGURED,
    SOUGHT,
    UNTIMED,
    File,
    Packet,
    frame_seconds,
    is_segmented,
    told_duration,
)
from kvvideo.video.decoder import Progress, reason
from kvvideo.video.selection import Coded
from kvvideo.video.timeline import JUMP_SECONDS, Placed, Timeline

logger = logging.getLogger("kvvideo.video")

READ_BYTES = 128 << 20
"""Files up to this size are read from the beginning, which takes less than a second: nothing need be believed."""
BACK_SECONDS = (0.0, 10.0, 60.0)
"""Seconds before the first moment at which decoding begins: farther back where nothing comes out of what is nearer."""
GAP_SECONDS, GAPS_TOLD = 60.0, 3
"""A stretch without a frame that is told of, and how many of them."""
LEAST_RATE = 100
"""Bytes a second that containers with a clock have at least: with fewer it was set back between the two times."""
READ_ERRORS = 20
"""Errors in a row after which reading a file is given up."""
LOST_PACKETS = 100
"""Frames in a row without a time or a picture of their own after which a video is given up."""
PAUSE_SLACK = 0.5
"""Seconds by which two counts of the same length may differ."""
ENCRYPTED = "kvvideo cannot play what is protected; use a copy that is not"
LONGEST_SECONDS = 30 * 86400.0
"""A video that says it is longer than this is damaged, and how long it is is not known."""
SAME_TIME = 16
"""Packets that may belong to one moment."""
PACKET_BYTES = 1024
"""Bytes that a packet takes in memory besides its data."""
SHORT_SECONDS, SHORT_SHARE = 1.0, 0.02
"""Seconds, and share of the whole, by which a video may end early before it counts as cut short."""

Frame = list[Packet]
"""The packets of one frame."""


class Packets(ABC):
    """Read the packets of one video, in the order in which they come.

    Args:
        name: of the video, for messages.
        progress: told the time of what is read, in seconds.

    Attributes:
        tick: unit of the packets' times, in seconds.
        origin: time at which the video begins, by the clock of its container, in seconds.
        span: seconds that a frame is shown which does not tell it.
        head: packets that were read to find the first frame.
        rest: those after them.
        newest: when the newest frame is shown, in seconds, as far as the video was read.
        end: where the video ends, as far as it was read.
        broken: why it cannot be read further; None if it can.
        misplaced: frames whose times are of no use.
    """

    tick: float
    span: float
    origin = 0.0
    _access: Access

    def __init__(self, name: str, progress: Progress) -> None:
        self.name = name
        self._progress = progress
        self._begin()

    def _begin(self) -> None:
        self.head: Frame = []
        self.rest = self.read()
        self.newest = self.end = 0.0
        self.broken: str | None = None
        self.misplaced = 0
        self._set_anew = False  # True if the clock was, on the way
        self._gaps = 0  # stretches without a frame that were told of
        self._followed: object = None  # the codec that ``_access`` follows

    @abstractmethod
    def read(self) -> Iterator[Packet]:
        """Yield all packets of the picture."""

    def all(self) -> Iterator[Packet]:
        """Return the packets of the head, and those after them."""
        return itertools.chain(self.head, self.rest)

    def time(self, timed: Packet | VideoFrame) -> float:
        """Return when a packet or a frame is shown. Not ``frame.time``: PyAV leaves it out of drained frames."""
        assert timed.pts is not None
        return round(timed.pts * self.tick - self.origin, 6) + 0.0  # no -0.0

    def length(self, packet: Packet) -> float:
        """Return the seconds that a packet's frame is shown, by what it says if that can be."""
        length = (packet.duration or 0) * self.tick
        return length if 0 < length <= JUMP_SECONDS else self.span

    def placed(
        self, packets: Iterable[Packet], start: float, back: float, known: float = 0.0
    ) -> Iterator[Coded[Frame]]:
        """Yield the frames of ``packets`` on one line of time.

        Args:
            packets: some of these, in order.
            start: the first moment that is looked at, in seconds.
            back: seconds before ``start`` in which decoding does not begin anew.
            known: seconds that the video is known to last, if its times can be believed; 0 otherwise.
        """
        timeline: Timeline[Coded[Frame]] = Timeline(start, known)

        def straight(placed: list[Placed[Coded[Frame]]]) -> Iterator[Coded[Frame]]:
            self._tell_of_breaks(timeline)
            for coded in map(self._straightened, placed):
                yield replace(coded, restarts=coded.restarts and not start - back < coded.time <= start)

        for time, frame in _joined(packets, self.time):
            first = frame[0]
            if first.has_sidedata("encryption_info"):
                self.broken = f"it is encrypted from there on; {ENCRYPTED}"
                break
            coded = self._coded(frame, time)
            if first.is_discard:  # it stands before or after a part that was cut out, and has no place of its own
                yield from straight(timeline.rest())
                yield coded
                continue
            yield from straight(timeline.place(coded, time, self.length(first)))
            if timeline.damaged > LOST_PACKETS:
                self.broken = "its times are damaged from there on; remux it"
                break
        yield from straight(timeline.rest())

    def spaced(self) -> Iterator[Coded[Frame]]:
        """Yield all frames where none tells when it is shown: one after the other."""
        for packet in self.all():
            time = self.end if packet.dts is None else packet.dts * self.tick
            if time > self.end + JUMP_SECONDS:
                time = self.end
            self._progress(time)
            self.newest = time
            self.end = max(self.end, time + self.length(packet))
            yield Coded([packet], time, packet.size + PACKET_BYTES)

    def _coded(self, frame: Frame, time: float) -> Coded[Frame]:
        """Describe a frame by what its bitstream says."""
        first = frame[0]
        restarts = self._restarts(first) and first.pts is not None
        seen, joins = self._access.seen, self._access.joins
        for packet in frame[1:]:
            self._restarts(packet)
        size = sum(packet.size + PACKET_BYTES for packet in frame)
        if first.is_discard:
            return Coded(frame, time, size, hidden=True, joins=True)
        # The first may have no time: they are decoded for others.
        hidden = seen.lost or first.pts is None
        return Coded(frame, time, size, restarts, hidden, joins or not seen.tells, joins and seen.key)

    def _restarts(self, packet: Packet) -> bool:
        """Return True if decoding can begin at a packet as well as at those before it; ask this of each, in order."""
        codec = packet.stream.codec_context
        if codec is not self._followed:
            self._followed = codec
            self._access = Access(codec.codec.canonical_name, codec.extradata)
        new = bytes(packet.get_sidedata("new_extradata")) if packet.has_sidedata("new_extradata") else None
        return self._access.read(bytes(packet), new)

    def _straightened(self, placed: Placed[Coded[Frame]]) -> Coded[Frame]:
        """Put the packets of a frame where they belong on the line of time."""
        coded = placed.item
        if placed.shift is None:
            self.misplaced += 1
            return replace(coded, time=self.newest, restarts=False, hidden=True)
        ticks = round(placed.shift / self.tick)
        for packet in coded.payload if ticks else ():
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
        time = round(coded.time + ticks * self.tick, 6)
        if self.end and time > self.end + GAP_SECONDS and self._gaps < GAPS_TOLD:
            self._gaps += 1
            logger.warning(
                "%r has no frame from %s to %s; the one before stands for them",
                self.name,
                format_time(self.end),
                format_time(time),
            )
        self._progress(time)
        self.newest = max(self.newest, time)
        self.end = max(self.end, time + self.length(coded.payload[0]))
        return replace(coded, time=time)

    def _tell_of_breaks(self, timeline: Timeline[Coded[Frame]]) -> None:
        for anew in timeline.breaks:
            self._set_anew = True
            logger.warning(
                "the clock of %r goes %s by %s at %s, as in joined recordings; time goes on from there",
                self.name,
                "back" if anew.by < 0 else "ahead",
                format_time(abs(anew.by)),
                format_time(anew.at),
            )
        timeline.breaks.clear()


class FilePackets(Packets):
    """Read the packets of a file, or of what is read like one.

    Args:
        file: closed by who made it.
        progress: told the time of what is read, in seconds.

    Attributes:
        stream: FFmpeg's, of the picture.
        kind: FFmpeg's name of the container.
        pixel_ratio: width of a stored pixel over its height.
    """

    def __init__(self, file: File, progress: Progress) -> None:
        self._file = file
        self._pause = 0.0  # before the first frame, in seconds, where the container's length counts it twice
        super().__init__(file.path, progress)

    def _begin(self) -> None:
        self._container, self.stream = self._file.open()
        self.kind = self._container.format.name
        assert self.stream.time_base is not None
        self.tick = float(self.stream.time_base)
        self.pixel_ratio = float(self.stream.sample_aspect_ratio or 1)
        if self._container.start_time is not None:
            self.origin = self._container.start_time / av.time_base
        self.span = frame_seconds(self.stream.guessed_rate or self.stream.average_rate)
        self._reached = 0.0  # where the video ends over all streams: audio may go on longer
        self._decoded_to = -math.inf  # time of decoding of the last packet that was read, in ticks
        self._cut_out = 0.0  # seconds that an edit list does not show
        self._complete = False  # True if everything was read
        super()._begin()

    def reopen(self) -> None:
        """Begin anew, at the beginning of the file."""
        self.close()
        self._begin()

    def close(self) -> None:
        """Free what FFmpeg holds; safe to call twice."""
        self._container.close()

    def read(self) -> Iterator[Packet]:
        """Yield all packets of the picture, in the order of the file, as far as it can be read."""
        errors = 0
        why = ""
        while errors <= READ_ERRORS:
            try:
                packets: Iterator[Any] = self._container.demux()  # of all streams
                for packet in packets:
                    errors = 0
                    if packet.size == 0:
                        continue  # the mark of a stream's end, or of a frame that was dropped
                    at = packet.pts if packet.pts is not None else packet.dts
                    if at is not None:
                        end = float((at + (packet.duration or 0)) * packet.time_base) - self.origin
                        self._reached = max(self._reached, end)
                    if packet.stream_index == self.stream.index:
                        # Fragments count what was cut out as part of the length.
                        self._cut_out += self.length(packet) if packet.is_discard else 0.0
                        self._decoded_to = max(self._decoded_to, -math.inf if packet.dts is None else packet.dts)
                        yield packet
                self._complete = True
                return
            except av.error.FFmpegError as error:
                errors += 1
                logger.debug("%r: reading failed: %s", self.name, error)
                why = reason(error)
        self.broken = f"the file cannot be read further ({why})"

    def is_sought(self, start: float) -> bool:
        """Return True if a place before ``start`` seconds is looked for, and the file not read from its beginning."""
        large = start > 0 and self._file.size > READ_BYTES
        return large and self.kind.startswith(SOUGHT) and not is_segmented(self.stream)

    def sought(self, start: float, back: float) -> Iterator[Packet] | None:
        """Return the packets from a place where decoding can begin and that is shown ``back`` seconds before ``start``.

        Returns:
            None if there is no such place; then the file must be opened anew.
        """
        configured = self.kind.startswith(CONFIGURED)
        for packet in self.head:
            self._restarts(packet)
        # Indexes point by time of decoding, which is earlier than that of display: look back if need be.
        for margin in BACK_SECONDS:
            if margin < back:
                continue
            packets = self._from_index(start - margin)
            for packet in packets:
                if packet.pts is None:
                    continue
                if self.time(packet) > start - back:
                    break
                self._restarts(packet)
                access = self._access
                if access.seen.key and (access.complete or (configured and access.steady)):
                    return itertools.chain([packet], packets)
        return None

    def _from_index(self, time: float) -> Iterator[Packet]:
        """Return the packets from the place that the container's index gives for ``time``."""
        try:
            self._container.seek(int((time + self.origin) / self.tick), stream=self.stream)
        except (av.error.FFmpegError, OverflowError):
            return iter(())
        return self.read()

    def settle(self) -> tuple[float | None, bool]:
        """Find out from the head when the video begins.

        Returns:
            Seconds that the picture lasts by what the file says, None if it says nothing that can be; and True if
            frames carry times of their own.
        """
        times = [packet.pts for packet in self.head if packet.pts is not None]
        if self._container.start_time is None and times:
            self.origin = times[0] * self.tick
        duration = self._duration()
        timed = bool(times) and self.kind not in UNTIMED
        self.origin = self.origin if timed else 0.0
        return duration, timed

    def _duration(self) -> float | None:
        """Return how long the picture lasts by what the file says, in seconds; None if it says nothing that can be."""
        stream, container = self.stream, self._container
        # FFmpeg gives a Matroska track that tells its length that of the file all the same.
        if (told := told_duration(stream.metadata)) is not None:
            begins = (self.head[0].pts or 0) * self.tick
            end = told + (begins if "_STATISTICS_TAGS" in stream.metadata else 0.0)
        elif stream.duration is not None:
            pause = (stream.start_time or 0) * self.tick
            end = stream.duration * self.tick + pause
            if self.kind.startswith("mov") and pause > PAUSE_SLACK:
                # FFmpeg counts a pause before the first frame twice if the track was cut, too.
                times = [entry.timestamp for entry in stream.index_entries if not entry.is_discard]
                last = max(times, default=-math.inf) * self.tick + self.span
                self._pause = pause if abs(end - pause - last) < PAUSE_SLACK else 0.0
                end -= self._pause
        elif container.duration is not None:
            # Matroska states the time at which the last frame ends, not how long the file plays.
            end = container.duration / av.time_base
            end += 0.0 if self.kind.startswith("matroska") else self.origin
        else:
            return None
        clocked = self._file.is_regular and self.kind in CLOCKED
        longest = self._file.size / LEAST_RATE if clocked else LONGEST_SECONDS
        return end - self.origin if 0 < end - self.origin <= longest else None

    @property
    def is_cut_short(self) -> bool:
        """True if everything was read, and it is less than the container says."""
        total = (self._container.duration or 0) / av.time_base - self._pause
        reached = self._reached + self._cut_out + max(0.0, self.origin)  # duration counts from either beginning
        return (
            self._complete
            and not self._set_anew
            and not self._is_indexed()
            and LONGEST_SECONDS > total > reached + max(SHORT_SECONDS, SHORT_SHARE * total)
        )

    def _is_indexed(self) -> bool:
        """Return True if the last frame of the container's index was read: then nothing is missing."""
        entries = self.stream.index_entries
        whole = self.kind.startswith("mov") and self.stream.frames and len(entries)
        return bool(whole) and entries[len(entries) - 1].timestamp <= self._decoded_to


def _joined(packets: Iterable[Packet], time_of: Callable[[Packet], float]) -> Iterator[tuple[float, Frame]]:
    """Yield packets of one moment together, with that: one without a time is a second field of the frame before."""
    frame: Frame = []
    early: Frame = []  # before the first that has a time
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
