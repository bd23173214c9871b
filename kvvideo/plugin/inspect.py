"""Read what the workers hold, and let go of it: run inside each worker through ``collective_rpc``."""

from collections.abc import Iterator
from typing import Any

import torch

from kvvideo.plugin.attention import BoundedBuilder
from kvvideo.plugin.pages import side_state
from kvvideo.plugin.spec import BoundedSpec


def bounded_layers(worker: Any) -> Iterator[Any]:
    """Yield the attention layers whose caches are bounded, vLLM's objects, from the first to the last."""
    runner = worker.model_runner
    for name in runner.kv_cache_config.kv_cache_groups[0].layer_names:
        yield runner.compilation_config.static_forward_context[name]


def live_positions(worker: Any, block_ids: list[int], length: int) -> torch.Tensor:
    """Return temporal M-RoPE positions of a request's live tokens.

    Args:
        worker: vLLM's.
        block_ids: numbers of the request's live blocks, oldest first.
        length: live tokens in them.

    Returns:
        ``int32 [layers, kv_heads, length]``, of this rank's KV heads, on the host.

    Raises:
        TypeError: if the cache is not bounded.
    """
    spec = worker.model_runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    if not isinstance(spec, BoundedSpec):
        raise TypeError(f"the engine was not configured for kvvideo: its cache is a {type(spec).__name__}")
    blocks = torch.tensor(block_ids, dtype=torch.int64)
    layers = []
    for layer in bounded_layers(worker):
        cache = layer.kv_cache
        state = side_state(cache, spec)[blocks.to(cache.device), 0]
        layers.append(state.transpose(0, 1).flatten(1)[:, :length].cpu())
    return torch.stack(layers)


def release(worker: Any) -> None:
    """Let go of the cache and the weights, for compiled code and graphs may keep the model itself for ever."""
    from vllm.v1.worker.utils import clear_layer_kv_caches

    runner = worker.model_runner
    runner.kv_caches.clear()
    for builder in (
        builder for groups in runner.attn_groups for group in groups for builder in group.metadata_builders
    ):
        if isinstance(builder, BoundedBuilder):
            builder.release()
    clear_layer_kv_caches(runner.compilation_config.static_forward_context.values())
    # Not the buffers: rotary tables are shared between models.
    for parameter in runner.get_model().parameters():
        parameter.data = parameter.data.new_empty(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def forget(worker: Any, name: int) -> None:
    """Let go of what the strategy remembers of the stream whose first block is ``name``, which has ended."""
    for layer in bounded_layers(worker):
        layer.impl.streams.pop(name, None)
