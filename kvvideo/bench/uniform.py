"""Frames sampled uniformly over the video, as many as fit, read anew for every question: the usual way today."""

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kvvideo.session import Answer, Engine, RecentSession
from kvvideo.types import Chunk

NAME = "uniform"

FRAMES = 2
"""Frames shown of each sampled moment: the better of 2 and 4 for the bundled model."""


class UniformSession(RecentSession):
    """Holds all pixels; a question is shown moments at equal distances, as many as stay below ``max_tokens``.

    No stream can do this, which forgets its frames: it is the yardstick of a video that lies on disk.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._all: list[Chunk] = []

    def ingest(self, chunk: Chunk) -> None:
        """Hold the pixels of ``chunk``."""
        super().ingest(chunk)
        self._all.append(chunk)

    def asking(self, questions: Sequence[str], **options: Any) -> Generator[tuple[int, Answer] | None, None, None]:
        """Read the sampled moments, and ask the session that has read them."""
        recent = self._held
        self._held = deque(self._sample())
        try:
            yield from super().asking(questions, **options)
        finally:
            self._held = recent

    def _sample(self) -> list[tuple[Chunk, int]]:
        """Return as many moments as fit, in order of time, with their tokens."""
        room = self._max_tokens - 1 - self._reserved
        some = [_part(chunk, slice(0, FRAMES)) for chunk in self._all[:-1]]
        some += [_part(chunk, slice(-FRAMES, None)) for chunk in self._all[-1:]]
        sizes = [self._size(chunk) for chunk in some]
        for count in range(len(some), 0, -1):
            # The first and the last one are always there but for a single one, which is the last.
            index = np.linspace(len(some) - 1, 0, count).round().astype(int)[::-1]
            if sum(sizes[i] for i in index) <= room:
                return [(some[i], sizes[i]) for i in index]
        return []


def _part(chunk: Chunk, own: slice) -> Chunk:
    """Return those frames of ``chunk``, with its words and under its own clock time, which questions ask for."""
    return replace(chunk, frames=chunk.frames[own], times=chunk.times[own], said=())
