"""The process that decodes: ``python -m kvvideo.video.worker``, one JSON request on stdin.

Decoders are native code that may hang, crash or hold the interpreter, so they run where they can be
killed. Messages go to stdout (see ``wire``) and nothing else does. With a live source, only its chunks do:
the rest are notes, which go to a pipe of their own, for they must get through when nobody takes a chunk. The
process lives no longer than whoever holds the other end of its stdin.
"""

import fcntl
import json
import logging
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from dataclasses import asdict
from typing import Any, BinaryIO

from kvvideo.errors import ConfigError, KvvideoError, VideoError
from kvvideo.video import wire
from kvvideo.video.address import Address
from kvvideo.video.decoder import Decoder, Progress, open_decoder
from kvvideo.video.live import Live, LiveStatus
from kvvideo.video.sampling import Grid

BEAT_SECONDS = 0.5
"""Seconds between signs of life of a decoder that works."""
MEMORY_BYTES = 4 << 30
"""Memory that decoding may take: enough for 8K, and an end to what a few damaged bytes may ask for."""


def main() -> int:
    """Answer the request on stdin; return the exit code."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native code that prints must not write between messages
    request = json.loads(sys.stdin.buffer.readline())
    _die_with_parent()
    _bound()
    name = Address.of(request["path"]).name
    notes = Notes(out if request["notes"] is None else os.fdopen(request["notes"], "wb"))
    _forward_logs(notes, logging.DEBUG if request["quiet"] else logging.CRITICAL)
    try:
        _serve(request, out, notes)
        wire.send(out, {"kind": "end"})
    except BrokenPipeError:
        return 1
    except KvvideoError as error:
        _fail(out, error)
    except MemoryError:
        _fail(
            out,
            VideoError(
                f"{name!r} needs more memory than the {MEMORY_BYTES >> 30} GiB a decoder gets, or than there is; "
                "use smaller frames or shorter chunks, or scale the video down"
            ),
        )
    except Exception as error:
        logging.getLogger("kvvideo.video").debug("%s", traceback.format_exc())
        _fail(out, VideoError(f"decoder {request['decoder']} failed on {name!r}: {error!r}"))
    return 0


class Notes:
    """Send small messages, one at a time: the thread that reads a live source has some, too."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._free = threading.Lock()

    def __call__(self, head: wire.Head) -> None:
        """Send a message."""
        with self._free:
            wire.send(self._stream, head)


def _serve(request: dict[str, Any], out: BinaryIO, notes: Notes) -> None:
    """Send what is known of the video, then its chunks or one still picture if asked for; or write a clip of it.

    Or send nothing but its subtitles.
    """
    if request["what"] == "subtitles":
        from kvvideo.video import subtitles, tracks

        found = tracks.read(
            request["path"], lambda code: subtitles.same_language(code, request["language"]), _beat(notes)
        )
        wire.send(out, {"kind": "subtitles", "found": None if found is None else found.as_dict()})
        return
    grid = Grid(**request["grid"])
    with _open(request, notes) as decoder:
        wire.send(out, {"kind": "info", "info": asdict(decoder.info)})
        if request["what"] == "chunks":
            chunks = decoder.chunks(grid, request["min_pixels"], request["max_pixels"])
        elif request["what"] == "still":
            chunks = decoder.still(grid)
        elif request["what"] == "clip":
            from kvvideo.video import cutting

            cutting.write(decoder, grid, request["target"], _beat(notes))
            return
        else:
            return
        for chunk in chunks:
            about = {"times": chunk.times, "start": chunk.start, "end": chunk.end, "fps": chunk.fps}
            wire.send(out, {"kind": "chunk", **about}, chunk.frames)


def _open(request: dict[str, Any], notes: Notes) -> Decoder:
    if request["live"] is None:
        return open_decoder(request["decoder"], request["path"], _beat(notes))
    from kvvideo.video.pyav_live import LiveDecoder

    def report(status: LiveStatus, arrived: float) -> None:
        notes({"kind": "live", "arrived": arrived, "status": asdict(status)})

    return LiveDecoder(request["path"], _beat(notes), Live(**request["live"]), request["stdin"], report)


def _beat(notes: Notes) -> Progress:
    """Return a progress callback that says ``alive`` now and then."""
    due = 0.0

    def beat(at: float) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + BEAT_SECONDS
            notes({"kind": "alive", "at": at})

    return beat


def _die_with_parent() -> None:
    """End this process when the other end of stdin is closed, by ``close()`` or by the parent's death.

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


def _bound() -> None:
    """Limit the memory of this process. If it crashes all the same, it leaves no image of that on the disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY or most > MEMORY_BYTES:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))


def _forward_logs(notes: Notes, most: int) -> None:
    """Make this process' log records messages, of level ``most`` at most, for the reader to log."""

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            """Send a record."""
            notes({"kind": "log", "level": min(record.levelno, most), "text": record.getMessage()})

    logger = logging.getLogger("kvvideo.video")
    logger.addHandler(Forward())
    logger.setLevel(logging.DEBUG)
    logger.propagate = False


def _fail(out: BinaryIO, error: KvvideoError) -> None:
    wire.send(out, {"kind": "error", "config": isinstance(error, ConfigError), "message": str(error)})


if __name__ == "__main__":
    sys.exit(main())
