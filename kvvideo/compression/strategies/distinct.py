"""kvvideo's own: what is shown again can go, what was shown once stays."""

from typing import ClassVar

import torch
from torch import Tensor

from kvvideo.compression import places
from kvvideo.compression.kernels import usable
from kvvideo.compression.policy import LiveCache, ScorePolicy

_BLOCK = 128
"""Tokens compared with all newer ones at a time, so that what is held of the n x n distances fits a cache."""


class Distinct(ScorePolicy):
    """Scores a token by how far its key is from the nearest key of any newer token.

    Keys are compared with the rotary embedding taken off, for that makes the same picture look different
    at each time. A query tells two keys apart by no more than its own length times their distance, so an
    older token with a newer one close by is not missed. What nothing repeats outlives any amount of
    what is repeated, whatever its age. No queries are needed: nothing is computed between compactions.
    """

    summary = "drops a token once a newer one has nearly the same key: what was shown once outlives what repeats"
    source = "kvvideo; related: KeyDiff (arXiv 2504.15364), R-KV (2505.24133), InfiniPot-V (2506.15745)"
    heads_alike = True
    recent_share: ClassVar[float] = 0.1

    def score(self, live: LiveCache) -> Tensor:
        if usable(live.keys):
            from kvvideo.compression.kernels.distance import nearest_newer, turned_back

            frequencies, axis = live.rotary.frequencies, live.rotary.axis
            plain = turned_back(live.keys, live.positions, live.places, frequencies, axis)
            return nearest_newer(plain, exact=live.keys.dtype == torch.float32)
        axes = places.axes(live.positions, live.places)
        return distance_to_newer(live.rotary.turn(live.keys, -live.rotary.angles(axes)))


def distance_to_newer(x: Tensor) -> Tensor:
    """Squared distance of each vector of ``[heads, n, d]`` to the nearest later one, ``[heads, n]``; last: inf."""
    # Distances do not see the mean, but float32 does: Qwen2.5's keys have a large bias.
    x = x - x.mean(dim=1, keepdim=True)
    squares = x.square().sum(dim=-1, keepdim=True)
    # Squares are one more dimension, so that the product is all but one's own square.
    rows, columns = torch.cat([-2 * x, torch.ones_like(squares)], dim=-1), torch.cat([x, squares], dim=-1).mT
    columns = columns.contiguous()
    not_later = torch.ones(_BLOCK, _BLOCK, dtype=torch.bool, device=x.device).tril()
    parts = []
    for first in range(0, x.shape[1], _BLOCK):
        apart = rows[:, first : first + _BLOCK] @ columns[:, :, first:]
        own = apart.shape[1]
        apart[:, :, :own].masked_fill_(not_later[:own, :own], torch.inf)
        parts.append(apart.amin(dim=-1))
    return torch.cat(parts, dim=1) + squares[..., 0]
