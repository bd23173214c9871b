"""Fetch one picture of a video, as large as it is shown."""

import os

import numpy as np
import numpy.typing as npt

from kvvideo.errors import ConfigError
from kvvideo.video.address import Address, is_live
from kvvideo.video.reader import VideoReader


def frame_at(path: str | os.PathLike[str], time: float, decoder: str = "pyav") -> tuple[float, npt.NDArray[np.uint8]]:
    """Return the picture shown at ``time``: when it really appeared, in seconds, and ``uint8 [height, width, 3]`` RGB.

    It has the size at which players show it, and is decoded in a process of its own.

    Raises:
        VideoError: if the file cannot be decoded.
        ConfigError: if nothing is shown then, or what is named does not stay, as files do.
    """
    if is_live(path):
        raise ConfigError(f"{Address.of(os.fsdecode(path)).name!r} is no file: pictures can be fetched from files only")
    with VideoReader(path, 1.0, 2.0, time, time + 0.5, decoder=decoder, what="still") as reader:
        chunk = next(reader)
    return chunk.times[0], chunk.frames[0]
