"""The ways in which an HTML report shows the video: the room for its pictures, and a player beside the answers."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from kvvideo.errors import ConfigError

ROOM = {"auto": 2_000_000, "all": 90_000_000, "none": 0}
"""Bytes that pictures may take up in a page, by what a person says.

At ``auto`` a page of 240 answers stays under 3 MB; ``all`` is 64 MiB of JPEG, for browsers open larger pages slowly.
"""


@dataclass(frozen=True)
class Look:
    """The look of a report.

    Attributes:
        pictures: one of ``ROOM``.
        video: the name of the video that a player shows; None for no player.

    Raises:
        ConfigError: if there is no such choice of pictures, or the video cannot be played again.
    """

    pictures: str = "auto"
    video: str | None = None

    def __post_init__(self) -> None:
        if self.pictures not in ROOM:
            raise ConfigError(f"pictures: no {self.pictures!r}; choose one of {', '.join(ROOM)}")
        if self.video is not None:
            self.href(None)

    @property
    def room(self) -> int:
        """Bytes that pictures may take up in a page."""
        return ROOM[self.pictures]

    def href(self, page: Path | None) -> str:
        """Return the address of the video for ``page``, relative to its folder; empty for no player.

        Args:
            page: the report's file; None if it goes to stdout, to be written in the current folder.
        """
        from kvvideo.video.address import Address

        if self.video is None:
            return ""
        address = Address.of(self.video)
        if address.kind == "file":
            folder = Path() if page is None else page.parent
            # Links in the way are followed: the report is read where it is.
            return quote(os.fsencode(os.path.relpath(os.path.realpath(self.video), os.path.realpath(folder))))
        if address.scheme not in ("http", "https") or address.is_hls:
            raise ConfigError(f"video-link: {address.name!r} cannot be played beside a report; leave it out")
        if urlsplit(self.video).username is not None:
            raise ConfigError(f"video-link: the report would show the password of {address.name!r}; leave it out")
        return quote(self.video, safe="/:?#[]@!$&'()*+,;=%~")


PLAIN = Look()
"""Nothing was said about it."""
