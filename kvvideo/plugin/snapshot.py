"""Carry what a session holds out of the paged cache and back: run inside each worker through ``collective_rpc``.

Tokens leave in their order, as plain keys and values of all heads, so that a snapshot fits any blocks, any backend and
any number of ranks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size

from kvvideo.compression.rows import state_rows
from kvvideo.errors import ConfigError
from kvvideo.plugin.inspect import bounded_layers, forget
from kvvideo.plugin.pages import put_rows, side_state, slots_of

STREAM = "stream"
"""Beginning of the names of what a strategy remembers of a stream as a whole."""

HEADS = {"keys": 1, "values": 1, "state": 2}
"""Dimension of KV heads, by tensor. What belongs to a stream has its query heads first, if any."""


def read(worker: Any, block_ids: list[int], length: int) -> dict[str, torch.Tensor]:
    """Return a session's live tokens, as the tensors of a ``Memory`` but for its log, on the host.

    Args:
        worker: vLLM's.
        block_ids: numbers of the session's live blocks, oldest first.
        length: live tokens in them.

    Returns:
        ``keys`` and ``values`` ``[layers, kv_heads, length, head_dim]`` in the cache's dtype, ``state``
        ``int32 [layers, rows, kv_heads, length]``, and ``stream.LAYER.NAME`` for what the strategy remembers of the
        stream; all of this rank's heads.
    """
    spec = worker.model_runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    layers = list(bounded_layers(worker))
    rows = state_rows(layers[0].impl.config)
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


def joined(parts: Sequence[dict[str, torch.Tensor]], kv_heads: int) -> dict[str, torch.Tensor]:
    """Join what all ranks ``read``, in their order, into what one rank with all of the model's ``kv_heads`` would."""
    own = parts[:: _alike(len(parts), parts[0]["keys"].shape[HEADS["keys"]], kv_heads)]
    whole = {name: torch.cat([part[name] for part in own], dim) for name, dim in HEADS.items()}
    for name, first in parts[0].items():
        if name not in HEADS:
            whole[name] = torch.cat([part[name] for part in parts]) if first.ndim else first
    return whole


def _shared_out(tensors: dict[str, torch.Tensor], heads: int, kv_heads: int) -> dict[str, torch.Tensor]:
    """Return what of ``joined`` tensors is this rank's, which has ``heads`` of ``kv_heads``."""
    rank, ranks = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    first = rank // _alike(ranks, heads, kv_heads) * heads
    own = {name: tensors[name].narrow(dim, first, heads) for name, dim in HEADS.items()}
    for name, tensor in tensors.items():
        if name.startswith(f"{STREAM}."):
            own[name] = tensor.chunk(ranks)[rank] if tensor.ndim else tensor
    return own


def _alike(ranks: int, heads: int, kv_heads: int) -> int:
    """Return how many neighbouring ranks have the same KV heads, because there are fewer of these than ranks."""
    return ranks * heads // kv_heads


def write(worker: Any, block_ids: list[int], tensors: dict[str, torch.Tensor]) -> None:
    """Put what ``joined`` gave into a session's blocks: on each rank, its own heads.

    Args:
        worker: vLLM's.
        block_ids: numbers of the session's blocks, in order, which nothing else uses.
        tensors: as of ``joined``.

    Raises:
        ConfigError: if the tensors are of another shape or dtype than this model's cache.
    """
    spec = worker.model_runner.kv_cache_config.kv_cache_groups[0].kv_cache_spec
    layers = list(bounded_layers(worker))
    keys, state = tensors["keys"], tensors["state"]
    length, kv_heads = keys.shape[2], worker.model_config.get_total_num_kv_heads()
    wanted = (len(layers), kv_heads, length, spec.head_size)
    rows = (len(layers), state_rows(layers[0].impl.config), kv_heads, length)
    dtype = layers[0].kv_cache.dtype
    if keys.shape != wanted or tensors["values"].shape != wanted or state.shape != rows or keys.dtype != dtype:
        raise ConfigError(
            f"the memory holds keys {tuple(keys.shape)} {keys.dtype} and state {tuple(state.shape)} where this model's "
            f"cache needs {wanted} {dtype} and {rows}; load it with the model, dtype and strategy it was made with"
        )
    own = _shared_out(tensors, spec.num_kv_heads, kv_heads)
    # A request of its own may have had the first block: nobody says when one of those ends.
    forget(worker, block_ids[0])
    for index, layer in enumerate(layers):
        impl, cache = layer.impl, layer.kv_cache
        blocks = torch.tensor(block_ids, dtype=torch.int64, device=cache.device)
        parts = (own[name][index].to(cache.device).transpose(0, 1).contiguous() for name in ("keys", "values"))
        impl.write_slots(layer, cache, slots_of(blocks, spec.block_size)[:length], *parts)
        put_rows(side_state(cache, spec), blocks, own["state"][index].to(cache.device))
        prefix = f"{STREAM}.{index}."
        impl.streams[block_ids[0]] = {
            name.removeprefix(prefix): tensor.to(cache.device)
            for name, tensor in own.items()
            if name.startswith(prefix)
        }
