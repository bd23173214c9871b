"""The person who waits: what is said to them on stderr, and their Ctrl-C."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from kvvideo.cli import everywhere, log, screen
from kvvideo.errors import INTERRUPTED
from kvvideo.outputs import clean


def say(text: str) -> None:
    """Print one line on stderr, for the person who waits, without anything in it that drives the terminal."""
    line = clean.text(text)
    # All at once, for other threads have lines to write, too.
    print(f"kvvideo: {line}\n", end="", file=sys.stderr)
    log.told(line)


def note(text: str) -> None:
    """Print the same of something that went as it should, unless only what went wrong is to be said."""
    if not everywhere.is_quiet():
        say(text)


class Stop:
    """While it is entered, the first Ctrl-C sets ``asked``; a second one interrupts as usual."""

    def __init__(self) -> None:
        self._asked = False
        self._tidy: Callable[[], None] | None = None
        self._before: Any = None

    def __enter__(self) -> "Stop":
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    @property
    def asked(self) -> bool:
        """True if the run is to end. A run that looks at this ends in order."""
        self.begun()
        return self._asked

    def at_once(self, tidy: Callable[[], None] = lambda: None) -> None:
        """Have Ctrl-C end the process until ``begun``: there is nothing yet that could be lost.

        Args:
            tidy: called before.
        """
        self._tidy = tidy
        if self._asked:
            self._leave(tidy)

    def begun(self) -> None:
        """Have Ctrl-C wait for the chunk at hand from now on."""
        self._tidy = None

    def _ask(self, *_: object) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._tidy is not None:
            self._leave(self._tidy)
        say("finishing this chunk; press Ctrl-C again to stop at once")

    @staticmethod
    def _leave(tidy: Callable[[], None]) -> None:
        screen.bottom.end()
        tidy()
        # An exception would be lost in what loads a model, which catches them here and there.
        os._exit(INTERRUPTED)
