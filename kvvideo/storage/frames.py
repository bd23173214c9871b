"""The frames that a model saw, kept on the disk for questions that look again.

START.mjpeg: a chunk as ``jpegs`` writes it, named by its start in milliseconds
"""

import logging
import os
import re
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from threading import Lock

from kvvideo.errors import ConfigError, KvvideoError
from kvvideo.sizes import format_size
from kvvideo.storage import jpegs
from kvvideo.storage.checkpoints import milliseconds
from kvvideo.storage.codec import one_line
from kvvideo.storage.disk import durable, lock, remove_temporaries
from kvvideo.times import format_time
from kvvideo.types import Chunk
from kvvideo.video.again import spread

logger = logging.getLogger("kvvideo.frames")

SUFFIX = ".mjpeg"
_QUEUE = 4
"""Chunks that wait to be written at most: 5 MB each, of 8 frames of 448 x 448 pixels."""
_NAME = re.compile(rf"(\d{{12,15}}){re.escape(SUFFIX)}", re.ASCII)


def file_name(key: int) -> str:
    """Return the name of the chunk that begins at ``key`` milliseconds; names sort as their times do."""
    return f"{key:012d}{SUFFIX}"


def key_of(name: str) -> int | None:
    """Return the start of the chunk of that name, in milliseconds; None if it is no such name."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


class StoredFrames(ABC):
    """Chunks that were kept, found by their times; what is damaged is as if it was not there, and told of once."""

    _told = False

    @abstractmethod
    def keys(self) -> list[int]:
        """Return the starts of the chunks that are kept, in milliseconds, ascending."""

    @abstractmethod
    def data(self, key: int) -> bytes:
        """Return the bytes of a chunk, as ``jpegs`` writes them.

        Raises:
            OSError: if they cannot be read.
            KvvideoError: likewise.
        """

    def chunk(self, start: float, end: float) -> Chunk | None:
        """Return the frames of the chunks that the stretch touches, of one chunk's number at most; None without."""
        keys, begin = self.keys(), milliseconds(start)
        touched = keys[max(bisect_right(keys, begin) - 1, 0) : bisect_left(keys, milliseconds(end))]
        try:
            chunks = [jpegs.decode(self.data(key)) for key in touched]
            return spread([chunk for chunk in chunks if milliseconds(chunk.end) > begin])
        except (OSError, ValueError, KvvideoError) as error:
            self.tell(f"the frames kept of {format_time(start)} cannot be looked at again: {one_line(error)}")
            return None

    def chunks(self, stretches: Sequence[tuple[float, float]]) -> list[Chunk | None]:
        """Return ``chunk`` of each stretch."""
        return [self.chunk(*stretch) for stretch in stretches]

    def whole(self, before: float) -> Iterator[tuple[int, bytes]]:
        """Yield key and bytes of each chunk that begins before so many seconds; warn of what is damaged."""
        for key in self.keys():
            if key >= milliseconds(before):
                return
            try:
                data = self.data(key)
                jpegs.check(data)
            except (OSError, ValueError, KvvideoError) as error:
                self.tell(f"the frames kept of {format_time(key / 1000)} are left out: {one_line(error)}")
                continue
            yield key, data

    def tell(self, why: str) -> None:
        """Warn, if nothing was told before."""
        if not self._told:
            self._told = True
            logger.warning("%s", why)


class KeptFrames(StoredFrames):
    """A ring of chunks in a directory: the newest are there, whatever kills the process, and the oldest make room.

    A thread encodes and writes them, so that ``add`` seldom waits; what was added is found at once all the same. A
    chunk that cannot be written is told of once, and is not there then. The directory may be that of a run (see
    ``workspace``), which removes these files with its own. What an earlier process left is part of the ring.

    Args:
        directory: where they are; created if need be.
        max_bytes: what they may take up, in bytes; None for no limit.

    Raises:
        ConfigError: if the directory cannot be used, or another ring uses it.
    """

    def __init__(self, directory: Path, max_bytes: int | None = None) -> None:
        self.directory, self.max_bytes = directory, max_bytes
        self._queue: deque[Future[None]] = deque()
        # Held to look at or change which files there are.
        self._files = Lock()
        self._sizes: dict[int, int] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._held = os.open(directory, os.O_RDONLY)
            try:
                lock(self._held)
                remove_temporaries(directory)
                for entry in os.scandir(directory):
                    if (key := key_of(entry.name)) is not None:
                        self._sizes[key] = entry.stat().st_size
                self._make_room(0)
            except BaseException:
                os.close(self._held)
                raise
        except BlockingIOError:
            raise ConfigError(
                f"frames in {str(directory)!r} are kept by another kvvideo; choose another folder"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"frames cannot be kept in {str(directory)!r}: {error.strerror}; choose another folder"
            ) from error
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kvvideo-frames")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        self.settle()
        return sum(self._sizes.values())

    def add(self, chunk: Chunk) -> None:
        """Keep ``chunk``, which must not change any more, in place of one with the same start."""
        while len(self._queue) >= _QUEUE:
            self._queue.popleft().result()
        self._queue.append(self._thread.submit(self._write, chunk))

    def settle(self) -> None:
        """Wait until all that was added is on the disk."""
        wait([*self._queue])

    def keys(self) -> list[int]:
        """Return the starts of the chunks that are kept, in milliseconds, ascending."""
        self.settle()
        with self._files:
            return sorted(self._sizes)

    def data(self, key: int) -> bytes:
        """Return the bytes of a chunk.

        Raises:
            OSError: if they cannot be read.
        """
        return self._path(key).read_bytes()

    def close(self, keep: bool = False) -> None:
        """Let others use the directory: with the frames if they are to ``keep``, else these are removed."""
        if self._held < 0:
            return
        self._thread.shutdown()
        if not keep:
            with suppress(OSError):
                for key in self._sizes:
                    self._path(key).unlink(missing_ok=True)
                # What others put there is not ours to delete.
                self.directory.rmdir()
        os.close(self._held)
        self._held = -1

    def _write(self, chunk: Chunk) -> None:
        try:
            key, data = milliseconds(chunk.start), jpegs.encode(chunk)
            if self.max_bytes is not None and len(data) > self.max_bytes:
                size, most = format_size(len(data)), format_size(self.max_bytes)
                raise ConfigError(f"a chunk takes {size}, and {most} may be kept; allow more")
            self._make_room(len(data))
            with durable(self._path(key)) as stream:
                stream.write(data)
            with self._files:
                self._sizes[key] = len(data)
        except (OSError, KvvideoError) as error:
            self.tell(f"some frames are not kept: {one_line(error)}")

    def _make_room(self, size: int) -> None:
        """Delete the oldest chunks until one of so many bytes fits."""
        with self._files:
            while self.max_bytes is not None and sum(self._sizes.values()) + size > self.max_bytes:
                oldest = min(self._sizes)
                self._path(oldest).unlink(missing_ok=True)
                del self._sizes[oldest]

    def _path(self, key: int) -> Path:
        return self.directory / file_name(key)
