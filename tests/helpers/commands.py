"""The command line, run in this process: an engine that is there already serves it, and nothing is imported anew."""

import sys
from dataclasses import dataclass

import pytest

from kvvideo.cli import main


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """What the ``kvvideo`` command does with these arguments."""
    capfd.readouterr()
    code: object = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kvvideo", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int)
    return Done(code, *capfd.readouterr())
