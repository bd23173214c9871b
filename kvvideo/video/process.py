"""Run a ``worker``, and queue what it says."""

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO

from kvvideo.errors import ConfigError, KvvideoError, VideoError
from kvvideo.times import format_time
from kvvideo.types import Chunk
from kvvideo.video import awake, wire
from kvvideo.video.cues import Subtitles
from kvvideo.video.live import Live, LiveStatus
from kvvideo.video.plan import VideoInfo

logger = logging.getLogger("kvvideo.video")

_LOOK_SECONDS = 1.0
"""Seconds between checks whether a worker that is waited for is stopped."""


@dataclass
class Pulse:
    """Last words of the worker.

    Attributes:
        heard: when that was (``time.monotonic``).
        at: where in the video it was, in seconds.
        arrived: how far into the video a live source has come, in seconds.
        status: what it said of that source.
        dropped: seconds of chunks that were dropped here.
        passed: end of the last of them, in seconds of the video.
    """

    heard: float
    at: float
    arrived: float = 0.0
    status: LiveStatus = field(default_factory=LiveStatus)
    dropped: float = 0.0
    passed: float = 0.0


class _Gone:
    """Stand in place of an item: the worker died without a word."""


class _Finished:
    """Stand in place of an item: there are no more."""


Item = VideoInfo | Chunk | Subtitles | KvvideoError | type[_Gone] | type[_Finished]


class WorkerProcess:
    """Start a worker, and talk to it; it is killed when nobody holds this any more.

    Args:
        name: of the video, for messages.
        at: the first moment that is looked at, in seconds.
        live: how a live source is treated; None for a file.
        stdin: True if the video is this process' standard input.
        queue_chunks: chunks decoded ahead.
        inherit: file descriptors that the worker needs.

    Attributes:
        pulse: what it said last.
        items: what came of the video and was not taken.
        pid: of the process.

    Raises:
        VideoError: if there is no standard input to read.
    """

    def __init__(
        self, name: str, at: float, live: Live | None, stdin: bool, queue_chunks: int, inherit: Sequence[int]
    ) -> None:
        self._name = name
        self.pulse = Pulse(time.monotonic(), at)
        self.items: queue.Queue[Item] = queue.Queue(queue_chunks)
        video = _own_stdin() if stdin else None
        notes, notes_end = (None, None) if live is None else os.pipe()
        self._given = {"stdin": -1 if video is None else video, "notes": notes_end}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  close() closes it
        keep = [fd for fd in (video, notes_end) if fd is not None]
        try:
            self._process = _start(self._errors, [*keep, *inherit])
        finally:
            for fd in keep:
                os.close(fd)
        self.pid = self._process.pid
        self._unused = weakref.finalize(self, self._process.kill)
        assert self._process.stdout is not None
        self._streams: list[IO[bytes]] = [self._process.stdout]
        if notes is not None:
            self._streams.append(os.fdopen(notes, "rb"))
        drops = live is not None and live.when_behind == "drop"
        take: Callable[[Item], None] = partial(_drop_or_put, self.items, self.pulse) if drops else self.items.put
        name = f"kvvideo-video-{self.pid}"
        self._threads = [
            threading.Thread(target=_listen, args=(stream, self.pulse, put), name=name, daemon=True)
            for stream, put in zip(self._streams, (take, _ignore), strict=False)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_running(self) -> bool:
        """False once it was killed or closed."""
        return self._unused.alive

    def kill(self) -> None:
        """End the process, and leave what it said."""
        self._unused()

    def close(self) -> None:
        """End the process, and free all it held; safe to call twice, and from another thread."""
        self.kill()
        while any(thread.is_alive() for thread in self._threads):  # one may be waiting for room in the queue
            try:
                self.items.get(timeout=0.01)
            except queue.Empty:
                continue
        while not self.items.empty():
            self.items.get()
        self.items.put(_Finished)  # for a thread that waits for the next chunk
        self._process.wait()
        for stream in (self._process.stdin, *self._streams, self._errors):
            if stream is not None:
                _close_quietly(stream)

    def ask(self, request: dict[str, Any]) -> None:
        """Send the one request, less what was said when this was made."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({**request, **self._given}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it died; waiting for its answer says of what

    def next(self, stall_seconds: float) -> Item:
        """Wait for the next item, but not while the worker, or this process, is stopped.

        Raises:
            VideoError: if nothing is heard of the worker for ``stall_seconds``, if it died, or what it says.
            ConfigError: what it says.
        """
        waiting = time.monotonic()
        while True:
            silent = awake.since(max(waiting, self.pulse.heard))
            if silent >= stall_seconds:
                raise VideoError(
                    f"the decoder gave no frame for {stall_seconds:g} s at {format_time(self.pulse.at)} of "
                    f"{self._name!r} and was stopped; the file or the disk it is on may be damaged"
                )
            try:
                item = self.items.get(timeout=min(stall_seconds - silent, _LOOK_SECONDS))
            except queue.Empty:
                if awake.is_stopped(self.pid):
                    waiting = time.monotonic()
                continue
            if isinstance(item, KvvideoError):
                raise item
            if item is _Gone and self.is_running:  # else close() ended it
                raise self._died()
            return item

    def _died(self) -> VideoError:
        code = self._process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4000))
        logger.debug("the decoder's last words: %s", self._errors.read(4000).decode(errors="replace"))
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended (exit code {code})"
        return VideoError(
            f"the decoder {how} at {format_time(self.pulse.at)} of {self._name!r}; "
            "the file may be damaged, or memory short"
        )


def _own_stdin() -> int:
    """Return a file descriptor of this process' standard input, to be given away."""
    try:
        if os.isatty(0):
            raise VideoError("standard input is a terminal; pipe a video into it, or name a file")
        return os.dup(0)
    except OSError:
        raise VideoError("there is no standard input; name a file") from None


def _start(errors: IO[bytes], keep: list[int]) -> "subprocess.Popen[bytes]":
    package_root = str(Path(__file__).parents[2])
    path = os.pathsep.join(p for p in (package_root, os.environ.get("PYTHONPATH")) if p)
    return subprocess.Popen(
        # -P: a file called av.py where the user happens to be must not be imported.
        [sys.executable, "-P", "-m", "kvvideo.video.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        # It multiplies no matrices: the threads for that would only cost memory.
        env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        pass_fds=keep,
        process_group=0,  # out of reach of the terminal's Ctrl-C, which is for us to act on
    )


def _listen(stream: BinaryIO, pulse: Pulse, put: Callable[[Item], None]) -> None:
    """Turn the worker's messages into items until they end. Holds no reference to the ``WorkerProcess``."""
    while True:
        try:
            head, pixels = wire.receive(stream)
        except (EOFError, OSError, ValueError):
            put(_Gone)
            return
        kind = head["kind"]
        if kind != "live":  # which comes from a thread beside the one that decodes
            pulse.heard = time.monotonic()
        if kind == "alive":
            pulse.at = head["at"]
        elif kind == "log":
            logger.log(head["level"], "%s", head["text"])
        elif kind == "live":
            pulse.arrived, pulse.status = head["arrived"], LiveStatus(**head["status"])
        elif kind == "info":
            put(VideoInfo(**head["info"]))
        elif kind == "chunk" and pixels is not None:
            pulse.at = head["end"]
            put(Chunk(pixels, tuple(head["times"]), head["start"], head["end"], head["fps"]))
        elif kind == "subtitles" and head["found"] is not None:
            put(Subtitles.from_dict(head["found"]))
        elif kind == "error":
            put((ConfigError if head["config"] else VideoError)(head["message"]))
            return
        else:
            put(_Finished)
            return


def _drop_or_put(items: "queue.Queue[Item]", pulse: Pulse, item: Item) -> None:
    """Make room in a full queue for a chunk, by dropping the oldest."""
    with items.mutex:
        oldest = items.queue[0] if len(items.queue) >= items.maxsize else None
        if isinstance(item, Chunk) and isinstance(oldest, Chunk):
            items.queue.popleft()
            items.not_full.notify()
            pulse.dropped += oldest.end - oldest.start
            pulse.passed = oldest.end
    items.put(item)


def _ignore(item: Item) -> None:
    """Pass over an item: what comes beside the chunks of a live source is none, and that it ends means nothing."""


def _close_quietly(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        logger.debug("the decoder was gone before it read its request")
