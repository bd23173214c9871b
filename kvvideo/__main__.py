"""The ``kvvideo`` command as a program; ``python -m kvvideo`` is the same."""

import atexit
import os
import signal
import sys

from kvvideo.errors import INTERRUPTED


def main() -> None:
    """Run the command line; Ctrl-C ends it at once, without a traceback, while it is being loaded and after its end."""
    _open_closed()
    # Whoever starts a program in the background may have told it to ignore Ctrl-C.
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        # At the very end Python gives signals back to the system, which has another exit code for them.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGINT, _leave)
    from kvvideo.cli import main as run

    try:
        if heeded:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    finally:
        if heeded:
            signal.signal(signal.SIGINT, _leave)


def _open_closed() -> None:
    """Put /dev/null in place of standard streams that are closed (``>&-``).

    Without it the next files that are opened would take their numbers, and what is printed.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _leave(*_: object) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
