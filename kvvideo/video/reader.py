"""``VideoReader``: chunks of a video, decoded ahead of their use in a process of its own."""

import json
import logging
import math
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, Self

from kvvideo.errors import ConfigError, KvvideoError, VideoError
from kvvideo.times import format_time
from kvvideo.types import Chunk
from kvvideo.video import awake, wire
from kvvideo.video.address import STDIN, Address, is_live
from kvvideo.video.decoder import check_decoder
from kvvideo.video.geometry import MAX_PIXELS, MIN_PIXELS, check_pixels
from kvvideo.video.live import Live, LiveStatus
from kvvideo.video.plan import VideoInfo
from kvvideo.video.sampling import Grid

logger = logging.getLogger("kvvideo.video")

_TELL_SECONDS = 10.0
"""Delay of live video, in seconds, that is told of."""
_LOOK_SECONDS = 1.0
"""How often it is looked whether a decoder that is waited for is stopped."""
STALL_SECONDS = 60.0
"""How long a decoder may be silent while it is waited for."""


@dataclass
class _Pulse:
    """What the worker said last.

    Attributes:
        heard: when that was (``time.monotonic``).
        at: where in the video it was.
        arrived: how far into the video a live source has come.
        status: what it said of that source.
        dropped: seconds of chunks that were dropped here.
        passed: end of the last of them.
    """

    heard: float
    at: float
    arrived: float = 0.0
    status: LiveStatus = field(default_factory=LiveStatus)
    dropped: float = 0.0
    passed: float = 0.0


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
        path: the video: a file, a named pipe, ``-`` for standard input, the number of a camera, or a URL.
        fps: frames per second to sample.
        chunk_seconds: length of a chunk; with ``fps`` it must give an even number of frames.
        start, end: the part to read, in seconds of the source; all of it by default.
        min_pixels, max_pixels: limits for the area of the resized frames.
        decoder: ``pyav``, ``nvdec`` on an NVIDIA GPU, or ``decord`` for plain H.264 in mp4.
        stall_seconds: silence after which the decoder is killed.
        queue_chunks: chunks decoded ahead.
        skip_chunks: chunks at the beginning of the part to leave out, because they were seen before; the rest
            is what it would have been, to the last bit.
        live: how a live source is treated; ``Live()`` by default for all but files, and for a file nothing
            but that it may be growing.
        what: ``chunks``; or only the ``info``; or one ``still`` picture of the start.
        inherit: file descriptors that ``path`` needs, such as that of ``/proc/self/fd/5``.

    Attributes:
        info: what is known of the video.
        position: source time, in seconds, up to which chunks were given out.
        waited: seconds that ``next`` took, but for the first time.

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
        skip_chunks: int = 0,
        live: Live | None = None,
        what: Literal["chunks", "info", "still"] = "chunks",
        inherit: Sequence[int] = (),
    ) -> None:
        grid = Grid.of(fps, chunk_seconds, start, end, skip_chunks)
        check_pixels(min_pixels, max_pixels)
        check_decoder(decoder)
        if stall_seconds <= 0 or queue_chunks < 1:
            raise ConfigError("stall_seconds must be above 0, and queue_chunks at least 1")
        self.path = os.fsdecode(path)
        self._name = Address.of(self.path).name
        self.position = grid.time(0)
        self.waited = 0.0
        self._begun = False
        live = _fitting(self.path, live)
        if live is not None and decoder != "pyav":
            raise ConfigError(f"{decoder} reads files only; read {self._name!r} with pyav")
        awake.watch()
        stdin = _own_stdin() if self.path == STDIN else None
        self._stall = stall_seconds
        self._pulse = _Pulse(time.monotonic(), grid.time(0))
        # What is late must be told, and only what comes as it happens can be.
        self._tell_at = _TELL_SECONDS if live is not None and not Address.of(self.path).waits else math.inf
        self._told_at_end = False
        self._items: queue.Queue[_Item] = queue.Queue(queue_chunks)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  close() closes it
        notes, notes_end = (None, None) if live is None else os.pipe()
        keep = [fd for fd in (stdin, notes_end) if fd is not None]
        try:
            self._process = _start_worker(self._errors, [*keep, *inherit])
        finally:
            for fd in keep:
                os.close(fd)
        self._unused = weakref.finalize(self, self._process.kill)
        assert self._process.stdout is not None
        self._streams: list[IO[bytes]] = [self._process.stdout]
        if notes is not None:
            self._streams.append(os.fdopen(notes, "rb"))
        self._drops = live is not None and live.when_behind == "drop"
        take: Callable[[_Item], None] = partial(_drop_or_put if self._drops else _put, self._items, self._pulse)
        name = f"kvvideo-video-{self._process.pid}"
        self._threads = [
            threading.Thread(target=_listen, args=(stream, self._pulse, put), name=name, daemon=True)
            for stream, put in zip(self._streams, (take, _ignore), strict=False)
        ]
        for thread in self._threads:
            thread.start()
        request = {
            "path": self.path,
            "decoder": decoder,
            "grid": asdict(grid),
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
            "what": what,
            "live": None if live is None else asdict(live),
            "stdin": -1 if stdin is None else stdin,
            "notes": notes_end,
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
        began = time.monotonic()
        try:
            item = self._next()
        except KvvideoError:
            self.close()
            raise
        finally:
            if self._begun:
                self.waited += time.monotonic() - began
            self._begun = True
        if not isinstance(item, Chunk):
            self.close()
            raise StopIteration
        self.position = item.end
        self._tell_of_delay()
        return item

    @property
    def ready(self) -> bool:
        """Whether ``next`` would not wait: a chunk, the end, or an error is there."""
        return not (self._unused.alive and self._items.empty())

    @property
    def pid(self) -> int:
        """Of the process that decodes."""
        return self._process.pid

    @property
    def live(self) -> LiveStatus:
        """Where a live source stands; cheap, and for any thread. For a file nothing is ever behind."""
        pulse = self._pulse
        behind = max(0.0, pulse.arrived - max(self.position, pulse.passed))
        return replace(pulse.status, behind=behind, dropped=pulse.status.dropped + pulse.dropped)

    def close(self) -> None:
        """Ends the worker and frees all it held; safe to call twice, and from another thread."""
        self._unused()
        if (dropped := self.live.dropped) and not self._told_at_end:
            self._told_at_end = True
            logger.warning("%s of %r was dropped: it came faster than it was seen", format_time(dropped), self._name)
        while any(thread.is_alive() for thread in self._threads):  # one may be waiting for room in the queue
            try:
                self._items.get(timeout=0.01)
            except queue.Empty:
                continue
        while not self._items.empty():
            self._items.get()
        self._items.put(_Finished)  # for a thread that waits for the next chunk
        self._process.wait()
        for stream in (self._process.stdin, *self._streams, self._errors):
            if stream is not None:
                _close_quietly(stream)

    def _tell_of_delay(self) -> None:
        """Says that the video is behind, and again each time that it is behind by twice as much."""
        if (behind := self.live.behind) >= self._tell_at:
            self._tell_at = 2 * behind
            hint = "" if self._drops else "; when_behind=drop would skip what is old"
            logger.warning("%r is seen %.0f s late%s", self._name, behind, hint)

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # it died; waiting for its answer says of what

    def _next(self) -> _Item:
        """The next item from the worker; raises the errors among them, and its own when it stays silent.

        It is not waited for while it, or this process, is stopped.
        """
        waiting = time.monotonic()
        while True:
            silent = awake.since(max(waiting, self._pulse.heard))
            if silent >= self._stall:
                raise VideoError(
                    f"the decoder gave no frame for {self._stall:g} s at {format_time(self._pulse.at)} of "
                    f"{self._name!r} and was stopped; the file or the disk it is on may be damaged"
                )
            try:
                item = self._items.get(timeout=min(self._stall - silent, _LOOK_SECONDS))
            except queue.Empty:
                if awake.is_stopped(self._process.pid):
                    waiting = time.monotonic()
                continue
            if isinstance(item, KvvideoError):
                raise item
            if item is _Gone and self._unused.alive:  # else close() ended it
                raise self._died()
            return item

    def _died(self) -> VideoError:
        code = self._process.wait()
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 4000))
        logger.debug("the decoder's last words: %s", self._errors.read(4000).decode(errors="replace"))
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended (exit code {code})"
        return VideoError(
            f"the decoder {how} at {format_time(self._pulse.at)} of {self._name!r}; "
            "the file may be damaged, or memory short"
        )


def probe(
    path: str | os.PathLike[str],
    decoder: str = "pyav",
    stall_seconds: float = STALL_SECONDS,
    live: Live | None = None,
) -> VideoInfo:
    """What is known of a video, after decoding its first frame, which is gone afterwards if it came from a pipe.

    Raises:
        VideoError: if it cannot be decoded.
    """
    with VideoReader(path, decoder=decoder, stall_seconds=stall_seconds, live=live, what="info") as reader:
        return reader.info


def _fitting(path: str, live: Live | None) -> Live | None:
    """How ``path`` is treated: a file that does not grow is no live source, whatever was asked."""
    if is_live(path):
        return live or Live()
    return live if live is not None and live.follow else None


def _own_stdin() -> int:
    """A file descriptor of this process' standard input, to be given away."""
    try:
        if os.isatty(0):
            raise VideoError("standard input is a terminal; pipe a video into it, or name a file")
        return os.dup(0)
    except OSError:
        raise VideoError("there is no standard input; name a file") from None


def _start_worker(errors: IO[bytes], keep: list[int]) -> "subprocess.Popen[bytes]":
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


def _listen(stream: BinaryIO, pulse: _Pulse, put: Callable[[_Item], None]) -> None:
    """Turns the worker's messages into items until they end. Holds no reference to the reader."""
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
        elif kind == "error":
            put((ConfigError if head["config"] else VideoError)(head["message"]))
            return
        else:
            put(_Finished)
            return


def _put(items: "queue.Queue[_Item]", pulse: _Pulse, item: _Item) -> None:
    """Waits for room in the queue."""
    items.put(item)


def _drop_or_put(items: "queue.Queue[_Item]", pulse: _Pulse, item: _Item) -> None:
    """Makes room in a full queue for a chunk, by dropping the oldest."""
    with items.mutex:
        oldest = items.queue[0] if len(items.queue) >= items.maxsize else None
        if isinstance(item, Chunk) and isinstance(oldest, Chunk):
            items.queue.popleft()
            items.not_full.notify()
            pulse.dropped += oldest.end - oldest.start
            pulse.passed = oldest.end
    items.put(item)


def _ignore(item: _Item) -> None:
    """What comes beside the chunks of a live source are no items; that it ends means nothing."""


def _close_quietly(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:
        logger.debug("the decoder was gone before it read its request")
