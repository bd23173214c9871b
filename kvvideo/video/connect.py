"""Open what comes as it happens: pipes, growing files, cameras and URLs, with FFmpeg.

Pipes and growing files are read here, not by FFmpeg, whose reads of them cannot be ended; everything else
is given a time after which its calls return.
"""

import math
import os
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import av
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from kvvideo.errors import VideoError
from kvvideo.video import awake
from kvvideo.video.address import PROTOCOLS, STDIN, Address
from kvvideo.video.container import BOUNDED, LENIENT, Packet, choose, frame_seconds
from kvvideo.video.decoder import check_file, reason
from kvvideo.video.diagnosis import what_it_is
from kvvideo.video.packets import READ_ERRORS

CALL_SECONDS = 15.0
"""Seconds that one call of FFmpeg may wait for data at most."""
POLL_SECONDS = 0.1
"""Seconds between looks at a growing file."""
END_SLACK = 1.0
"""Seconds that a video may be shorter than it says."""
HLS_REPEATS = 120.0
"""Seconds of a live HLS stream that come again after a reconnect, at most: its playlist starts earlier."""

_OPTIONS = {
    "rtsp": {"rtsp_flags": "prefer_tcp"},  # over UDP packets get lost
    "rtsps": {"rtsp_flags": "prefer_tcp"},
    "udp": {"overrun_nonfatal": "1"},
    "http": {"reconnect": "1", "reconnect_delay_max": "4"},
    "https": {"reconnect": "1", "reconnect_delay_max": "4"},
}


NOTHING = "nothing came for too long"


class BrokenOff(Exception):
    """Raised for a source that stalls, ends too early or cannot be reached; says why, as does its cause."""


class Stalled(BrokenOff):
    """Raised where nothing came for too long."""


class Feed(Protocol):
    """A file-like object that FFmpeg reads."""

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; none at the end."""


@dataclass
class Link:
    """One connection to a source.

    Attributes:
        container, stream: FFmpeg's; to be used by the thread that reads them only.
        codec: what decodes it; stays usable when the connection is closed.
        index: of the stream.
        kind: FFmpeg's name of the format.
        span: how long one frame lasts, in seconds.
        rate: average frames per second, if known.
        pixel_ratio: width of a stored pixel over its height.
        repeats: seconds that may come again after a reconnect; 0 for what is gone when it was sent.
        ends: True if the end of the data is the end of the video, and not of the connection.
        length: of the video in seconds, if it says so: then it is over when so much came.
    """

    container: InputContainer
    stream: VideoStream
    codec: VideoCodecContext
    index: int
    kind: str
    span: float
    rate: float | None
    pixel_ratio: float
    repeats: float
    ends: bool
    length: float | None

    def packets(self) -> Iterator[Packet]:
        """Yield the packets of the video, until its end.

        Raises:
            BrokenOff: if they end for another reason.
        """
        errors = 0
        begin, end = math.inf, -math.inf
        while errors <= READ_ERRORS:
            try:
                for packet in self.container.demux(self.stream):
                    errors = 0
                    if packet.pts is not None:
                        at = float(packet.pts * packet.time_base)
                        begin, end = min(begin, at), max(end, at)
                    if packet.size:
                        yield packet
                if self.ends or (self.length is not None and end - begin > self.length - END_SLACK):
                    return
                raise BrokenOff("the sender ended it")
            except av.error.InvalidDataError:
                errors += 1  # damage, and there may be good data behind it
            except (av.error.FFmpegError, OSError) as error:
                raise _broken(error) from error
        raise BrokenOff("what it sends is damaged")

    def close(self) -> None:
        """Break the connection."""
        self.container.close()


class Pipe:
    """Read what is written to a pipe, as it comes, and wait for it as long as it takes.

    Args:
        fd: its file descriptor.
        alive: called now and then.
    """

    def __init__(self, fd: int, alive: Callable[[], None]) -> None:
        self._fd, self._alive = fd, alive

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        self._alive()
        # Waiting first: a named pipe that nobody opened for writing yet would look as if it were at its end.
        while not select.select([self._fd], [], [], POLL_SECONDS)[0]:
            self._alive()
        return os.read(self._fd, size)


class GrowingFile:
    """Read a file that is being written, and wait for more at its end.

    Args:
        fd: its file descriptor.
        seconds: how long it may not grow before it counts as complete.
        alive: called now and then.
    """

    def __init__(self, fd: int, seconds: float, alive: Callable[[], None]) -> None:
        self._fd, self._seconds, self._alive = fd, seconds, alive
        self._complete = False  # FFmpeg asks again at the end

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        began = time.monotonic()
        while not (data := b"" if self._complete else os.read(self._fd, size)):
            self._alive()
            self._complete = self._complete or awake.since(began) >= self._seconds
            if self._complete:
                return b""
            time.sleep(POLL_SECONDS)
        self._alive()
        return data


def feed(address: Address, stdin: int, seconds: float, alive: Callable[[], None]) -> Feed | None:
    """Return what FFmpeg is to read through Python; None for what it opens itself.

    Args:
        address: of the source.
        stdin: file descriptor of the standard input that is meant, which need not be this process' own.
        seconds: how long a growing file may not grow before it counts as complete.
        alive: called now and then.
    """
    if address.kind == "pipe":
        if address.path == STDIN:
            return Pipe(stdin, alive)
        try:
            # Opening must not wait for somebody who writes.
            return Pipe(os.open(address.path, os.O_RDONLY | os.O_NONBLOCK), alive)
        except OSError as error:
            raise VideoError(f"{address.name!r} cannot be read: {reason(error)}") from None
    if address.kind == "file":
        _wait_for(address.path, seconds, alive)
        return GrowingFile(os.open(address.path, os.O_RDONLY), seconds, alive)
    return None


def has_begun(path: str) -> bool:
    """Return True if a file is there and something was written to it; also if looking at it is an error."""
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True


def _wait_for(path: str, seconds: float, alive: Callable[[], None]) -> None:
    """Wait for a file that is to be written.

    Raises:
        VideoError: if it does not come, or cannot be read.
    """
    deadline = time.monotonic() + seconds
    while not has_begun(path) and time.monotonic() < deadline:
        alive()
        time.sleep(POLL_SECONDS)
    if seconds and not has_begun(path):
        what = "is still empty" if os.path.exists(path) else "is not there"
        raise VideoError(f"{path!r} {what} after {seconds:g} s; check the name, or allow it more time (retry)")
    check_file(path, growing=seconds > 0)


def connect(address: Address, feed: Feed | None, seconds: float) -> Link:
    """Open a source, and find the video in it.

    Args:
        address: of the source.
        feed: what ``feed`` gave for it.
        seconds: how long one call of FFmpeg may take.

    Raises:
        BrokenOff: if it cannot be reached, or gives nothing.
        VideoError: if trying again is of no use.
    """
    begun = time.monotonic()
    common: dict[str, Any] = {"options": BOUNDED, "timeout": (seconds, seconds), **LENIENT}
    try:
        if feed is not None:
            # No protocol at all: a playlist must not reach for files or hosts.
            container = av.open(feed, container_options={"protocol_whitelist": "none"}, **common)
        elif address.kind == "camera":
            kind, device = address.camera()
            container = av.open(device, format=kind, **common)
        else:
            options = {"protocol_whitelist": PROTOCOLS[address.scheme], **_OPTIONS.get(address.scheme, {})}
            container = av.open(address.path, container_options=options, **common)
    except av.error.ProtocolNotFoundError:
        raise VideoError(
            f"{address.name!r} cannot be read: the FFmpeg inside PyAV was built without {address.scheme}; "
            "receive it with another program, and pipe it in"
        ) from None
    except (av.error.InvalidDataError, ValueError) as error:
        if feed is None and time.monotonic() - begun >= seconds:
            raise Stalled(NOTHING) from None  # FFmpeg tried what it had
        known = what_it_is(address, seconds) if address.kind == "url" else None
        hint = known or "what can be read as it comes is MPEG-TS, Matroska, FLV, fragmented MP4 and the like"
        raise VideoError(f"{address.name!r} is not a video that FFmpeg can read ({reason(error)}); {hint}") from None
    except (av.error.FFmpegError, OSError) as error:
        raise _broken(error) from error
    try:
        stream = choose(container, address.name)
    except VideoError:
        container.close()
        raise
    return _described(container, stream, whole=feed is not None)


def _described(container: InputContainer, stream: VideoStream, whole: bool) -> Link:
    kind = container.format.name
    rate = stream.guessed_rate or stream.average_rate
    # Of what has a length, the end is its end; asking is an error where there is nothing to ask.
    length = (container.duration or 0) / av.time_base or None
    ends = whole or (kind != "hls" and _size(container) > 0)  # of HLS it is the playlist's size
    return Link(
        container=container,
        stream=stream,
        codec=stream.codec_context,
        index=stream.index,
        kind=kind,
        span=frame_seconds(rate),
        rate=float(rate) if rate else None,
        pixel_ratio=float(stream.sample_aspect_ratio or 1),
        repeats=math.inf if ends or length else HLS_REPEATS if kind == "hls" else 0.0,
        ends=ends,
        length=length,
    )


def _size(container: InputContainer) -> int:
    """Return the bytes that there are in all; 0 if nothing says so."""
    try:
        return max(0, int(container.size or 0))
    except (av.error.FFmpegError, ValueError):
        return 0


def _broken(error: BaseException) -> BrokenOff:
    if isinstance(error, av.error.ExitError | av.error.TimeoutError):
        return Stalled(NOTHING)
    return BrokenOff(reason(error))
