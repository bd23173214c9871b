"""The best-scored tokens of each head, in their order, in one launch."""

import torch
import triton
import triton.language as tl
from torch import Tensor

LIMIT = 1 << 15
"""Most tokens that one program can choose from."""


@triton.jit(do_not_specialize=["n", "budget", "sink", "recent", "stride"])
def _choose(scores, kept, n, budget, sink, recent, stride, size: tl.constexpr):
    head = tl.program_id(0)
    index = tl.arange(0, size)
    score = tl.load(scores + head * stride + index, mask=index < n, other=-float("inf")).to(tl.float32)
    score = tl.where((index < sink) | ((index >= n - recent) & (index < n)), float("inf"), score)
    # Floats in the order of integers.
    bits = score.to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    order = tl.where(index < n, order, -(1 << 40))
    # The largest bound that at least ``budget`` reach, bit by bit.
    low = tl.full((), -(1 << 31), tl.int64)
    for bit in range(32):
        middle = low + (tl.full((), 1, tl.int64) << (31 - bit))
        low = tl.where(tl.sum((order >= middle).to(tl.int32), axis=0) >= budget, middle, low)
    above, equal = (order > low).to(tl.int32), (order == low).to(tl.int32)
    room = budget - tl.sum(above, axis=0)
    chosen = (above > 0) | ((equal > 0) & (tl.cumsum(equal, axis=0) <= room))
    place = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    tl.store(kept + head * budget + place, index.to(tl.int64), mask=chosen)


def choose(scores: Tensor, budget: int, sink: int, recent: int) -> Tensor:
    """Return the first ``sink``, the last ``recent`` and the best-scored other tokens, ``int64 [heads, budget]``.

    Indices are ascending. Of equal scores the older ones are taken.

    Args:
        scores: ``[heads, n]``; ``n`` up to ``LIMIT``.
        budget: tokens to keep.
        sink: first tokens to keep, and
        recent: last tokens to keep, whatever their score.
    """
    (heads, n), scores = scores.shape, scores.contiguous()
    kept = torch.empty(heads, budget, dtype=torch.int64, device=scores.device)
    size = triton.next_power_of_2(n)
    _choose[(heads,)](
        scores, kept, n, budget, sink, recent, scores.stride(0), size, num_warps=max(4, min(16, size // 512))
    )
    return kept
