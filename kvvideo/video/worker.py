"""The process that decodes: ``python -m kvvideo.video.worker``, one JSON request on stdin.

Decoders are native code that may hang, crash or hold the interpreter, so they run where they can be
killed. Messages go to stdout (see ``wire``) and nothing else does. The process lives no longer than
whoever holds the other end of its stdin.
"""

import fcntl
import json
import logging
import os
import select
import signal
import sys
import time
import traceback
from dataclasses import asdict
from typing import Any, BinaryIO

from kvvideo.errors import ConfigError, KvvideoError, VideoError
from kvvideo.video import wire
from kvvideo.video.decoder import Progress, open_decoder
from kvvideo.video.sampling import Grid

BEAT_SECONDS = 0.5
"""How often a working decoder says so."""


def main() -> int:
    """Answers the request on stdin; returns the exit code."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native code that prints must not write between messages
    request = json.loads(sys.stdin.buffer.readline())
    _die_with_parent()
    _forward_logs(out)
    try:
        _serve(request, out)
        wire.send(out, {"kind": "end"})
    except BrokenPipeError:
        return 1
    except KvvideoError as error:
        _fail(out, error)
    except MemoryError:
        _fail(out, VideoError(f"{request['path']!r} needs more memory than there is; use smaller frames"))
    except Exception as error:
        logging.getLogger("kvvideo.video").debug("%s", traceback.format_exc())
        _fail(out, VideoError(f"decoder {request['decoder']} failed on {request['path']!r}: {error!r}"))
    return 0


def _serve(request: dict[str, Any], out: BinaryIO) -> None:
    """Sends what is known of the video, then, unless that was all, its chunks."""
    grid = Grid(**request["grid"])
    with open_decoder(request["decoder"], request["path"], _beat(out)) as decoder:
        wire.send(out, {"kind": "info", "info": asdict(decoder.info)})
        if request["info_only"]:
            return
        for chunk in decoder.chunks(grid, request["min_pixels"], request["max_pixels"]):
            about = {"times": chunk.times, "start": chunk.start, "end": chunk.end, "fps": chunk.fps}
            wire.send(out, {"kind": "chunk", **about}, chunk.frames)


def _beat(out: BinaryIO) -> Progress:
    """A progress callback that says ``alive`` now and then."""
    due = 0.0

    def beat(at: float) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + BEAT_SECONDS
            wire.send(out, {"kind": "alive", "at": at})

    return beat


def _die_with_parent() -> None:
    """Ends this process when the other end of stdin is closed, by ``close()`` or by the parent's death.

    The kernel's SIGIO does it, whose default action is to terminate: a thread that waits for the end of
    stdin could not run while native code holds the interpreter, and Linux' "parent death signal" also
    comes when only the parent's *thread* that started us ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to act on
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGIO])
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:  # it was closed before the signal was asked for
        os._exit(1)


def _forward_logs(out: BinaryIO) -> None:
    """Makes this process' log records messages, for the reader to log."""

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            wire.send(out, {"kind": "log", "level": record.levelno, "text": record.getMessage()})

    logger = logging.getLogger("kvvideo.video")
    logger.addHandler(Forward())
    logger.setLevel(logging.DEBUG)
    logger.propagate = False


def _fail(out: BinaryIO, error: KvvideoError) -> None:
    wire.send(out, {"kind": "error", "config": isinstance(error, ConfigError), "message": str(error)})


if __name__ == "__main__":
    sys.exit(main())
