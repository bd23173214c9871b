"""Whether two files, or two models, are the same, without reading all of them."""

import hashlib
import json
import os
from pathlib import Path

from kvvideo.errors import ConfigError, VideoError

_PLACES = 16
_SAMPLE = 64 << 10
_LENGTH = 32
_WEIGHTS = (".safetensors", ".bin")


def of_file(path: Path | str) -> str:
    """Identity of a large file: of its size, and of 64 KiB at each of 16 places from its start to its end.

    Of a file of up to 1 MiB that is all of it.

    Raises:
        VideoError: if it cannot be read.
    """
    try:
        return _of_file(Path(path))
    except OSError as error:
        raise VideoError(
            f"{str(path)!r} cannot be read: {error.strerror}; check its name and who may read it"
        ) from error


def of_model(directory: Path | str, extra: str = "") -> str:
    """Identity of a model: of its ``config.json``, of the files of its weights as ``of_file`` sees them, and ``extra``.

    Raises:
        ConfigError: if it is no model, or cannot be read.
    """
    directory = Path(directory)
    try:
        text = (directory / "config.json").read_bytes()
        names = sorted(name for name in os.listdir(directory) if name.endswith(_WEIGHTS))
        weights = [[name, _of_file(directory / name)] for name in names]
    except OSError as error:
        where = str(error.filename or directory)
        raise ConfigError(f"{where!r} cannot be read: {error.strerror}; name the folder of a whole model") from error
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{str(directory / 'config.json')!r} is not JSON; get the model again") from error
    whole = json.dumps([config, weights, extra], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:_LENGTH]


def _of_file(path: Path) -> str:
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
    return digest.hexdigest()[:_LENGTH]
