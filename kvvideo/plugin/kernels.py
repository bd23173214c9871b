"""Reading and writing pages of ``[block, kv_head, slot, key ‖ value]`` and side state, as Triton kernels for GPUs.

The reference of each is what ``plugin.attention`` does in torch on all other pages.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

_TILE = 32


@triton.jit
def _read(
    cache, state, blocks, keys, values, rows, n, page_block, page_head, page_slot, state_block, state_row,
    size: tl.constexpr, slots: tl.constexpr, with_values: tl.constexpr, count: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    token = tl.program_id(0) * tile + tl.arange(0, tile)
    inside, dim = token < n, tl.arange(0, size)
    block, slot = tl.load(blocks + token // slots, mask=inside, other=0), token % slots
    source = cache + (block * page_block + head * page_head + slot * page_slot)[:, None] + dim[None, :]
    target = (head * n + token)[:, None] * size + dim[None, :]
    tl.store(keys + target, tl.load(source, mask=inside[:, None]), mask=inside[:, None])
    if with_values:
        tl.store(values + target, tl.load(source + size, mask=inside[:, None]), mask=inside[:, None])
    heads = tl.num_programs(1)
    for row in tl.static_range(count):
        word = tl.load(state + block * state_block + row * state_row + head * slots + slot, mask=inside)
        tl.store(rows + (row * heads + head) * n + token, word, mask=inside)


def read_pages(
    cache: torch.Tensor, state: torch.Tensor, blocks: torch.Tensor, n: int, values: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values (``[heads, n, d]``) and side state (``int32 [rows, heads, n]``) of ``n`` tokens in ``blocks``.

    Args:
        cache: ``[blocks, heads, slots, 2 * d]``; ``d`` is a power of two.
        state: ``int32 [blocks, rows, heads, slots]``.
        blocks: ``int64``, in order.
        n: tokens to read.
        values: whether to read values; without, there are none.
    """
    heads, slots, size = cache.shape[1], cache.shape[2], cache.shape[3] // 2
    keys = torch.empty(heads, n, size, dtype=cache.dtype, device=cache.device)
    held = torch.empty_like(keys) if values else keys[:, :0]
    rows = torch.empty(state.shape[1], heads, n, dtype=torch.int32, device=cache.device)
    _read[(triton.cdiv(n, _TILE), heads)](
        cache, state, blocks, keys, held, rows, n, cache.stride(0), cache.stride(1), cache.stride(2), state.stride(0),
        state.stride(1), size, slots, values, state.shape[1], _TILE,
    )  # fmt: skip
    return keys, held, rows


@triton.jit
def _write(
    cache, state, blocks, kept, keys, values, rows, moves, frequencies, n, budget, page_block, page_head, page_slot,
    state_block, state_row, half: tl.constexpr, slots: tl.constexpr, count: tl.constexpr, moved_row: tl.constexpr,
    tile: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1)
    place = tl.program_id(0) * tile + tl.arange(0, tile)
    inside, pair = place < budget, tl.arange(0, half)
    token = tl.load(kept + head * budget + place, mask=inside, other=0)
    block, slot = tl.load(blocks + place // slots, mask=inside, other=0), place % slots
    source = (head * n + token)[:, None] * (2 * half) + pair[None, :]
    target = cache + (block * page_block + head * page_head + slot * page_slot)[:, None] + pair[None, :]
    low = tl.load(keys + source, mask=inside[:, None], other=0.0)
    high = tl.load(keys + source + half, mask=inside[:, None], other=0.0)
    if moved_row >= 0:
        by = tl.load(moves + head * budget + place, mask=inside, other=0)
        # In float64, for a move may be of many positions; then the part of a turn that is left.
        turns = by.to(tl.float64)[:, None] * tl.load(frequencies + pair).to(tl.float64)[None, :] / 6.283185307179586
        angle = ((turns - tl.floor(turns)) * 6.283185307179586).to(tl.float32)
        cos, sin = tl.cos(angle), tl.sin(angle)
        a, b = low.to(tl.float32), high.to(tl.float32)
        low, high = (a * cos - b * sin).to(low.dtype), (b * cos + a * sin).to(high.dtype)
    tl.store(target, low, mask=inside[:, None])
    tl.store(target + half, high, mask=inside[:, None])
    tl.store(target + 2 * half, tl.load(values + source, mask=inside[:, None]), mask=inside[:, None])
    tl.store(target + 3 * half, tl.load(values + source + half, mask=inside[:, None]), mask=inside[:, None])
    heads = tl.num_programs(1)
    for row in tl.static_range(count):
        word = tl.load(rows + (row * heads + head) * n + token, mask=inside, other=0)
        if row == moved_row:
            word += by
        tl.store(state + block * state_block + row * state_row + head * slots + slot, word, mask=inside)


def write_survivors(
    cache: torch.Tensor, state: torch.Tensor, blocks: torch.Tensor, kept: torch.Tensor, keys: torch.Tensor,
    values: torch.Tensor, rows: torch.Tensor, moves: torch.Tensor | None, frequencies: torch.Tensor, moved_row: int,
) -> None:  # fmt: skip
    """Gather the tokens that are ``kept``, turn their keys, and put them in order into ``blocks``, all in one pass.

    Args:
        cache, state, blocks: as of ``read_pages``; ``blocks`` are those to fill.
        kept: ``int64 [heads, budget]``, of the ``n`` tokens that were read.
        keys, values, rows: what ``read_pages`` gave.
        moves: by how many positions each survivor moves, ``[heads, budget]``; None if none does.
        frequencies: of the rotary embedding, ``float32 [d / 2]``.
        moved_row: the row of side state that ``moves`` are added to.
    """
    heads, slots, half = cache.shape[1], cache.shape[2], cache.shape[3] // 4
    n, budget = keys.shape[1], kept.shape[1]
    kept, moves = kept.contiguous(), moves if moves is None else moves.to(torch.int32).contiguous()
    _write[(triton.cdiv(budget, _TILE), heads)](
        cache, state, blocks, kept, keys, values, rows, kept if moves is None else moves, frequencies, n, budget,
        cache.stride(0), cache.stride(1), cache.stride(2), state.stride(0), state.stride(1), half, slots, len(rows),
        -1 if moves is None else moved_row, _TILE,
    )  # fmt: skip


@triton.jit
def _note(
    bases, slots_of, words, tokens, state_block, state_row, known: tl.constexpr, count: tl.constexpr,
    heads: tl.constexpr, slots: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    state = tl.load(bases + tl.program_id(1)).to(tl.pointer_type(tl.int32))
    token = tl.program_id(0) * tile + tl.arange(0, tile)
    where = tl.load(slots_of + token, mask=token < tokens, other=0)
    inside = (token < tokens) & (where >= 0)
    at = state + (where // slots) * state_block + where % slots
    for row in tl.static_range(count):
        word = tl.load(words + token * known + row, mask=inside & (row < known), other=0)
        for head in tl.static_range(heads):
            tl.store(at + row * state_row + head * slots, word, mask=inside)


class Notes:
    """Side state of many layers, whose pages are all alike, so that one launch writes to all of them.

    Args:
        states: of each layer, ``int32 [blocks, rows, heads, slots]``. They must outlive this.
    """

    def __init__(self, states: Sequence[torch.Tensor]) -> None:
        (self.first,) = states[:1]
        # Addresses travel as numbers, and wrap around as int64 does.
        addresses = torch.tensor([state.data_ptr() for state in states], dtype=torch.int64)
        self.bases = addresses.to(self.first.device)

    def write(self, slots: torch.Tensor, words: torch.Tensor) -> None:
        """Note ``words`` (``int32 [tokens, known]``) of tokens in ``slots``, alike in all heads; other rows: 0."""
        _, count, heads, size = self.first.shape
        tile = 64
        grid: Any = (triton.cdiv(len(slots), tile), len(self.bases))
        _note[grid](
            self.bases, slots, words, len(slots), self.first.stride(0), self.first.stride(1), words.shape[1], count,
            heads, size, tile,
        )  # fmt: skip
