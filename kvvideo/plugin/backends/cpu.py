"""vLLM's CPU attention, whose kernels keep keys packed for the instruction set at hand."""

from functools import cache
from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from kvvideo.errors import EngineError
from kvvideo.plugin.attention import BoundedBackend, BoundedBuilder, BoundedImpl

Axes = tuple[tuple[int, int], ...]
"""Sizes and strides that an axis falls into, the outermost first."""


@cache
def _unpacking(block_size: int, head_dim: int, dtype: torch.dtype, isa: str) -> tuple[tuple[Axes, Axes], ...]:
    """Return how slots and dimensions lie in a raw block of keys, and in one of values.

    Writing each element's index, seven bits at a time so that every dtype holds it exactly, and reading
    the block raw tells for any ISA. All of them pack by splitting axes and changing their order.

    Raises:
        EngineError: if one does otherwise.
    """
    count = block_size * head_dim
    index = torch.arange(count)
    raw = torch.zeros(2, count, dtype=torch.int64)
    for digit in range(3):
        part = ((index >> 7 * digit) & 127).view(block_size, 1, head_dim).to(dtype)
        block = torch.zeros(2, 1, 1, block_size, head_dim, dtype=dtype)
        _store(part, part.clone(), block[0], block[1], torch.arange(block_size), isa)
        raw += block.flatten(1).long() << 7 * digit
    places = torch.empty_like(raw).scatter_(1, raw, index.expand(2, -1)).view(2, block_size, head_dim)
    found = tuple((_axes(side[:, 0].tolist()), _axes(side[0].tolist())) for side in places)
    for side, (slots, dims) in zip(places, found, strict=True):
        made = index.as_strided([n for n, _ in slots + dims], [stride for _, stride in slots + dims])
        if not torch.equal(made.reshape(side.shape), side):
            raise EngineError(f"kvvideo does not know how vLLM packs {dtype} keys and values for {isa}")
    return found


def _axes(places: list[int]) -> Axes:
    """Split an axis whose element ``i`` stands at ``places[i]`` into regular ones."""
    if len(places) == 1:
        return ()
    stride = places[1] - places[0]
    run = next((i for i, place in enumerate(places) if place != places[0] + i * stride), len(places))
    return (*_axes(places[::run]), (run, stride))


def _store(
    keys: torch.Tensor,
    values: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slots: torch.Tensor,
    isa: str,
) -> None:
    ops.cpu_attn_reshape_and_cache(
        keys, values, key_cache, value_cache, slots, isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto"
    )


class Impl(BoundedImpl, CPUAttentionBackendImpl):
    """Attention in one layer."""

    def read_blocks(self, layer: Any, kv_cache: torch.Tensor, blocks: torch.Tensor, side: int) -> torch.Tensor:
        """Return keys or values, unpacked."""
        count, heads, size = len(blocks), kv_cache.shape[1], kv_cache.shape[2]
        raw = kv_cache.view(len(kv_cache), heads, 2, size * self.head_size)[:, :, side][blocks]
        axes = [a for part in _unpacking(size, self.head_size, kv_cache.dtype, layer.isa)[side] for a in part]
        shape = (heads, count, *(n for n, _ in axes))
        strides = (raw.stride(1), raw.stride(0), *(stride for _, stride in axes))
        return raw.as_strided(shape, strides).reshape(heads, count * size, self.head_size)

    def write_slots(
        self,
        layer: Any,
        kv_cache: torch.Tensor,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """Pack keys and values by vLLM's own operator."""
        count, heads, size, _ = kv_cache.shape
        cache = kv_cache.view(count, heads, 2 * size, self.head_size)
        key_cache, value_cache = cache.chunk(2, dim=2)
        _store(keys, values, key_cache, value_cache, slots, layer.isa)


class Builder(BoundedBuilder, CPUAttentionMetadataBuilder):
    """Metadata of a step."""


class Backend(BoundedBackend, CPUAttentionBackend):
    """The two of them."""

    impl, builder = Impl, Builder
