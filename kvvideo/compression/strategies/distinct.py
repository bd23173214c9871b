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
"""Steps from a head's mean to the component farthest from it: the largest number of eight bits with a sign."""

_TILE = 512
"""Tokens on each side of a tile of the n x n distances: 1 MiB of int32, which fits a core's cache."""

_FAR = 1 << 29
"""More than the squared distance of any two vectors of up to a thousand dimensions, in steps."""


class Distinct(ScorePolicy):
    """Score ``s_t = min over u > t of ||k_u - k_t||^2``: the distance to the nearest key of any newer token. Ours.

    Keys are compared with the rotary embedding taken off, for that makes the same picture look different
    at each time. A query tells two keys apart by no more than its own length times their distance, so an
    older token with a newer one close by is not missed. What nothing repeats outlives any amount of
    what is repeated, whatever its age. No queries are needed: nothing is computed between compactions.

    Keys are rounded to eight bits for it. Sums of products of such numbers are exact, so all machines
    find the same distances, and those that multiply small integers faster find them faster.

    Reads ``keys`` (``[kv_heads, n, head_dim]``), ``positions`` and ``places`` (``[kv_heads, n]``) and ``rotary``.
    """

    summary = "drops what a newer token repeats; what was shown once stays"
    source = "kvvideo; related: KeyDiff (arXiv 2504.15364), R-KV (2505.24133), InfiniPot-V (2506.15745)"
    heads_alike = True
    recent_share: ClassVar[float] = 0.1  # our choice

    def score(self, live: LiveCache) -> Tensor:
        """Return the squared distances in steps, ``float32 [kv_heads, n]``; infinite for the newest token."""
        if usable(live.keys):
            from kvvideo.compression.kernels.distance import nearest_newer, unrotated

            frequencies, axis = live.rotary.frequencies, live.rotary.axis
            return nearest_newer(in_steps(unrotated(live.keys, live.positions, live.places, frequencies, axis)))
        axes = places.axes(live.positions, live.places)
        return distance_to_newer(in_steps(live.rotary.unrotate(live.keys, axes)))


def in_steps(x: Tensor) -> Tensor:
    """Return vectors ``float32 [heads, n, d]`` as ``int8``: the steps of each component from its mean over the head.

    A head's step is its largest such difference divided by ``STEPS``. Taking the mean off leaves distances as they
    are, and Qwen2.5's keys have a large one. ``x`` is overwritten.
    """
    x = x - x.mean(dim=1, keepdim=True)
    every = x.flatten(1)
    step = torch.maximum(every.amax(dim=1), -every.amin(dim=1)).clamp(min=1e-30) / STEPS
    return x.div_(step[:, None, None]).round_().to(torch.int8)


def distance_to_newer(steps: Tensor) -> Tensor:
    """Return the squared distance of each vector of ``int8 [heads, n, d]`` to the nearest later one.

    The distances are in squared steps, ``float32 [heads, n]``.

    Exact for up to 256 dimensions; infinite for the last.
    """
    heads, n, _ = steps.shape
    small = steps.device.type == "cpu" and torch.cpu._is_vnni_supported()  # noqa: SLF001  (nothing public says it)
    x = steps if small else steps.float()
    number = torch.int32 if small else torch.float32
    squares = steps.float().square_().sum(dim=-1).to(number)
    # Tiles of one size: oneDNN compiles a kernel for each size it meets.
    side = min(n, _TILE)
    x, padded = pad(x, (0, 0, 0, -n % side)), pad(squares, (0, -n % side), value=_FAR)
    nearest = torch.full_like(padded, _FAR)
    apart = torch.empty(side, side, dtype=number, device=x.device)
    not_later = _not_later(side, number, x.device)
    product = torch._int_mm if small else torch.mm  # noqa: SLF001  (nothing public multiplies int8)
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
    """Return what to add to a tile on the diagonal; ``masked_fill_`` takes longer than all else."""
    return torch.full((side, side), _FAR, dtype=dtype, device=device).tril()
