"""Clips of the synthetic worlds as streams of chunks, drawn as they are needed; ten hours need not be held."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from kvvideo.errors import ConfigError
from kvvideo.session import EngineConfig
from kvvideo.session.prediction import frame_pixels
from kvvideo.tiny import scenery, world
from kvvideo.types import Chunk
from kvvideo.video import frame_size

FPS = 2.0

SEEDS = 700_000
"""First seed of the clips; the bundled model was trained on others."""

HELD = 256
"""Chunks of a clip that stay drawn: a clip of 10 minutes is drawn once for all who stream it. Our choice."""


class Clip:
    """A clip whose every slot of four seconds is a chunk; an ``Again`` as well.

    Args:
        seed: random seed.
        slots: number of chunks.
        size: height and width of the pictures.

    Attributes:
        seed: as above.
        drawn: the world's own clip.
    """

    drawn: world.Clip | scenery.Film

    def __init__(self, seed: int, slots: int, size: tuple[int, int]) -> None:
        self.seed = seed
        self._slots, self._size = slots, size
        self.chunk = lru_cache(HELD)(self._chunk)
        """Return chunk ``number``, from 0."""

    def __len__(self) -> int:
        return self._slots

    def chunks(self, stretches: Sequence[tuple[float, float]]) -> list[Chunk | None]:
        """Return the chunks that begin with each stretch."""
        return [self.chunk(min(int(start / world.SLOT + 1e-6), self._slots - 1)) for start, _ in stretches]

    def words(self, _number: int) -> str:
        """Return what is said in a chunk."""
        return ""

    def _chunk(self, number: int) -> Chunk:
        start, (height, width) = number * world.SLOT, self._size
        times = tuple(start + i / FPS for i in range(round(world.SLOT * FPS)))
        pictures = (Image.fromarray(self.drawn.frame(t)) for t in times)
        small = [np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)) for picture in pictures]
        return Chunk(np.stack(small), times, start, start + world.SLOT, FPS, self.words(number))


class LettersClip(Clip):
    """A clip of the letters' world, with as many of the 26 letters as fit, each shown once."""

    drawn: world.Clip

    def __init__(self, seed: int, slots: int, size: tuple[int, int]) -> None:
        super().__init__(seed, slots, size)
        self.drawn = world.Clip(seed, slots, density=min(0.6, len(world.LETTERS) / slots))


class FilmClip(Clip):
    """A clip of the film world, lines of speech included."""

    drawn: scenery.Film
    unseen = False

    def __init__(self, seed: int, slots: int, size: tuple[int, int]) -> None:
        super().__init__(seed, slots, size)
        self.drawn = scenery.Film(seed, slots, self.unseen)

    def words(self, number: int) -> str:
        """Return what is said in a chunk."""
        line = self.drawn.script.lines.get(number)
        return "" if line is None else line.text


class UnseenClip(FilmClip):
    """A clip of the film world in the style that the bundled model was never trained on."""

    unseen = True


WORLDS: dict[str, type[Clip]] = {"film": FilmClip, "unseen": UnseenClip, "letters": LettersClip}


def world_of(name: str) -> type[Clip]:
    """Return the clips of the world called ``name``.

    Raises:
        ConfigError: if there is none.
    """
    if name not in WORLDS:
        raise ConfigError(f"world: no world is called {name!r}; take one of {', '.join(WORLDS)}")
    return WORLDS[name]


def clip_size(config: EngineConfig) -> tuple[int, int]:
    """Return height and width of a clip's pictures as the model of ``config`` is shown them."""
    return frame_size(world.HEIGHT, world.WIDTH, *frame_pixels(config))


def slots_in(minutes: float) -> int:
    """Return the slots of a clip of so many minutes, at least 4."""
    return max(4, round(minutes * 60 / world.SLOT))
