"""The signals that end a program, SIGTERM and SIGHUP, while a chat goes on."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ENDS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def left_on_signals() -> Iterator[None]:
    """While it is entered, such a signal ends the chat as /bye does, so that nothing is left behind.

    Once it ends, for whatever reason, no signal ends it halfway: a window and the shell in it each send their own.
    """
    numbers = [number for number in _ENDS if signal.getsignal(number) == signal.SIG_DFL]

    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    def leave(number: int, _: FrameType | None) -> None:
        ignore()
        raise SystemExit(128 + number)

    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        ignore()


@contextmanager
def held_back(told: Callable[[SystemExit], None]) -> Iterator[None]:
    """While it is entered, an exit that a handler of such a signal raises is given to ``told`` instead."""
    handlers = {int(number): handler for number in _ENDS if callable(handler := signal.getsignal(number))}

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
