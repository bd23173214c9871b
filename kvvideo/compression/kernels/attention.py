"""The attention each token receives, from the log-sum-exp of each query, so that no row of it is ever held."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _logits(
    queries,
    keys,
    row,
    column,
    head,
    count,
    group: tl.constexpr,
    n,
    last,
    scale,
    q_stride,
    q_head,
    k_head,
    k_stride,
    size: tl.constexpr,
    exact: tl.constexpr,
):
    """Return the logits of rows (a query head of the group and a query each) to columns (keys).

    They are -inf where there is none, or the key is in the future.
    """
    dim = tl.arange(0, size)
    query, member = row % count, row // count
    inside = row < count * group
    q = tl.load(
        queries + query[:, None] * q_stride + (head * group + member)[:, None] * q_head + dim,
        mask=inside[:, None],
        other=0.0,
    )
    k = tl.load(keys + head * k_head + column[:, None] * k_stride + dim, mask=(column < n)[:, None], other=0.0)
    q = (q.to(tl.float32) * scale).to(k.dtype)
    found = tl.dot(q, tl.trans(k), input_precision="ieee" if exact else "tf32")
    seen = (column[None, :] <= last + query[:, None]) & (column < n)[None, :] & inside[:, None]
    return tl.where(seen, found, -float("inf"))


@triton.jit(do_not_specialize=["count", "n", "last"])
def _log_sums(
    queries,
    keys,
    sums,
    count,
    group: tl.constexpr,
    n,
    last,
    scale,
    q_stride,
    q_head,
    k_head,
    k_stride,
    size: tl.constexpr,
    exact: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    head = tl.program_id(1)
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    most = tl.full((rows,), -float("inf"), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    for first in range(0, n, columns):
        found = _logits(
            queries,
            keys,
            row,
            first + tl.arange(0, columns),
            head,
            count,
            group,
            n,
            last,
            scale,
            q_stride,
            q_head,
            k_head,
            k_stride,
            size,
            exact,
        )
        now = tl.maximum(most, tl.max(found, axis=1))
        # Of a row that has seen nothing yet all are -inf, whose difference would be no number.
        base = tl.where(now == -float("inf"), 0.0, now)
        total = total * tl.exp(most - base) + tl.sum(tl.exp(found - base[:, None]), axis=1)
        most = now
    tl.store(sums + head * count * group + row, most + tl.log(total), mask=row < count * group)


@triton.jit(do_not_specialize=["count", "n", "last"])
def _received(
    queries,
    keys,
    sums,
    received,
    count,
    group: tl.constexpr,
    n,
    last,
    scale,
    q_stride,
    q_head,
    k_head,
    k_stride,
    size: tl.constexpr,
    exact: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    head = tl.program_id(1)
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    total = tl.zeros((columns,), tl.float32)
    for first in range(0, count * group, rows):
        row = first + tl.arange(0, rows)
        found = _logits(
            queries,
            keys,
            row,
            column,
            head,
            count,
            group,
            n,
            last,
            scale,
            q_stride,
            q_head,
            k_head,
            k_stride,
            size,
            exact,
        )
        known = tl.load(sums + head * count * group + row, mask=row < count * group, other=0.0)
        total += tl.sum(tl.exp(found - known[:, None]), axis=0)
    tl.store(received + head * n + column, total, mask=column < n)


def attention_received(queries: Tensor, keys: Tensor, scale: float, following: int = 0) -> Tensor:
    """Return the attention each token receives from ``queries``, summed over all heads, ``float32 [heads, n]``.

    Args:
        queries: ``[q, q_heads, d]``, of the last ``q`` tokens before the ``following`` last ones.
        keys: ``[heads, n, d]``; ``d`` is a power of two of at least 16.
        scale: of the logits.
        following: tokens after those of ``queries``.
    """
    (heads, n, size), count = keys.shape, len(queries)
    group = queries.shape[1] // heads
    queries, keys = queries.contiguous(), keys.contiguous()
    sums = torch.empty(heads, group * count, dtype=torch.float32, device=keys.device)
    received = torch.empty(heads, n, dtype=torch.float32, device=keys.device)
    exact = keys.dtype == torch.float32
    shared = (
        count,
        group,
        n,
        n - following - count,
        scale,
        queries.stride(0),
        queries.stride(1),
        keys.stride(0),
        keys.stride(1),
        size,
        exact,
    )
    # Few rows a program, for there are few of them and each runs over all keys.
    _log_sums[(triton.cdiv(group * count, 16), heads)](queries, keys, sums, *shared, rows=16, columns=128)
    _received[(triton.cdiv(n, 64), heads)](queries, keys, sums, received, *shared, rows=64, columns=64)
    return received
