"""The directory of a run of ``kvvideo analyze``, so that ``--resume`` loses nothing and asks nothing twice.

A run has a directory of its own, named by all that decides its answers. In it are the journal of the answers so far,
a line of JSON for each batch of records, on the disk before it is printed; and the latest checkpoint of the session,
never later than the journal.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.outputs import jsons
from kvvideo.runs.agenda import Agenda
from kvvideo.sizes import format_size
from kvvideo.storage.disk import append, sync
from kvvideo.storage.workspace import ANSWERS, Busy, Workspace
from kvvideo.times import format_time

if TYPE_CHECKING:
    from kvvideo.session import Engine, VideoSession
    from kvvideo.session.memory import Memory
    from kvvideo.storage.checkpoints import Checkpoints

Record = dict[str, Any]
Batch = list[Record]


def state_directory() -> Path:
    """Return ``$KVVIDEO_STATE_DIR``, ``$XDG_STATE_HOME/kvvideo`` or ``~/.local/state/kvvideo``, the first there is.

    Raises:
        ConfigError: if there is no home directory.
    """
    if own := os.environ.get("KVVIDEO_STATE_DIR"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "kvvideo"
    except RuntimeError as error:
        raise ConfigError("there is no home directory; name a folder in KVVIDEO_STATE_DIR") from error


def runs_directory() -> Path:
    """Return the directory of all interrupted runs.

    Raises:
        ConfigError: if there is no home directory.
    """
    return state_directory() / "runs"


def shortage(size: int, directory: Path) -> str:
    """Return what the disk of ``directory`` lacks for two checkpoints of ``size`` bytes, in words; empty for nothing.

    One stays until the next is written.

    Raises:
        OSError: if it cannot be looked at.
    """
    place = next(path for path in (directory, *directory.parents) if path.is_dir())
    # Those that are there make room.
    free = shutil.disk_usage(place).free + sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    if 2 * size <= free:
        return ""
    return (
        f"two checkpoints take up to {format_size(2 * size)}, and {format_size(free)} are free in {str(place)!r}; name "
        "another folder in KVVIDEO_STATE_DIR"
    )


def key(**settings: Any) -> str:
    """Name of the directory of a run: runs with the same settings, given as JSON has them, have the same."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def line(batch: Sequence[Record]) -> bytes:
    """Return ``batch`` as a line of the journal."""
    return jsons.dumps(list(batch)).encode() + b"\n"


def parse(data: bytes) -> tuple[list[Batch], int]:
    """Return the batches in a journal up to the first line that is torn or damaged, and their size in bytes."""
    batches: list[Batch] = []
    sound = 0
    for part in data.splitlines(keepends=True):
        try:
            batch = json.loads(part) if part.endswith(b"\n") else None
        except (ValueError, RecursionError):
            break
        if not isinstance(batch, list) or not all(isinstance(record, dict) and "type" in record for record in batch):
            break
        batches.append(batch)
        sound += len(part)
    return batches, sound


class Run:
    """One run's directory. What cannot be written is said once, and the run goes on without.

    Nothing is made or replaced before there is something to write.

    Args:
        directory: of this run; see ``key``. None to keep nothing.
        say: takes lines for the person who waits, without an end.
        resume: go on from what an interrupted run left there.
        every: seconds of video between checkpoints.
        notes: facts that a list of interrupted runs tells.

    Attributes:
        batches: answers of that run, in order.
    """

    def __init__(
        self,
        directory: Path | None,
        say: Callable[[str], None],
        *,
        resume: bool = False,
        every: float = 60.0,
        notes: Record | None = None,
    ) -> None:
        self.batches: list[Batch] = []
        self._directory, self._say, self._every = directory or Path(), say, every
        self._space: Workspace | None = None
        self._store: Checkpoints | None = None
        self._journal = -1
        self._model = ""
        self._notes = notes or {}
        self._about: dict[str, Any] | None = None
        self._last = 0.0
        self._failed = directory is None
        if directory is not None:
            with self._guarded():
                self._look(resume)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def resumable(self) -> bool:
        """True if there is something that ``--resume`` would go on from."""
        return self._journal >= 0

    @property
    def keeps(self) -> bool:
        """True if something may be written still."""
        return not self._failed

    def weigh(self, size: int) -> None:
        """Keep nothing if the disk has no room for checkpoints of ``size`` bytes."""
        with self._guarded():
            if why := shortage(size, self._directory):
                self._fail(f"nothing is kept to resume from: {why}")

    @property
    def max_tokens(self) -> int | None:
        """The tokens of the cache that the run noted, which is gone on with if there was one; None without a note."""
        tokens: int | None = (self._about or self._notes).get("max_tokens")
        return tokens

    def check_model(self, engine: "Engine") -> None:
        """Show the model, as soon as it is loaded, and before anything is written.

        Raises:
            ConfigError: if what is resumed was answered by another.
        """
        if self._failed:
            return
        with self._guarded():
            self._model = engine.fingerprint
        if self._about is not None and not self._failed and self._about.get("model") != self._model:
            raise ConfigError(
                "the model's files have changed since this run was interrupted; run it again without --resume"
            )

    def answers(self, strategy: str) -> tuple[list[Batch], Record | None]:
        """Return the answers given under ``strategy`` before the interruption, and its final record if there is one."""
        mine = [batch for batch in self.batches if batch and batch[0].get("strategy") == strategy]
        finished = next((batch[0] for batch in mine if batch[0]["type"] == "done"), None)
        return [batch for batch in mine if batch[0]["type"] == "answer"], finished

    def memory(self, cache: CacheConfig, agenda: Agenda, answered: int) -> "Memory | None":
        """Return the latest checkpoint under ``cache``; None to begin at the beginning.

        Args:
            cache: settings of the strategy.
            agenda: all that the run asks, for this to take from.
            answered: how many questions are in the journal.
        """
        if self._about is None or self._failed:
            return None
        memory = None
        with self._guarded():
            memory = self._checkpoints().latest()
        if memory is None or memory.cache != cache or memory.fingerprint != self._about.get("model"):
            return None
        # Only ever so if the disk lost what it had said was written.
        if sum(len(questions) for _, questions in agenda.before(memory.end)) > answered:
            return None
        self._last = memory.end
        return memory

    def enter(self, memory: "Memory | None") -> None:
        """Begin a session, from ``memory`` if it is not None; checkpoints of others are deleted."""
        if memory is None:
            self._last = 0.0
            if self._journal >= 0 and not self._failed:
                with self._guarded():
                    self._checkpoints().clear()

    def append(self, batch: Sequence[Record]) -> None:
        """Have ``batch`` on the disk before this returns."""
        if self._failed:
            return
        with self._guarded():
            self._begin()
            append(self._journal, line(batch))

    def due(self, end: float, start: float) -> bool:
        """True if a session that began at ``start`` and has come to ``end``, both in seconds, needs a checkpoint."""
        return not self._failed and end - max(self._last, start) >= self._every - 1e-6

    def checkpoint(self, session: "VideoSession") -> None:
        """Have ``session`` saved meanwhile, in place of earlier ones. What was asked before has been appended."""
        self._last = session.end
        if self._failed:
            return
        with self._guarded():
            self._begin()
            self._checkpoints().add(session.save())

    def finish(self) -> None:
        """Delete the directory: the run is complete."""
        self._close_files()
        if self._space is not None:
            try:
                self._space.remove()
            except OSError as error:
                self._fail(f"{str(self._directory)!r} cannot be removed: {error.strerror}")
        self.close()

    def close(self) -> None:
        """Let others use the directory; what is there stays for ``--resume``."""
        self._close_files()
        if self._space is not None:
            self._space.close()
        self._space = None

    def _look(self, resume: bool) -> None:
        if self._directory.is_dir():
            self._space = Workspace(self._directory)
        about = None if self._space is None else self._space.about
        if about is None:
            if resume:
                self._say("there is no interrupted run of just this; starting at the beginning")
            return
        path = self._directory / ANSWERS
        data = path.read_bytes() if path.exists() else b""
        batches, sound = parse(data)
        if not resume:
            self._say(f"an interrupted run of just this{self._where(batches)}; starting over, without --resume")
            return
        self._about, self.batches = about, batches
        self._open_journal()
        os.ftruncate(self._journal, sound)

    def _where(self, batches: list[Batch]) -> str:
        times = [*self._checkpoints().times, *(batch[-1].get("asked_at", 0.0) for batch in batches if batch)]
        self._close_store()
        return f" got to {format_time(max(times))}" if times else " is there"

    def _begin(self) -> None:
        """Make the directory this run's, with nothing in it."""
        if self._journal >= 0:
            return
        self._close_store()
        if self._space is None:
            self._space = Workspace(self._directory)
        self._space.begin({**self._notes, "model": self._model})
        self._open_journal()
        sync(self._directory)

    def _open_journal(self) -> None:
        self._journal = os.open(self._directory / ANSWERS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def _checkpoints(self) -> "Checkpoints":
        if self._store is None:
            from kvvideo.storage.checkpoints import Checkpoints

            # The latest is never deleted, so this keeps that one alone.
            self._store = Checkpoints(self._directory, max_bytes=0)
        return self._store

    def _close_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _close_files(self) -> None:
        if self._journal >= 0:
            os.close(self._journal)
        self._journal = -1
        with self._guarded():
            self._close_store()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Say what fails, for the run goes on without."""
        try:
            yield
        except Busy:
            self._fail("the same run is going on elsewhere; this one keeps nothing to resume from")
        except ConfigError as error:
            self._fail(f"nothing more is kept to resume from: {error}")
        except OSError as error:
            why = error.strerror or str(error)
            self._fail(f"nothing more is kept to resume from: {str(self._directory)!r} cannot be used: {why}")

    def _fail(self, text: str) -> None:
        if not self._failed:
            self._say(text)
        self._failed = True
