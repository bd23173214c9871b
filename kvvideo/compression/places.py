"""A token's place in the picture as one number, and from it its M-RoPE position on all three axes.

A cache keeps one temporal position and one *place* per token. The place of text is 0, for its three
positions are equal. That of a video token is its distance from its chunk's first one in time, down and across,
which is also the distance of their three positions.
"""

import torch
from torch import Tensor

BITS = 10
"""Bits for each of row and column; what is left of 31 is for time."""
_MASK = (1 << BITS) - 1

LIMITS = (1 << 11, 1 << BITS, 1 << BITS)
"""Temporal positions, rows and columns that a chunk may span."""


def encode(offsets: Tensor) -> Tensor:
    """Return the places ``int64 [n]`` of tokens ``offsets`` (``int64 [3, n]``: t, h, w) from their chunk's first one.

    What lies beyond ``LIMITS`` is counted as lying at them.
    """
    t, h, w = (axis.clamp(0, limit - 1) for axis, limit in zip(offsets, LIMITS, strict=True))
    # The last place of all would not fit into 31 bits.
    place: Tensor = ((t << BITS | h) << BITS | w) + 1
    return place.clamp(max=(1 << 31) - 1)


def patch(places: Tensor) -> Tensor:
    """Return the number of each place's patch, the same in every frame of that size; -1 for text."""
    return torch.where(places > 0, (places - 1) & (_MASK << BITS | _MASK), -1)


def axes(positions: Tensor, places: Tensor) -> Tensor:
    """Return the M-RoPE positions ``int64 [3, ...]`` of tokens at temporal ``positions`` and ``places`` (``[...]``)."""
    t, p = positions.long(), (places.long() - 1).clamp(min=0)
    base = t - (p >> 2 * BITS)
    return torch.stack([t, base + (p >> BITS & _MASK), base + (p & _MASK)])
