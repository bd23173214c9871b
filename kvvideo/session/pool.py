"""Bytes and blocks of a KV cache, from a model's configuration alone."""

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
    """Return the bytes of a block of ``block_size`` tokens over all layers: keys, values and side state.

    Each page is padded as in the pool. With several ``ranks`` of tensor parallelism, the bytes on each of them.
    """
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
    """Return the bytes of one layer's page of ``block_size`` tokens on each of ``ranks``, which share the KV heads."""
    heads = max(1, int(text.num_key_value_heads) // ranks)
    size = heads * block_size * (2 * head_dim(text) * itemsize + 4 * state_rows)
    return -(-size // 256) * 256


def vector_bytes(path: str, config: EngineConfig) -> int:
    """Return the bytes that a chunk leaves in the index: a vector for each layer and KV head."""
    text = text_config(path)
    heads = int(text.num_hidden_layers * text.num_key_value_heads)
    size: int = heads * head_dim(text) * computed_in(path, config).itemsize
    return size


def head_dim(text: Any) -> int:
    """Return the size of an attention head."""
    dim: int = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return dim


def pool_bytes(config: EngineConfig, size: int = 32) -> int | None:
    """Return the bytes, on each GPU, of a pool that just holds the sessions and their questions; None without a bound.

    ``size`` is the tokens of a block.
    """
    schedule = config.cache.schedule(size)
    if schedule is None:
        return None
    blocks = config.sessions * session_blocks(schedule, size) + other_blocks(config, size)
    total: int = blocks * block_bytes(model_path(config.model), config, size, ranks_of(config))
    return total


def ranks_of(config: EngineConfig) -> int:
    """Return the number of ranks of tensor parallelism, each a GPU with a pool of its own."""
    return int(config.options.get("tensor_parallel_size", 1))


def sessions_in(kv_bytes: int, config: EngineConfig, size: int = 32) -> int:
    """Return the sessions that a pool of ``kv_bytes`` holds in blocks of ``size`` tokens with all questions open."""
    schedule = config.cache.schedule(size)
    if schedule is None:
        return 1
    blocks = kv_bytes // block_bytes(model_path(config.model), config, size, ranks_of(config))
    return max(0, (blocks - other_blocks(config, size)) // session_blocks(schedule, size))


def session_blocks(schedule: Schedule, size: int) -> int:
    """Return the most blocks of ``size`` tokens that a session has."""
    return schedule.max_tokens // size + 1


def other_blocks(config: EngineConfig, size: int) -> int:
    """Return the blocks of ``size`` tokens that no session uses: those for questions, and one that nothing uses."""
    usual = config.questions * question_blocks(config.question_tokens, size)
    return max(usual, question_blocks(config.question_tokens + config.again_tokens, size)) + 1


def question_blocks(tokens: int, size: int) -> int:
    """Return the most blocks of ``size`` tokens that a question of so many ``tokens`` takes beside its session's."""
    return -(-tokens // size) + 2
