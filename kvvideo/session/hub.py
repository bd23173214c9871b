"""Find the files of a model: in a directory, in the cache of downloads, or on the hub.

Files that are here are taken without any request. For others the hub is asked once, briefly: if there is no network,
one line says so, where the libraries that load models try for half a minute. A download that broke off is resumed,
which ``huggingface_hub`` does only as long as its process lives.
"""

import fcntl
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from kvvideo.errors import ConfigError, first_line
from kvvideo.session import model_files
from kvvideo.sizes import format_size

TINY = "tiny"
"""Name of the bundled model."""

ATTEMPT_SECONDS = 6.0
"""Seconds that the hub may take to list a model's files: our choice."""

_WEIGHTS = (".safetensors", ".bin", ".pt")
"""Suffixes of files of weights, the better first."""
_SMALL = (".json", ".txt", ".jinja", ".model")
"""Suffixes of the files that are needed besides."""
_WAYS_OUT = "name its directory with --model, or try --model tiny, which needs no download"

logger = logging.getLogger("kvvideo.hub")


def named(name: str) -> str:
    """Return the directory or hub name that ``--model name`` stands for; ``tiny`` is the bundled model."""
    if name != TINY:
        return name
    from kvvideo import tiny

    return str(Path(tiny.__file__).parent / "weights")


def model_path(name: str, weights: bool = False) -> str:
    """Return the directory with the files of the model called ``name``; download those that are not here.

    Args:
        name: directory, hub name, or ``tiny``.
        weights: True if the weights are needed, too; all else is small.

    Raises:
        ConfigError: if there is no such model, it is neither here nor can be reached, or its files are damaged.
    """
    path = named(name)
    return path if os.path.isdir(path) else _downloaded(name, weights)


def is_here(name: str) -> bool:
    """Return True if the model called ``name`` can be loaded without a network."""
    return os.path.isdir(named(name)) or _lacks(name, weights=True) is None


@cache
def _downloaded(name: str, weights: bool) -> str:
    """Return the same as ``model_path``, for a name that is no directory, and remember it."""
    return str(fetch(name, weights))


def fetch(name: str, weights: bool = True, tell: Callable[[str], None] = logger.info) -> Path:
    """Download what is not here of the model called ``name``; return its directory.

    Args:
        name: directory, hub name, or ``tiny``.
        weights: True if the weights are needed, too.
        tell: takes a line about a download that takes long.

    Raises:
        ConfigError: as ``model_path``.
    """
    from huggingface_hub import hf_hub_download

    if os.path.isdir(path := named(name)):
        return Path(path)
    if (folder := _cached(name)) is not None and _lacks(name, weights) is None:
        return folder
    files, size = _files(name, weights)
    if weights:
        tell(
            f"downloading {name} ({format_size(size)}) to {_cache()}; Ctrl-C stops it, and the same command goes on "
            "with it"
        )
    with _told(name, broken_off=True), _quiet():
        for file in files:
            if file.endswith(_WEIGHTS):
                _go_on(name, file, tell)
            hf_hub_download(name, file)
    if (lacking := _lacks(name, weights)) is not None:
        raise ConfigError(f"{lacking} ('hf download {name} --force-download')")
    whole = _cached(name)
    assert whole is not None
    return whole


def _cached(name: str) -> Path | None:
    """Return the directory with what was downloaded of a model; None if nothing was."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    # What begins like a path never was a hub's name; its own rules would speak of repositories.
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(f"there is no directory {name!r}; name a model's directory or its hub name with --model")
    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        raise ConfigError(f"{name!r} is neither a directory nor the name of a model on the hub") from None
    return Path(config).parent if isinstance(config, str) else None


def _lacks(name: str, weights: bool) -> str | None:
    """Return the reason why a downloaded model cannot be loaded; None if it can."""
    folder = _cached(name)
    if folder is None:
        return "it was never downloaded"
    try:
        model_files.check(folder, weights)
    except ConfigError as error:
        return str(error)
    return None


def _files(name: str, weights: bool) -> tuple[list[str], int]:
    """Return the names of the hub's files of a model that are needed, and their bytes in all."""
    from huggingface_hub import HfApi, is_offline_mode

    missing = f"{name!r} is not on this machine ({_cache()}; HF_HOME names another folder)"
    if _cached(name) is not None:
        missing = str(_lacks(name, weights)).removesuffix("; get the model again")
    if is_offline_mode():
        raise ConfigError(
            f"{missing}, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE keeps it from being downloaded; unset that, "
            f"{_WAYS_OUT}"
        )
    answer: Future[Any] = Future()

    def ask() -> None:
        try:
            answer.set_result(HfApi().model_info(name, files_metadata=True, timeout=ATTEMPT_SECONDS))
        except BaseException as error:
            answer.set_exception(error)

    # A thread, for looking up a name of the network has no limit of its own.
    threading.Thread(target=ask, name="kvvideo-hub", daemon=True).start()
    with _told(name, missing):
        found = {file.rfilename: file.size or 0 for file in answer.result(ATTEMPT_SECONDS + 1).siblings or ()}
    kinds = [kind for kind in _WEIGHTS if any(file.endswith(kind) for file in found)]
    wanted = [file for file in found if file.endswith(_SMALL)]
    if weights and kinds:
        wanted += sorted(file for file in found if file.endswith(kinds[0]))
    return wanted, sum(found[file] for file in wanted)


def _go_on(name: str, file: str, tell: Callable[[str], None]) -> None:
    """Download one large file to where ``huggingface_hub`` looks for it; resume an earlier download."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils._headers import build_hf_headers

    if isinstance(try_to_load_from_cache(name, file), str):
        return
    url = hf_hub_url(name, file)
    about = get_hf_file_metadata(url, token=None, headers=build_hf_headers())
    if not re.fullmatch(r"[\w.-]+", about.etag or "", re.ASCII):
        return  # which no hub says; hf_hub_download then does what it can
    blob = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model") / "blobs" / str(about.etag)
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.kvvideo.incomplete")
    with part.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"another process downloads {file}; waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        if blob.exists():
            return  # that process did it, and took the part away
        had = os.fstat(stream.fileno()).st_size
        if about.size is not None and had > about.size:
            stream.truncate(had := 0)
        # The signed address that the hub names runs out; its own does not.
        http_get(
            url,
            stream,
            resume_size=had,
            headers=build_hf_headers(),
            expected_size=about.size,
            displayed_filename=file,
        )
        stream.flush()
        os.fsync(stream.fileno())
        part.replace(blob)


def _cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return HF_HUB_CACHE


@contextmanager
def _told(name: str, missing: str = "", broken_off: bool = False) -> Iterator[None]:
    """Turn an error of the hub or the network into one line."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError:
        raise ConfigError(
            f"{name!r} is given out on conditions: accept them at {ENDPOINT}/{name} and log in ('hf auth login')"
        ) from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f"there is no directory {name!r}, and no model of that name at {ENDPOINT}, or it is private "
            "('hf auth login' lets you in)"
        ) from None
    except ConfigError:
        raise
    except Exception as error:  # those of the network are other classes in every version of the library
        code = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if code in (401, 403):
            raise ConfigError(f"{ENDPOINT} refuses {name!r} to you ({code}); log in ('hf auth login')") from None
        if broken_off:
            raise ConfigError(
                f"the download of {name!r} broke off ({first_line(error)}); the same command goes on with it"
            ) from error
        why = "cannot be reached" if code is None else f"does not answer as it should ({code})"
        raise ConfigError(
            f"{missing}, and {ENDPOINT} {why}; run 'hf download {name}' where there is a network, {_WAYS_OUT}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's line about each attempt; there is one line in the end."""
    from huggingface_hub.utils import logging as its

    before = its.get_verbosity()
    its.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        its.set_verbosity(before)
