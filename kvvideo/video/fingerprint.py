"""Tell whether two files are the same without reading all of them."""

import hashlib
import os
from pathlib import Path

from kvvideo.errors import VideoError

_PLACES = 16
_SAMPLE = 64 << 10
LENGTH = 32
"""Hexadecimal digits of an identity."""


def of_file(path: Path | str) -> str:
    """Return the identity of a large file: of its size, and of 64 KiB at each of 16 places from start to end.

    For a file of up to 1 MiB that is all of it.

    Raises:
        VideoError: if it cannot be read.
    """
    try:
        return sampled(Path(path))
    except OSError as error:
        raise VideoError(
            f"{str(path)!r} cannot be read: {error.strerror}; check its name and who may read it"
        ) from error


def sampled(path: Path) -> str:
    """Return as ``of_file``.

    Raises:
        OSError: if it cannot be read.
    """
    # What is no regular file may never end, or wait for someone to write.
    if path.exists() and not path.is_file():
        raise OSError(None, "it is not a file", str(path))
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest = hashlib.sha256(str(size).encode() + b"\n")
        last = max(size - _SAMPLE, 0)
        for place in range(_PLACES):
            stream.seek(last * place // (_PLACES - 1))
            digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:LENGTH]
