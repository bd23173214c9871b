"""Files that are whole or not there, whatever kills the process that writes them."""

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


@contextmanager
def durable(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``path`` when it is complete and on the disk, or never.

    Temporary files that killed processes left next to it are removed.

    Raises:
        ConfigError: if it cannot be written; nothing is left behind then.
    """
    temporary = path.with_name(_TEMPORARY.replace("*", secrets.token_hex(8)))
    try:
        remove_temporaries(path.parent)
        try:
            with open(temporary, "xb") as stream:
                # Held until it is closed or this process dies. Some network file systems have no locks.
                with suppress(OSError):
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
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


def remove_temporaries(directory: Path) -> None:
    """Removes what ``durable`` left in ``directory`` where its process was killed."""
    for left in directory.glob(_TEMPORARY):
        with suppress(OSError), open(left, "r+b") as stream:
            # Fails as long as the one who writes it lives.
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def sync(directory: Path) -> None:
    """Makes names durable that were given or taken in ``directory``."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems cannot do this for a directory.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
