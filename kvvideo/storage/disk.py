"""Files that are whole or not there, whatever kills the process that writes them, and locks that die with it."""

import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from kvvideo.errors import ConfigError, first_line

_TEMPORARY = ".kvvideo-*.tmp"
_TRIES = 100  # many threads that begin to write at once take each other's file for left behind now and then


@contextmanager
def durable(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of ``path`` when it is complete and on the disk, or never.

    Temporary files that killed processes left next to it are removed.

    Raises:
        ConfigError: if it cannot be written; nothing is left behind then.
    """
    try:
        remove_temporaries(path.parent)
        temporary, held = _held(path)
        try:
            with held as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        sync(path.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        advice = "free some space, or choose another place" if full else "choose a place that can be written to"
        raise ConfigError(
            f"{str(path)!r} cannot be written: {error.strerror or first_line(error)}; {advice}"
        ) from error


def _held(path: Path) -> tuple[Path, BinaryIO]:
    """Return a new temporary file beside ``path``, locked, and open for writing.

    Raises:
        OSError: if it cannot be made.
    """
    for _ in range(_TRIES):
        temporary = path.with_name(_TEMPORARY.replace("*", secrets.token_hex(8)))
        stream = open(temporary, "xb")  # noqa: SIM115  the caller closes it
        # Before it is locked, another thread or process may take it for left behind and remove it.
        with suppress(BlockingIOError):
            lock(stream.fileno())
            if temporary.exists():
                return temporary, stream
        stream.close()
    raise FileNotFoundError(errno.ENOENT, "a new file beside it is removed at once", str(path.parent))


def remove_temporaries(directory: Path) -> None:
    """Remove the files that ``durable`` left in ``directory`` where its process was killed."""
    for left in directory.glob(_TEMPORARY):
        # Locked for as long as the one who writes it lives.
        with suppress(OSError), open(left, "r+b") as stream:
            if lock(stream.fileno()):
                left.unlink()


def append(descriptor: int, data: bytes, *, flush: bool = True) -> None:
    """Append ``data`` to an open file, all of it or nothing: half a record would spoil the file for its readers.

    Args:
        descriptor: of the file, open for appending.
        data: whole records.
        flush: have it on the disk, too, before this returns.

    Raises:
        OSError: if it cannot be written; the file is as it was.
    """
    sound = os.fstat(descriptor).st_size
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        if flush:
            os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, sound)
        raise


def sync(directory: Path) -> None:
    """Have names on the disk that were given or taken in ``directory``.

    Raises:
        OSError: if that fails.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot do this for a directory.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Lock an open file for this process until the file is closed or the process dies, however it dies.

    Programs that this process starts do not inherit the lock, for Python closes its files in them.

    Returns:
        False on a file system without locks, as some of a network are.

    Raises:
        BlockingIOError: if another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
