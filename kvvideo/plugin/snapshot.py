"""Carries what a session holds out of the paged cache and back: run inside each worker through ``collective_rpc``.

Tokens leave in their order, as plain keys and values, so that a snapshot fits any blocks and any backend.
"""

from typing import Any

import torch

from kvvideo.compression.rows import state_rows
from kvvideo.errors import ConfigError
from kvvideo.plugin.inspect import bounded_layers
from kvvideo.plugin.pages import put_rows, side_state, slots_of

STREAM = "stream"


def read(worker: Any, block_ids: list[int], length: int) -> dict[str, torch.Tensor]:
    """The ``length`` live tokens in these blocks, as the tensors of a ``Memory`` but for its log."""
    spec = worker.model_runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    layers = list(bounded_layers(worker))
    rows = state_rows(layers[0].impl.config, spare=False)
    shape = (len(layers), spec.num_kv_heads, length, spec.head_size)
    tensors = {
        # Zeroed, for the page faults of fresh memory would make a copy from a GPU several times as slow.
        "keys": torch.empty(shape, dtype=layers[0].kv_cache.dtype).zero_(),
        "values": torch.empty(shape, dtype=layers[0].kv_cache.dtype).zero_(),
        "state": torch.empty((len(layers), rows, spec.num_kv_heads, length), dtype=torch.int32),
    }
    for index, layer in enumerate(layers):
        impl, cache = layer.impl, layer.kv_cache
        blocks = torch.tensor(block_ids, dtype=torch.int64, device=cache.device)
        for side, name in enumerate(("keys", "values")):
            tensors[name][index] = impl.read_blocks(layer, cache, blocks, side)[:, :length]
        state = side_state(cache, spec)[blocks, :rows]
        tensors["state"][index] = state.permute(1, 2, 0, 3).flatten(2)[..., :length]
        for name, tensor in impl.streams.get(block_ids[0], {}).items():
            tensors[f"{STREAM}.{index}.{name}"] = tensor.cpu().clone()
    return tensors


def write(worker: Any, block_ids: list[int], tensors: dict[str, torch.Tensor]) -> None:
    """Put what ``read`` gave into these blocks, which are all the session's.

    Raises:
        ConfigError: if the tensors are of another shape or dtype than this model's cache.
    """
    spec = worker.model_runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    layers = list(bounded_layers(worker))
    keys, state = tensors["keys"], tensors["state"]
    length = keys.shape[2]
    wanted = (len(layers), spec.num_kv_heads, length, spec.head_size)
    rows = (len(layers), state_rows(layers[0].impl.config, spare=False), spec.num_kv_heads, length)
    dtype = layers[0].kv_cache.dtype
    if keys.shape != wanted or tensors["values"].shape != wanted or state.shape != rows or keys.dtype != dtype:
        raise ConfigError(
            f"the memory holds keys {tuple(keys.shape)} {keys.dtype} and state {tuple(state.shape)} where this model's "
            f"cache needs {wanted} {dtype} and {rows}; load it with the model, dtype and strategy it was made with"
        )
    for index, layer in enumerate(layers):
        impl, cache = layer.impl, layer.kv_cache
        blocks = torch.tensor(block_ids, dtype=torch.int64, device=cache.device)
        parts = (tensors[name][index].to(cache.device).transpose(0, 1).contiguous() for name in ("keys", "values"))
        impl.write_slots(layer, cache, slots_of(blocks, spec.block_size)[:length], *parts)
        put_rows(side_state(cache, spec), blocks, state[index].to(cache.device))
        prefix = f"{STREAM}.{index}."
        impl.streams[block_ids[0]] = {
            name.removeprefix(prefix): tensor.to(cache.device)
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
