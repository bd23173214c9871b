"""The terminal of a command: one live part at its bottom, and above it whatever is printed, by whomever.

A live part is drawn from where the cursor is, and the cursor goes back there. A terminal that is made narrower breaks
the lines it shows anew; nobody but the terminal knows how many there are then, but it keeps the cursor where it was.
"""

import io
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

Drawing = Callable[[int, int], list[str]]
"""Makes the lines of a live part, with colours, of at most so many columns and so many lines."""

_TICK_SECONDS = 1.0
_PLAIN_SECONDS = 60.0
"""Seconds between lines for what is no terminal."""
_ERASE = "\r\x1b[J"
# A terminal may be narrower already than we are told: there the lines are cut then, and not continued in others.
_CUT, _WRAP = "\x1b[?7l", "\x1b[?7h"


class Bottom:
    """The live part at the bottom of the terminal that is stderr."""

    def __init__(self) -> None:
        # A signal may come while it draws, and have something printed.
        self._lock = threading.RLock()
        self._drawing: Drawing | None = None
        self._drawn = self._midline = False

    def show(self, drawing: Drawing, ticking: bool = False) -> None:
        """Draw it, in place of what was there; from now on it is drawn again below whatever is printed.

        If it is ``ticking``, it is drawn again every second, too.
        """
        with self._lock:
            self._drawing = drawing
            self._draw()
        if ticking:
            threading.Thread(target=self._tick, args=(drawing,), name="kvvideo-tick", daemon=True).start()

    def _tick(self, drawing: Drawing) -> None:
        """Draw it again, for as long as it is the one that is shown."""
        while True:
            time.sleep(_TICK_SECONDS)
            with self._lock:
                if self._drawing is not drawing:
                    return
                self._draw()

    def end(self) -> None:
        """Take it away."""
        with self._lock:
            self._drawing = None
            self._erase()

    @contextmanager
    def away(self, text: str, same: bool) -> Iterator[None]:
        """Have it out of the way while ``text`` is written; ``same`` says if that appears on this terminal at once."""
        with self._lock:
            self._erase()
            yield
            if same and text:
                self._midline = not text.endswith("\n")
                self._draw()

    def _draw(self) -> None:
        # An unfinished line is somebody else's, who may go on with it.
        if self._drawing is None or self._midline:
            return
        stream = _bare(sys.stderr)
        columns, rows = size(stream)
        # The last column stays empty: from there some terminals go to the next line.
        lines = self._drawing(max(columns - 1, 1), max(rows - 1, 1))
        erased, self._drawn = _ERASE if self._drawn else "", True
        up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
        stream.write(f"{erased}{_CUT}{chr(10).join(lines)}{_WRAP}\r{up}")
        stream.flush()

    def _erase(self) -> None:
        if self._drawn:
            stream = _bare(sys.stderr)
            stream.write(_ERASE)
            stream.flush()
            self._drawn = False


bottom = Bottom()


class Minutes:
    """A line a minute on stderr, for a log or a file: whoever reads it sees that there is life, and where it is."""

    def __init__(self) -> None:
        self._line: Callable[[], str] | None = None
        self._ended = threading.Event()

    def show(self, line: Callable[[], str]) -> None:
        """Have what ``line`` returns printed every minute from now on."""
        begun, self._line = self._line is not None, line
        if not begun:
            self._ended = threading.Event()
            threading.Thread(target=self._tell, args=(self._ended,), name="kvvideo-minutes", daemon=True).start()

    def end(self) -> None:
        """Print no more."""
        self._line = None
        self._ended.set()

    def _tell(self, ended: threading.Event) -> None:
        while not ended.wait(_PLAIN_SECONDS):
            if line := self._line:
                # All at once, for other threads have lines to write, too.
                print(f"kvvideo: {line()}\n", end="", file=sys.stderr, flush=True)


class _Above:
    """A stream of which all that is written appears above the live part."""

    def __init__(self, stream: TextIO) -> None:
        self.bare, self._same = stream, stream.isatty()

    def write(self, text: str) -> int:
        with bottom.away(text, self._same):
            count = self.bare.write(text)
            if self._same:
                self.bare.flush()
        return count

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        self.bare.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)


@contextmanager
def standard_streams() -> Iterator[None]:
    """While it is entered, stdout and stderr take every character, and leave a live part whole.

    What cannot be encoded is written with an escape.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if is_live():
        # Who reads a pipe may show it in this terminal.
        sys.stdout, sys.stderr = (
            cast(TextIO, _Above(stream)) if stream.isatty() or _is_pipe(stream) else stream for stream in before
        )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def is_live() -> bool:
    """Return True if stderr is a terminal in which something can be drawn."""
    return sys.stderr.isatty() and os.environ.get("TERM") not in {"dumb", "unknown"}


def _bare(stream: TextIO) -> TextIO:
    return stream.bare if isinstance(stream, _Above) else stream


def size(stream: TextIO) -> tuple[int, int]:
    """Return the columns and rows of a terminal, as far as it knows them."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return 80, 24
    return columns or 80, rows or 24


def _is_pipe(stream: TextIO) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return False
