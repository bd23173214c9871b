"""The ``kvvideo`` command, in this process or one of its own, and its records."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvvideo.cli import main, screen

NEVER = 1e6
"""Seconds between lines of progress that no test waits for."""

MANY = """
import contextlib, io, json, sys
from kvvideo.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv, out, err = ["kvvideo", *words], io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as exit:
            code = exit.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
"""Program: several command lines, one after the other, for what is refused before an engine starts."""


@dataclass(frozen=True)
class Done:
    """The end of a command."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """Run the command in this process: an engine that is there already serves it, and nothing is imported anew."""
    capfd.readouterr()
    code: object = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kvvideo", *map(str, arguments)])
        patch.setattr(screen, "_PLAIN_SECONDS", NEVER)
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    assert isinstance(code, int)
    return Done(code, *capfd.readouterr())


def command(*arguments: object) -> list[str]:
    """Return the words that start the command in a process of its own."""
    return [sys.executable, "-m", "kvvideo", *map(str, arguments)]


def kvvideo(*arguments: object, timeout: float = 300, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the command in a process of its own, without progress: how much of it there is depends on the machine."""
    environment = {**os.environ, "KVVIDEO_PROGRESS": "none"}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd, env=environment
    )


def records(output: str) -> list[dict[str, Any]]:
    """Return the records that a command printed."""
    return [json.loads(line) for line in output.splitlines()]


def untimed(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records without what takes another time in each run."""
    return [{k: v for k, v in record.items() if not k.endswith("seconds")} for record in found]


def check_refused(cwd: Path, *cases: tuple[tuple[str | Path, ...], str]) -> None:
    """Check that each command line gets one line that says so much, on stderr, and exit code 2."""
    lines = json.dumps([[*map(str, words)] for words, _ in cases])
    result = subprocess.run(
        [sys.executable, "-c", MANY, lines], capture_output=True, text=True, timeout=300, check=True, cwd=cwd
    )
    for (words, says), found in zip(cases, result.stdout.splitlines(), strict=True):
        code, output, errors = json.loads(found)
        assert (code, output) == (2, ""), (words, errors)
        assert says in errors, words
        assert len(errors.splitlines()) == 1, errors
