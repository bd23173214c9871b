"""Memories of one stream at several times, in a directory: to go on after a crash, or from an earlier time."""

import errno
import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import NamedTuple, Self

from kvvideo.errors import ConfigError
from kvvideo.session.memory import Memory
from kvvideo.storage import codec
from kvvideo.storage.disk import durable, remove_temporaries, sync
from kvvideo.times import LATEST

logger = logging.getLogger("kvvideo.memories")

SLACK = 1e-6
"""Seconds by which two times may differ that are the same."""

FILE_NAME = re.compile(r"(\d{12,15})\.safetensors", re.ASCII)


def milliseconds(time: float) -> int:
    """Return the name of a memory that ends at ``time``, in milliseconds."""
    return round(time * 1000)


def file_name(time: float) -> str:
    """Return the name of the file of a memory that ends at ``time``, in seconds; names sort as their times do."""
    return f"{milliseconds(time):012d}.safetensors"


class _File(NamedTuple):
    end: float
    bytes: int


class Checkpoints:
    """Memories of one stream at several times, one file each; what was once written survives any crash.

    A thread writes them. A file appears under its name only when it is complete and on the disk. A file
    that turns out to be damaged is left alone, with a warning, as if it was not there.

    If they come to more than ``max_bytes``, some are deleted: each time the one whose absence leaves the
    smallest gap between the one before it (at first 0.0, the start) and the one after it. So they stay
    spread over the whole video: with room for n, and none further apart to begin with, no gap becomes
    more than 2 / n of it. The latest is never deleted, even if it alone is too large.

    Meant for one thread of one process. Memories given to ``add`` must not change any more, nor those
    that ``before`` and ``latest`` return.

    Args:
        directory: where they are; created if need be.
        max_bytes: what they may take up, in bytes; None for no limit.

    Raises:
        ConfigError: if the directory cannot be used.
    """

    def __init__(self, directory: Path, max_bytes: int | None = None) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self._files: dict[int, _File] = {}
        self._pending: Memory | None = None
        self._writing: Future[None] | None = None
        # Held to look at or change which files there are, never while one is written.
        self._lock = Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvvideo-checkpoints")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if not os.access(directory, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            remove_temporaries(directory)
            for key in self._keys():
                self._find(key)
        except OSError as error:
            raise ConfigError(
                f"checkpoints cannot be kept in {str(directory)!r}: {error.strerror}; choose another folder"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except ConfigError as failure:
            if error is None:
                raise
            logger.warning("%s", failure)

    @property
    def times(self) -> list[float]:
        """Ends of the memories, in seconds, ascending; the one being written is among them."""
        with self._lock:
            return sorted(self._ends().values())

    @property
    def bytes(self) -> int:
        """Size of all files."""
        with self._lock:
            return sum(file.bytes for file in self._files.values())

    def path(self, time: float) -> Path:
        """Return the path of the memory that ends at ``time``, whether there is one or not."""
        return self.directory / file_name(time)

    def add(self, memory: Memory) -> None:
        """Have ``memory`` written, instead of one at the same time if there is one; waits only for the one before.

        Raises:
            ConfigError: if the one before could not be written; ``memory`` is taken all the same.
        """
        failure = None
        try:
            self.flush()
        except ConfigError as error:
            failure = error
        with self._lock:
            self._writing = self._thread.submit(self._write, memory)
            self._pending = memory
        if failure is not None:
            raise failure

    def flush(self) -> None:
        """Wait until all is on the disk.

        Raises:
            ConfigError: if the last one could not be written and this was not said yet.
        """
        self.settle()
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def settle(self) -> None:
        """Wait until nothing is being written; ``flush`` says if it failed."""
        if self._writing is not None:
            wait([self._writing])

    def close(self) -> None:
        """Flush, and end the thread."""
        try:
            self.flush()
        finally:
            self._thread.shutdown()

    def before(self, time: float) -> Memory | None:
        """Return the latest memory that ends at ``time`` or earlier and is not damaged."""
        with self._lock:
            for key, end in sorted(self._ends().items(), reverse=True):
                if end <= time + SLACK and (memory := self._load(key)) is not None:
                    return memory
        return None

    def latest(self) -> Memory | None:
        """Return the latest memory that is not damaged."""
        return self.before(LATEST)

    def drop_after(self, time: float) -> None:
        """Delete the memories that end later than ``time``."""
        self.settle()
        with self._lock, self._deleting():
            # The latest first: wherever this is cut off, what is left is of one past.
            for key in sorted(self._keys(), reverse=True):
                if (self._files[key].end if key in self._files else key / 1000) > time + SLACK:
                    self._delete(key)
            sync(self.directory)

    def clear(self) -> None:
        """Delete all memories."""
        self.drop_after(-1.0)

    def _keys(self) -> list[int]:
        """Return the milliseconds of all files there are, damaged ones too."""
        return [int(match[1]) for name in os.listdir(self.directory) if (match := FILE_NAME.fullmatch(name))]

    def _ends(self) -> dict[int, float]:
        ends = {key: file.end for key, file in self._files.items()}
        if self._pending is not None:
            ends[milliseconds(self._pending.end)] = self._pending.end
        return ends

    def _find(self, key: int) -> None:
        path = self.path(key / 1000)
        try:
            with open(path, "rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                end = codec.end(stream, size, str(path))
        except (ConfigError, OSError) as error:
            _warn(error)
            return
        if milliseconds(end) != key:
            _warn(ConfigError(f"{str(path)!r} is of {end} s"))
            return
        self._files[key] = _File(end, size)

    def _load(self, key: int) -> Memory | None:
        if self._pending is not None and milliseconds(self._pending.end) == key:
            return self._pending
        path = self.path(key / 1000)
        try:
            with open(path, "rb") as stream:
                return codec.read(stream, os.fstat(stream.fileno()).st_size, str(path))
        except (ConfigError, OSError) as error:
            _warn(error)
            del self._files[key]
            return None

    def _write(self, memory: Memory) -> None:
        written = None
        try:
            with durable(self.path(memory.end)) as stream:
                codec.write(memory, stream)
                size = stream.tell()
            written = _File(memory.end, size)
        finally:
            with self._lock, self._deleting():
                self._pending = None
                if written is not None:
                    self._files[milliseconds(memory.end)] = written
                    self._thin()

    def _thin(self) -> None:
        if self.max_bytes is None:
            return
        while len(self._files) > 1 and sum(file.bytes for file in self._files.values()) > self.max_bytes:
            keys = sorted(self._files)
            gaps = {key: after - before for before, key, after in zip([0, *keys], keys, keys[1:], strict=False)}
            self._delete(min(gaps, key=gaps.__getitem__))

    def _delete(self, key: int) -> None:
        self.path(key / 1000).unlink(missing_ok=True)
        self._files.pop(key, None)

    @contextmanager
    def _deleting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"checkpoints in {str(self.directory)!r} cannot be deleted: {error.strerror}; see who owns that folder"
            ) from error


def _warn(error: Exception) -> None:
    logger.warning("a checkpoint is left out: %s", codec.one_line(error))
