"""How many numbers a cache carries beside each token's key and value: rows of side state."""

from kvvideo.compression import load
from kvvideo.compression.config import CacheConfig

ROWS = 2
"""Rows of side state that every cache has: positions and places.

Where gaps are closed one more follows: how far each token has moved. The strategy's own come last.
"""


def state_rows(config: CacheConfig, spare: bool = True) -> int:
    """Rows of side state that the pages of a cache bounded by ``config`` have; without ``spare``, those in use."""
    return own_rows(config) + len(load(config.strategy).state) + (config.spare_rows if spare else 0)


def own_rows(config: CacheConfig) -> int:
    """Rows of side state before the strategy's."""
    return ROWS + (config.positions == "contiguous")
