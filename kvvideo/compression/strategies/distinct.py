"""kvvideo's own: what is shown again can go, what was shown once stays."""

from functools import cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from kvvideo.compression import places
from kvvideo.compression.kernels import usable
from kvvideo.compression.policy import LiveCache, ScorePolicy

STEPS = 127
"""Steps from a head's mean to the component farthest from it, so that a number of steps fits eight bits."""

_TILE = 512
"""Tokens on each side of a tile of the n x n distances, so that one fits a cache."""

_FAR = 1 << 29
"""More than the squared distance of any two vectors of up to a thousand dimensions, in steps."""


class Distinct(ScorePolicy):
    """Scores a token by how far its key is from the nearest key of any newer token.

    Keys are compared with the rotary embedding taken off, for that makes the same picture look different
    at each time. A query tells two keys apart by no more than its own length times their distance, so an
    older token with a newer one close by is not missed. What nothing repeats outlives any amount of
    what is repeated, whatever its age. No queries are needed: nothing is computed between compactions.

    Keys are rounded to eight bits for it. Sums of products of such numbers are exact, so all machines
    find the same distances, and those that multiply small integers faster find them faster.
    """

    summary = "drops what a newer token repeats; what was shown once stays"
    source = "kvvideo; related: KeyDiff (arXiv 2504.15364), R-KV (2505.24133), InfiniPot-V (2506.15745)"
    heads_alike = True
    recent_share: ClassVar[float] = 0.1

    def score(self, live: LiveCache) -> Tensor:
        if usable(live.keys):
            from kvvideo.compression.kernels.distance import nearest_newer, turned_back

            frequencies, axis = live.rotary.frequencies, live.rotary.axis
            return nearest_newer(in_steps(turned_back(live.keys, live.positions, live.places, frequencies, axis)))
        axes = places.axes(live.positions, live.places)
        return distance_to_newer(in_steps(live.rotary.back(live.keys, axes)))


def in_steps(x: Tensor) -> Tensor:
    """Vectors ``float32 [heads, n, d]`` as ``int8``: how many steps each component lies from its mean over the head.

    A head's step is as large as ``STEPS`` of them reach its farthest component. Distances do not see the
    mean, and Qwen2.5's keys have a large one.
    """
    x = x - x.mean(dim=1, keepdim=True)
    every = x.flatten(1)
    step = torch.maximum(every.amax(dim=1), -every.amin(dim=1)).clamp(min=1e-30) / STEPS
    return x.div_(step[:, None, None]).round_().to(torch.int8)


def distance_to_newer(steps: Tensor) -> Tensor:
    """Squared distance of each vector of ``int8 [heads, n, d]`` to the nearest later one, ``float32 [heads, n]``.

    Exact for up to 256 dimensions; infinite for the last.
    """
    heads, n, _ = steps.shape
    small = steps.device.type == "cpu" and torch.cpu._is_vnni_supported()
    x = steps if small else steps.float()
    number = torch.int32 if small else torch.float32
    squares = steps.float().square_().sum(dim=-1).to(number)
    # Tiles of one size: oneDNN compiles a kernel for each size it meets.
    side = min(n, _TILE)
    x, padded = pad(x, (0, 0, 0, -n % side)), pad(squares, (0, -n % side), value=_FAR)
    nearest = torch.full_like(padded, _FAR)
    apart = torch.empty(side, side, dtype=number, device=x.device)
    not_later = _not_later(side, number, x.device)
    product = torch._int_mm if small else torch.mm
    for head in range(heads):
        for newer in range(0, n, side):
            columns = x[head, newer : newer + side].T
            for older in range(0, newer + side, side):
                rows = x[head, older : older + side]
                product(rows, columns, out=apart)
                torch.add(padded[head, newer : newer + side], apart, alpha=-2, out=apart)
                if older == newer:
                    apart.add_(not_later)
                best = nearest[head, older : older + side]
                torch.minimum(best, apart.amin(dim=-1), out=best)
    found = (nearest[:, :n] + squares).float()
    found[:, -1] = torch.inf
    return found


@cache
def _not_later(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to a tile on the diagonal, for ``masked_fill_`` takes longer than all else."""
    return torch.full((side, side), _FAR, dtype=dtype, device=device).tril()
