"""The ``.kvv`` file: memories of a session after a whole video and at earlier times of it, in one zip archive.

memory.safetensors: the memory at the end, as ``codec`` writes it
checkpoints/MILLISECONDS.safetensors: memories at earlier times
frames/MILLISECONDS.mjpeg: the chunks that the session saw, as ``jpegs`` writes them, by their starts; may be left out
manifest.json: "format", "version", and in "checkpoints" their times in seconds, ascending; in "frames" the number of
    chunks, if there are any

Nothing is compressed, so that reading takes no more memory than the file is large.
"""

import errno
import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kvvideo.errors import ConfigError, KvvideoError
from kvvideo.session.memory import Memory
from kvvideo.storage import codec
from kvvideo.storage.checkpoints import SLACK, file_name, milliseconds
from kvvideo.storage.disk import durable
from kvvideo.storage.frames import StoredFrames, key_of
from kvvideo.storage.frames import file_name as frames_name
from kvvideo.times import format_time

if TYPE_CHECKING:
    from kvvideo.storage.checkpoints import Checkpoints

logger = logging.getLogger("kvvideo.memories")

SUFFIX = ".kvv"

VERSION = 2
"""Newest form of the file. One without frames is written in the first form; its memories have versions of their own."""

_MAGIC = b"PK\x03\x04"
_MEMORY = "memory.safetensors"
_MANIFEST = "manifest.json"
_FRAMES = "frames/"
_LONGEST_MANIFEST = 1 << 20
_ENCRYPTED = 0x1


def write(
    path: Path, memory: Memory, checkpoints: "Checkpoints | None" = None, frames: StoredFrames | None = None
) -> None:
    """Write a ``.kvv`` file with ``memory``, those ``checkpoints`` that end before it, and ``frames`` up to its end.

    What was at ``path`` is there until the new one is complete and on the disk. Damaged checkpoints and frames are
    left out, with a warning.

    Raises:
        ConfigError: if it cannot be written; nothing has changed then.
    """
    # Opened one after the other: durable must have all that closing the archive writes.
    with durable(path) as stream, zipfile.ZipFile(stream, "w") as archive:
        with archive.open(zipfile.ZipInfo(_MEMORY), "w", force_zip64=True) as target:
            codec.write(memory, target)
        times = [] if checkpoints is None else _copy(checkpoints, archive, memory.end)
        manifest = {"format": codec.FORMAT, "version": 1, "checkpoints": times}
        if frames is not None and (count := _add(frames, archive, memory.end)):
            manifest |= {"version": VERSION, "frames": count}
        archive.writestr(zipfile.ZipInfo(_MANIFEST), json.dumps(manifest))


def is_memory_file(path: Path | str) -> bool:
    """Return True if ``path`` is a memory by its name or first bytes, rather than a video."""
    path = Path(path)
    if path.suffix.lower() == SUFFIX:
        return True
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


class MemoryFile:
    """A ``.kvv`` file, open for reading.

    Opening it checks all but the tensors, reading a memory checks those too.

    Raises:
        ConfigError: in one line, if the file is anything else.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._name = str(path)
        with self._guarded():
            _look_at(self.path)
            self._archive = zipfile.ZipFile(self.path)
            try:
                self._checkpoints = self._check()
                self._frames = sorted(
                    key for name in self._archive.namelist() if (key := _frames_key(name)) is not None
                )
                with self._archive.open(_MEMORY) as stream:
                    self._end = codec.end(stream, self._size(_MEMORY), self._name)
                if self._checkpoints and milliseconds(self._checkpoints[-1]) >= milliseconds(self._end):
                    raise ValueError("checkpoints after the end")
            except BaseException:
                self._archive.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    @property
    def times(self) -> list[float]:
        """Ends of its memories, in seconds, ascending; the last is the end."""
        return [*self._checkpoints, self._end]

    def memory(self) -> Memory:
        """Return the memory at the end.

        Raises:
            ConfigError: in one line, if it is damaged.
        """
        return self._read(_MEMORY, self._end)

    def before(self, time: float) -> Memory:
        """Return the latest memory that ends at ``time``, in seconds, or earlier.

        Raises:
            ConfigError: in one line, if there is none, or if it is damaged.
        """
        found = [end for end in self.times if end <= time + SLACK]
        if not found:
            raise ConfigError(
                f"{self._name!r} has no memory as early as that; its earliest is of {format_time(self.times[0])}"
            )
        end = found[-1]
        return self.memory() if end == self._end else self._read(_member(end), end)

    def frames(self) -> StoredFrames | None:
        """Return the frames that the session saw, which can be had until this is closed; None if it has none."""
        return _Frames(self._frames, self._frames_of) if self._frames else None

    def _check(self) -> list[float]:
        """Check everything but memories, and return the times of the checkpoints."""
        members = self._archive.infolist()
        if _MANIFEST not in self._archive.namelist():
            raise ConfigError(f"{self._name!r} is not a kvvideo memory but some other archive")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise ConfigError(f"{self._name!r} is not a kvvideo memory: it is compressed")
            if member.file_size != member.compress_size:
                raise ValueError("two sizes of what is not compressed")
            if member.flag_bits & _ENCRYPTED:
                raise ConfigError(f"{self._name!r} is not a kvvideo memory: it is encrypted")
        if sum(member.file_size for member in members) > self.path.stat().st_size:
            raise ValueError("more than there is")
        if self._size(_MANIFEST) > _LONGEST_MANIFEST:
            raise ValueError("manifest too long")
        manifest = codec.loads(self._archive.read(_MANIFEST), _MANIFEST)
        codec.check_version(manifest, self._name, VERSION)
        times, count = manifest.get("checkpoints"), manifest.get("frames", 0)
        if manifest.keys() - {"frames"} != {"format", "version", "checkpoints"} or not isinstance(times, list):
            raise ValueError("not a manifest")
        if not all(map(codec.is_time, times)):
            raise ValueError("not times")
        keys = [milliseconds(time) for time in times]
        if keys != sorted(set(keys)):
            raise ValueError("times in disorder")
        names = self._archive.namelist()
        frames = {name for name in names if _frames_key(name) is not None}
        expected = {_MANIFEST, _MEMORY, *map(_member, times), *frames}
        if unknown := [name for name in names if name not in expected]:
            raise ConfigError(f"{self._name!r} is not a kvvideo memory: it holds {unknown[0][:100]!r}")
        if len(frames) != count or sorted(names) != sorted(expected):
            raise ValueError("members missing, or there twice")
        return [float(time) for time in times]

    def _size(self, member: str) -> int:
        return self._archive.getinfo(member).file_size

    def _read(self, member: str, end: float) -> Memory:
        with self._guarded(), self._archive.open(member) as stream:
            memory = codec.read(stream, self._size(member), self._name)
            if memory.end != end:
                raise ValueError("memory of another time")
            return memory

    def _frames_of(self, key: int) -> bytes:
        with self._guarded():
            return self._archive.read(_FRAMES + frames_name(key))

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Make one line of whatever goes wrong in reading the file."""
        try:
            yield
        except KvvideoError:
            raise
        # zipfile raises anything if a file is damaged in the right place; EINVAL if an offset leads nowhere.
        except Exception as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise ConfigError(f"{self._name!r} cannot be read: {error.strerror}") from error
            raise ConfigError(f"{self._name!r} is cut short or damaged; make it again with 'kvvideo ingest'") from error


class _Frames(StoredFrames):
    """The frames of the chunks that begin at ``keys`` milliseconds, read by ``data``."""

    def __init__(self, keys: list[int], data: Callable[[int], bytes]) -> None:
        self._keys, self._data = keys, data

    def keys(self) -> list[int]:
        return self._keys

    def data(self, key: int) -> bytes:
        return self._data(key)


def _add(frames: StoredFrames, archive: zipfile.ZipFile, end: float) -> int:
    """Put the frames of the chunks before ``end`` into the archive, and return of how many."""
    count = 0
    for key, data in frames.whole(end):
        archive.writestr(zipfile.ZipInfo(_FRAMES + frames_name(key)), data)
        count += 1
    return count


def _copy(checkpoints: "Checkpoints", archive: zipfile.ZipFile, end: float) -> list[float]:
    """Copy the checkpoints before ``end`` into the archive, and return their times."""
    checkpoints.settle()
    times = []
    for time in checkpoints.times:
        path = checkpoints.path(time)
        if milliseconds(time) >= milliseconds(end):
            continue
        try:
            with open(path, "rb") as source:
                codec.check(source, os.fstat(source.fileno()).st_size, str(path))
        except (ConfigError, OSError) as error:
            logger.warning("a checkpoint is left out: %s", codec.one_line(error))
            continue
        member = zipfile.ZipInfo(_member(time))
        with open(path, "rb") as source, archive.open(member, "w", force_zip64=True) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        times.append(time)
    return times


def _member(time: float) -> str:
    return f"checkpoints/{file_name(time)}"


def _frames_key(member: str) -> int | None:
    """Return the start of the chunk that a member is, in milliseconds; None if it is something else."""
    return key_of(member.removeprefix(_FRAMES)) if member.startswith(_FRAMES) else None


def _look_at(path: Path) -> None:
    """Raise ConfigError, saying what ``path`` is, if it is clearly no memory."""
    name = str(path)
    if path.is_dir():
        raise ConfigError(f"{name!r} is a folder; name a {SUFFIX} file in it")
    if not path.exists():
        raise ConfigError(f"there is no {name!r}; make it with 'kvvideo ingest'")
    # What is no regular file may wait for someone to write.
    if not path.is_file():
        raise ConfigError(f"{name!r} is not a kvvideo memory; name a {SUFFIX} file")
    with open(path, "rb") as stream:
        start = stream.read(len(_MAGIC))
    if start != _MAGIC:
        what = "is empty, and so" if not start else "is"
        raise ConfigError(f"{name!r} {what} not a kvvideo memory; make one with 'kvvideo ingest'")
