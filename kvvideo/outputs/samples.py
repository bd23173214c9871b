"""Samples of a cache over time: the points of a report's plots."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

Sample = tuple[float, dict[str, Any]]
"""A moment, in seconds, and what the cache held then, as a record has it."""

MOST = 4096
"""Samples that are kept; a plot shows no more."""


class Samples(Sequence[Sample]):
    """Samples in the order of their moments: as many as a plot can show, however long the video is."""

    def __init__(self) -> None:
        self._kept: list[Sample] = []
        self._apart, self._count = 1, 0

    def add(self, at: float, cache: dict[str, Any]) -> None:
        """Note what the cache holds at the moment ``at``, later than those before."""
        if self._count % self._apart == 0:
            self._kept.append((at, cache))
        self._count += 1
        if len(self._kept) > MOST:
            self._kept, self._apart = self._kept[::2], self._apart * 2

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        return self._kept[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)
