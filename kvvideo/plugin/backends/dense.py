"""Reading and writing a cache that holds ``[block, kv_head, slot, key ‖ value]`` as plain numbers."""

from typing import Any

import torch

from kvvideo.plugin.attention import BoundedImpl


class DenseImpl(BoundedImpl):
    def read_blocks(
        self, layer: Any, kv_cache: torch.Tensor, blocks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = kv_cache[blocks].split(self.head_size, dim=-1)
        return keys, values

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
