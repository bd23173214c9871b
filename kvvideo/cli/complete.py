"""Completions of the values of options. None of them loads torch or vLLM, for someone waits at every Tab."""

import os
from collections.abc import Callable
from pathlib import Path

from kvvideo import compression

Completer = Callable[[str], list[str]]


def one_of(*names: str) -> Completer:
    """Return a completer to one of ``names``."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def strategy(incomplete: str) -> list[str]:
    """Complete the name of a strategy."""
    return one_of(*compression.strategies())(incomplete)


def strategies(incomplete: str) -> list[str]:
    """Complete the last of a list of strategies with commas between, with one that is not in it yet."""
    before, comma, last = incomplete.rpartition(",")
    taken = before.split(",")
    return [before + comma + name for name in strategy(last) if name not in taken]


def decoder(incomplete: str) -> list[str]:
    """Complete the name of a decoder."""
    from kvvideo.video.decoder import DECODERS

    return one_of(*DECODERS)(incomplete)


def model(incomplete: str) -> list[str]:
    """Complete to the bundled model, those that were downloaded, and folders with a model in them."""
    return one_of("tiny", *_downloaded())(incomplete) + _folders(incomplete)


def _downloaded() -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    prefix = "models--"
    try:
        names = sorted(os.listdir(HF_HUB_CACHE))
    except OSError:
        return []
    return [name.removeprefix(prefix).replace("--", "/") for name in names if name.startswith(prefix)]


def _folders(incomplete: str) -> list[str]:
    folder, name = os.path.split(incomplete)
    try:
        beside = sorted(os.listdir(Path(folder).expanduser()))
    except (OSError, RuntimeError):
        return []
    return [
        os.path.join(folder, one)
        for one in beside
        if one.startswith(name) and (Path(folder).expanduser() / one / "config.json").is_file()
    ]
