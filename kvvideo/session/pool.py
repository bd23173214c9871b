"""How many bytes a KV cache takes, from a model's configuration alone."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kvvideo.compression.config import CacheConfig
from kvvideo.compression.rows import state_rows
from kvvideo.compression.schedule import Schedule
from kvvideo.session.config import EngineConfig
from kvvideo.session.hub import model_path
from kvvideo.session.model_config import computed_in, text_config


def block_bytes(path: str, config: Any, block_size: int, ranks: int = 1) -> int:
    """Bytes of one block over all layers: keys, values and side state, each page padded as in the pool. Of several
    ``ranks`` of tensor parallelism, on each of them."""
    text, rows = text_config(path), state_rows(config.cache) + config.spare_rows
    page = page_bytes(text, block_size, computed_in(path, config).itemsize, rows, ranks)
    return page * int(text.num_hidden_layers)


def with_room_for(caches: Iterable[CacheConfig], config: EngineConfig) -> EngineConfig:
    """Return ``config`` with the rows of side state that an engine needs to be switched to any of ``caches``."""
    most = max((state_rows(cache) for cache in caches), default=0)
    return replace(config, spare_rows=max(0, most - state_rows(config.cache)))


def moved_to(config: EngineConfig, cache: CacheConfig) -> EngineConfig:
    """Return ``config`` with another cache in pages of the same size."""
    return replace(config, cache=cache, spare_rows=config.spare_rows + state_rows(config.cache) - state_rows(cache))


def page_bytes(text: Any, block_size: int, itemsize: int, state_rows: int, ranks: int = 1) -> int:
    """Bytes of one layer's page of ``block_size`` tokens on each of ``ranks``, which share the KV heads out."""
    heads = max(1, int(text.num_key_value_heads) // ranks)
    head_dim = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    size = heads * block_size * (2 * head_dim * itemsize + 4 * state_rows)
    return -(-size // 256) * 256


def pool_bytes(config: EngineConfig, size: int = 32) -> int | None:
    """Bytes of a KV pool that just holds the sessions and their questions, in blocks of ``size`` tokens: of each GPU's.

    None for a cache without bound.
    """
    schedule = config.cache.schedule(size)
    if schedule is None:
        return None
    blocks = config.sessions * session_blocks(schedule, size) + other_blocks(config, size)
    total: int = blocks * block_bytes(model_path(config.model), config, size, ranks_of(config))
    return total


def ranks_of(config: EngineConfig) -> int:
    """GPUs that share the model out, each with its own pool (tensor parallelism)."""
    return int(config.options.get("tensor_parallel_size", 1))


def sessions_in(kv_bytes: int, config: EngineConfig, size: int = 32) -> int:
    """Sessions that a KV pool of ``kv_bytes`` surely holds, in blocks of ``size`` tokens, with all questions open."""
    schedule = config.cache.schedule(size)
    if schedule is None:
        return 1
    blocks = kv_bytes // block_bytes(model_path(config.model), config, size, ranks_of(config))
    return max(0, (blocks - other_blocks(config, size)) // session_blocks(schedule, size))


def session_blocks(schedule: Schedule, size: int) -> int:
    """Blocks of ``size`` tokens that a session has at most."""
    return schedule.max_tokens // size + 1


def other_blocks(config: EngineConfig, size: int) -> int:
    """Blocks of ``size`` tokens of a pool that no session uses: one that is never used, and those for questions."""
    return config.questions * (-(-config.question_tokens // size) + 2) + 1
