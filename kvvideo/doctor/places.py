"""Check that folders can be written to, and how much room they have."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kvvideo.doctor.finding import Finding, broken, ok, warning
from kvvideo.errors import ConfigError, first_line
from kvvideo.sizes import format_size

LITTLE_ROOM = 2_000_000_000
"""Bytes that a chat's memories may take by default; less free space than that is worth a word."""


def places() -> Iterator[Finding]:
    """Check the folders for temporary files, for what runs keep, for downloaded models, and for what runs write."""
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        yield broken(
            "temporary files", first_line(error), "make room, or name a folder that can be written to in TMPDIR"
        )
    else:
        yield _folder("temporary files", temporary, "make room, or name another folder in TMPDIR")
    from kvvideo.runs.journal import state_directory

    try:
        yield _folder(
            "state",
            state_directory(),
            "nothing is kept for --resume; make room, or name another folder in KVVIDEO_STATE_DIR",
        )
    except ConfigError as error:
        yield warning("state", first_line(error), "name a folder in KVVIDEO_STATE_DIR")
    yield from _model_cache()
    try:
        here = Path.cwd()
    except FileNotFoundError:
        yield warning("this folder", "was removed", "go to a folder that exists")
    else:
        yield _folder("this folder", here, "make room, go elsewhere, or name other files with --output")


def free_room(folder: Path) -> int:
    """Return the bytes free where ``folder`` is, or would be.

    Raises:
        OSError: if that cannot be told.
    """
    return shutil.disk_usage(nearest(folder)).free


def nearest(folder: Path) -> Path:
    """Return ``folder``, or what there is of the way to it."""
    folder = Path(os.path.abspath(folder))
    return next(place for place in (folder, *folder.parents) if place.exists())


def _model_cache() -> Iterator[Finding]:
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return  # it comes with vLLM, which is missed enough
    yield _folder("model cache", Path(HF_HUB_CACHE), "make room, or name another folder in HF_HOME")


def _folder(check: str, folder: Path, mend: str) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)):
            room = free_room(folder)
    except OSError as error:
        return warning(check, f"{folder} cannot be written to: {error.strerror or error}", mend)
    says = f"{folder}: {format_size(room)} free"
    return warning(check, says, mend) if room < LITTLE_ROOM else ok(check, says)
