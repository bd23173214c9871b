"""The choice that ``-f`` and ``-o`` make: the format for stdout, those for files, and the files' names."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from kvvideo.errors import ConfigError
from kvvideo.outputs.formats import FORMATS, TEXT

TEMPLATE = "{stem}.{strategy}.{ext}"
"""Names files if nothing else does."""

STDOUT = "-"
"""Stands for stdout where a file may be named."""


@dataclass(frozen=True)
class Choice:
    """The format for stdout, and the formats and names of files.

    Attributes:
        stdout: the format written there: one of ``FORMATS``, or ``TEXT``.
        files: formats written to files, each once.
        template: names the files.
    """

    stdout: str = TEXT
    files: tuple[str, ...] = ()
    template: str = TEMPLATE


def choose(formats: Sequence[str], output: str | None = None, strategies: int = 1) -> Choice:
    """Return where answers go, from what a person says.

    One format alone goes to stdout, but for HTML, which nobody reads there, and for what cannot hold the answers of
    several strategies. Several formats, and any that a name is given for, go to files; stdout then has text.

    Args:
        formats: names, in any number of lists with commas. None of them: text, or what the ending of ``output`` says.
        output: names the files, see ``output_path``; ``-`` for stdout; None if nobody says.
        strategies: how many there are.

    Raises:
        ConfigError: if there is no such format, or it cannot go where it should.
    """
    named = listed(formats)
    wanted = tuple(name for name in named if name != TEXT)
    if output == STDOUT:
        if len(named) > 1:
            raise ConfigError(f"output: '-' is standard output, which takes one format, not {' and '.join(named)}")
        only = named[0] if named else TEXT
        if strategies > 1 and not _joins(only):
            raise ConfigError(f"output: {only} cannot hold several strategies; name files with {{strategy}}")
        return Choice(only)
    if output is not None:
        return Choice(files=wanted or (_by_ending(output, named),), template=output)
    if len(named) == 1 and wanted and wanted[0] != "html" and (strategies == 1 or _joins(wanted[0])):
        return Choice(wanted[0])
    return Choice(files=wanted)


def listed(formats: Sequence[str]) -> list[str]:
    """Return the formats that are named, in any number of lists with commas, each once.

    Raises:
        ConfigError: if there is no such format.
    """
    named = [name.strip().lower() for some in formats for name in some.split(",")]
    for name in named:
        if name != TEXT and name not in FORMATS:
            raise ConfigError(f"format: no {name!r}; choose of {', '.join((TEXT, *FORMATS))}")
    return [*dict.fromkeys(named)]


def _joins(name: str) -> bool:
    return name == TEXT or FORMATS[name].joins


def _by_ending(output: str, named: Sequence[str]) -> str:
    """Return the format that the ending of a file's name stands for."""
    if named:
        raise ConfigError(f"output: text goes to standard output; name another format for {output!r}")
    ending = os.path.splitext(output)[1].lower()
    for name, format in FORMATS.items():
        if ending == "." + format.extension:
            return name
    raise ConfigError(f"output: {output!r} does not end in a format; name one with -f: {', '.join(FORMATS)}")
