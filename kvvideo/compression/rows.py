"""Rows of side state: the numbers that a cache carries beside each token's key and value."""

from kvvideo.compression import load
from kvvideo.compression.config import CacheConfig

ROWS = 2
"""Rows of side state that every cache has: positions and places.

Where gaps are closed one more follows: the positions that each token has moved. The strategy's own come last.
"""


def state_rows(config: CacheConfig) -> int:
    """Return the rows of side state, four bytes per KV head and token each, that a cache bounded by ``config`` uses."""
    return own_rows(config) + len(load(config.strategy).state)


def own_rows(config: CacheConfig) -> int:
    """Return the rows of side state before the strategy's."""
    return ROWS + (config.positions == "contiguous")
