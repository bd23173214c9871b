"""Check the files of a model, here or in the cache of downloaded ones."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kvvideo.doctor.finding import Finding, broken, ok, warning
from kvvideo.doctor.places import free_room
from kvvideo.errors import first_line
from kvvideo.session.hub import named
from kvvideo.sizes import format_size

ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
"""The only kind of model that sessions run."""

_INDEX = "model.safetensors.index.json"
_NEEDED = ("tokenizer_config.json", "preprocessor_config.json")


def model(name: str) -> Iterator[Finding]:
    """Check that the model called ``name`` is on this machine, whole, and one that sessions run."""
    path = named(name)
    if os.path.isdir(path):
        yield _checked(name, Path(path), "copy or download the model again, or name another with --model")
        return
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        yield broken("model", f"there is no folder {name!r}", "name a model's folder or its hub name with --model")
        return
    yield from _downloaded(name)


def _downloaded(name: str) -> Iterator[Finding]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    cache = Path(HF_HUB_CACHE)
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except HFValidationError as error:
        yield broken("model", f"{name!r} is no name of a model: {first_line(error)}", "name another with --model")
        return
    except LocalEntryNotFoundError:
        folder = None
    if folder is not None:
        # vLLM gets what is missing, but takes what is there for whole.
        lacking = broken if HF_HUB_OFFLINE else warning
        yield _checked(name, folder, f"download it again: hf download {name} --force-download", lacking)
        return
    if HF_HUB_OFFLINE:
        yield broken(
            "model",
            f"{name} is not in {cache}, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE keeps it from being loaded",
            "unset that variable, or copy the model here and name its folder with --model",
        )
        return
    room = f"{format_size(free_room(cache))} are free there"
    yield warning(
        "model",
        f"{name} is not in {cache}; the first run downloads it, and {room}",
        f"'hf download {name}' does that now; --model tiny needs no download; HF_HOME names another folder",
    )


def _checked(name: str, folder: Path, mend: str, lacking: Callable[[str, str, str], Finding] = broken) -> Finding:
    """Check that all files of a model are in ``folder``, and whole.

    Args:
        name: the model's.
        folder: to look in.
        mend: what to do if something is wrong.
        lacking: makes the finding if a file is missing.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
        architectures = config.get("architectures") if isinstance(config, dict) else None
        if architectures != [ARCHITECTURE]:
            return broken("model", f"{name} ({folder}) is {architectures}; sessions run {ARCHITECTURE}", mend)
        for file in _NEEDED:
            _ = (folder / file).read_bytes()
        size = sum(_weights(folder, file) for file in _weight_files(folder))
    except FileNotFoundError as error:
        return lacking("model", f"{name} ({folder}) lacks {os.path.basename(error.filename)}", mend)
    except (OSError, ValueError) as error:
        return broken("model", f"{name} ({folder}) is damaged: {first_line(error)}", mend)
    return ok("model", f"{name} ({folder}), {format_size(size)} of weights")


def _weight_files(folder: Path) -> list[str]:
    if not (folder / _INDEX).exists():
        return ["model.safetensors"]
    index: Any = json.loads((folder / _INDEX).read_bytes())
    if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
        raise ValueError(f"{_INDEX} lists no files")
    return sorted({str(file) for file in index["weight_map"].values()})


def _weights(folder: Path, file: str) -> int:
    """Return the bytes of a file of weights.

    Raises:
        ValueError: if its head or its length is wrong.
    """
    from safetensors import SafetensorError, safe_open

    size = (folder / file).stat().st_size
    try:
        with safe_open(folder / file, framework="np"):
            return size
    except SafetensorError as error:
        raise ValueError(f"{file}: {first_line(error)}") from None
