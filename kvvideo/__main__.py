"""The ``kvvideo`` command as a program; ``python -m kvvideo`` is the same."""

import atexit
import os
import signal
from types import FrameType

from kvvideo.errors import INTERRUPTED


def main() -> None:
    """Run the command line; Ctrl-C ends it at once, without a traceback, while it is being loaded and after its end."""
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


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
