"""Make upright RGB pictures of the size that is wanted from the frames of a decoder."""

from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from kvvideo.errors import VideoError
from kvvideo.video.decoder import reason
from kvvideo.video.geometry import displayed_size, fitted

UNKNOWN_BITS = 24
"""Bits of a pixel where the format, that of pictures on a GPU, does not tell. Ten bits a sample take as many."""

Picture = npt.NDArray[np.uint8]
"""``[height, width, 3]`` RGB."""


class Pictures:
    """Show the frames of a video as players do; all that the first frame tells holds for the others.

    Args:
        name: of the video, for messages.
        first: its first frame.
        pixel_ratio: width of a stored pixel over its height.

    Attributes:
        height, width: of the first frame as displayed, in pixels.
        bits: that a stored pixel takes.
    """

    def __init__(self, name: str, first: VideoFrame, pixel_ratio: float) -> None:
        self._name, self._pixel_ratio = name, pixel_ratio
        self._turned, self._mirrored, self._flipped = _orientation(first)
        self._stored = first.height, first.width
        self.bits = first.format.padded_bits_per_pixel or UNKNOWN_BITS
        self.height, self.width = self._displayed(first)

    def picture(self, frame: VideoFrame, height: int, width: int, reformatter: VideoReformatter) -> Picture:
        """Return ``frame`` as displayed, ``uint8 [height, width, 3]`` RGB.

        Raises:
            VideoError: if FFmpeg cannot convert it.
        """
        high, wide = height, width
        if (frame.height, frame.width) != self._stored:  # it changes on the way: its shape stays
            high, wide = fitted(self._displayed(frame), (self.height, self.width), (height, width))
        try:
            scaled = reformatter.reformat(
                frame,
                width=high if self._turned else wide,
                height=wide if self._turned else high,
                format="rgb24",
                interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
                threads=1,
            )
            stored = np.asarray(scaled.to_ndarray(), np.uint8)
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoError(
                f"{self._name!r} has pictures of a kind that cannot be converted to RGB "
                f"({frame.format.name}: {reason(error)}); convert it to H.264"
            ) from None
        if self._turned:
            stored = stored.transpose(1, 0, 2)
        upright = stored[:: -1 if self._flipped else 1, :: -1 if self._mirrored else 1]
        if (high, wide) == (height, width):
            return upright
        picture = np.zeros((height, width, 3), np.uint8)
        top, left = (height - high) // 2, (width - wide) // 2
        picture[top : top + high, left : left + wide] = upright
        return picture

    def _displayed(self, frame: VideoFrame) -> tuple[int, int]:
        """Return the ``(height, width)`` at which players show a frame."""
        height, width = displayed_size(frame.height, frame.width, self._pixel_ratio)
        return (width, height) if self._turned else (height, width)


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """Return what displays a stored picture: swap rows and columns; then left and right; top and bottom.

    Asked of the first frame only: PyAV frames whose side data was looked at form a cycle, and pile up
    by the hundred until the garbage collector comes by.
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")  # PyAV's types do not list it
    if data is None:
        return False, False, False
    # A stored pixel (x, y) is shown at (ax + cy, bx + dy), up to a shift.
    (a, b), (c, d) = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2].tolist()
    return (True, c < 0, b < 0) if abs(b) > abs(a) else (False, a < 0, d < 0)
