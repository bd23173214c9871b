"""How outputs reach the disk: record by record, or whole at the end."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from kvvideo.errors import ConfigError

Record = dict[str, Any]


class Writer(Protocol):
    """Takes the records of a run as they come."""

    def write(self, record: Record) -> None:
        """Take an answer, or what was done at last.

        Raises:
            ConfigError: if it cannot be written; what was written before is still there.
        """

    def close(self) -> None:
        """Have all that was taken on the disk, whether the run came to its end or not. Once is enough.

        Raises:
            ConfigError: if it cannot be written.
        """


class Appended:
    """A file, or stdout, that has each record as soon as it comes.

    Args:
        path: the file; None for stdout.
        encode: a record as the file has it; empty for one that does not appear.
        head: what the file begins with.
        force: whether to replace a file that is there.
    """

    def __init__(
        self, path: Path | None, encode: Callable[[Record], str], *, head: str = "", force: bool = False
    ) -> None:
        self._path, self._encode, self._head, self._force = path, encode, head, force
        self._descriptor = -1
        self._sound = 0

    def write(self, record: Record) -> None:
        text, self._head = self._head + self._encode(record), ""
        if self._path is None:
            print(text, end="", flush=True)
            return
        try:
            self._append(self._path, text.encode())
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0 or self._path is None:
            return
        try:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def _append(self, path: Path, data: bytes) -> None:
        if self._descriptor < 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = os.O_TRUNC if self._force else os.O_EXCL
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | mode, 0o666)
        left = data
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:
            # Half a record would spoil the file for those who read it.
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._sound)
            raise
        self._sound += len(data)


class AtEnd:
    """A file, or stdout, that is written when it is closed, whole or not at all; not at all if nothing came."""

    def __init__(self, path: Path | None, render: Callable[[Sequence[Record]], str]) -> None:
        self._path, self._render = path, render
        self._records: list[Record] = []

    def write(self, record: Record) -> None:
        self._records.append(record)

    def close(self) -> None:
        from kvvideo.memories.checkpoints import durable

        records, self._records = self._records, []
        if not records:
            return
        text = self._render(records)
        if self._path is None:
            print(text, end="", flush=True)
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self._path, error) from error
        with durable(self._path) as stream:
            stream.write(text.encode())


class Outputs:
    """Several writers as one: what one of them cannot write the others still have."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = writers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, record: Record) -> None:
        """Give ``record`` to all of them.

        Raises:
            ConfigError: the first one's that could not write it.
        """
        self._all(lambda writer: writer.write(record))

    def close(self) -> None:
        """Close all of them.

        Raises:
            ConfigError: the first one's that could not be written.
        """
        self._all(lambda writer: writer.close())

    def _all(self, act: Callable[[Writer], None]) -> None:
        failures: list[ConfigError] = []
        for writer in self._writers:
            try:
                act(writer)
            except ConfigError as error:
                failures.append(error)
        if failures:
            raise failures[0]


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{str(path)!r} cannot be written: {error.strerror or error}")
