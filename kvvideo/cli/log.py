"""The log of kvvideo and of vLLM: on stderr with ``--verbose``, and in the file that ``--log-file`` names."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TextIO

from kvvideo.errors import ConfigError

# Processes that vLLM starts find file and terminal by these.
_FILE, _SHOWN = "_KVVIDEO_LOG_FILE", "_KVVIDEO_LOG_SHOWN"
_TOLD = logging.getLogger("kvvideo.told")
"""Takes what stands on stderr anyway, for the file."""


class _Stream:
    """A stream to the file, and to stderr if that is wanted, too; vLLM is told its name."""

    def write(self, text: str) -> int:
        if os.environ.get(_SHOWN):
            sys.stderr.write(text)
        _opened(os.environ[_FILE]).write(text)
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()
        _opened(os.environ[_FILE]).flush()


stream = _Stream()


@cache
def _opened(name: str) -> TextIO:
    return open(name, "a", encoding="utf-8", errors="backslashreplace")


def told(text: str) -> None:
    """Have a line that stands on stderr in the file, too."""
    _TOLD.info(text)


@contextmanager
def kept(file: Path | None, shown: bool) -> Iterator[None]:
    """Keep the log while it is entered: in ``file``, to which it is added, and on stderr if ``shown``.

    Raises:
        ConfigError: if the file cannot be written.
    """
    if not shown:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        warnings.simplefilter("ignore")
    if file is None and not shown:
        yield
        return
    os.environ["VLLM_LOGGING_LEVEL"] = "INFO"
    handlers = []
    if shown:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[0].addFilter(lambda record: record.name != _TOLD.name)
        handlers[0].setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    if file is not None:
        handlers.append(logging.StreamHandler(_begun(file, shown)))
        handlers[-1].setFormatter(logging.Formatter(f"%(asctime)s {logging.BASIC_FORMAT}"))
    logging.getLogger("kvvideo").setLevel(logging.DEBUG)
    for handler in handlers:
        logging.getLogger().addHandler(handler)
    try:
        yield
    except Exception as error:
        _TOLD.error("%s", error, exc_info=True)
        raise
    finally:
        for handler in handlers:
            logging.getLogger().removeHandler(handler)


def _begun(file: Path, shown: bool) -> TextIO:
    """Return ``file``, open for what is added, and have vLLM write there, too."""
    name = str(file.absolute())
    try:
        opened = _opened(name)
    except OSError as error:
        raise ConfigError(f"log-file: {str(file)!r} cannot be written: {error.strerror or error}") from None
    os.environ[_FILE] = name
    os.environ["VLLM_LOGGING_STREAM"] = f"ext://{__name__}.stream"
    if shown:
        os.environ[_SHOWN] = "1"
    return opened
