"""``Source``: a video and how it is looked at, as a value that can be written down and opened again."""

import os
import stat
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from kvvideo.errors import ConfigError
from kvvideo.video.address import is_live
from kvvideo.video.cues import Subtitles
from kvvideo.video.decoder import check_decoder
from kvvideo.video.geometry import MAX_PIXELS, MIN_PIXELS, check_pixels
from kvvideo.video.live import Live
from kvvideo.video.plan import Plan, VideoInfo, plan
from kvvideo.video.reader import VideoReader
from kvvideo.video.sampling import Grid


@dataclass(frozen=True)
class Source:
    """A video and how it is looked at: all that decides which frames a model sees.

    Attributes are those of ``VideoReader``; ``live`` is None for a file.
    """

    path: str
    fps: float = 2.0
    chunk_seconds: float = 4.0
    start: float | None = None
    end: float | None = None
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    decoder: str = "pyav"
    live: Live | None = None
    subtitles: Subtitles | None = field(default=None, repr=False)

    def with_subtitles(
        self, wish: str, *, spared: Collection[Path] = (), note: Callable[[str], None] = lambda _: None
    ) -> Self:
        """Return the same with the subtitles that ``wish`` names; see ``kvvideo.video.subtitles.find``.

        Raises:
            VideoError: if the file that is named is not there, or holds no subtitles.
        """
        from kvvideo.video.subtitles import find

        return replace(self, subtitles=find(self.path, wish, live=self.live is not None, spared=spared, note=note))

    def open(self, skip_chunks: int = 0, **options: Any) -> VideoReader:
        """Begin to read, after the first ``skip_chunks`` chunks; ``options`` are those of ``VideoReader``.

        Raises:
            VideoError: if the video cannot be decoded.
            ConfigError: if the settings are not possible.
        """
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return VideoReader(**settings, skip_chunks=skip_chunks, **options)

    @property
    def words_from(self) -> str | None:
        """Name of what its words are read from; None for a video without words."""
        return None if self.subtitles is None else self.subtitles.name

    @property
    def replayable(self) -> bool:
        """True if it can be opened again at any earlier time: a file that is there, and does not grow."""
        return self._is_file() and not is_live(self.path) and not (self.live is not None and self.live.follow)

    def ends(self, duration: float | None) -> float | None:
        """Return where reading ends, in seconds of the source, if the whole takes ``duration``; None if unknown."""
        return min((time for time in (self.end, duration) if time is not None), default=None)

    def plan(self, info: VideoInfo) -> Plan:
        """Return what reading it will give, by what ``info`` says of it."""
        return plan(info, self.fps, self.chunk_seconds, self.start, self.end, self.min_pixels, self.max_pixels)

    def fingerprint(self) -> str | None:
        """Return what tells this file from others, whatever it is called; None for what is no file."""
        if not self._is_file():
            return None
        from kvvideo.video.fingerprint import of_file

        return of_file(self.path)

    def as_dict(self) -> dict[str, Any]:
        """Return its settings as JSON can hold them; without subtitles nothing is said of those."""
        settings = asdict(replace(self, subtitles=None))
        del settings["subtitles"]
        return settings if self.subtitles is None else {**settings, "subtitles": self.subtitles.as_dict()}

    def reading(self) -> dict[str, Any]:
        """Return all that decides what a model sees of the video, as JSON has it; where the files are is no part."""
        settings = {name: value for name, value in self.as_dict().items() if name != "path"}
        if self.subtitles is not None:
            settings["subtitles"] = f"{os.path.basename(self.subtitles.name)} {self.subtitles.digest}"
        return settings

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Return the source that ``as_dict`` gave ``data`` for.

        Raises:
            ConfigError: saying what is wrong, if it cannot have.
        """
        values = _checked(cls, data, "a video source")
        if values.get("live") is not None:
            values["live"] = Live(**_checked(Live, values["live"], "a live source"))
        if values.get("subtitles") is not None:
            values["subtitles"] = Subtitles.from_dict(values["subtitles"])
        source = cls(**values)
        Grid.of(source.fps, source.chunk_seconds, source.start, source.end)
        check_pixels(source.min_pixels, source.max_pixels)
        check_decoder(source.decoder)
        return source

    def _is_file(self) -> bool:
        try:
            return stat.S_ISREG(os.stat(self.path).st_mode)
        except (OSError, ValueError):
            return False


_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    str: ("a text", (str,)),
    float: ("a number", (int, float)),
    float | None: ("a number or nothing", (int, float, type(None))),
    int: ("a whole number", (int,)),
    bool: ("true or false", (bool,)),
    Live | None: ("the settings of a live source, or nothing", (dict, type(None))),
    Subtitles | None: ("subtitles, or nothing", (dict, type(None))),
}
"""Values that the fields of a source may hold, by their types: in words, and as JSON gives them."""


def _checked(cls: type[Source] | type[Live], data: object, what: str) -> dict[str, Any]:
    """Return ``data`` if it has what ``cls`` is made of and no more; else raise ConfigError, calling it ``what``."""
    if not isinstance(data, dict):
        raise ConfigError(f"{data!r:.100} does not describe {what}")
    kinds = {field.name: field.type for field in fields(cls)}
    if unknown := sorted(str(key) for key in data.keys() - kinds.keys()):
        raise ConfigError(f"{what} has no {unknown[0]!r:.100}; it has {', '.join(kinds)}")
    if cls is Source and "path" not in data:
        raise ConfigError(f"{what} needs a path")
    for key, value in data.items():
        words, allowed = _KINDS[kinds[key]]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise ConfigError(f"{key} of {what} must be {words}, not {value!r:.100}")
        # Larger numbers are no settings, and whole ones of hundreds of digits break arithmetic.
        if isinstance(value, int | float) and not abs(value) < 2**53:
            raise ConfigError(f"{key} of {what} must be {words}, not {value!r:.100}")
    return dict(data)
