"""Moves a whole session back in positions, so that these never run past the model's rotary table.

Attention sees differences of positions only, so nothing changes but a rounding of the keys.
"""

from typing import Any

import torch


def rebase(worker: Any, block_ids: list[int], length: int, by: int) -> None:
    """Run in each worker through ``collective_rpc``: move the ``length`` live tokens in these blocks by ``by``."""
    runner = worker.model_runner
    group = runner.kv_cache_config.kv_cache_groups[0]
    for name in group.layer_names:
        layer = runner.compilation_config.static_forward_context[name]
        blocks = torch.tensor(block_ids, dtype=torch.int64, device=layer.kv_cache.device)
        layer.impl.move(layer, layer.kv_cache, group.kv_cache_spec, blocks, length, by)
