"""A directory in which a run keeps what it needs to go on after a crash, used by one process at a time.

run.json: facts that tell the run from others; a directory without it holds nothing of use
lock: held (``flock``) while a process uses the directory
answers.jsonl, MILLISECONDS.safetensors, MILLISECONDS.mjpeg: see ``runs.journal``, ``checkpoints`` and ``frames``
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from kvvideo.storage.disk import durable, lock

ANSWERS = "answers.jsonl"
_ABOUT = "run.json"
_LOCK = "lock"
_OWN = (ANSWERS, "*.safetensors", "*.mjpeg", ".kvvideo-*.tmp")

Facts = dict[str, Any]


class Busy(Exception):
    """Another process uses the directory."""


def was_begun(path: Path) -> bool:
    """Return True if there is a run at ``path`` that was not finished."""
    return (path / _ABOUT).exists()


def about(path: Path) -> Facts | None:
    """Return the facts of the run that uses ``path``, or left it behind; None if there are none that can be read."""
    try:
        facts = json.loads((path / _ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


class Workspace:
    """The directory at ``path``, locked for this process; it is made if need be.

    Raises:
        Busy: if another process uses it.
        OSError: if it cannot be made, or written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _locked(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def held(self) -> bool:
        """True while this process uses it."""
        return self._lock >= 0

    @property
    def about(self) -> Facts | None:
        """Facts of the run that left this behind; None if there was none, or it was finished or is unreadable."""
        return about(self.path)

    def begin(self, about: Facts) -> None:
        """Remove what an earlier run left, and note the facts of the one that begins.

        Raises:
            ConfigError: if that cannot be written.
            OSError: if what is there cannot be removed.
        """
        self._clear()
        with durable(self.path / _ABOUT) as stream:
            stream.write(json.dumps(about).encode())

    def remove(self) -> None:
        """Delete all that runs put there, and the directory if nothing else is in it.

        Raises:
            OSError: if it cannot be removed.
        """
        self._clear()
        (self.path / _LOCK).unlink(missing_ok=True)
        self.close()
        # What others put there is not ours to delete.
        with suppress(OSError):
            self.path.rmdir()

    def close(self) -> None:
        """Let others use it; what is there stays."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def _clear(self) -> None:
        # First, so that what is left half removed is not taken for a run.
        (self.path / _ABOUT).unlink(missing_ok=True)
        for pattern in _OWN:
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)


def _locked(path: Path) -> int:
    """Open and lock the directory's lock file, and return its descriptor; the lock is held until that is closed."""
    while True:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue  # its last user has just removed it
        try:
            lock(descriptor)
            if os.path.samestat(os.fstat(descriptor), os.stat(path / _LOCK)):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            raise Busy from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed between opening and locking it
