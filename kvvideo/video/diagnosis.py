"""Find out why a URL cannot be opened, and what to do: FFmpeg's own words are often those of a symptom.

What the address gives is asked once more, as bytes, through FFmpeg: by the same proxies, redirects and protocols.
"""

import re
import shlex
import socket
from urllib.parse import urlsplit

import av

from kvvideo.video.address import PROTOCOLS, Address

_PAGE = re.compile(
    rb"\s*(?:<\?xml[^>]*>|<!--.*?-->|\s)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_ANSWERS: dict[type[BaseException], str] = {
    ConnectionRefusedError: "nothing listens there; check host and port, and that what sends it is running",
    av.error.HTTPNotFoundError: "nothing is there under this name; check it",
    av.error.HTTPUnauthorizedError: "its server wants a login; download it with what has one",
    av.error.HTTPForbiddenError: "its server does not let us have it; the link may have expired, or need a login",
    av.error.HTTPServerError: "its server has a fault; try again later",
    av.error.HTTPClientError: "its server refuses to send it; check the name, or download it with another program",
}
"""Advice where FFmpeg's error is the true cause; more special ones first."""


def advice(address: Address, error: BaseException | None, seconds: float) -> str:
    """Return what to do about a source that failed before anything came.

    Args:
        address: of the source.
        error: that it failed with.
        seconds: how long one call of FFmpeg may take.
    """
    for kind, words in _ANSWERS.items():
        if isinstance(error, kind):
            return words
    if _is_unknown(address):
        return "its host is not known here; check the name, and the network"
    first = _first(address, seconds)
    if _PAGE.match(first):
        return _page(address)
    if _ends_with_index(first) and not _first(address, seconds, offset=1):
        return (
            "it is an MP4 with its index at the end, and its server sends it only from the beginning; download it, or "
            "move the index to the front: ffmpeg -i OLD -c copy -movflags +faststart NEW"
        )
    return "check the name, and that something is sent there"


def what_it_is(address: Address, seconds: float) -> str | None:
    """Return what a URL gives that was read as far as it goes and holds no video; None if that is not known."""
    first = _first(address, seconds)
    if _PAGE.match(first):
        return _page(address)
    if _ends_with_index(first):
        return "it is an MP4 that is cut short: its index, which comes last, is not there; get a complete copy"
    return None


def _page(address: Address) -> str:
    page = shlex.quote(address.name)
    return f"it is a web page, not a video; if it shows one: yt-dlp -o - {page} | kvvideo analyze -"


def _ends_with_index(first: bytes) -> bool:
    """Return True if an MP4 that begins so has its pictures before what says where they are."""
    at, kinds = 0, []
    while len(kind := first[at + 4 : at + 8]) == 4 and kind != b"mdat":
        size = int.from_bytes(first[at : at + 4], "big")
        if size < 8:
            return False
        kinds.append(kind)
        at += size
    return kind == b"mdat" and kinds[:1] == [b"ftyp"] and b"moov" not in kinds


def _first(address: Address, seconds: float, offset: int = 0) -> bytes:
    """Return the first bytes that a URL gives, from ``offset`` on; none if it gives none, or is none of the web."""
    if address.scheme not in ("http", "https"):
        return b""
    options = {"protocol_whitelist": PROTOCOLS[address.scheme], "offset": str(offset)}
    try:
        with av.open(address.path, format="data", container_options=options, timeout=(seconds, seconds)) as container:
            return next((bytes(packet) for packet in container.demux()), b"")
    except (av.error.FFmpegError, OSError, ValueError):
        return b""


def _is_unknown(address: Address) -> bool:
    """Return True if nothing says where the host of a URL is."""
    try:
        parts = urlsplit(address.path)
        if parts.hostname:
            socket.getaddrinfo(parts.hostname, parts.port)
    except socket.gaierror:
        return True
    except ValueError:
        pass
    return False
