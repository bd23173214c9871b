"""Chats with ``kvvideo chat``: through a pipe, and in a terminal of which one sees what a person would see."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pexpect
import pyte

from tests.helpers.commands import command

SETTINGS = ("--model", "tiny", "--max-tokens", "512", "--strategy", "streaming")
LETTER, COLOUR = "Which letter is on screen now?", "What colour is the letter on screen now?"

ENDLESS = """
from kvvideo.cli import main
from kvvideo.session import Engine

process = Engine.process

def never_ending(engine, request_id, prompt, params, resumable=False):
    params.ignore_eos = params.max_tokens >= 1000
    return process(engine, request_id, prompt, params, resumable)

Engine.process = never_ending
main()
"""
"""The command line, with a model whose answers end at their limit where that is a thousand tokens."""


def chat(directory: Path, *arguments: str, lines: str) -> subprocess.CompletedProcess[str]:
    """Run a chat that is told ``lines`` through a pipe, in ``directory``."""
    environment = {**os.environ, "KVVIDEO_STATE_DIR": str(directory / "state")}
    return subprocess.run(
        command("chat", *arguments),
        input=lines,
        capture_output=True,
        timeout=300,
        check=False,
        cwd=directory,
        env=environment,
        encoding="utf-8",
        errors="surrogateescape",
    )


class Terminal:
    """A chat in a terminal of its own, of which one sees what a person would see.

    Args:
        directory: where it is started; what it puts where temporary files go is in ``directory / "tmp"``.
        shell: the script that runs it, with ``{}`` in its place.
        program: the command line, in Python.
    """

    def __init__(self, directory: Path, *arguments: str, shell: str = "exec {}", program: str = ENDLESS) -> None:
        self.temporary = directory / "tmp"
        self.temporary.mkdir()
        environment = {
            **os.environ,
            "KVVIDEO_STATE_DIR": str(directory / "state"),
            "TERM": "xterm-256color",
            "TMPDIR": str(self.temporary),
        }
        line = shlex.join([sys.executable, "-c", program, "chat", *arguments])
        self.process: Any = pexpect.spawn(
            "/bin/sh",
            ["-c", shell.format(line)],
            cwd=str(directory),
            env=environment,
            encoding="utf-8",
            dimensions=(40, 120),
        )
        self.screen = pyte.Screen(120, 40)
        # Answers to questions that are asked of a terminal, such as where its cursor is.
        self.screen.write_process_input = self.process.send
        self.stream = pyte.Stream(self.screen)
        self.exited = False

    def look(self) -> str:
        """Return what is on the screen now."""
        try:
            while True:
                self.stream.feed(self.process.read_nonblocking(65536, timeout=0.05))
        except pexpect.TIMEOUT:
            pass
        except pexpect.EOF:
            self.exited = True
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def expect(self, pattern: str, timeout: float = 240) -> re.Match[str]:
        """Wait until ``pattern`` is on the screen."""
        until = time.monotonic() + timeout
        while not (found := re.search(pattern, self.look(), re.MULTILINE)):
            assert time.monotonic() < until, f"no {pattern!r} in\n{self.look()}"
            assert not self.exited, self.look()
        return found

    def resize(self, rows: int, columns: int) -> None:
        self.screen.resize(rows, columns)
        self.screen.reset()
        self.process.setwinsize(rows, columns)

    def type(self, text: str) -> None:
        self.process.send(text)

    def enter(self, line: str) -> None:
        self.process.send(f"{line}\r")

    def ctrl_c(self) -> None:
        self.process.sendintr()

    def hang_up(self) -> None:
        """Close the window, and do no more to what runs in it than that does."""
        self.process.ptyproc.fileobj.close()

    def leave(self) -> int:
        self.process.sendeof()
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; return its exit code."""
        until = time.monotonic() + 60
        while not self.exited and time.monotonic() < until:
            self.look()
        self.process.close()
        return int(self.process.exitstatus)
