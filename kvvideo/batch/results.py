"""Results of a batch on the disk: a record for each question as soon as it is answered, and a summary at the end.

results.jsonl: one record for each question that was answered
failed.jsonl: one for each that could not be
summary.json: counts of all, and how many answers were right
.kvvideo/: the lock, the fingerprint of the model, and checkpoints of the videos at hand

A shard of a batch has files of its own, with its name in theirs, so that several machines can share a directory.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from kvvideo.batch.tasks import Task, Want
from kvvideo.errors import ConfigError
from kvvideo.outputs.jsons import dumps, line
from kvvideo.storage.checkpoints import Checkpoints
from kvvideo.storage.disk import append, durable
from kvvideo.storage.workspace import Busy, Workspace

Record = dict[str, Any]
Key = tuple[str, float | None, str]
"""A question of a job: the job's id, the moment, in seconds, or None for the end, and the words."""


def key_of(want: Want) -> Key:
    """Return the key of a question, which no other of a batch has."""
    return want.job.id, want.asking.question.at, want.asking.question.text


def differs(record: Record, want: Want, task: Task) -> bool:
    """Return True if ``record`` of ``want`` was made with other settings than those of ``task``, or of another file."""
    return made_otherwise(record, want, task) or task.fingerprint not in (None, record["fingerprint"])


def made_otherwise(record: Record, want: Want, task: Task) -> bool:
    """Return True if ``record`` of ``want`` was made with other settings than those of ``task``."""
    return (record["settings"], record.get("system", "")) != (task.settings, want.asking.question.system)


class Results:
    """The records of a batch in ``directory``, which no other process writes to meanwhile.

    Args:
        directory: made if need be.
        shard: name of the part of the batch that this is; empty for all of it.
        restart: throw away what is there; of a shard, what it wrote itself.

    Attributes:
        answered: records of answers on the disk, of other shards too.
        failed: records of failures.

    Raises:
        ConfigError: if it cannot be used, or what is there is damaged.
    """

    def __init__(self, directory: Path, shard: str = "", *, restart: bool = False) -> None:
        self.directory = directory
        self._shard = shard
        self._space = self._locked()
        try:
            if restart:
                self._clear()
            self.answered: dict[Key, Record] = self._read("results", "answer")
            failed = self._read("failed", "failed")
            self.failed = {key: record for key, record in failed.items() if key not in self.answered}
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def path(self, name: str, ending: str = "jsonl") -> Path:
        """Return the path of this shard's file ``name``."""
        return self.directory / ".".join(part for part in (name, self._shard, ending) if part)

    def of(self, want: Want) -> Record | None:
        """Return the record of a question: its answer, or else its failure; None if there is neither."""
        key = key_of(want)
        return self.answered.get(key) or self.failed.get(key)

    def check(self, task: Task) -> None:
        """Check that the answers to ``task`` on the disk were given with the same settings, of the same file.

        Raises:
            ConfigError: if they were not.
        """
        for want in (want for wants in task.wants.values() for want in wants):
            record = self.answered.get(key_of(want))
            if record is None or not differs(record, want, task):
                continue
            what = f"{str(self.directory)!r} has answers to {want.job.id!r}"
            advice = "choose another directory with -o, or throw all answers away with --restart"
            if made_otherwise(record, want, task):
                raise ConfigError(f"{what} that were made with other settings; {advice}")
            raise ConfigError(f"{what}, and {task.source.path!r} has changed since; {advice}")

    def check_model(self, fingerprint: str) -> None:
        """Note the model that answers, as soon as it is loaded.

        Raises:
            ConfigError: if what is there was answered by another, or this cannot be written.
        """
        about = self._space.about
        if about is not None and about.get("model") != fingerprint and (self.answered or self.failed):
            raise ConfigError(
                f"the model's files have changed since the answers in {str(self.directory)!r} were given; choose "
                "another directory with -o, or throw them away with --restart"
            )
        if about is None or about.get("model") != fingerprint:
            self._forget_checkpoints()
            try:
                self._space.begin({"model": fingerprint})
            except OSError as error:
                raise self._unusable(error) from error

    def answer(self, records: Sequence[Record]) -> None:
        """Have answers on the disk."""
        self._append("results", records)
        self.answered |= {_key(record): record for record in records}

    def fail(self, records: Sequence[Record]) -> None:
        """Have failures on the disk."""
        self._append("failed", records)
        self.failed |= {_key(record): record for record in records}

    def retry(self, wants: Iterable[Want]) -> None:
        """Forget that these failed."""
        gone = {key_of(want) for want in wants} & {*self.failed}
        self.failed = {key: record for key, record in self.failed.items() if key not in gone}
        path = self.path("failed")
        if gone and path.exists():
            left = [record for record in self._records(path, "failed") if _key(record) not in gone]
            with durable(path) as stream:
                stream.write("".join(map(line, left)).encode())

    def summarise(self, summary: Record) -> None:
        """Write the summary."""
        with durable(self.path("summary", "json")) as stream:
            stream.write((dumps(summary, indent=2) + "\n").encode())

    def checkpoints(self, task: Task) -> Path:
        """Return the directory of the checkpoints of ``task``."""
        return self._space.path / task.key

    def drop_checkpoints(self, task: Task) -> None:
        """Delete the checkpoints of ``task``, which came to its end."""
        self._drop(self.checkpoints(task))

    def close(self) -> None:
        """Let another process use it."""
        self._space.close()

    def _locked(self) -> Workspace:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            return Workspace(self.directory / ".kvvideo" / (self._shard or "all"))
        except Busy:
            raise ConfigError(
                f"another kvvideo is writing to {str(self.directory)!r}; wait for it, or choose another directory"
            ) from None
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{str(self.directory)!r} cannot be used: {error.strerror or error}; choose a directory that can be "
            "written to with -o"
        )

    def _files(self, name: str) -> list[Path]:
        return sorted(self.directory.glob(f"{name}.jsonl")) + sorted(self.directory.glob(f"{name}.*-of-*.jsonl"))

    def _clear(self) -> None:
        try:
            whole = (*self._files("results"), *self._files("failed"), *self.directory.glob("summary*.json"))
            mine = (self.path("results"), self.path("failed"), self.path("summary", "json"))
            for path in mine if self._shard else whole:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error) from error
        self._forget_checkpoints()

    def _read(self, name: str, kind: str) -> dict[Key, Record]:
        found: dict[Key, Record] = {}
        for path in self._files(name):
            if path == self.path(name):
                _mend(path)
            found |= {_key(record): record for record in self._records(path, kind)}
        return found

    def _records(self, path: Path, kind: str) -> Iterator[Record]:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}") from error
        for number, text in enumerate(data.splitlines(keepends=True), 1):
            if not text.endswith(b"\n"):
                return  # another shard is just writing it
            try:
                record = json.loads(text)
                sound = record["type"] == kind and isinstance(record["settings"], str) and "fingerprint" in record
                _key(record)
            except (ValueError, KeyError, TypeError, RecursionError):
                sound = False
            if not sound:
                raise ConfigError(f"{path}:{number}: this is no record of a batch; mend or delete the line")
            yield record

    def _append(self, name: str, records: Sequence[Record]) -> None:
        path, data = self.path(name), "".join(map(line, records)).encode()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                append(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ConfigError(
                f"{str(path)!r} cannot be written: {error.strerror or error}; what is in it stays, and the same "
                "command goes on from there"
            ) from error

    def _forget_checkpoints(self) -> None:
        for path in self._space.path.glob("*/"):
            self._drop(path)

    def _drop(self, directory: Path) -> None:
        if directory.is_dir():
            with Checkpoints(directory) as store:
                store.clear()
            # What others put there is not ours to delete.
            with suppress(OSError):
                directory.rmdir()


def _mend(path: Path) -> None:
    """Cut off a last line that was not written to its end."""
    try:
        with open(path, "r+b") as stream:
            data = stream.read()
            sound = data.rfind(b"\n") + 1
            if sound < len(data):
                stream.truncate(sound)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be used: {error.strerror}") from error


def _key(record: Record) -> Key:
    id_, at, question = record["id"], record["t"], record["question"]
    if not (isinstance(id_, str) and isinstance(question, str) and isinstance(at, (int, float, type(None)))):
        raise TypeError
    return id_, at, question
