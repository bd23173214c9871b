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

from kvvideo.plugin.attention import BoundedBackend, BoundedBuilder, BoundedImpl


@cache
def _unpacking(block_size: int, head_dim: int, dtype: torch.dtype, isa: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Where element ``i`` of a block's keys, and of its values, stands in the raw block.

    The packing permutes elements inside a block. Writing each element's index, seven bits at a time
    so that every dtype holds it exactly, and reading the block raw gives the permutation for any ISA.
    """
    count = block_size * head_dim
    index = torch.arange(count)
    raw = torch.zeros(2, count, dtype=torch.int64)
    for digit in range(3):
        part = ((index >> 7 * digit) & 127).view(block_size, 1, head_dim).to(dtype)
        block = torch.zeros(2, 1, 1, block_size, head_dim, dtype=dtype)
        _store(part, part.clone(), block[0], block[1], torch.arange(block_size), isa)
        raw += block.flatten(1).long() << 7 * digit
    places = torch.empty_like(raw)
    places.scatter_(1, raw, index.expand(2, -1))
    return places[0], places[1]


def _store(
    keys: torch.Tensor, values: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor,
    slots: torch.Tensor, isa: str,
) -> None:  # fmt: skip
    ops.cpu_attn_reshape_and_cache(
        keys, values, key_cache, value_cache, slots, isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype="auto"
    )


class Impl(BoundedImpl, CPUAttentionBackendImpl):
    def read_blocks(
        self, layer: Any, kv_cache: torch.Tensor, blocks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        count, heads, size = len(blocks), kv_cache.shape[1], kv_cache.shape[2]
        raw = kv_cache[blocks].view(count, heads, 2, size * self.head_size)
        places = _unpacking(size, self.head_size, kv_cache.dtype, layer.isa)
        keys, values = (
            raw[:, :, side].index_select(-1, places[side]).view(count, heads, size, self.head_size) for side in (0, 1)
        )
        return keys, values

    def write_slots(
        self,
        layer: Any,
        kv_cache: torch.Tensor,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        count, heads, size, _ = kv_cache.shape
        cache = kv_cache.view(count, heads, 2 * size, self.head_size)
        key_cache, value_cache = cache.chunk(2, dim=2)
        _store(keys, values, key_cache, value_cache, slots, layer.isa)


class Builder(BoundedBuilder, CPUAttentionMetadataBuilder):
    pass


class Backend(BoundedBackend, CPUAttentionBackend):
    impl, builder = Impl, Builder
