"""The distance of each key to the nearest newer one, a tile at a time, so that no row of distances is ever held."""

import torch
import triton
import triton.language as tl
from torch import Tensor

# As in kvvideo.compression.places.
_BITS = tl.constexpr(10)
_MASK = tl.constexpr((1 << 10) - 1)


@triton.jit(do_not_specialize=["n", "k_head", "p_head", "w_head"])
def _unrotate(
    keys,
    positions,
    places,
    frequencies,
    axis,
    plain,
    n,
    k_head,
    k_stride,
    p_head,
    w_head,
    half: tl.constexpr,
    rows: tl.constexpr,
):
    head = tl.program_id(1)
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    pair = tl.arange(0, half)
    inside = row < n
    time = tl.load(positions + head * p_head + row, mask=inside, other=0)
    place = tl.maximum(tl.load(places + head * w_head + row, mask=inside, other=0) - 1, 0)
    base = time - (place >> (2 * _BITS))
    down, across = base + ((place >> _BITS) & _MASK), base + (place & _MASK)
    which = tl.load(axis + pair)[None, :]
    at = tl.where(which == 0, time[:, None], tl.where(which == 1, down[:, None], across[:, None]))
    angle = at.to(tl.float32) * tl.load(frequencies + pair)[None, :]
    cos, sin = tl.cos(angle), tl.sin(angle)
    source = keys + head * k_head + row[:, None] * k_stride + pair[None, :]
    low = tl.load(source, mask=inside[:, None], other=0.0).to(tl.float32)
    high = tl.load(source + half, mask=inside[:, None], other=0.0).to(tl.float32)
    target = plain + (head * n + row)[:, None] * (2 * half) + pair[None, :]
    tl.store(target, low * cos + high * sin, mask=inside[:, None])
    tl.store(target + half, high * cos - low * sin, mask=inside[:, None])


def unrotated(keys: Tensor, positions: Tensor, places: Tensor, frequencies: Tensor, axis: Tensor) -> Tensor:
    """Return ``keys`` without the rotary embedding, ``float32 [heads, n, d]``.

    Args:
        keys: ``[heads, n, d]``; ``d / 2`` is a power of two.
        positions: temporal positions, ``int32 [heads, n]``.
        places: ``int32 [heads, n]``.
        frequencies: as a ``Rotary`` has them, ``float32 [d / 2]``.
        axis: as a ``Rotary`` has them, ``int64 [d / 2]``.
    """
    heads, n, size = keys.shape
    plain = torch.empty(heads, n, size, dtype=torch.float32, device=keys.device)
    rows = 32
    _unrotate[(triton.cdiv(n, rows), heads)](
        keys,
        positions,
        places,
        frequencies,
        axis,
        plain,
        n,
        keys.stride(0),
        keys.stride(1),
        positions.stride(0),
        places.stride(0),
        size // 2,
        rows,
    )
    return plain


@triton.jit(do_not_specialize=["n"])
def _nearest(steps, nearest, n, size: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr):
    head = tl.program_id(1)
    # The first rows have most to do: they begin first.
    start = tl.program_id(0) * rows
    row, dim = start + tl.arange(0, rows), tl.arange(0, size)
    # Half precision holds all of them exactly, and sums are of single precision, which holds those.
    own = tl.load(steps + (head * n + row)[:, None] * size + dim, mask=(row < n)[:, None], other=0).to(tl.float16)
    best = tl.full((rows,), float("inf"), tl.float32)
    for first in range(start, n, columns):
        column = first + tl.arange(0, columns)
        there = (column < n)[:, None]
        other = tl.load(steps + (head * n + column)[:, None] * size + dim, mask=there, other=0).to(tl.float16)
        wide = other.to(tl.float32)
        apart = tl.sum(wide * wide, axis=1)[None, :] - 2 * tl.dot(own, tl.trans(other))
        later = (column[None, :] > row[:, None]) & (column < n)[None, :]
        best = tl.minimum(best, tl.min(tl.where(later, apart, float("inf")), axis=1))
    wide = own.to(tl.float32)
    tl.store(nearest + head * n + row, best + tl.sum(wide * wide, axis=1), mask=row < n)


def nearest_newer(steps: Tensor) -> Tensor:
    """Return the squared distance of each vector of ``int8 [heads, n, d]`` to the nearest later one.

    The distances are ``float32 [heads, n]``. Exact for up to 256 dimensions; infinite for the last.
    """
    heads, n, size = steps.shape
    steps = steps.contiguous()
    nearest = torch.empty(heads, n, dtype=torch.float32, device=steps.device)
    rows = columns = 64
    _nearest[(triton.cdiv(n, rows), heads)](steps, nearest, n, size, rows, columns)
    return nearest
