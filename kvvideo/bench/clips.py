"""Clips of the synthetic world as a stream of chunks, drawn as they are needed; ten hours need not be held."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from kvvideo.session import EngineConfig
from kvvideo.session.prediction import frame_pixels
from kvvideo.tiny import world
from kvvideo.types import Chunk
from kvvideo.video import frame_size

FPS = 2.0

SEEDS = 700_000
"""First seed of the clips; the bundled model was trained on others."""

HELD = 256
"""Chunks of a clip that stay drawn: a clip of 10 minutes is drawn once for all who stream it. Our choice."""


class Clip:
    """A clip whose every slot is a chunk, with as many of the 26 letters as fit, each shown once; an ``Again`` as well.

    Args:
        seed: random seed.
        slots: number of chunks.
        size: height and width of the pictures.

    Attributes:
        seed: as above.
        drawn: the world's clip.
    """

    def __init__(self, seed: int, slots: int, size: tuple[int, int]) -> None:
        self.seed = seed
        self.drawn = world.Clip(seed, slots, density=min(0.6, len(world.LETTERS) / slots))
        self._size = size
        self.chunk = lru_cache(HELD)(self._chunk)
        """Return chunk ``number``, from 0."""

    def __len__(self) -> int:
        return len(self.drawn.slots)

    def chunks(self, stretches: Sequence[tuple[float, float]]) -> list[Chunk | None]:
        """Return the chunks that begin with each stretch."""
        return [self.chunk(self.drawn.slot_index(start)) for start, _ in stretches]

    def _chunk(self, number: int) -> Chunk:
        slot, (height, width) = self.drawn.slots[number], self._size
        times = tuple(slot.start + i / FPS for i in range(round(world.SLOT * FPS)))
        pictures = (Image.fromarray(self.drawn.frame(t)) for t in times)
        small = [np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)) for picture in pictures]
        return Chunk(np.stack(small), times, slot.start, slot.end, FPS)


def clip_size(config: EngineConfig) -> tuple[int, int]:
    """Return height and width of a clip's pictures as the model of ``config`` is shown them."""
    return frame_size(world.HEIGHT, world.WIDTH, *frame_pixels(config))


def slots_in(minutes: float) -> int:
    """Return the slots of a clip of so many minutes, at least 4."""
    return max(4, round(minutes * 60 / world.SLOT))
