"""Plan what reading a video will give and cost, by what is known before: pure arithmetic."""

import math
from dataclasses import dataclass

from kvvideo.video.geometry import FRAMES_PER_TOKEN, MAX_PIXELS, MIN_PIXELS, frame_size, tokens
from kvvideo.video.sampling import CLOCK_SLACK, Grid


@dataclass(frozen=True)
class VideoInfo:
    """Facts that a file states of its video, checked by decoding one frame.

    Attributes:
        path: the file.
        width, height: of the picture as players show it: rotated, with square pixels.
        duration: seconds, or None where the file does not say (live recordings, raw streams).
        fps: average frames per second, or None if unknown.
        codec: FFmpeg's name of the codec, such as ``h264``.
        container: FFmpeg's name of the file format, such as ``mov,mp4,m4a,3gp,3g2,mj2``.
        timed: True if frames carry times of their own; if not, they are spaced evenly.
    """

    path: str
    width: int
    height: int
    duration: float | None
    fps: float | None
    codec: str
    container: str
    timed: bool = True

    @property
    def frames(self) -> int | None:
        """Number of frames in the file, more or less; None if unknown."""
        if self.duration is None or self.fps is None:
            return None
        return round(self.duration * self.fps)


@dataclass(frozen=True)
class Plan:
    """Result of reading a video, foretold; counts are None where nothing says how much of it there is.

    Attributes:
        height, width: of the frames the model gets.
        frame_tokens: tokens per pair of frames.
        seconds: how much of the source is read.
        chunks, frames, tokens: how many in all; frames include the padding of an odd last chunk.
    """

    height: int
    width: int
    frame_tokens: int
    seconds: float | None
    chunks: int | None
    frames: int | None
    tokens: int | None


def plan(
    info: VideoInfo,
    fps: float = 2.0,
    chunk_seconds: float = 4.0,
    start: float | None = None,
    end: float | None = None,
    min_pixels: int = MIN_PIXELS,
    max_pixels: int = MAX_PIXELS,
) -> Plan:
    """Return what ``VideoReader`` with these settings will give for ``info``.

    Where the duration is unknown, the video is taken to reach ``end``.
    """
    grid = Grid.of(fps, chunk_seconds, start, end)
    height, width = frame_size(info.height, info.width, min_pixels, max_pixels)
    per_pair = tokens(height, width, FRAMES_PER_TOKEN)
    if info.duration is None and grid.end is None:
        return Plan(height, width, per_pair, None, None, None, None)
    length = math.inf if info.duration is None else info.duration
    last = length if grid.end is None else min(grid.end, length)
    moments = grid.count_before(min(last, length - CLOCK_SLACK))
    frames = moments + moments % FRAMES_PER_TOKEN
    return Plan(
        height=height,
        width=width,
        frame_tokens=per_pair,
        seconds=max(0.0, last - grid.time(0)),
        chunks=-(-moments // grid.per_chunk),
        frames=frames,
        tokens=tokens(height, width, frames),
    )
