"""Read what the workers hold, and let go of it: run inside each worker through ``collective_rpc``."""

from collections.abc import Iterator, Sequence
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


def bounded_builder(worker: Any) -> BoundedBuilder:
    """Return what makes the metadata of the layers whose caches are bounded.

    Raises:
        TypeError: if none is.
    """
    for builder in _builders(worker):
        return builder
    raise TypeError("the engine was not configured for kvvideo: no cache of its layers is bounded")


def _builders(worker: Any) -> Iterator[BoundedBuilder]:
    for group in (group for groups in worker.model_runner.attn_groups for group in groups):
        yield from (builder for builder in group.metadata_builders if isinstance(builder, BoundedBuilder))


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


def take_sum(worker: Any, name: int) -> torch.Tensor:
    """Return the sum of un-rotated keys of a stream's video tokens since this was last called, on the host.

    Args:
        worker: vLLM's.
        name: number of the stream's first block.

    Returns:
        ``float32 [layers, kv_heads, head_dim]``, of this rank's KV heads.
    """
    taken = bounded_builder(worker).notes.take(name)
    if taken is not None:
        return taken.cpu()
    spec = worker.model_runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    return torch.zeros(len(list(bounded_layers(worker))), spec.num_kv_heads, spec.head_size)


def heard_queries(worker: Any, request_ids: Sequence[str]) -> torch.Tensor:
    """Return the un-rotated queries of questions that the latest step has ended, on the host.

    Args:
        worker: vLLM's.
        request_ids: the questions, which look for chunks.

    Returns:
        ``float32 [questions, layers, heads, head_dim]``, of this rank's heads.
    """
    builder, layers = bounded_builder(worker), list(bounded_layers(worker))
    rows = worker.model_runner.input_batch.req_id_to_index
    rotary = layers[0].impl.rotary_on(layers[0].kv_cache.device)
    return torch.stack([builder.notes.heard(rows[name], rotary) for name in request_ids]).cpu()


def joined(parts: Sequence[torch.Tensor], heads: int, dim: int) -> torch.Tensor:
    """Join what all ranks returned, in their order, along the dimension of ``heads``, of which several may be alike."""
    alike = max(1, len(parts) * parts[0].shape[dim] // heads)
    return torch.cat([*parts[::alike]], dim)


def release(worker: Any) -> None:
    """Let go of the cache and the weights, for compiled code and graphs may keep the model itself for ever."""
    from vllm.v1.worker.utils import clear_layer_kv_caches

    runner = worker.model_runner
    runner.kv_caches.clear()
    for builder in _builders(worker):
        builder.release()
    clear_layer_kv_caches(runner.compilation_config.static_forward_context.values())
    # Not the buffers: rotary tables are shared between models.
    for parameter in runner.get_model().parameters():
        parameter.data = parameter.data.new_empty(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def forget(worker: Any, name: int) -> None:
    """Let go of what is known of the stream whose first block is ``name``, which has ended."""
    for layer in bounded_layers(worker):
        layer.impl.streams.pop(name, None)
    for builder in _builders(worker):
        builder.notes.forget(name)
