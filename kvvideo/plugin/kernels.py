"""Read and write pages of ``[block, kv_head, slot, key ‖ value]`` and side state, by Triton kernels for GPUs.

One program each for a KV head of a layer. Numbers that vary along a stream are not specialised on: Triton would stop
the stream for a second whenever one is the first that 16 divides. The reference is ``PlainPages``, which does the same
in torch on all other pages.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kvvideo.compression import places
from kvvideo.compression.rotary import Rotary
from kvvideo.plugin.pages import Pages

_TILE = 32
"""Tokens that one program reads or writes."""

_PART = 1 << 26
"""Bytes of keys and values that are read at a time, if it is more than one layer."""


@triton.jit(do_not_specialize=["n"])
def _read(
    caches,
    states,
    blocks,
    keys,
    values,
    rows,
    n,
    page_block,
    page_head,
    page_slot,
    state_block,
    state_row,
    size: tl.constexpr,
    slots: tl.constexpr,
    with_values: tl.constexpr,
    count: tl.constexpr,
    tile: tl.constexpr,
):
    head, layer = tl.program_id(1), tl.program_id(2)
    heads, layers = tl.num_programs(1), tl.num_programs(2)
    cache = tl.load(caches + layer).to(tl.pointer_type(keys.dtype.element_ty))
    state = tl.load(states + layer).to(tl.pointer_type(tl.int32))
    token = tl.program_id(0) * tile + tl.arange(0, tile)
    inside, dim = token < n, tl.arange(0, size)
    block, slot = tl.load(blocks + token // slots, mask=inside, other=0), token % slots
    source = cache + (block * page_block + head * page_head + slot * page_slot)[:, None] + dim[None, :]
    own = layer * heads + head
    target = (own * n + token)[:, None] * size + dim[None, :]
    tl.store(keys + target, tl.load(source, mask=inside[:, None]), mask=inside[:, None])
    if with_values:
        tl.store(values + target, tl.load(source + size, mask=inside[:, None]), mask=inside[:, None])
    for row in tl.static_range(count):
        word = tl.load(state + block * state_block + row * state_row + head * slots + slot, mask=inside)
        tl.store(rows + (row * layers * heads + own) * n + token, word, mask=inside)


@triton.jit(do_not_specialize=["n", "budget"])
def _write(
    caches,
    states,
    blocks,
    kept,
    keys,
    values,
    rows,
    moves,
    frequencies,
    n,
    budget,
    page_block,
    page_head,
    page_slot,
    state_block,
    state_row,
    half: tl.constexpr,
    slots: tl.constexpr,
    count: tl.constexpr,
    moved_row: tl.constexpr,
    tile: tl.constexpr,
):
    head, layer = tl.program_id(1), tl.program_id(2)
    heads, layers = tl.num_programs(1), tl.num_programs(2)
    cache = tl.load(caches + layer).to(tl.pointer_type(keys.dtype.element_ty))
    state = tl.load(states + layer).to(tl.pointer_type(tl.int32))
    place = tl.program_id(0) * tile + tl.arange(0, tile)
    inside, pair = place < budget, tl.arange(0, half)
    own = layer * heads + head
    token = tl.load(kept + own * budget + place, mask=inside, other=0)
    block, slot = tl.load(blocks + place // slots, mask=inside, other=0), place % slots
    source = (own * n + token)[:, None] * (2 * half) + pair[None, :]
    target = cache + (block * page_block + head * page_head + slot * page_slot)[:, None] + pair[None, :]
    low = tl.load(keys + source, mask=inside[:, None], other=0.0)
    high = tl.load(keys + source + half, mask=inside[:, None], other=0.0)
    if moved_row >= 0:
        by = tl.load(moves + own * budget + place, mask=inside, other=0)
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
    for row in tl.static_range(count):
        word = tl.load(rows + (row * layers * heads + own) * n + token, mask=inside, other=0)
        if row == moved_row:
            word += by
        tl.store(state + block * state_block + row * state_row + head * slots + slot, word, mask=inside)


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["slots_of"])
def _note(
    states,
    slots_of,
    words,
    tokens,
    state_block,
    state_row,
    known: tl.constexpr,
    count: tl.constexpr,
    heads: tl.constexpr,
    slots: tl.constexpr,
    tile: tl.constexpr,
):
    state = tl.load(states + tl.program_id(1)).to(tl.pointer_type(tl.int32))
    token = tl.program_id(0) * tile + tl.arange(0, tile)
    where = tl.load(slots_of + token, mask=token < tokens, other=0)
    inside = (token < tokens) & (where >= 0)
    at = state + (where // slots) * state_block + where % slots
    for row in tl.static_range(count):
        word = tl.load(words + token * known + row, mask=inside & (row < known), other=0)
        for head in tl.static_range(heads):
            tl.store(at + row * state_row + head * slots, word, mask=inside)


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["slots_of", "rows"])
def _add_up(
    caches,
    like,
    slots_of,
    rows,
    frequencies,
    axis,
    sums,
    tokens,
    page_block,
    page_head,
    page_slot,
    bits: tl.constexpr,
    half: tl.constexpr,
    slots: tl.constexpr,
    tile: tl.constexpr,
):
    head, layer, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    cache = tl.load(caches + layer).to(tl.pointer_type(like.dtype.element_ty))
    pair = tl.arange(0, half)
    frequency = tl.load(frequencies + pair)[None, :]
    own_axis = tl.load(axis + pair)[None, :]
    low_sum, high_sum = tl.zeros([half], tl.float32), tl.zeros([half], tl.float32)
    # One program goes through all tokens in order, so that a sum is the same whenever it is made.
    for first in range(0, tokens, tile):
        token = first + tl.arange(0, tile)
        inside = token < tokens
        where = tl.load(slots_of + token, mask=inside, other=0)
        position = tl.load(rows + 2 * token, mask=inside, other=0)[:, None]
        place = tl.load(rows + 2 * token + 1, mask=inside, other=0)
        video = inside & (place > 0)
        offset = tl.maximum(place - 1, 0)[:, None]
        base = position - (offset >> 2 * bits)
        mask = (1 << bits) - 1
        down, across = base + (offset >> bits & mask), base + (offset & mask)
        there = tl.where(own_axis == 0, position, tl.where(own_axis == 1, down, across))
        angle = there.to(tl.float32) * frequency
        cos, sin = tl.cos(angle), tl.sin(angle)
        source = (where // slots * page_block + head * page_head + where % slots * page_slot)[:, None] + pair[None, :]
        low = tl.load(cache + source, mask=video[:, None], other=0.0).to(tl.float32)
        high = tl.load(cache + source + half, mask=video[:, None], other=0.0).to(tl.float32)
        low_sum += tl.sum(low * cos + high * sin, 0)
        high_sum += tl.sum(high * cos - low * sin, 0)
    own = sums + (layer * heads + head) * 2 * half + pair
    tl.store(own, tl.load(own) + low_sum)
    tl.store(own + half, tl.load(own + half) + high_sum)


class KernelPages(Pages):
    """Pages of ``[block, kv_head, slot, key ‖ value]`` on a GPU.

    Args:
        caches: of each layer, ``[blocks, heads, slots, 2 * d]``; ``d`` is a power of two. They must outlive this.
        states: of each layer, the side state behind them, ``int32 [blocks, rows, heads, slots]``.
    """

    def __init__(self, caches: Sequence[torch.Tensor], states: Sequence[torch.Tensor]) -> None:
        self._cache, self._state, self.layers = caches[0], states[0], len(caches)
        device = self._cache.device
        # Addresses travel as numbers.
        self._caches, self._states = (
            torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64).to(device)
            for tensors in (caches, states)
        )
        self._strides = (*self._cache.stride()[:3], *self._state.stride()[:2])

    reads_keys = True

    def _at_once(self, n: int) -> int:
        _, heads, _, width = self._cache.shape
        size: int = heads * n * width * self._cache.element_size()
        return max(1, _PART // size)

    def read(
        self, layers: range, blocks: torch.Tensor, n: int, values: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read by one kernel, a program for each KV head and ``_TILE`` tokens."""
        (_, heads, slots, size), rows = self._cache.shape, self._state.shape[1]
        whole = len(layers) * heads
        keys = self._cache.new_empty(whole, n, size // 2)
        held = torch.empty_like(keys) if values else keys[:, :0]
        words = self._state.new_empty(rows, whole, n)
        _read[(triton.cdiv(n, _TILE), heads, len(layers))](
            self._caches[layers.start :],
            self._states[layers.start :],
            blocks,
            keys,
            held,
            words,
            n,
            *self._strides,
            size // 2,
            slots,
            values,
            rows,
            _TILE,
        )
        return keys, held, words

    def write(
        self,
        layers: range,
        blocks: torch.Tensor,
        kept: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: torch.Tensor,
        moves: torch.Tensor | None,
        rotary: Rotary,
        moved_row: int,
    ) -> None:
        """Gather, rotate and scatter by one kernel, a program for each KV head and ``_TILE`` survivors."""
        (_, heads, slots, size), n, budget = self._cache.shape, keys.shape[1], kept.shape[1]
        frequencies, kept = rotary.frequencies, kept.contiguous()
        moves = moves if moves is None else moves.to(torch.int32).contiguous()
        _write[(triton.cdiv(budget, _TILE), heads, len(layers))](
            self._caches[layers.start :],
            self._states[layers.start :],
            blocks,
            kept,
            keys,
            values,
            rows,
            kept if moves is None else moves,
            frequencies,
            n,
            budget,
            *self._strides,
            size // 4,
            slots,
            len(rows),
            -1 if moves is None else moved_row,
            _TILE,
        )

    def add_up(
        self,
        layers: range,
        tokens: slice,
        slots: torch.Tensor,
        rows: torch.Tensor,
        keys: Sequence[torch.Tensor],
        rotary: Rotary,
        sums: torch.Tensor,
    ) -> None:
        """Add up what the pages hold by one kernel, a program for each KV head of each layer."""
        del keys
        (_, heads, size, width), own = self._cache.shape, slots[tokens]
        _add_up[(heads, len(layers))](
            self._caches[layers.start :],
            self._cache,
            own,
            rows[tokens].contiguous(),
            rotary.frequencies,
            rotary.axis,
            sums,
            len(own),
            *self._strides[:3],
            places.BITS,
            width // 4,
            size,
            _TILE,
        )

    def note(self, slots: torch.Tensor, words: torch.Tensor) -> None:
        """Write by one kernel, a program for each layer and ``tile`` tokens."""
        _, count, heads, size = self._state.shape
        tile = 64
        _note[(triton.cdiv(len(slots), tile), len(self._states))](
            self._states,
            slots,
            words.contiguous(),
            len(slots),
            *self._strides[3:],
            words.shape[1],
            count,
            heads,
            size,
            tile,
        )
