"""Where the files of a model lie: in a directory, in the cache of what was downloaded, or on the hub.

What is here is taken without asking anybody. What is not is asked for once, briefly: a network that is not there is
said in one line, where the libraries that load models try for half a minute. A file that was not downloaded to its
end is gone on with, which ``huggingface_hub`` does only as long as its process lives.
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
"""How long the hub may take to say what there is of a model."""

_WEIGHTS = (".safetensors", ".bin", ".pt")
"""Endings of files of weights, the better first."""
_SMALL = (".json", ".txt", ".jinja", ".model")
"""Endings of the files that are needed besides."""
_WAYS_OUT = "name its directory with --model, or try --model tiny"

logger = logging.getLogger("kvvideo.hub")


def named(name: str) -> str:
    """Directory or hub name that ``--model name`` stands for; ``tiny`` is the bundled model."""
    if name != TINY:
        return name
    from kvvideo import tiny

    return str(Path(tiny.__file__).parent / "weights")


def model_path(name: str, weights: bool = False) -> str:
    """Directory with the files of the model called ``name``, downloaded if they are not here.

    Args:
        weights: whether they are needed, too; all else is small.

    Raises:
        ConfigError: if there is no such model, it is neither here nor can be reached, or its files are damaged.
    """
    path = named(name)
    return path if os.path.isdir(path) else _downloaded(name, weights)


def is_here(name: str) -> bool:
    """Whether the model called ``name`` can be loaded without a network."""
    return os.path.isdir(named(name)) or _lacks(name, weights=True) is None


@cache
def _downloaded(name: str, weights: bool) -> str:
    """As ``model_path``, for a name that is no directory; what was found once is not looked for again."""
    return str(fetch(name, weights))


def fetch(name: str, weights: bool = True, tell: Callable[[str], None] = logger.info) -> Path:
    """Download what is not here of the model called ``name``; returns its directory.

    Args:
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
    """The directory of what was downloaded of a model."""
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
    """What keeps a model that was downloaded from being loaded; None if nothing does."""
    folder = _cached(name)
    if folder is None:
        return "it was never downloaded"
    try:
        model_files.check(folder, weights)
    except ConfigError as error:
        return str(error)
    return None


def _files(name: str, weights: bool) -> tuple[list[str], int]:
    """The files that the hub has of a model, as far as they are needed, and their bytes in all."""
    from huggingface_hub import HfApi, is_offline_mode

    missing = f"{name!r} is not on this machine ({_cache()})"
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
    """Download one large file to where ``huggingface_hub`` looks for it, from where an earlier download ended."""
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
    """Say in one line what the hub answers, or that it does not."""
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
    """Keep the library from telling of each attempt: in the end there is one line."""
    from huggingface_hub.utils import logging as its

    before = its.get_verbosity()
    its.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        its.set_verbosity(before)
