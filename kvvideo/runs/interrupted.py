"""Interrupted runs of ``kvvideo analyze`` that are kept for ``--resume``: found, told of, and removed."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvvideo.errors import ConfigError
from kvvideo.runs.journal import parse, runs_directory
from kvvideo.sizes import format_size
from kvvideo.storage.workspace import ANSWERS, Workspace, facts_of, is_held

_NAME = 8
"""Characters of a run's name; they are the first of its directory's, 32 of a hash."""

MUCH = 1_000_000_000
"""Bytes of all interrupted runs that are worth a word."""


@dataclass(frozen=True)
class Kept:
    """An interrupted run.

    Attributes:
        path: its directory.
        video: the video as it was given; empty if nothing says.
        strategies: those that have answered.
        answers: how many there are.
        end: the moment of the video that it got to, in seconds.
        modified: when something was written last, in seconds since 1970.
        bytes: size of all its files.
        running: a process writes to it now.
        command: the words that began it; none if that was a version which did not note them.
        folder: where it was begun; empty likewise.
    """

    path: Path
    video: str
    strategies: list[str]
    answers: int
    end: float
    modified: float
    bytes: int
    running: bool
    command: list[str]
    folder: str

    @property
    def name(self) -> str:
        """Beginning of its directory's name."""
        return self.path.name[:_NAME]

    @property
    def going_on(self) -> str:
        """Command that goes on with it; empty if it is not known."""
        if not self.command:
            return ""
        if "--resume" in self.command:
            return shlex.join(["kvvideo", *self.command])
        # Behind the command's name: a later "--" would make it the name of a file.
        place = self.command.index("analyze") + 1 if "analyze" in self.command else 0
        return shlex.join(["kvvideo", *self.command[:place], "--resume", *self.command[place:]])

    @property
    def record(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        facts = {name: value for name, value in vars(self).items() if name != "path"}
        return {"name": self.name, "path": str(self.path), **facts}


def kept_runs() -> list[Kept]:
    """Return the interrupted runs, the latest first.

    Raises:
        ConfigError: if they cannot be looked at.
    """
    directory = runs_directory()
    try:
        found = [_kept(path) for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    except OSError as error:
        raise ConfigError(f"{str(directory)!r} cannot be read: {error.strerror}") from error
    return sorted(found, key=lambda run: -run.modified)


def chosen(runs: Sequence[Kept], names: Sequence[str]) -> list[Kept]:
    """Return the ``runs`` of these names, or of beginnings of them that no other has.

    Raises:
        ConfigError: if a name is that of none, or of several.
    """
    found: dict[Path, Kept] = {}
    for name in names:
        some = [run for run in runs if name and run.path.name.startswith(name)]
        if len(some) != 1:
            why = f"there are {len(some)} runs whose names begin so" if some else "there is no such run"
            raise ConfigError(f"{name!r}: {why}; 'kvvideo runs' lists them")
        found[some[0].path] = some[0]
    return [*found.values()]


def remove(run: Kept) -> None:
    """Delete all that ``run`` has written.

    Raises:
        Busy: if a process uses it now.
        OSError: if it cannot be deleted.
    """
    with Workspace(run.path) as space:
        space.remove()


def much() -> str:
    """Return the end of a line, about the interrupted runs if they take much room; empty if they do not."""
    with suppress(ConfigError):
        runs = kept_runs()
        if (size := sum(run.bytes for run in runs)) > MUCH:
            took = "1 interrupted run takes" if len(runs) == 1 else f"{len(runs)} interrupted runs take"
            return f"; {took} up {format_size(size)}; 'kvvideo runs' lists and clears them"
    return ""


def _kept(path: Path) -> Kept:
    files = []
    for file in path.iterdir():
        with suppress(FileNotFoundError):  # a run that goes on has just removed it
            files.append(file.stat())
    journal, about = path / ANSWERS, facts_of(path) or {}
    batches, _ = parse(journal.read_bytes()) if journal.exists() else ([], 0)
    answers = [record for batch in batches for record in batch if record["type"] == "answer"]
    checkpoints = [int(file.stem) / 1000 for file in path.glob("*.safetensors") if file.stem.isdecimal()]
    command = about.get("command")
    return Kept(
        path=path,
        video=str(about.get("video") or next((record.get("video") for record in answers), "")),
        strategies=[*dict.fromkeys(str(record.get("strategy")) for record in answers)],
        answers=len(answers),
        end=max([*checkpoints, *(float(record.get("asked_at", 0.0)) for record in answers)], default=0.0),
        modified=max([path.stat().st_mtime, *(stat.st_mtime for stat in files)]),
        bytes=sum(stat.st_size for stat in files),
        running=is_held(path),
        command=[str(word) for word in command] if isinstance(command, list) else [],
        folder=str(about.get("folder") or ""),
    )
