"""Check the files of a model before anything loads them, and fingerprint a model. Of weights only headers are read.

Libraries that load them say little of what is wrong: a truncated file is "incomplete metadata", and a missing
tokenizer nothing at all.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from kvvideo.errors import ConfigError
from kvvideo.video.fingerprint import LENGTH, sampled

_JSON = ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "generation_config.json")
_TOKENIZERS = ("tokenizer.json", "vocab.json")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_HASHED = (".safetensors", ".bin")
_INDEX = "model.safetensors.index.json"
_LONGEST_HEAD = 100 << 20
"""Bytes of the longest header of a safetensors file: the limit of the safetensors library."""


def check(directory: Path | str, weights: bool = True) -> None:
    """Check that a model's folder is complete and its files are not truncated.

    Args:
        directory: the folder.
        weights: True if the weights are needed, too.

    Raises:
        ConfigError: naming the first file that is missing or damaged.
    """
    folder = Path(directory)
    try:
        names = set(os.listdir(folder))
        _whole("config.json" in names, folder, "has no config.json")
        for name in (*_JSON, _INDEX):
            if name in names:
                _json(folder / name)
        _whole(not names.isdisjoint(_TOKENIZERS), folder, "has no tokenizer (tokenizer.json)")
        _whole(not names.isdisjoint(_PROCESSORS), folder, "has no preprocessor_config.json")
        if weights:
            _check_weights(folder, names)
    except OSError as error:
        raise ConfigError(f"{str(error.filename or folder)!r} cannot be read: {error.strerror}") from error


def of_model(directory: Path | str, extra: str = "") -> str:
    """Return a model's fingerprint: a hash of its ``config.json``, samples of its files of weights, and ``extra``.

    Raises:
        ConfigError: if it is no model, or cannot be read.
    """
    directory = Path(directory)
    try:
        text = (directory / "config.json").read_bytes()
        names = sorted(name for name in os.listdir(directory) if name.endswith(_HASHED))
        weights = [[name, sampled(directory / name)] for name in names]
    except OSError as error:
        where = str(error.filename or directory)
        raise ConfigError(f"{where!r} cannot be read: {error.strerror}; name the folder of a whole model") from error
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{str(directory / 'config.json')!r} is not JSON; get the model again") from error
    whole = json.dumps([config, weights, extra], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:LENGTH]


def _check_weights(folder: Path, names: set[str]) -> None:
    tensors = sorted(name for name in names if name.endswith(".safetensors"))
    if _INDEX in names:
        listed: Any = _json(folder / _INDEX).get("weight_map")
        _whole(isinstance(listed, dict), folder / _INDEX, "lists no weights")
        for name in sorted({str(file) for file in listed.values()} - names):
            _whole(False, folder, f"has no {name}, which its index lists")
    _whole(bool(tensors) or any(name.endswith((".bin", ".pt")) for name in names), folder, "has no weights")
    for name in tensors:
        _check_tensors(folder / name)


def _check_tensors(path: Path) -> None:
    """Check that the header is valid and the file is not truncated."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        _whole(length <= min(size - 8, _LONGEST_HEAD), path, "is cut short, or no safetensors file")
        head = _parsed(stream.read(length), path)
    try:
        ends = [entry["data_offsets"][1] for name, entry in head.items() if name != "__metadata__"]
        missing = 8 + length + max(ends, default=0) - size
        _whole(missing <= 0, path, f"is cut short: {missing} bytes are missing")
    except (TypeError, LookupError):
        _whole(False, path, "is damaged")


def _json(path: Path) -> dict[str, Any]:
    return _parsed(path.read_bytes(), path)


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    _whole(isinstance(value, dict), path, "is damaged: it is no JSON object")
    found: dict[str, Any] = value
    return found


def _whole(good: bool, path: Path, problem: str) -> None:
    if not good:
        raise ConfigError(f"{str(path)!r} {problem}; get the model again")
