"""The person who waits: what is said to them on stderr, and their Ctrl-C."""

import signal
import sys
from typing import Any

from kvvideo.outputs import clean


def say(text: str) -> None:
    """Print one line on stderr, for the person who waits, without anything in it that drives the terminal."""
    # All at once, for other threads have lines to write, too.
    print(f"kvvideo: {clean.text(text)}\n", end="", file=sys.stderr)


class Stop:
    """While it is entered, the first Ctrl-C sets ``asked``; a second one interrupts as usual."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> "Stop":
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say("finishing this chunk; press Ctrl-C again to stop at once")
