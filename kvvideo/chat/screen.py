"""Screens of a chat: a terminal, or plain pipes."""

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from kvvideo.chat.panel import to_ansi
from kvvideo.outputs.clean import text as clean
from kvvideo.times import format_time

if TYPE_CHECKING:
    from rich.console import RenderableType

_CLEAR = "\r\x1b[2K"
"""Takes the line at hand off the screen."""
_WIDTH = 100
"""Columns of a panel where there is no terminal to ask."""


class Screen(Protocol):
    """Shows the things of a chat. ``say`` and ``piece`` may be called from the player's thread."""

    def say(self, text: str) -> None:
        """Show a line about what was done."""

    def problem(self, text: str) -> None:
        """Show a line about what could not be done."""

    def begin(self, at: float, question: str) -> None:
        """Show that an answer is about to come."""

    def piece(self, text: str) -> None:
        """Show more of the answer."""

    def end(self) -> None:
        """Show that the answer is complete, or was stopped."""

    def show(self, what: "Callable[[int], RenderableType]") -> None:
        """Show what rich makes for so many columns."""

    def dash(self, on: bool) -> None:
        """Keep the panel on screen, or not."""

    def waiting(self, text: str) -> None:
        """Show what is waited for, and how far that is; it goes with the next thing shown, or with an empty text."""


class PipeScreen:
    """Answers to stdout as they come, everything else to stderr; colours nowhere."""

    def say(self, text: str) -> None:
        """Print a line to stdout."""
        print(clean(text), flush=True)

    def notice(self, text: str) -> None:
        """Print a line to stderr."""
        print(f"kvvideo: {clean(text)}", file=sys.stderr, flush=True)

    problem = notice

    def begin(self, at: float, question: str) -> None:
        """Print the moment and the question."""
        print(f"[{format_time(at)}] {clean(question)}\n  ", end="", flush=True)

    def piece(self, text: str) -> None:
        """Print more of the answer."""
        print(clean(text), end="", flush=True)

    def end(self) -> None:
        """End the line of the answer."""
        print(flush=True)

    def show(self, what: "Callable[[int], RenderableType]") -> None:
        """Print what rich makes, at a width of its own."""
        from rich.console import Console

        Console(width=_WIDTH, highlight=False).print(what(_WIDTH))

    def waiting(self, text: str) -> None:
        """Show nothing: nobody watches."""

    def dash(self, on: bool) -> None:
        """Say that there is no place for a panel."""
        if on:
            self.notice("there is no terminal to keep a panel on; /stats prints it once")


class TerminalScreen:
    """A terminal, in which what the player tells appears above the prompt."""

    def __init__(self) -> None:
        self.dashed = False
        self._lock = threading.Lock()
        self._waiting = False  # the line at hand says what is waited for
        self._midway = False  # something else has begun that line

    def say(self, text: str) -> None:
        """Print a dim line."""
        self._print(f"\x1b[2m{clean(text)}\x1b[0m\n")

    notice = say

    def problem(self, text: str) -> None:
        """Print a red line."""
        self._print(f"\x1b[31m{clean(text)}\x1b[0m\n")

    def begin(self, at: float, question: str) -> None:
        """Show nothing: the question stands above."""

    def piece(self, text: str) -> None:
        """Print more of the answer."""
        self._print(clean(text))

    def end(self) -> None:
        """End the line of the answer."""
        self._print("\n")

    def show(self, what: "Callable[[int], RenderableType]") -> None:
        """Print what rich makes, as wide as the terminal."""
        from shutil import get_terminal_size

        width = get_terminal_size().columns
        self._print(to_ansi(what(width), width) + "\n")

    def dash(self, on: bool) -> None:
        """Have the prompt show the panel, or not."""
        self.dashed = on

    def waiting(self, text: str) -> None:
        """Show ``text`` in the line at hand, unless something else has begun that line."""
        from shutil import get_terminal_size

        with self._lock:
            if not self._midway and (text or self._waiting):
                room = max(get_terminal_size().columns - 1, 0)
                self._write(f"{_CLEAR}\x1b[2m{clean(text)[:room]}\x1b[0m" if text else _CLEAR)
                self._waiting = bool(text)

    def _print(self, text: str) -> None:
        if not text:
            return
        with self._lock:
            self._write(_CLEAR + text if self._waiting else text)
            self._waiting, self._midway = False, not text.endswith("\n")

    def _write(self, text: str) -> None:
        # Looked up each time: while a prompt is open, stdout is what prints above it.
        sys.stdout.write(text)
        sys.stdout.flush()
