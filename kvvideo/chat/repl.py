"""Read the lines of a chat from a pipe or a terminal, and have each one done."""

import asyncio
import errno
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kvvideo.chat import commands
from kvvideo.chat.chat import Chat
from kvvideo.chat.panel import panel, prompt_line, to_ansi
from kvvideo.chat.screen import TerminalScreen
from kvvideo.chat.signals import held_back

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

_TYPED = 20
"""Columns that are left for what is typed, where there are as many."""


def run_pipe(chat: Chat, lines: Iterable[str], endless: bool = False) -> int:
    """Work through ``lines``; return the exit code of the first that failed, or 0.

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
    """Yield ``lines``; one that ends in a backslash goes on in the next."""
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


def run_terminal(chat: Chat, screen: TerminalScreen, typed: TextIO, history: Path) -> int:
    """Read lines that are ``typed`` in a terminal until the person leaves; keep them in the file ``history``."""
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
        prompt_continuation=lambda width, *_: " " * (width - 2) + "… ",
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
    screen.say("ask anything about the video; /help lists what else can be done, /exit leaves")
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
    """Return the line typed at the prompt of ``session``.

    An exception that a signal or the drawing raises ends the prompt first and is raised after it. A signal that raises
    in the midst of the event loop can take the wake-up of a task along, which is then waited for for ever; and an
    error of the drawing would wait for a key, of a window that may be gone.

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

    with held_back(signalled):
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
        def get_completions(self, document: Any, _: Any) -> Iterator[Any]:
            line = document.text_before_cursor
            part = commands.completed_part(line.lstrip())
            for choice in commands.completions(line, names, _files(part)):
                yield Completion(choice, start_position=-len(part))

    return Commands()


def _files(part: str) -> list[str]:
    """Return the files that a name beginning with ``part`` may mean."""
    directory = Path(part) if part.endswith("/") else Path(part).parent
    try:
        return sorted(f"{path}/" if path.is_dir() else str(path) for path in directory.iterdir())
    except OSError:
        return []


def _keys() -> Any:
    """Return the keys: Enter sends; Alt-Enter, or Enter after a backslash, begins a new line."""
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
