"""Made-up chunks, all different, made beforehand so that making them is no part of a measurement."""

from typing import Any

import numpy as np

from kvvideo.bench.machine import describe
from kvvideo.session import EngineConfig
from kvvideo.session.prediction import frame_pixels
from kvvideo.types import Chunk
from kvvideo.video import frame_size, tokens
from kvvideo.video.sampling import Grid

VARIETY = 16
"""Different chunks that are drawn: our choice."""

LARGE = (1024, 2048)
"""Height and width of pictures that are resized to 224 x 448, 128 tokens a pair, for models that name nothing."""

SMALL = (144, 256)
"""Height and width of a picture as the bundled model's clips have it."""


class Frames:
    """Chunks of ``seconds`` of noise at ``fps``, as large as pictures of ``source`` (height, width) are resized to.

    Args:
        config: of the model that shall see them.
        frame_tokens: most tokens for a pair of frames; by default what the model names.
        source: as above.
        fps: as above.
        seconds: as above.

    Raises:
        ConfigError: if a chunk has no even number of frames.
    """

    def __init__(
        self,
        config: EngineConfig,
        frame_tokens: int | None = None,
        source: tuple[int, int] = LARGE,
        fps: float = 2.0,
        seconds: float = 4.0,
    ) -> None:
        Grid.of(fps, seconds, None, None)
        self.name = config.model
        self.fps, self.seconds = fps, seconds
        self.count = round(fps * seconds)
        self.size = frame_size(*source, *frame_pixels(config, frame_tokens))
        random = np.random.default_rng(config.seed)
        self._pixels = random.integers(0, 256, (VARIETY, self.count, *self.size, 3), dtype=np.uint8)

    @property
    def tokens(self) -> int:
        """Tokens of one chunk's frames; the text around them comes on top."""
        return tokens(*self.size, self.count)

    def chunk(self, number: int, viewer: int = 0) -> Chunk:
        """Return chunk ``number`` of a stream, from 0. No two of a stream are the same, nor those of two viewers.

        vLLM remembers what its vision tower made of pictures that it has seen before.
        """
        frames = self._pixels[number % VARIETY].copy()
        frames[0, 0, :3] = [[number % 256, number // 256 % 256, viewer]] * 3
        start = number * self.seconds
        times = tuple(start + i / self.fps for i in range(self.count))
        return Chunk(frames, times, start, start + self.seconds, self.fps)


def heading(bench: str, config: EngineConfig, block_size: int, frames: Frames) -> dict[str, Any]:
    """Return the first part of a bench's report: machine, model, cache and frames."""
    schedule = config.cache.schedule(block_size)
    return {
        "bench": bench,
        "machine": describe(),
        "model": config.model,
        "strategy": config.cache.strategy,
        "max_tokens": schedule.max_tokens if schedule else None,
        "budget": schedule.budget if schedule else None,
        "frames": frames.count,
        "chunk_seconds": frames.seconds,
        "size": list(frames.size),
    }
