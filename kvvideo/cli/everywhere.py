"""Options that every command has: what is told on stderr meanwhile, and where the log goes.

There is no short form of ``--quiet``: ``-q`` is ``--question``, and one letter should not mean two things.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kvvideo.cli import log
from kvvideo.cli.panels import EVERYWHERE


class Way(StrEnum):
    """A way to show progress."""

    auto = "auto"
    plain = "plain"
    jsonl = "jsonl"
    none = "none"


@dataclass(frozen=True)
class Everywhere:
    """The options that every command has."""

    progress: Annotated[
        Way,
        typer.Option(
            "--progress",
            metavar="HOW",
            help="auto, plain (a line a minute), jsonl or none.",
            rich_help_panel=EVERYWHERE,
        ),
    ] = Way.auto
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Say on stderr only what went wrong.", rich_help_panel=EVERYWHERE)
    ] = False
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Show vLLM's and kvvideo's own log on stderr.", rich_help_panel=EVERYWHERE
        ),
    ] = False
    log_file: Annotated[
        Path | None,
        typer.Option("--log-file", metavar="FILE", help="Add that log to this file.", rich_help_panel=EVERYWHERE),
    ] = None

    @classmethod
    def taken(cls, given: dict[str, Any]) -> "Everywhere":
        """Return these options of a command's parameters."""
        return cls(**{field.name: given[field.name] for field in fields(cls)})

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Have commands do as these options say, while it is entered.

        Raises:
            ConfigError: if the log cannot be written.
        """
        global _now
        before, _now = _now, self
        try:
            with log.kept(self.log_file, self.verbose):
                yield
        finally:
            _now = before


_now = Everywhere()


def way() -> Way:
    """Return how progress is shown."""
    return Way.none if _now.quiet else _now.progress


def is_quiet() -> bool:
    """Return True if only what went wrong is to be said."""
    return _now.quiet
