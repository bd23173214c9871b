"""Terminals of which one sees what a person would see, for commands that run in this process."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyte
import pytest

from kvvideo.cli import main
from tests.helpers.commands import Done, command

DRAWN = b"\x1b[?7h"
"""Ends a live line, as it is drawn."""
MARK = b"\x07"
"""A sound; nothing that one sees."""


class Reflowing(pyte.Screen):
    """A screen that breaks its lines anew when its width changes, as most terminals do; it must not scroll.

    The cursor stays at the character that it was at.
    """

    def __init__(self, columns: int, lines: int) -> None:
        self.continued: set[int] = set()
        super().__init__(columns, lines)

    def draw(self, data: str) -> None:
        for char in data:
            row = self.cursor.y
            super().draw(char)
            if self.cursor.y > row:
                self.continued.add(row)

    def erase_in_display(self, how: int = 0, *args: object, **kwargs: object) -> None:
        super().erase_in_display(how, *args, **kwargs)
        self.continued = {row for row in self.continued if row < self.cursor.y}

    def resize(self, lines: int | None = None, columns: int | None = None) -> None:
        assert columns is not None
        texts, text, at = [], "", (0, 0)
        for row, shown in enumerate(self.display):
            if row == self.cursor.y:
                at = len(texts), len(text) + self.cursor.x
            text += shown if row in self.continued else shown.rstrip()
            if row not in self.continued:
                texts.append(text)
                text = ""
        height = self.lines
        self.reset()
        super().resize(lines, columns)
        self.continued = set()
        for number, whole in enumerate(texts):
            if number == at[0]:
                cursor = self.cursor.y + at[1] // columns, at[1] % columns
            self.draw(whole)
            if self.cursor.y < height - 1:
                self.linefeed()
                self.carriage_return()
        self.cursor.y, self.cursor.x = cursor


class Window:
    """A terminal of ``columns`` and ``rows``.

    Args:
        kind: what it does when its size changes: by default it cuts what does not fit.
        widths: what its width changes to, one after the other, as the program draws.
    """

    def __init__(
        self, columns: int, rows: int = 100, kind: type[pyte.Screen] = pyte.Screen, widths: tuple[int, ...] = ()
    ) -> None:
        self._master, self._slave = os.openpty()
        self.screen = kind(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self._widths = [*widths]
        self._shown = threading.Event()
        self.on_bytes: Callable[[bytes], None] = lambda _: None
        self._tell(rows, columns)
        # Else a Ctrl-C throws away what was written and not read yet, sometimes.
        attributes = termios.tcgetattr(self._slave)
        attributes[3] |= termios.NOFLSH
        termios.tcsetattr(self._slave, termios.TCSANOW, attributes)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def lines(self) -> list[str]:
        """Return what is on the screen, without what is empty at its end."""
        shown = [line.rstrip() for line in self.screen.display]
        while shown and not shown[-1]:
            shown.pop()
        return shown

    def close(self) -> None:
        """Have all that was written on the screen."""
        # A terminal that is closed may lose what nobody has read yet.
        self.now()
        os.close(self._slave)
        self._reader.join()
        os.close(self._master)

    def now(self) -> list[str]:
        """Return what is on the screen while a command runs, with all that was written until now."""
        self._shown.clear()
        os.write(self._slave, MARK)
        assert self._shown.wait(60)
        return self.lines()

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def spawn(self, *arguments: object, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        """Start the ``kvvideo`` command in a process that has this as its terminal."""
        return subprocess.Popen(
            ["setsid", "--ctty", *command(*arguments)],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**environment, "TERM": "xterm-256color"},
        )

    def wait_for(self, pattern: str, seconds: float = 120) -> re.Match[str]:
        """Wait until ``pattern`` is on the screen."""
        until = time.monotonic() + seconds
        while not (found := re.search(pattern, "\n".join(self.lines()), re.MULTILINE)):
            assert time.monotonic() < until, self.lines()
            time.sleep(0.05)
        return found

    @contextmanager
    def standing_for(self, out: Path | None = None) -> Iterator[None]:
        """While it is entered, stderr is this terminal, and stdout too unless it is the file ``out``."""
        with (
            open(self._slave, "w", encoding="utf-8", closefd=False) as err,
            open(self._slave if out is None else out, "w", encoding="utf-8", closefd=out is not None) as stdout,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(sys, "stderr", err)
            patch.setattr(sys, "stdout", stdout)
            patch.setenv("TERM", "xterm-256color")
            yield

    def run(self, *arguments: object, out: Path | None = None) -> Done:
        """Run the ``kvvideo`` command here, and close the window; returns what is on the screen as its stdout."""
        code: object = 0
        with self.standing_for(out), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["kvvideo", *map(str, arguments)])
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
        self.close()
        assert isinstance(code, int)
        return Done(code, "\n".join(self.lines()), "")

    def _read(self) -> None:
        with suppress(OSError):
            while data := os.read(self._master, 65536):
                self._stream.feed(data)
                self.on_bytes(data)
                if MARK in data:
                    self._shown.set()
                if DRAWN in data and self._widths:
                    width = self._widths.pop(0)
                    # Its own lines have changed before the program is told.
                    self.screen.resize(self.screen.lines, width)
                    time.sleep(0.05)
                    self._tell(self.screen.lines, width)

    def _tell(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def wrapped(text: str, columns: int) -> list[str]:
    """The lines of a screen that ``text`` fills."""
    return [
        line[begin : begin + columns].rstrip()
        for line in text.splitlines()
        for begin in range(0, max(len(line), 1), columns)
    ]
