"""Read a live source as it comes, in a thread of its own: it connects, stamps, keeps, and tries again.

A source that cannot wait must be read while frames are decoded, or while nobody takes any. What was read
waits here, still compressed, in bounded memory.
"""

import itertools
import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from kvvideo.errors import VideoError
from kvvideo.times import format_time
from kvvideo.video import awake
from kvvideo.video.address import Address
from kvvideo.video.connect import CALL_SECONDS, BrokenOff, Link, Stalled, connect, feed, has_begun
from kvvideo.video.container import UNTIMED, Packet
from kvvideo.video.diagnosis import advice
from kvvideo.video.frames import PEEK
from kvvideo.video.live import AHEAD_SECONDS, Clock, Live, LiveStatus
from kvvideo.video.timeline import JUMP_SECONDS

logger = logging.getLogger("kvvideo.video")

TICK = Fraction(1, 1_000_000)
"""Unit of the times that packets have after they were stamped, in seconds."""
WAITING_BYTES = 16 * 2**20
"""Packets kept of a source that can wait; when there are more, it is not read for a while."""
SPOOL_BYTES = 256 * 2**20
"""Packets kept of a source that cannot wait; when there are more, the oldest are dropped."""
RECENT_SECONDS = 10.0
"""Packets kept of such a source where only what is recent counts."""
LOOK_AHEAD = 8
"""Packets to look at for a time, where the first has none."""
FIRST_PAUSE, LAST_PAUSE = 0.25, 4.0
"""Seconds between two attempts to reach a source that broke off: the first time, and at most."""
REPORT_SECONDS = 0.25
"""Seconds between reports of how far a source has come."""
HANG_SECONDS = 60.0
"""A call of FFmpeg that lasts this much longer than it may hangs."""

Report = Callable[[LiveStatus, float], None]
"""Told where a source stands (``behind`` is left out), and up to which time it has come, in seconds."""


@dataclass(frozen=True, slots=True)
class Taken:
    """One packet that was read.

    Attributes:
        link: the connection that gave it.
        packet: the packet itself.
        time: when it is shown, in seconds of the stream.
        size: in bytes.
        key: True if decoding can begin with it.
    """

    link: Link
    packet: Packet
    time: float
    size: int
    key: bool


class Spool:
    """Hold what was read and is not decoded yet; for use by two threads.

    Args:
        most: bytes to keep.
        waits: True if ``put`` waits for room; if not, it makes room by dropping what is oldest.
        seconds: seconds of video to keep, where ``put`` does not wait; None for no limit.

    Attributes:
        dropped: seconds of video dropped.
        gaps: stretches of time of which nothing is known, ``(begin, end)``; the latest of them.
    """

    def __init__(self, most: int, waits: bool, seconds: float | None) -> None:
        self.dropped = 0.0
        self.gaps: deque[tuple[float, float]] = deque(maxlen=100)
        self._most, self._waits, self._seconds = most, waits, seconds
        self._taken: deque[Taken] = deque()
        self._held = 0
        self._lost: float | None = None  # time of the first packet dropped since the last one kept
        self._over = False
        self._changed = threading.Condition()

    def put(self, taken: Taken) -> None:
        """Add a packet."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or not self._waits or self._held <= self._most)
            self._taken.append(taken)
            self._held += taken.size
            if not self._waits:
                self._make_room()
            self._changed.notify_all()

    def get(self, timeout: float) -> Taken | None:
        """Return the next packet; None if none came in ``timeout`` seconds, or none will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._taken, timeout)
            if not self._taken:
                return None
            taken = self._taken.popleft()
            self._held -= taken.size
            self._changed.notify_all()
            return taken

    def end(self) -> None:
        """Take no more packets."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    @property
    def is_over(self) -> bool:
        """True if all there will ever be was taken."""
        with self._changed:
            return self._over and not self._taken

    def _make_room(self) -> None:
        """Drop the oldest packets until the rest is within bounds, and begin where decoding can."""
        while self._taken and (self._lost is not None or self._is_full()):
            first = self._taken[0]
            if self._lost is not None and first.key:
                self.dropped += first.time - self._lost
                self.gaps.append((self._lost, first.time))
                self._lost = None
                continue
            self._lost = first.time if self._lost is None else self._lost
            self._held -= self._taken.popleft().size

    def _is_full(self) -> bool:
        length = self._taken[-1].time - self._taken[0].time
        return self._held > self._most or (self._seconds is not None and length > self._seconds)


class Capture:
    """Read a source until it ends or is given up; started by being made.

    Args:
        address: where from.
        live: how.
        stdin: file descriptor of what ``-`` stands for.
        report: told where the source stands.

    Attributes:
        spool: the packets, each with times in ``TICK`` since the first frame.
        error: why reading ended, if not with the video; to be looked at when the spool is over.
        limit: seconds without a packet after which the source is given up.
        heard: when the newest packet came (``time.monotonic``).
    """

    def __init__(self, address: Address, live: Live, stdin: int, report: Report) -> None:
        recent = RECENT_SECONDS if live.when_behind == "drop" else None
        self.spool = Spool(WAITING_BYTES if address.waits else SPOOL_BYTES, address.waits, recent)
        self.error: VideoError | None = None
        self.limit = live.retry_seconds or CALL_SECONDS
        if address.kind == "file":
            self.limit += CALL_SECONDS  # that it does not grow any more is found first, and no error
        awake.watch()
        self.heard = self._asked = self._alive = time.monotonic()
        self._address, self._live, self._stdin, self._report = address, live, stdin, report
        # Of HLS nothing comes for as long as a segment is.
        self._call_seconds = self.limit if address.is_hls else min(CALL_SECONDS, self.limit)
        self._clock = Clock(JUMP_SECONDS if address.waits else AHEAD_SECONDS)
        self._away = False  # True if the source broke off, and gave nothing since
        self._why = ""
        self._pause = FIRST_PAUSE
        self._reconnects = 0
        self._message = ""
        self._reported = 0.0
        self._closed = False
        threading.Thread(target=self._run, name="kvvideo-capture", daemon=True).start()

    @property
    def hangs(self) -> bool:
        """True if a call of FFmpeg has not returned although its time is over."""
        return awake.since(self._alive) > self._call_seconds + HANG_SECONDS

    def gave_up(self) -> VideoError:
        """Return the error for a source that is given up."""
        at, name = format_time(self._clock.newest), self._address.name
        why = self._why
        if why and (not self._live.retry_seconds or self._address.kind in ("pipe", "file")):
            return VideoError(f"{name!r} broke off at {at} ({why}); see to what sends it")
        why = f" ({why})" if why else ""
        return VideoError(
            f"there was no frame for {self.limit:g} s at {at} of {name!r}{why}; "
            "see to what sends it, or allow it more time (retry)"
        )

    def close(self) -> None:
        """Ask the thread to end; it does at its next packet, or when its call of FFmpeg returns."""
        self._closed = True
        self.spool.end()

    def _run(self) -> None:
        try:
            self._read()
        except VideoError as error:
            self.error = error
        except BrokenPipeError:
            logger.debug("nobody is listening any more")
        except Exception as error:
            logger.debug("%s", traceback.format_exc())
            self.error = VideoError(f"reading {self._address.name!r} failed: {error!r}")
        self.spool.end()

    def _read(self) -> None:
        if self._address.kind == "file" and self._live.retry_seconds and not has_begun(self._address.path):
            name, seconds = self._address.name, self._live.retry_seconds
            self._say(f"{name!r} is not there yet, or empty; it is waited for, {seconds:g} s at most")
        source = feed(self._address, self._stdin, self._live.retry_seconds, self._beat)
        while not self._closed:
            self._alive = time.monotonic()
            try:
                link = connect(self._address, source, self._call_seconds)
                try:
                    self._take(link)
                finally:
                    link.close()
                return
            except (BrokenOff, VideoError) as error:
                self._broken_off(error)
            time.sleep(self._pause)
            self._pause = min(2 * self._pause, LAST_PAUSE)

    def _broken_off(self, error: BrokenOff | VideoError) -> None:
        """Raise VideoError if trying again is of no use, or was tried for long enough."""
        why = self._why = str(error)
        if not self._clock.begun and not isinstance(error, Stalled):
            if isinstance(error, VideoError):
                raise error
            hint = advice(self._address, error.__cause__, self._call_seconds)
            raise VideoError(f"{self._address.name!r} cannot be opened ({why}); {hint}")
        if self._address.kind in ("pipe", "file") or awake.since(self._asked) >= self._live.retry_seconds:
            raise self.gave_up()
        if not self._away:
            self._away = True
            at = format_time(self._clock.newest)
            self._say(f"{self._address.name!r} broke off at {at} ({why}); it is tried again")

    def _take(self, link: Link) -> None:
        """Keep the packets of a connection, with times."""
        at = -link.span
        first: float | None = None
        for packet in self._from_key(link):
            at = _decoded(packet, at + link.span)
            pts = None if link.kind in UNTIMED else packet.pts
            shown = at if pts is None else float(pts * packet.time_base)
            first = shown if first is None else first
            if shown >= first:  # else it refers to frames before the first
                self._keep(link, packet, at, shown, timed=pts is not None)

    def _from_key(self, link: Link) -> Iterator[Packet]:
        """Yield the packets of a connection, from the first that is new, and with which decoding can begin."""
        packets = self._watched(link.packets())
        at = -link.span
        for i, packet in enumerate(packets):
            at = _decoded(packet, at + link.span)
            if i == 0:
                self._clock.reconnect(at, link.repeats)
            if not self._clock.is_repeated(at) and (packet.is_keyframe or i > PEEK):
                # Of RTSP the first may have no time although all others do.
                ahead = list(itertools.islice(packets, LOOK_AHEAD)) if packet.pts is None else []
                times = [other.pts for other in ahead if other.pts is not None]
                if times:
                    packet.pts = min(times) - round(link.span / packet.time_base)
                yield from itertools.chain([packet], ahead, packets)

    def _watched(self, packets: Iterator[Packet]) -> Iterator[Packet]:
        for packet in packets:
            self._alive = time.monotonic()
            if self._closed:
                return
            yield packet

    def _keep(self, link: Link, packet: Packet, at: float, shown: float, timed: bool) -> None:
        waited = self._alive - self._asked
        shift, gap = self._clock.shift(at, shown, link.span, waited)
        if gap is not None:
            self.spool.gaps.append(gap)
        if self._away:
            self._away, self._pause, self._why = False, FIRST_PAUSE, ""
            self._reconnects += 1
            self._say(f"{self._address.name!r} is back after {waited:.1f} s")
        duration = float((packet.duration or 0) * packet.time_base)
        packet.time_base = TICK
        packet.pts = round((shown + shift) / TICK) if timed else None
        packet.dts = round((at + shift) / TICK)
        packet.duration = round(duration / TICK)
        self.heard = time.monotonic()
        self.spool.put(Taken(link, packet, shown + shift, packet.size, packet.is_keyframe))
        self._asked = self._alive = time.monotonic()  # there may have been no room for it for long
        self._tell(self._asked)

    def _beat(self) -> None:
        self._alive = time.monotonic()
        if self._closed:
            raise BrokenPipeError

    def _say(self, message: str) -> None:
        logger.warning("%s", message)
        self._message = message
        self._reported = 0.0
        self._tell(time.monotonic())

    def _tell(self, now: float) -> None:
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            status = LiveStatus(dropped=self.spool.dropped, reconnects=self._reconnects, message=self._message)
            self._report(status, self._clock.newest)


def _decoded(packet: Packet, otherwise: float) -> float:
    """Return when a packet is decoded, by the clock of its source, in seconds."""
    at = packet.pts if packet.dts is None else packet.dts
    return otherwise if at is None else float(at * packet.time_base)
