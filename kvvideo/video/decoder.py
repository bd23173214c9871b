"""Define what a decoder is, list those there are, and turn one into chunks.

A new decoder is one module with a subclass of ``Decoder`` and one line in ``DECODERS``.
"""

import importlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from kvvideo.errors import ConfigError, KvvideoError, VideoError
from kvvideo.times import format_time
from kvvideo.types import Chunk
from kvvideo.video.address import unknown_scheme
from kvvideo.video.geometry import MAX_PIXELS, MIN_PIXELS, check_picture, frame_size
from kvvideo.video.plan import VideoInfo
from kvvideo.video.sampling import EPSILON, Grid, assemble

DECODERS = {
    "pyav": "kvvideo.video.pyav:PyavDecoder",
    "nvdec": "kvvideo.video.nvdec:NvdecDecoder",
    "decord": "kvvideo.video.decord:DecordDecoder",
}
"""Decoders by name; loaded only when used."""

_MEMORY = b"memory.safetensors"
"""Name of what comes first in a memory's file, as ``storage.file`` writes it."""

Progress = Callable[[float], None]
"""Told the source time, in seconds, of whatever is being read, to show that the work goes on."""


class Decoder(ABC):
    """One open video. Opening it raises VideoError if it cannot be decoded.

    Attributes:
        info: what is known of the video.
        failure: why decoding ended early, once it has; what was decoded before is right.
        first: when the first frame of the video is shown, in seconds: it stands for what comes before it, too.
    """

    name: ClassVar[str]
    info: VideoInfo
    failure: VideoError | None = None
    first: float = 0.0

    @abstractmethod
    def __init__(self, path: str, progress: Progress) -> None: ...

    @abstractmethod
    def sample(self, grid: Grid, height: int, width: int) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
        """Yield the frame shown at each moment of ``grid``, until the video ends, or early with ``failure`` set.

        Args:
            grid: the moments.
            height: of the frames, in pixels.
            width: of the frames, in pixels.

        Yields:
            When the frame really appeared, in seconds, and ``uint8 [height, width, 3]`` RGB.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the file; safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def chunks(self, grid: Grid, min_pixels: int, max_pixels: int) -> Iterator[Chunk]:
        """Yield the chunks of ``grid``, in frames of ``min_pixels`` to ``max_pixels`` pixels.

        Raises:
            VideoError: after what could be decoded, if not all could.
            ConfigError: if there is nothing to see at those moments.
        """
        height, width = frame_size(self.info.height, self.info.width, min_pixels, max_pixels)
        empty = True
        for chunk in assemble(self._none_ahead(grid, height, width), grid):
            empty = False
            yield chunk
        if self.failure is not None:
            raise self.failure
        if empty and not grid.skip:
            raise self._nothing(grid)

    def still(self, grid: Grid) -> Iterator[Chunk]:
        """Yield one chunk of one frame: the picture at the first moment of ``grid``, as large as it is displayed."""
        check_picture(self.info.height, self.info.width, self.info.path)
        for time, frame in self._none_ahead(grid, self.info.height, self.info.width):
            yield Chunk(frame[None], (time,), grid.time(0), grid.time(1), grid.fps)
            return
        raise self.failure or self._nothing(grid)

    def _none_ahead(self, grid: Grid, height: int, width: int) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
        """Yield as ``sample``; raise VideoError instead of answering a moment with a frame that comes after it."""
        for index, (time, frame) in enumerate(self.sample(grid, height, width)):
            moment = grid.time(index)
            if time > max(moment + EPSILON, self.first):
                raise VideoError(
                    f"the decoder {self.name} gave a frame of {format_time(time)} for {format_time(moment)} of "
                    f"{self.info.path!r}, which is a fault of kvvideo; remux the file, and report it"
                )
            yield time, frame

    def _nothing(self, grid: Grid) -> KvvideoError:
        if grid.time(0) == 0:
            return VideoError(f"{self.info.path!r} has no frame that can be shown; the file is damaged or incomplete")
        length = "" if self.info.duration is None else f", which lasts {format_time(self.info.duration)}"
        return ConfigError(
            f"there is nothing to see from {format_time(grid.time(0))} on in {self.info.path!r}{length}; start earlier"
        )


def open_decoder(name: str, path: str, progress: Progress = lambda _: None) -> Decoder:
    """Open the file ``path`` with the decoder called ``name``; tell ``progress`` what is being read."""
    check_decoder(name)
    module, _, cls = DECODERS[name].partition(":")
    decoder: Decoder = getattr(importlib.import_module(module), cls)(path, progress)
    return decoder


def check_decoder(name: str) -> None:
    """Raise ConfigError unless there is a decoder called ``name``."""
    if name not in DECODERS:
        raise ConfigError(f"{name!r} is not a decoder; use {' or '.join(DECODERS)}")


def read_chunks(
    path: str,
    fps: float = 2.0,
    chunk_seconds: float = 4.0,
    start: float | None = None,
    end: float | None = None,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
    decoder: str = "pyav",
    progress: Progress = lambda _: None,
) -> Iterator[Chunk]:
    """Yield the chunks of a video, decoded in this process: nothing guards against a decoder that hangs.

    ``VideoReader`` does the same in a process of its own, and takes the same arguments; use that unless you are it.
    """
    grid = Grid.of(fps, chunk_seconds, start, end)
    with open_decoder(decoder, path, progress) as source:
        yield from source.chunks(grid, min_pixels, max_pixels)


def check_file(path: str, growing: bool = False) -> None:
    """Raise VideoError, saying what to do, unless ``path`` is something a decoder could open.

    A ``growing`` file may be empty still.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        hint = unknown_scheme(path) or "check the name"
        raise VideoError(f"there is no file {path!r}; {hint}") from None
    except (OSError, ValueError) as error:
        raise VideoError(f"{path!r} cannot be read: {reason(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise VideoError(f"{path!r} is a directory; name a video file in it")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0 and not growing:
        raise VideoError(f"{path!r} is empty (0 bytes); copy or download it again")
    if stat.S_ISREG(status.st_mode) and _is_memory(path):
        raise VideoError(f"{path!r} is a saved memory, not a video; ask it with 'kvvideo ask'")


def _is_memory(path: str) -> bool:
    """Return True if a file is what ``ingest`` writes: a zip archive that begins with a memory."""
    try:
        with open(path, "rb") as file:
            head = file.read(30 + len(_MEMORY))
    except OSError:
        return False
    return head.startswith(b"PK\x03\x04") and head.endswith(_MEMORY)


def reason(error: BaseException) -> str:
    """Return what an exception says, without the number and the path that OSError puts around it."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
