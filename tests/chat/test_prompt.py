"""An open prompt ends other than by Enter: by signals, by errors of what is drawn, and with its window."""

import errno
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from prompt_toolkit import PromptSession
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.input.base import PipeInput
from prompt_toolkit.output import DummyOutput

from kvvideo.chat.repl import next_line

SIGNALS = """
import os, random, signal, sys, threading, time
from prompt_toolkit import PromptSession
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from kvvideo.chat.repl import next_line

def leave(number, frame):
    raise SystemExit(129)

def shortly():
    pipe.send_text("ab\\x1b")
    time.sleep(random.Random(turn).uniform(0, 0.03))
    os.kill(os.getpid(), signal.SIGHUP)

for turn in range(60):
    signal.signal(signal.SIGHUP, leave)
    with create_pipe_input() as pipe:
        prompt = PromptSession("> ", refresh_interval=0.005, multiline=True, input=pipe, output=DummyOutput())
        sender = threading.Thread(target=shortly)
        try:
            sender.start()
            next_line(prompt)
            sys.exit("the prompt returned")
        except SystemExit as stop:
            assert stop.code == 129, stop
        sender.join()
        assert signal.getsignal(signal.SIGHUP) is leave
print("ended", turn + 1)
"""


@pytest.fixture
def pipe() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe:
        yield pipe


def prompt(pipe: PipeInput, message: Callable[[], str] = lambda: "> ") -> "PromptSession[str]":
    return PromptSession(message, refresh_interval=0.01, input=pipe, output=DummyOutput())


def test_a_signal_ends_it_at_any_moment():
    """Not in the midst of the event loop: there it takes the wake-up of a task along, which is waited for for ever."""
    result = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "ended 60\n"), result.stderr


@pytest.mark.parametrize("pressed", [None, KeyboardInterrupt()], ids=["alone", "with Ctrl-C"])
def test_a_signal_is_not_lost(pipe: PipeInput, pressed: BaseException | None):
    """Its handler may be called only once, so what it raises goes before all else."""

    def leave(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(129)

    def message() -> str:
        if session.app.is_running and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            if pressed:
                session.app.exit(exception=pressed)
            signal.raise_signal(signal.SIGHUP)
        return "> "

    session = prompt(pipe, message)
    before = signal.signal(signal.SIGHUP, leave)
    try:
        with pytest.raises(SystemExit, match="129"):
            next_line(session)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_typed_is_returned(pipe: PipeInput):
    pipe.send_text("/stats\r")
    assert next_line(prompt(pipe)) == "/stats"


def test_nothing_more_is_typed(pipe: PipeInput):
    pipe.send_text("\x04")
    with pytest.raises(EOFError):
        next_line(prompt(pipe))


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ValueError("a fault"), ValueError),
        (OSError(errno.EIO, "Input/output error"), EOFError),
        (OSError(errno.ENOSPC, "No space left"), OSError),
    ],
)
def test_an_error_of_what_is_drawn_ends_it(pipe: PipeInput, error: Exception, raised: type[Exception]):
    """And waits for no key. That a window is gone is no error."""
    drawn = 0

    def message() -> str:
        nonlocal drawn
        drawn += 1
        if drawn > 3:
            raise error
        return "> "

    with pytest.raises(raised):
        next_line(prompt(pipe, message))
