"""Tell what the name of a video stands for: a file, a pipe, a camera or a stream from the network.

Names are not trusted: one that exists as a file is that file, whatever it looks like, and only
``scheme://`` reaches for the network, with no more protocols than its scheme needs.
"""

import os
import re
import stat
import sys
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_to_bytes

from kvvideo.errors import VideoError

STDIN = "-"
"""The name of standard input; a file of this name is ``./-``."""

PROTOCOLS = {
    "rtsp": "rtp,udp,tcp",
    "rtsps": "rtp,srtp,udp,tcp,tls",
    "rtp": "rtp,udp",
    "udp": "udp",
    "tcp": "tcp",
    "srt": "srt",
    "rtmp": "rtmp,tcp",
    "http": "http,https,tcp,tls,crypto",
    "https": "https,http,tcp,tls,crypto",
}
"""Schemes of streams, and the FFmpeg protocols each may use; those of http are also HLS'."""

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
_FILE_URL = re.compile(r"(?i:file:(?://(?:localhost)?)?)(?P<path>/(?!/).*)", re.DOTALL)
_CAMERA_DEVICE = re.compile(r"/dev/video\d+", re.ASCII)

Kind = Literal["file", "pipe", "camera", "url"]


@dataclass(frozen=True)
class Address:
    """Say what a name stands for.

    Attributes:
        path: the name as given.
        kind: ``pipe`` also stands for standard input and for what else is read like a pipe.
        scheme: of a URL, in small letters; empty for others.
    """

    path: str
    kind: Kind
    scheme: str = ""

    @classmethod
    def of(cls, path: str) -> "Address":
        """Return what ``path`` stands for."""
        if path == STDIN:
            return cls(path, "pipe")
        try:
            mode = os.stat(path).st_mode
        except (OSError, ValueError):
            if path.isascii() and path.isdigit():
                return cls(path, "camera")
            match = _URL.match(path)
            if match and match["scheme"].lower() in PROTOCOLS:
                return cls(path, "url", match["scheme"].lower())
            return cls(path, "file")
        if stat.S_ISCHR(mode):
            return cls(path, "camera" if _CAMERA_DEVICE.fullmatch(path) else "pipe")
        return cls(path, "pipe" if stat.S_ISFIFO(mode) else "file")

    @property
    def name(self) -> str:
        """Name as people may see it: without a password."""
        if self.path == STDIN:
            return "standard input"
        return re.sub(r"^([^/]*//[^/@:]*):[^/]*@", r"\1:***@", self.path) if self.kind == "url" else self.path

    @property
    def waits(self) -> bool:
        """True if what is not read yet is still there later; if not, it must be read as it comes."""
        return self.kind in ("file", "pipe") or (self.scheme in ("tcp", "http", "https") and not self.is_hls)

    @property
    def is_hls(self) -> bool:
        """True if it is a playlist of segments, by its name."""
        return self.kind == "url" and re.split("[?#]", self.path)[0].endswith(".m3u8")

    def camera(self) -> tuple[str, str]:
        """Return FFmpeg's input format and device for a camera.

        Raises:
            VideoError: if there is no such camera, or no way to reach one on this system.
        """
        if sys.platform == "darwin":
            return "avfoundation", f"{self.path}:none"
        if not sys.platform.startswith("linux"):
            raise VideoError(f"camera {self.path} cannot be read: cameras are read on Linux and macOS only")
        device = self.path if self.path.startswith("/") else f"/dev/video{self.path}"
        if not os.path.exists(device):
            there = sorted(name.removeprefix("video") for name in os.listdir("/dev") if name.startswith("video"))
            hint = f"there are {', '.join(there)}" if there else "none is connected, or none may be seen from here"
            raise VideoError(f"there is no camera {self.path} ({device}); {hint}")
        return "v4l2", device


def local_path(path: str) -> str:
    """Return the file that a ``file://`` URL of this machine names; other names, and those of files, as they are."""
    match = _FILE_URL.fullmatch(path)
    if match is None or os.path.lexists(path):
        return path
    found = os.fsdecode(unquote_to_bytes(match["path"].encode(errors="surrogateescape")))
    return path if "\0" in found else found


def is_live(path: str | os.PathLike[str]) -> bool:
    """Return True if a name stands for what comes as it happens: not a file, but a pipe, a camera or a URL."""
    return Address.of(os.fsdecode(path)).kind != "file"


def unknown_scheme(path: str) -> str | None:
    """Return words on a name that looks like a URL of a kind that is not read; None for other names."""
    match = _URL.match(path)
    if match is None or match["scheme"].lower() in PROTOCOLS:
        return None
    return f"{match['scheme']}:// is not a kind of stream that is read; use a file, or one of {', '.join(PROTOCOLS)}"
