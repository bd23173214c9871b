"""``VideoReader``: chunks of a video, decoded ahead of their use in a process of its own."""

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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Self

import kvvideo
from kvvideo.errors import ConfigError, KvvideoError, VideoError
from kvvideo.times import format_time
from kvvideo.types import Chunk
from kvvideo.video import wire
from kvvideo.video.decoder import check_decoder
from kvvideo.video.geometry import MAX_PIXELS, MIN_PIXELS, check_pixels
from kvvideo.video.plan import VideoInfo
from kvvideo.video.sampling import Grid

logger = logging.getLogger("kvvideo.video")

STALL_SECONDS = 60.0
"""How long a decoder may be silent while it is waited for."""


@dataclass
class _Pulse:
    """When the worker was last heard of (``time.monotonic``), and where in the video it was."""

    heard: float
    at: float


class _Gone:
    """In place of an item: the worker died without a word."""


class _Finished:
    """In place of an item: there are no more."""


_Item = VideoInfo | Chunk | KvvideoError | type[_Gone] | type[_Finished]


class VideoReader(Iterator[Chunk]):
    """Iterates over the chunks of a video while a process decodes the next ones.

    Use it as a context manager, or call ``close``; it also closes itself at the end and on errors. All
    good chunks come before the error that ends a damaged video.

    Args:
        path: the video: a file, or a pipe.
        fps: frames per second to sample.
        chunk_seconds: length of a chunk; with ``fps`` it must give an even number of frames.
        start, end: the part to read, in seconds of the source; all of it by default.
        min_pixels, max_pixels: limits for the area of the resized frames.
        decoder: ``pyav``, or ``decord`` for plain H.264 in mp4.
        stall_seconds: silence after which the decoder is killed.
        queue_chunks: chunks decoded ahead.

    Attributes:
        info: what is known of the video.
        position: source time, in seconds, up to which chunks were given out.

    Raises:
        VideoError: if the video cannot be decoded, here or while iterating.
        ConfigError: if the settings are not possible.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float = 2.0,
        chunk_seconds: float = 4.0,
        start: float | None = None,
        end: float | None = None,
        min_pixels: int = MIN_PIXELS,
        max_pixels: int = MAX_PIXELS,
        decoder: str = "pyav",
        stall_seconds: float = STALL_SECONDS,
        queue_chunks: int = 2,
        *,
        info_only: bool = False,
    ) -> None:
        grid = Grid.of(fps, chunk_seconds, start, end)
        check_pixels(min_pixels, max_pixels)
        check_decoder(decoder)
        if stall_seconds <= 0 or queue_chunks < 1:
            raise ConfigError("stall_seconds must be above 0, and queue_chunks at least 1")
        self.path = os.fsdecode(path)
        self.position = grid.start
        self._stall = stall_seconds
        self._pulse = _Pulse(time.monotonic(), grid.start)
        self._items: queue.Queue[_Item] = queue.Queue(queue_chunks)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  close() closes it
        self._process = _start_worker(self._errors)
        self._unused = weakref.finalize(self, self._process.kill)
        assert self._process.stdout is not None
        self._thread = threading.Thread(
            target=_listen,
            args=(self._process.stdout, self._items, self._pulse),
            name=f"kvvideo-video-{self._process.pid}",
            daemon=True,
        )
        self._thread.start()
        request = {
            "path": self.path,
            "decoder": decoder,
            "grid": asdict(grid),
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
            "info_only": info_only,
        }
        try:
            self._ask(request)
            info = self._next()
        except BaseException:
            self.close()
            raise
        assert isinstance(info, VideoInfo)
        self.info = info

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __next__(self) -> Chunk:
        if not self._unused.alive:
            raise StopIteration
        try:
            item = self._next()
        except KvvideoError:
            self.close()
            raise
        if not isinstance(item, Chunk):
            self.close()
            raise StopIteration
        self.position = item.end
        return item

    def close(self) -> None:
        """Ends the worker and frees all it held; safe to call twice, and from another thread."""
        self._unused()
        while self._thread.is_alive():  # it may be waiting for room in the queue
            try:
                self._items.get(timeout=0.01)
            except queue.Empty:
                continue
        while not self._items.empty():
            self._items.get()
        self._items.put(_Finished)  # for a thread that waits for the next chunk
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                _close_quietly(stream)

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it died; waiting for its answer says of what

    def _next(self) -> _Item:
        """The next item from the worker; raises the errors among them, and its own when it stays silent."""
        waiting = time.monotonic()
        while True:
            silent = time.monotonic() - max(waiting, self._pulse.heard)
            if silent >= self._stall:
                raise VideoError(
                    f"the decoder gave no frame for {self._stall:g} s at {format_time(self._pulse.at)} of "
                    f"{self.path!r} and was stopped; the file or the disk it is on may be damaged"
                )
            try:
                item = self._items.get(timeout=self._stall - silent)
            except queue.Empty:
                continue
            if isinstance(item, KvvideoError):
                raise item
            if item is _Gone and self._unused.alive:  # else close() ended it
                raise self._died()
            return item

    def _died(self) -> VideoError:
        code = self._process.wait()
        self._errors.seek(0)
        logger.debug("the decoder's last words: %s", self._errors.read()[-4000:].decode(errors="replace"))
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended (exit code {code})"
        return VideoError(
            f"the decoder {how} at {format_time(self._pulse.at)} of {self.path!r}; "
            "the file may be damaged, or memory short"
        )


def probe(path: str | os.PathLike[str], decoder: str = "pyav", stall_seconds: float = STALL_SECONDS) -> VideoInfo:
    """What is known of a video, after decoding its first frame.

    Raises:
        VideoError: if it cannot be decoded.
    """
    with VideoReader(path, decoder=decoder, stall_seconds=stall_seconds, info_only=True) as reader:
        return reader.info


def _start_worker(errors: IO[bytes]) -> "subprocess.Popen[bytes]":
    package_root = str(Path(kvvideo.__file__).parents[1])
    path = os.pathsep.join(p for p in (package_root, os.environ.get("PYTHONPATH")) if p)
    return subprocess.Popen(
        # -P: a file called av.py where the user happens to be must not be imported.
        [sys.executable, "-P", "-m", "kvvideo.video.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env={**os.environ, "PYTHONPATH": path},
        process_group=0,  # out of reach of the terminal's Ctrl-C, which is for us to act on
    )


def _listen(stream: BinaryIO, items: "queue.Queue[_Item]", pulse: _Pulse) -> None:
    """Turns the worker's messages into items until it ends. Holds no reference to the reader."""
    while True:
        try:
            head, pixels = wire.receive(stream)
        except (EOFError, OSError, ValueError):
            items.put(_Gone)
            return
        pulse.heard = time.monotonic()
        kind = head["kind"]
        if kind == "alive":
            pulse.at = head["at"]
        elif kind == "log":
            logger.log(head["level"], "%s", head["text"])
        elif kind == "info":
            items.put(VideoInfo(**head["info"]))
        elif kind == "chunk" and pixels is not None:
            pulse.at = head["end"]
            items.put(Chunk(pixels, tuple(head["times"]), head["start"], head["end"], head["fps"]))
        elif kind == "error":
            items.put((ConfigError if head["config"] else VideoError)(head["message"]))
            return
        else:
            items.put(_Finished)
            return


def _close_quietly(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        logger.debug("the decoder was gone before it read its request")
