"""Delivery of the records of one run, to stdout and files at once."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from kvvideo.errors import ConfigError
from kvvideo.outputs import open_files, open_writer
from kvvideo.outputs.choice import Choice
from kvvideo.outputs.formats import TEXT
from kvvideo.outputs.look import PLAIN, Look
from kvvideo.outputs.page import Frame
from kvvideo.outputs.samples import Sample
from kvvideo.outputs.writer import Outputs, Record, Shown, Writer


class Delivery:
    """Takes the records of a run under one or several strategies, and has them wherever a person wants them.

    Nothing is written before there is a record. What cannot be written is said at once, and keeps nothing else from
    being written.

    Args:
        choice: what goes where.
        text: writes text to stdout.
        stem: what ``{stem}`` stands for.
        strategies: of the run.
        say: takes lines for the person who waits, without an end.
        note: the same for what went well; ``say`` by default.
        force, own, inputs, frame, samples, look: see ``open_files``.

    Attributes:
        files: absolute names of the files that are written.

    Raises:
        ConfigError: if a file cannot or shall not be written.
    """

    def __init__(
        self,
        choice: Choice,
        text: Writer,
        *,
        stem: str,
        strategies: Sequence[str],
        say: Callable[[str], None],
        note: Callable[[str], None] | None = None,
        force: bool = False,
        own: Collection[str] = (),
        inputs: Sequence[Path] = (),
        frame: Frame | None = None,
        samples: Mapping[str, Sequence[Sample]] | None = None,
        look: Look = PLAIN,
    ) -> None:
        self._files = open_files(
            choice.template,
            choice.files,
            stem=stem,
            strategies=strategies,
            force=force,
            own=own,
            inputs=inputs,
            frame=frame,
            samples=samples,
            look=look,
            say=say,
        )
        some = (samples or {}).get(strategies[0], ())
        shown = (
            text if choice.stdout == TEXT else open_writer(choice.stdout, None, frame=frame, samples=some, look=look)
        )
        self._stdout = Outputs([Shown(shown)], say)
        self._note = note or say
        self.files = [os.path.abspath(path) for files in self._files.values() for path in files.paths]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, record: Record) -> None:
        """Take a record of a run.

        Raises:
            BrokenPipeError: if nobody reads stdout any more; files have it.
        """
        self._files[record["strategy"]].write(record)
        self._stdout.write(record)

    def close(self) -> ConfigError | None:
        """Have all of them written, and say which files there are; returns why one of them is not complete."""
        failure = None
        written = []
        for outputs in [*self._files.values(), self._stdout]:
            try:
                outputs.close()
            except ConfigError as error:
                failure = failure or error
            written += [str(path) for path in outputs.written]
        if written:
            self._note(f"wrote {', '.join(written)}")
        return failure
