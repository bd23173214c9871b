"""Reading and writing a cache that holds ``[block, kv_head, slot, key ‖ value]`` as plain numbers."""

from typing import Any

import torch

from kvvideo.compression.policy import LiveCache
from kvvideo.compression.rows import ROWS
from kvvideo.plugin.attention import BoundedImpl


class DenseImpl(BoundedImpl):
    def read_blocks(self, layer: Any, kv_cache: torch.Tensor, blocks: torch.Tensor, side: int) -> torch.Tensor:
        part = slice(side * self.head_size, (side + 1) * self.head_size)
        return kv_cache[..., part][blocks].transpose(0, 1).flatten(1, 2)

    def write_slots(
        self,
        layer: Any,
        kv_cache: torch.Tensor,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        size = kv_cache.shape[2]
        kv_cache[slots // size, :, slots % size] = torch.cat([keys, values], dim=-1)

    def read_live(
        self, layer: Any, kv_cache: torch.Tensor, state: torch.Tensor, blocks: torch.Tensor, length: int, values: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if not self._has_kernels(kv_cache):
            return super().read_live(layer, kv_cache, state, blocks, length, values)
        from kvvideo.plugin.kernels import read_pages

        return read_pages(kv_cache, state, blocks, length, values)

    def write_survivors(
        self, layer: Any, kv_cache: torch.Tensor, state: torch.Tensor, blocks: torch.Tensor, live: LiveCache,
        rows: torch.Tensor, kept: torch.Tensor, moves: torch.Tensor | None,
    ) -> None:  # fmt: skip
        if not self._has_kernels(kv_cache):
            return super().write_survivors(layer, kv_cache, state, blocks, live, rows, kept, moves)
        from kvvideo.plugin.kernels import write_survivors

        frequencies = live.rotary.frequencies
        write_survivors(kv_cache, state, blocks, kept, live.keys, live.values, rows, moves, frequencies, ROWS)

    def _has_kernels(self, kv_cache: torch.Tensor) -> bool:
        """Whether there are kernels for these pages: on a GPU, with heads whose size is a power of two."""
        return kv_cache.is_cuda and self.head_size & (self.head_size - 1) == 0
