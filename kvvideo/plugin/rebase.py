"""Move a whole session back in positions, so that these never run past the model's rotary table.

Attention sees differences of positions only, so nothing changes but a rounding of the keys.
"""

from typing import Any

import torch

from kvvideo.plugin.inspect import bounded_layers


def rebase(worker: Any, block_ids: list[int], length: int, by: int) -> None:
    """Move a session's live tokens; run in each worker through ``collective_rpc``.

    Args:
        worker: vLLM's.
        block_ids: numbers of the session's live blocks, oldest first.
        length: live tokens in them.
        by: positions to move them by, backwards if negative.
    """
    spec = worker.model_runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    for layer in bounded_layers(worker):
        blocks = torch.tensor(block_ids, dtype=torch.int64, device=layer.kv_cache.device)
        layer.impl.move(layer, layer.kv_cache, spec, blocks, length, by)
