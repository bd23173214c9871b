"""A place on the disk for as long as a command lasts."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "kvvideo-scratch-"
_LOCK = "lock"


@contextmanager
def scratch() -> Iterator[Path]:
    """Make an empty directory, delete it afterwards; those of commands that were killed are deleted now."""
    _remove_left(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        directory = Path(name)
        # Under its name only once it is held, so that nobody takes this for left behind.
        with open(directory / f"{_LOCK}.new", "w") as lock:
            with suppress(OSError):  # some network file systems have no locks; there, what is left stays
                fcntl.flock(lock, fcntl.LOCK_EX)
                os.replace(lock.name, directory / _LOCK)
            inside = directory / "files"
            inside.mkdir()
            yield inside


def _remove_left(where: Path) -> None:
    for directory in where.glob(f"{_PREFIX}*"):
        with suppress(OSError), open(directory / _LOCK) as lock:
            if directory.is_symlink() or os.fstat(lock.fileno()).st_uid != os.geteuid():
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
