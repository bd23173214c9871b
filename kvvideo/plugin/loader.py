"""Put kvvideo's decoder behind vLLM's registry of video loaders: a server reads what ``kvvideo analyze`` reads.

``video_backend`` of vLLM's ``media_io_kwargs`` names it. The file, which a stranger sent, is decoded in a process of
its own with bounded memory, as all videos are.
"""

import math
import os
from typing import Any

import numpy as np
import numpy.typing as npt
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.video import VideoLoader
from vllm.multimodal.video_decoders import check_frame_pixel_limit

from kvvideo.errors import KvvideoError, VideoError
from kvvideo.types import Chunk
from kvvideo.video.geometry import FRAMES_PER_TOKEN, MAX_PIXELS, MIN_PIXELS, frame_size
from kvvideo.video.plan import VideoInfo
from kvvideo.video.reader import VideoReader
from kvvideo.video.sampling import Grid

LOADER = "kvvideo"
"""Name of the loader."""
FRAMES_BYTES = 1 << 30
"""Most bytes of the frames of one video: some 200,000 tokens, more than a model takes at once."""
UNSAID = 32
"""Frames that vLLM asks every loader for where a request says nothing of it."""
DEFAULT_FPS = 25.0
"""Frames a second where a video does not say how many it has."""


class KvVideoLoader(VideoLoader):
    """Reads whole files by presentation time."""

    @classmethod
    def load_bytes(
        cls,
        data: bytes,
        num_frames: int = -1,
        fps: float = -1,
        max_duration: float = -1,
        *,
        min_pixels: int = MIN_PIXELS,
        max_pixels: int = MAX_PIXELS,
        **kwargs: Any,
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """Return the frames of a video, and what transformers' processors want to know of them.

        They are the very ones that ``VideoReader`` gives: one per moment, 1/``fps`` seconds apart; the last is there
        twice if their number is odd. Arguments may be a request's, if the server trusts its clients
        (``--trust-request-mm-kwargs``); those of other loaders are passed over.

        Args:
            data: the file.
            num_frames: most frames, spread evenly; without a limit if not above 0, or if it is the 32 that vLLM
                puts where a request says ``fps`` only.
            fps: moments per second; as many as the video has frames if not above 0.
            max_duration: of a video longer than so many seconds only as many frames as that would have, spread evenly;
                without a limit if not above 0.
            min_pixels: smallest area of the frames.
            max_pixels: largest area of the frames, which counts where both cannot be kept.
            **kwargs: arguments of other loaders, passed over.

        Returns:
            uint8 RGB ``[frames, height, width, 3]``, and the metadata: of a video that has these frames only.

        Raises:
            VLLMValidationError: HTTP 400, saying in one line why the video cannot be read to its end.
        """
        del kwargs
        wanted = {"num_frames": num_frames, "fps": fps, "max_duration": max_duration}
        for name, value in (wanted | {"min_pixels": min_pixels, "max_pixels": max_pixels}).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise VLLMValidationError(f"{name} must be a number, not {value!r:.100}")
        if fps > 0 and num_frames == UNSAID:
            num_frames = -1
        with _Video(data, min(min_pixels, max_pixels), max_pixels) as video:
            try:
                rate, end = video.rate(num_frames, fps, max_duration)
                frames = video.frames(rate, end)
            except KvvideoError as error:
                raise VLLMValidationError(video.said(error)) from None
        return frames, {
            "total_num_frames": len(frames),
            "fps": rate,
            "duration": len(frames) / rate,
            "video_backend": LOADER,
            "frames_indices": list(range(len(frames))),
            "do_sample_frames": False,
        }


class _Video:
    """Bytes as a file that has no name and is gone when nobody has it open, even if this process is killed."""

    def __init__(self, data: bytes, min_pixels: int, max_pixels: int) -> None:
        self._pixels = int(min_pixels), int(max_pixels)
        self._file = os.fdopen(os.memfd_create("kvvideo"), "wb")
        self._path = f"/proc/self/fd/{self._file.fileno()}"
        try:
            self._file.write(data)
            self._file.flush()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "_Video":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def said(self, error: KvvideoError) -> str:
        """Return an error's message without the file's path, which means nothing to who sent it."""
        return str(error).replace(repr(self._path), "the file").replace(self._path, "the file")

    def rate(self, num_frames: float, fps: float, max_duration: float) -> tuple[float, float | None]:
        """Return the frames per second to sample, and the second to end at; None for the end of the video."""
        if fps > 0 and num_frames <= 0 and max_duration <= 0:
            return fps, None
        info = self._info()
        rate = fps if fps > 0 else info.fps or DEFAULT_FPS
        length = info.duration or self._length()
        most = min(count for count in (num_frames, max_duration * rate, math.inf) if count > 0)
        if length * rate <= most:
            return rate, None
        return max(1, math.floor(most)) / length, length

    def frames(self, rate: float, end: float | None) -> npt.NDArray[np.uint8]:
        """Return all frames up to ``end``, ``uint8 [frames, height, width, 3]``.

        Raises:
            VideoError: if they cannot be read to the end, or are too many.
        """
        with self._open(rate, end) as reader:
            height, width = self._check(reader.info)
            most = FRAMES_BYTES // (height * width * 3)
            until = reader.info.duration if end is None else end
            if until is not None and Grid.of(rate, FRAMES_PER_TOKEN / rate, None, None).count_before(until) > most:
                raise self._too_many(most, rate)
            chunks: list[Chunk] = []
            for chunk in reader:
                chunks.append(chunk)
                if len(chunks) * FRAMES_PER_TOKEN > most:
                    raise self._too_many(most, rate)
        return np.concatenate([chunk.frames for chunk in chunks])

    def _check(self, info: VideoInfo) -> tuple[int, int]:
        """Return height and width of the frames.

        Raises:
            VideoError: if the server takes no pictures of the video's size.
        """
        try:
            check_frame_pixel_limit(info.width, info.height)
        except ValueError as error:
            raise VideoError(str(error)) from None
        return frame_size(info.height, info.width, *self._pixels)

    def _too_many(self, most: int, rate: float) -> VideoError:
        return VideoError(
            f"the file has more than {most:,} frames at {rate:g} a second, too many to hold at once; ask for fewer "
            "(num_frames, fps), for smaller ones (max_pixels), or send it in parts"
        )

    def _info(self) -> VideoInfo:
        with VideoReader(self._path, what="info", inherit=[self._file.fileno()]) as reader:
            return reader.info

    def _length(self) -> float:
        """Read a video that does not say how long it is, and return its seconds."""
        with self._open(DEFAULT_FPS, None, 1, MIN_PIXELS) as reader:
            for _ in reader:
                pass
            return reader.position

    def _open(self, rate: float, end: float | None, *pixels: int) -> VideoReader:
        low, high = pixels or self._pixels
        pair, held = FRAMES_PER_TOKEN / rate, [self._file.fileno()]
        return VideoReader(self._path, rate, pair, end=end, min_pixels=low, max_pixels=high, inherit=held)
