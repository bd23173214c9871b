"""Made-up chunks, all different, made beforehand so that making them is no part of a measurement."""

import numpy as np

from kvvideo.session import EngineConfig
from kvvideo.session.prediction import frame_pixels
from kvvideo.types import Chunk
from kvvideo.video import frame_size, tokens

VARIETY = 16


class Frames:
    """Chunks of ``seconds`` of noise at ``fps``, in the size that a picture twice as wide as high is resized to.

    Args:
        config: of the model that shall see them.
        frame_tokens: most tokens for a pair of frames; by default what the model names.
    """

    def __init__(
        self, config: EngineConfig, frame_tokens: int | None = None, fps: float = 2.0, seconds: float = 4.0
    ) -> None:
        self.name = config.model
        self.fps, self.seconds = fps, seconds
        self.count = round(fps * seconds)
        self.size = frame_size(1024, 2048, *frame_pixels(config, frame_tokens))
        random = np.random.default_rng(config.seed)
        self._pixels = random.integers(0, 256, (VARIETY, self.count, *self.size, 3), dtype=np.uint8)

    @property
    def tokens(self) -> int:
        """Of one chunk's frames; the text around them comes on top."""
        return tokens(*self.size, self.count)

    def chunk(self, number: int, viewer: int = 0) -> Chunk:
        """The chunk ``number`` of a stream, from 0. No two of a stream are the same, nor those of two viewers.

        vLLM remembers what its vision tower made of pictures that it has seen before.
        """
        frames = self._pixels[number % VARIETY].copy()
        frames[0, 0, :3] = [[number % 256, number // 256 % 256, viewer]] * 3
        start = number * self.seconds
        times = tuple(start + i / self.fps for i in range(self.count))
        return Chunk(frames, times, start, start + self.seconds, self.fps)
