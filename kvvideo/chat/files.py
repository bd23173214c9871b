"""Commands that read and write files: memories, the dialogue, pictures of the video."""

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvvideo.chat import commands
from kvvideo.errors import ConfigError
from kvvideo.runs.events import Event
from kvvideo.runs.playback import Playback
from kvvideo.storage.file import SUFFIX
from kvvideo.times import format_time

if TYPE_CHECKING:
    from kvvideo.chat.chat import Chat


def save(chat: "Chat", arguments: str) -> None:
    """Write what the model remembers."""
    path = Path(arguments) if arguments else chat.file or _free(_stem(chat), "kvv")
    if path.is_dir():
        raise ConfigError(f"{str(path)!r} is a folder; name a file in it")
    path = _with_suffix(path)
    if path.exists():
        if chat.file is None or path.resolve() != chat.file.resolve():
            raise ConfigError(f"{str(path)!r} is there already; name another file")
        if stamp(path) != chat.stamp:
            raise ConfigError(f"{str(path)!r} was written by somebody else meanwhile; name another file")
    chat.player.call(lambda playback: playback.write(path))
    chat.file, chat.stamp = path, stamp(path)
    chat.screen.say(f"wrote {path}")


def load(chat: "Chat", arguments: str) -> None:
    """Go on from a memory that was saved."""
    if not arguments:
        raise ConfigError("write which file: /load movie.kvv")
    path = Path(arguments)
    if not path.exists() and (named := _with_suffix(path)).exists():
        path = named

    def work(playback: Playback) -> tuple[float, tuple[Event, ...]]:
        chat.player.playback = loaded = chat.open(playback, path)
        return loaded.at, loaded.events

    before = stamp(path)
    at, events = chat.player.call(work)
    chat.name, chat.file, chat.stamp = str(path), path, before
    chat.dialogue.adopt(events)
    chat.screen.say(f"loaded {path}: at {format_time(at)}")


def export(chat: "Chat", arguments: str) -> None:
    """Write what was said."""
    kind, file = commands.parse_export(arguments)
    if file == "-":
        chat.screen.say(chat.dialogue.export(kind, chat.name).rstrip("\n"))
        return
    path = Path(file) if file else _free(f"{_stem(chat)}.chat", kind)
    if file and path.exists():
        raise ConfigError(f"{str(path)!r} is there already; name another file")
    try:
        path.write_text(chat.dialogue.export(kind, chat.name), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be written: {error.strerror}") from None
    chat.screen.say(f"wrote {path}")


def frame(chat: "Chat", arguments: str) -> None:
    """Write a frame of the video as a picture."""
    from kvvideo.video.still import frame_at

    def work(playback: Playback) -> Path:
        if playback.source is None or not playback.source.replayable:
            raise ConfigError("frames of the past are gone: the video is not at hand as a file")
        moment = commands.parse_moment(arguments) if arguments else playback.at
        if not arguments and playback.ended and playback.also is None:
            moment = max(moment - 1 / playback.source.fps, playback.start)  # the last that was looked at
        shown, picture = frame_at(playback.source.path, moment, playback.source.decoder)
        path = _free(f"{Path(playback.source.path).stem}-{format_time(shown).replace(':', '-')}", "png")
        _write_picture(picture, path)
        return path

    chat.screen.say(f"wrote {chat.player.call(work)}")


def stamp(path: Path) -> tuple[int, ...] | None:
    """Return facts of a file that change when somebody writes it; None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _stem(chat: "Chat") -> str:
    """Return the beginning of names of files about the video."""
    return "stdin" if chat.name == "-" else Path(chat.name).stem or "video"


def _with_suffix(path: Path) -> Path:
    """Return ``path`` with the suffix of memory files."""
    return path if path.suffix.lower() == SUFFIX else path.with_name(path.name + SUFFIX)


def _free(stem: str, suffix: str) -> Path:
    """Return the first file that is not there yet of ``stem.suffix``, ``stem-2.suffix`` and so on."""
    names = (f"{stem}{'' if number == 1 else f'-{number}'}.{suffix}" for number in count(1))
    return next(path for name in names if not (path := Path(name)).exists())


def _write_picture(picture: Any, path: Path) -> None:
    from PIL import Image

    try:
        Image.fromarray(picture).save(path)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be written: {error.strerror or error}") from None
