"""Where the lines of a chat come from and go to: a terminal, or plain pipes."""

import asyncio
import errno
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TextIO

from kvvideo.chat import commands
from kvvideo.chat.chat import Chat
from kvvideo.chat.panel import panel, prompt_line, to_ansi
from kvvideo.outputs.clean import text as clean
from kvvideo.times import format_time

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from rich.console import RenderableType

_CLEAR = "\r\x1b[2K"
"""Takes the line at hand off the screen."""
_WIDTH = 100
"""Columns of a panel where there is no terminal to ask."""
_TYPED = 20
"""Columns that are left for what is typed, where there are as many."""


class PipeScreen:
    """Answers to stdout as they come, everything else to stderr; colours nowhere."""

    def say(self, text: str) -> None:
        print(clean(text), flush=True)

    def notice(self, text: str) -> None:
        print(f"kvvideo: {clean(text)}", file=sys.stderr, flush=True)

    problem = notice

    def begin(self, at: float, question: str) -> None:
        print(f"[{format_time(at)}] {clean(question)}\n  ", end="", flush=True)

    def piece(self, text: str) -> None:
        print(clean(text), end="", flush=True)

    def end(self) -> None:
        print(flush=True)

    def show(self, what: "Callable[[int], RenderableType]") -> None:
        from rich.console import Console

        Console(width=_WIDTH, highlight=False).print(what(_WIDTH))

    def waiting(self, text: str) -> None:
        pass

    def dash(self, on: bool) -> None:
        if on:
            self.notice("there is no terminal to keep a panel on; /stats prints it once")


def run_pipe(chat: Chat, lines: Iterable[str], endless: bool = False) -> int:
    """Work through ``lines``; returns the exit code of the first that failed, or 0.

    Each line waits until there is nothing to ingest, at the end of the video or where it was paused, so that what
    comes out does not depend on how fast the machine is. Of a source that may be ``endless`` it waits for the first
    chunk only. Ctrl-C while it waits ends the chat.
    """
    for line in joined(lines):
        chat.player.wait_idle(or_begun=endless)
        chat.handle(line)
        if chat.leaving:
            break
    return chat.failed


def joined(lines: Iterable[str]) -> Iterator[str]:
    """``lines``, of which one that ends in a backslash goes on in the next."""
    begun = ""
    for line in lines:
        text = line.rstrip("\n")
        if text.endswith("\\"):
            begun += text[:-1] + "\n"
            continue
        yield begun + text
        begun = ""
    if begun:
        yield begun


class TerminalScreen:
    """A terminal, in which what the player tells appears above the prompt."""

    def __init__(self) -> None:
        self.dashed = False
        self._lock = threading.Lock()
        self._waiting = False  # whether the line at hand says what is waited for
        self._midway = False  # whether something else begun that line

    def say(self, text: str) -> None:
        self._print(f"\x1b[2m{clean(text)}\x1b[0m\n")

    notice = say

    def problem(self, text: str) -> None:
        self._print(f"\x1b[31m{clean(text)}\x1b[0m\n")

    def begin(self, at: float, question: str) -> None:
        pass

    def piece(self, text: str) -> None:
        self._print(clean(text))

    def end(self) -> None:
        self._print("\n")

    def show(self, what: "Callable[[int], RenderableType]") -> None:
        from shutil import get_terminal_size

        width = get_terminal_size().columns
        self._print(to_ansi(what(width), width) + "\n")

    def dash(self, on: bool) -> None:
        self.dashed = on

    def waiting(self, text: str) -> None:
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


def run_terminal(chat: Chat, screen: TerminalScreen, typed: TextIO, history: Path) -> int:
    """Read lines that are ``typed`` in a terminal until the person leaves, and keep them in the file ``history``."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import ANSI
    from prompt_toolkit.input import create_input
    from prompt_toolkit.patch_stdout import patch_stdout

    def toolbar() -> Any:
        size = session.app.output.get_size()
        if not screen.dashed:
            return None
        shown = to_ansi(panel(chat.player.status, size.columns), size.columns)
        # It must not push the line that is typed off a low window.
        return ANSI(shown) if shown.count("\n") + 3 <= size.rows else None

    def message() -> str:
        # A prompt as wide as the window is not drawn at all, and what is typed needs room, too.
        columns = session.app.output.get_size().columns
        return f"{prompt_line(chat.player.status, columns - max(columns // 3, _TYPED))} › ".lstrip()

    session: PromptSession[str] = PromptSession(
        message=message,
        prompt_continuation=lambda width, number, wrapped: " " * (width - 2) + "… ",
        bottom_toolbar=toolbar,
        refresh_interval=0.5,
        completer=_completer(),
        complete_while_typing=False,
        history=_history(history),
        key_bindings=_keys(),
        multiline=True,
        enable_suspend=True,
        style=_style(),
        input=create_input(typed),
    )
    while not chat.leaving:
        try:
            with patch_stdout(raw=True):
                line = next_line(session)
            with unseen(typed):
                chat.handle(line)
        except KeyboardInterrupt:
            continue
        except EOFError:
            break
    return 0


@contextmanager
def unseen(typed: TextIO) -> Iterator[None]:
    """Keep what is typed in a terminal meanwhile from the screen; the next prompt shows it. Ctrl-C is heeded."""
    if not typed.isatty():
        yield
        return
    before = termios.tcgetattr(typed)
    quiet = termios.tcgetattr(typed)
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(typed, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        with suppress(termios.error):  # the window may be gone
            termios.tcsetattr(typed, termios.TCSANOW, before)


def next_line(session: "PromptSession[str]") -> str:
    """What is typed at the prompt of ``session``.

    What a signal raises, and an error of what is drawn, ends the prompt first and is raised after it. A signal that
    raises in the midst of the event loop can take the wake-up of a task along, which is then waited for for ever; and
    an error that is drawn waits for a key, of a window that may be gone.

    Raises:
        EOFError: nothing more will be typed: the person said so, or the window was closed.
        KeyboardInterrupt: Ctrl-C.
    """
    errors: list[BaseException] = []
    loop: asyncio.AbstractEventLoop | None = None

    def end() -> None:
        if (future := session.app.future) is not None and not future.done():
            session.app.exit(exception=EOFError())

    def drawing(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        errors.append(context.get("exception") or RuntimeError(context["message"]))
        end()

    def signalled(stop: SystemExit) -> None:
        errors.append(stop)
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(end)

    def begun() -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(drawing)
        if errors:
            end()

    with _held_back(signalled):
        try:
            line = session.prompt(pre_run=begun, set_exception_handler=False)
        except (EOFError, KeyboardInterrupt, OSError) as ended:
            errors.append(ended)
    for error in errors:
        # Whoever closes a window takes away what the prompt is drawn on.
        if isinstance(error, OSError) and error.errno == errno.EIO:
            raise EOFError from error
        raise error
    return line


@contextmanager
def _held_back(told: Callable[[SystemExit], None]) -> Iterator[None]:
    """While it is entered, ``told`` is given what the handlers of signals that end a program raise."""
    ends = (signal.SIGTERM, signal.SIGHUP)
    handlers = {int(number): handler for number in ends if callable(handler := signal.getsignal(number))}

    def handle(number: int, frame: FrameType | None) -> None:
        try:
            handlers[number](number, frame)
        except SystemExit as stop:
            told(stop)

    for number in handlers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            # A handler may have set another for what comes after it.
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)


def _history(file: Path) -> Any:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file.open("a"):
            return FileHistory(str(file))
    except OSError:
        return InMemoryHistory()


def _completer() -> Any:
    from prompt_toolkit.completion import Completer, Completion

    from kvvideo.compression import strategies
    from kvvideo.session import BASELINES

    names = [name for name in strategies() if name not in BASELINES]

    class Commands(Completer):
        def get_completions(self, document: Any, event: Any) -> Iterator[Any]:
            line = document.text_before_cursor
            part = commands.completed_part(line.lstrip())
            for choice in commands.completions(line, names, _files(part)):
                yield Completion(choice, start_position=-len(part))

    return Commands()


def _files(part: str) -> list[str]:
    """Files that a name beginning with ``part`` may mean."""
    directory = Path(part) if part.endswith("/") else Path(part).parent
    try:
        return sorted(f"{path}/" if path.is_dir() else str(path) for path in directory.iterdir())
    except OSError:
        return []


def _keys() -> Any:
    """Enter sends; Alt-Enter, or Enter after a backslash, begins a new line."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\":
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _style() -> Any:
    from prompt_toolkit.styles import Style

    return Style.from_dict({"bottom-toolbar": "noreverse", "prompt": "bold"})
