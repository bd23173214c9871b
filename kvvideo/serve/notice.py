"""The notice by which ``kvvideo ask`` finds an engine that serves its memory: a directory for each server.

run.json: where the server is, by which settings it answers, and its memories
lock: held while it runs; what a dead server left is removed by whoever looks next
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from kvvideo._version import __version__
from kvvideo.errors import ConfigError
from kvvideo.runs.journal import state_directory
from kvvideo.runs.recall import Looking
from kvvideo.session.config import EngineConfig
from kvvideo.storage.workspace import Busy, Workspace, facts_of


@dataclass(frozen=True)
class Shown:
    """A memory in a notice: what ``kvvideo ask`` must know of it without reading it.

    Attributes:
        name: by which the server knows it.
        file: identity of the file, see ``identity``.
        strategy: of its cache.
        source: its video, as ``Source.as_dict`` has it, with an absolute path; None if that is not at hand.
        said: lines for the person who asks.
    """

    name: str
    file: list[Any]
    strategy: str
    source: dict[str, Any] | None
    said: list[str]


@dataclass(frozen=True)
class Notice:
    """The notice of one server.

    Attributes:
        url: where it answers.
        token: lets who can read the notice ask; the server's own key need not be known.
        settings: see ``settings``.
        memories: that it serves.
    """

    url: str
    token: str
    settings: str
    memories: list[Shown]

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return the notice in a directory; None if there is none, or another version's."""
        facts = facts_of(path)
        try:
            return None if facts is None else cls(**{**facts, "memories": [Shown(**one) for one in facts["memories"]]})
        except (LookupError, TypeError):
            return None

    @contextmanager
    def posted(self, say: Callable[[str], None]) -> Iterator[None]:
        """Let it be found meanwhile; ``say`` is told if it cannot be, for the server is of use all the same."""
        try:
            place = Workspace(_directory() / secrets.token_hex(8))
            place.begin(asdict(self))
        except (Busy, OSError, ConfigError) as error:
            say(f"'kvvideo ask' will not find this server: {error}")
            yield
            return
        try:
            yield
        finally:
            with suppress(OSError):
                place.remove()


def settings(
    config: EngineConfig, looking: Looking, model: str | None, dtype: str | None, video: str | os.PathLike[str] | None
) -> str:
    """Return all that decides an answer beside the memory and the question.

    Args:
        config: of the engine, but for what the memory says itself.
        looking: how questions look again.
        model: where the model is, if not where the memory says.
        dtype: to compute in, if not that of the memory.
        video: where the video is, if not where the memory says.
    """
    where = None if video is None else os.path.realpath(video)
    return repr((__version__, config, looking, model, dtype, where))


def identity(path: Path) -> list[Any]:
    """Return what tells a file from others, and from what was there before: its path, size and time of writing.

    Raises:
        OSError: if there is none.
    """
    about = path.stat()
    return [os.path.realpath(path), about.st_size, about.st_mtime_ns]


def found(path: Path, answering: str) -> tuple[Notice, Shown] | None:
    """Return the notice of a server that runs and serves the memory at ``path``, and that memory; None without.

    Args:
        path: of the memory.
        answering: ``settings`` that the answers are to have.
    """
    try:
        notices, file = list(_running()), identity(path)
    except (ConfigError, OSError):
        return None
    pairs = ((notice, one) for notice in notices if notice.settings == answering for one in notice.memories)
    return next((pair for pair in pairs if pair[1].file == file), None)


def _running() -> Iterator[Notice]:
    """Yield the notices of servers that run; remove those of the dead."""
    for directory in sorted(_directory().glob("*/")):
        try:
            Workspace(directory).remove()
        except Busy:
            if (notice := Notice.read(directory)) is not None:
                yield notice
        except OSError:
            continue  # another user's, or gone meanwhile


def _directory() -> Path:
    return state_directory() / "serve"
