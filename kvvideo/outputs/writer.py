"""Writers of outputs: record by record, or whole at the end."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from kvvideo.errors import ConfigError
from kvvideo.storage.disk import append, durable

Record = dict[str, Any]


class Writer(Protocol):
    """Takes the records of a run as they come."""

    def write(self, record: Record) -> None:
        """Take an answer, or what was done at last.

        Raises:
            ConfigError: if it cannot be written now; it is tried again with the next one.
        """

    def close(self) -> None:
        """Have all that was taken on the disk, whether the run came to its end or not. Once is enough.

        Raises:
            ConfigError: if it cannot be written.
        """


class Appended:
    """A file, or stdout, that has each record as soon as it comes.

    What cannot be written, because the disk is full, waits for the next record, so that nothing is missing in between.

    Args:
        path: the file; None for stdout.
        encode: a record as the file has it; empty for one that does not appear.
        head: beginning of the file.
        force: replace a file that is there.
        resume: a file that is there was begun by this run; what of it is as it should be stays.
    """

    def __init__(
        self,
        path: Path | None,
        encode: Callable[[Record], str],
        *,
        head: str = "",
        force: bool = False,
        resume: bool = False,
    ) -> None:
        self._path, self._encode, self._force, self._old = path, encode, force, resume
        self._waiting, self._begun = head.encode(), False
        self._descriptor = -1
        self._sound = 0

    def write(self, record: Record) -> None:
        """Append ``record``."""
        self._waiting += self._encode(record).encode()
        self._begun = True
        if self._path is not None:
            self._flush(self._path)
            return
        to_stdout(self._waiting.decode())
        self._waiting = b""

    def close(self) -> None:
        """Write what still waits, and sync the file."""
        if self._path is None or not self._begun:
            return
        try:
            self._flush(self._path)
            self._end(self._path)
            self._begun = False
        finally:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)

    def _flush(self, path: Path) -> None:
        try:
            self._append(path, self._waiting)
        except OSError as error:
            raise _unwritable(path, error) from error
        self._waiting = b""

    def _end(self, path: Path) -> None:
        try:
            if self._old:
                os.ftruncate(self._descriptor, self._sound)
            os.fsync(self._descriptor)
        except OSError as error:
            raise _unwritable(path, error) from error

    def _append(self, path: Path, data: bytes) -> None:
        if self._descriptor < 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = 0 if self._old else os.O_TRUNC if self._force else os.O_EXCL
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | mode, 0o666)
        if self._old:
            if os.pread(self._descriptor, len(data), self._sound) == data:
                self._sound += len(data)
                return
            os.ftruncate(self._descriptor, self._sound)
            self._old = False
        append(self._descriptor, data, flush=False)
        self._sound += len(data)


class AtEnd:
    """A file, or stdout, that is written when it is closed, whole or not at all; not at all if nothing came."""

    def __init__(self, path: Path | None, render: Callable[[Sequence[Record]], str]) -> None:
        self._path, self._render = path, render
        self._records: list[Record] = []

    def write(self, record: Record) -> None:
        """Keep ``record`` for the end."""
        self._records.append(record)

    def close(self) -> None:
        """Write the whole file in place of what is there."""
        if not self._records:
            return
        text = self._render(self._records)
        if self._path is None:
            to_stdout(text)
        else:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _unwritable(self._path, error) from error
            with durable(self._path) as stream:
                stream.write(text.encode())
        self._records = []


class Shown:
    """A writer to stdout, which takes nothing more once that has failed: what was lost cannot be put in its place.

    Raises:
        BrokenPipeError: if nobody reads stdout any more.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._failure: ConfigError | None = None

    def write(self, record: Record) -> None:
        """Have ``record`` written."""
        self._try(lambda: self._writer.write(record))

    def close(self) -> None:
        """Close the writer."""
        self._try(self._writer.close)

    def _try(self, act: Callable[[], None]) -> None:
        if self._failure is None:
            try:
                return act()
            except BrokenPipeError:
                raise
            except OSError as error:
                self._failure = ConfigError(f"standard output cannot be written: {error.strerror or error}")
                # What Python still holds of it would fail once more at the end.
                with suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise self._failure


class Outputs:
    """Several writers as one: what one of them cannot write the others still have.

    Args:
        writers: all get every record.
        say: takes a line for the person who waits, once for each writer that cannot write.

    Attributes:
        paths: the files that they write.
        written: those that are complete, once they are closed.
    """

    def __init__(
        self, writers: Sequence[Writer], say: Callable[[str], None] = lambda _: None, paths: Sequence[Path] = ()
    ) -> None:
        self.paths, self.written = [*paths], list[Path]()
        self._writers, self._say = writers, say
        self._said: set[int] = set()
        self._begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except ConfigError:
            # What happened first is what is told.
            if error is None:
                raise

    def write(self, record: Record) -> None:
        """Give ``record`` to all of them; what cannot be written now is tried again with the next one."""
        self._begun = True
        self._all(lambda writer: writer.write(record))

    def close(self) -> None:
        """Close all of them.

        Raises:
            ConfigError: the first one's that could not write everything.
        """
        failures = self._all(lambda writer: writer.close())
        if self._begun:
            self.written = [path for number, path in enumerate(self.paths) if number not in failures]
        if failures:
            raise next(iter(failures.values()))

    def _all(self, act: Callable[[Writer], None]) -> dict[int, ConfigError]:
        failures: dict[int, ConfigError] = {}
        for number, writer in enumerate(self._writers):
            try:
                act(writer)
            except ConfigError as error:
                failures[number] = error
                if number not in self._said:
                    self._said.add(number)
                    self._say(str(error))
        return failures


def to_stdout(text: str) -> None:
    """Write ``text`` to stdout at once, for programs: as UTF-8, whatever people's text is encoded as there."""
    if (reconfigure := getattr(sys.stdout, "reconfigure", None)) is not None:
        reconfigure(encoding="utf-8", errors="backslashreplace")
    print(text, end="", flush=True)


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{str(path)!r} cannot be written: {error.strerror or error}")
