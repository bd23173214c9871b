"""Open video files with FFmpeg, and know what its containers get wrong."""

import os
import re
import stat
from functools import cache
from typing import TYPE_CHECKING, Any

import av
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.video.stream import VideoStream

from kvvideo.errors import VideoError
from kvvideo.video.decoder import check_file, reason
from kvvideo.video.geometry import MAX_PICTURE, check_picture
from kvvideo.video.timeline import JUMP_SECONDS

if TYPE_CHECKING:
    from fractions import Fraction

    Packet = av.Packet[VideoStream]
else:
    Packet = av.Packet

UNTIMED = frozenset({"avi"})
"""Containers whose times give the order of storage, not of display."""
PICTURES = frozenset({"image2", "tty"})
"""Formats FFmpeg reads as video that are not: still images (also ``*_pipe``) and text."""
LISTS = frozenset({"concat", "dash", "hls", "imf", "rtsp", "sdp", "vobsub", "webm_dash_manifest"})
"""Formats that name other files or hosts. A file that a stranger calls a video must not reach for those."""
BOUNDED = {"max_pixels": str(MAX_PICTURE)}
"""Settings of every codec."""
LENIENT: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
"""Settings of ``av.open`` with which a file may say what it likes about itself. PyAV 19 needs none and takes none."""
DEFAULT_FPS = 25.0
"""Frame rate where a stream without times does not tell its own; FFmpeg assumes the same."""
SOUGHT = ("mov", "matroska", "mpegts", "flv")
"""Beginnings of the names of containers in which places are sought: others give packets after that wrong times."""
CONFIGURED = ("mov", "matroska")
"""Beginnings of the names of containers that hold parameter sets apart from the frames, and give the right ones after a
seek. Of others, and of these where sets stand among the frames, a place is sought only if it holds all sets itself."""
CLOCKED = frozenset({"mpeg", "mpegts"})
"""Containers whose length is the difference of two times."""


class File:
    """A file or a pipe. A file is held open: later it may be called otherwise, or another be called so.

    Args:
        path: its name.
        hwaccel: what FFmpeg is to decode it with, if not with the CPU.

    Raises:
        VideoError: if it cannot be read.
    """

    def __init__(self, path: str, hwaccel: HWAccel | None) -> None:
        self.path, self._hwaccel = path, hwaccel
        self._held = _held_open(path)
        self._kind: str | None = None  # format of a file, once it is known

    @property
    def is_regular(self) -> bool:
        """True for a file in which one can go back, False for a pipe."""
        return self._held is not None

    @property
    def size(self) -> int:
        """Bytes of the file; 0 for a pipe."""
        return os.fstat(self._held).st_size if self._held is not None else 0

    def open(self) -> tuple[InputContainer, VideoStream]:
        """Open the file once more, and find its video.

        Raises:
            VideoError: if there is none that can be decoded.
        """
        path = self.path if self._kind is None else f"/proc/self/fd/{self._held}"
        try:
            # "file:" and the whitelist keep names and playlists from reaching for other files or hosts.
            container = av.open(
                f"file:{path}",
                format=self._kind,
                options=BOUNDED,
                container_options={"protocol_whitelist": "file", "format_whitelist": _formats()},
                hwaccel=self._hwaccel,
                **LENIENT,
            )
        except av.error.ArgumentError:
            raise VideoError(f"{self.path!r} is a list of other files, or damaged; name a video file") from None
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(
                f"{self.path!r} is not a video that FFmpeg can read ({reason(error)}); "
                "it may be cut short, damaged or of another kind"
            ) from None
        try:
            if container.format.name == "webp_pipe" and _is_animated(self.path):
                raise VideoError(
                    f"{self.path!r} is an animated WebP, which this FFmpeg cannot read; convert it, for instance with "
                    "ImageMagick: convert in.webp out.gif"
                )
            stream = choose(container, self.path)
        except VideoError:
            container.close()
            raise
        if self._held is not None:
            self._kind = container.format.name.partition(",")[0]
        return container, stream

    def close(self) -> None:
        """Let go of the file; safe to call twice."""
        if self._held is not None:
            os.close(self._held)
            self._held = None


def choose(container: InputContainer, name: str) -> VideoStream:
    """Return the largest video stream that is not cover art.

    Args:
        container: an open one.
        name: of the video, for messages.

    Raises:
        VideoError: if there is none that can be decoded.
    """
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


def frame_seconds(rate: "Fraction | None") -> float:
    """Return the seconds that a frame without a duration is shown, at ``rate`` a second if that can be."""
    return 1 / float(rate) if rate and rate * JUMP_SECONDS >= 1 else 1 / DEFAULT_FPS


def told_duration(metadata: dict[str, str]) -> float | None:
    """Return the seconds that the tag of a Matroska track states, as ``00:00:21.000000000``; None without one."""
    for key, value in metadata.items():
        if key.upper().partition("-")[0] == "DURATION" and (
            found := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", value)
        ):
            hours, minutes, seconds = found.groups()
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    return None


def is_segmented(stream: VideoStream) -> bool:
    """Return True if an edit list shows several parts of a track: then its index is in no order of time."""
    shown = again = False
    for entry in stream.index_entries:
        if entry.is_discard:
            again = again or (shown and entry.is_keyframe)
        elif again:
            return True
        else:
            shown = True
    return False


def _is_animated(path: str) -> bool:
    """Return True if a WebP holds several pictures: its extended header has a bit for that."""
    with open(path, "rb") as file:
        head = file.read(21)
    return head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


def _held_open(path: str) -> int | None:
    """Return a descriptor of the file called ``path``; None for what is no regular file."""
    check_file(path)
    try:
        return os.open(path, os.O_RDONLY) if stat.S_ISREG(os.stat(path).st_mode) else None
    except OSError as error:
        raise VideoError(f"{path!r} cannot be read: {reason(error)}") from None


@cache
def _formats() -> str:
    """Return the formats that a file may have, as FFmpeg lists them."""
    return ",".join(sorted(av.formats_available - LISTS))
