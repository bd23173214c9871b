"""Read and write a cache that holds ``[block, kv_head, slot, key ‖ value]`` as plain numbers."""

from typing import Any

import torch

from kvvideo.plugin.attention import BoundedImpl


class DenseImpl(BoundedImpl):
    """Mixin of backends whose cache is laid out so."""

    def read_blocks(self, layer: Any, kv_cache: torch.Tensor, blocks: torch.Tensor, side: int) -> torch.Tensor:
        """Return keys or values, whatever the order of the cache's axes in memory."""
        del layer
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
        """Store keys and values, whatever the order of the cache's axes in memory."""
        del layer
        size = kv_cache.shape[2]
        kv_cache[slots // size, :, slots % size] = torch.cat([keys, values], dim=-1)
