"""The tokens that a cache holds, from a size in bytes, the model's shape and the memory that is there.

Nothing is loaded for it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.session.config import EngineConfig
from kvvideo.session.engine import CHUNKS
from kvvideo.session.footprint import RESERVE, parameters, weight_bytes
from kvvideo.session.hub import model_path
from kvvideo.session.machine import free_gpu_memory, free_memory
from kvvideo.session.model_config import model_config, text_config
from kvvideo.session.pool import block_bytes, head_dim, other_blocks, ranks_of, with_room_for
from kvvideo.sizes import parse_size
from kvvideo.video.geometry import FACTOR

AUTO = "auto"
"""The wish for as much as the model is good for and the machine has."""

LEAST = CacheConfig.max_tokens
"""Tokens of ``auto`` where the model is small, or the machine does not say what it has."""

SIZES = tuple(sorted(odd << power for odd in (2, 3) for power in range(7, 17)))
"""Numbers of tokens that ``auto`` comes to, so that it is the same from run to run: 256, 384, 512, … 196,608."""

GPU_SHARE = 0.92
"""Share of the free memory of a GPU that is taken: vLLM's default of ``gpu_memory_utilization``."""

CPU_SHARE = 8
"""On a CPU ``auto`` takes one part of so many of the memory that is free: our choice, for others use it too."""

_CHUNK_MS, _HELD_MS, _COMPARED_MS, _SHAPE = 38.0, 0.000556, 0.00023, 90_600
"""Measured on an H100 at the shape of Qwen2.5-VL-7B (docs/gpu.md), in milliseconds: a chunk at 4,096 tokens; what each
token held adds to it (41.7 ms at 5.2k tokens held, 96.8 ms at 104k); what each token of ``max_tokens`` adds by the
comparisons of ``distinct`` (131 µs a layer at 4,096 tokens, every fourth chunk). And ``_work`` of that shape."""

_BLOCKS = (16, 32)
"""Tokens of a block on a GPU and on a CPU. What is counted here holds for both."""

_TEXT_TOKENS = 32
"""Tokens of a chunk's clock time and marks, and of the opening before the first, at most."""


def chunk_tokens(fps: float, chunk_seconds: float, max_pixels: int) -> int:
    """Return the most tokens of a chunk of ``chunk_seconds`` at ``fps``, in frames of up to ``max_pixels``."""
    return max(1, round(chunk_seconds * fps / 2)) * (max_pixels // FACTOR**2) + _TEXT_TOKENS


@dataclass(frozen=True)
class Allowance:
    """The size of a cache as it was asked for. What is exact wins; the rest comes from ``memory``.

    Attributes:
        memory: bytes that the KV pool may take, with its room for questions; None for ``auto``.
        max_tokens: of the cache, if exact.
        max_model_len: if exact.
    """

    memory: int | None = None
    max_tokens: int | None = None
    max_model_len: int | None = None

    @classmethod
    def parse(cls, memory: str, max_tokens: int | None = None, max_model_len: int | None = None) -> "Allowance":
        """Return the allowance that ``memory``, ``auto`` or a size such as 8GB, stands for.

        Raises:
            ConfigError: if it is neither.
        """
        if memory.strip().lower() == AUTO:
            return cls(None, max_tokens, max_model_len)
        try:
            return cls(parse_size(memory), max_tokens, max_model_len)
        except ConfigError as error:
            raise ConfigError(f"memory: {error}, or auto") from error

    def settle(
        self, config: EngineConfig, caches: Sequence[CacheConfig], chunk: int, machine: bool = True
    ) -> tuple[EngineConfig, list[CacheConfig]]:
        """Return the settings with their numbers: ``max_tokens``, ``max_model_len`` and ``step_tokens``.

        Args:
            config: of the engine, with the room that questions need.
            caches: that the engine is switched to, of the same ``max_tokens``.
            chunk: most tokens of a chunk.
            machine: False to leave out of account what is there: for other machines, or other times.

        Raises:
            ConfigError: if that is too little for a chunk, or more than the machine or the model has room for.
        """
        config = replace(config, step_tokens=max(config.step_tokens, chunk))
        tokens = self.max_tokens
        if tokens is None:
            sized = replace(config, cache=caches[0])
            tokens = self._tokens(with_room_for(caches, sized) if len(caches) > 1 else sized, chunk, machine)
        caches = [replace(cache, max_tokens=tokens) for cache in caches]
        config = replace(config, cache=caches[0])
        if self.memory is not None and self.max_tokens is None and any(map(_is_unbounded, caches)):
            config = replace(config, kv_bytes=self.memory)
            if self.max_model_len is None:
                return replace(config, max_model_len=min(tokens + chunk, _limit(config))), caches
        return replace(config, max_model_len=self.length(config, caches, chunk)), caches

    def length(self, config: EngineConfig, caches: Sequence[CacheConfig], chunk: int) -> int:
        """Return ``max_model_len`` for ``caches``: the default, or what the largest, a chunk and a question need.

        Raises:
            ConfigError: if the model, or what was asked for, has no room for one of ``caches`` and a chunk.
        """
        held = _longest(caches)
        limit = _limit(config)
        most, why = (limit, f"the {limit} tokens that {config.model!r} takes (max_position_embeddings)")
        if self.max_model_len is not None:
            most, why = self.max_model_len, f"max_model_len={self.max_model_len}"
        if held + chunk > most and held:
            raise ConfigError(
                f"max_tokens: a cache of {held} tokens and a chunk of up to {chunk} are more than {why}; "
                f"use at most {max(0, most - chunk)}" + (", or leave --max-model-len out" if most < limit else "")
            )
        if self.max_model_len is not None:
            return self.max_model_len
        return min(limit, max(EngineConfig.max_model_len, held + _beside(config, chunk)))

    def _tokens(self, config: EngineConfig, chunk: int, machine: bool) -> int:
        """Return the tokens that the wish comes to."""
        longest = self.max_model_len or _limit(config)
        # A question is shown as much again as there is room for: no reason to hold less than by default.
        bare = longest - _beside(replace(config, again_tokens=0), chunk)
        room = max(longest - _beside(config, chunk), min(LEAST, bare))
        if room < chunk:
            raise ConfigError(
                f"max_model_len: {longest} tokens have no room for a chunk of up to {chunk} and a question; use a "
                "larger --max-model-len, or smaller frames"
            )
        if self.memory is None:
            there = machine_bytes(config, CPU_SHARE) if machine else None
            held = LEAST if there is None else held_in(there, config)
            # Where the machine seems to have no room at all, the engine finds out: weights may be smaller than thought.
            held = held if held >= chunk else LEAST
            cap = quarter_slower(config)
            return rounded(min(cap, room, held if machine else cap))
        held, least = held_in(self.memory, config), -(-max(chunk, 64) // 32) * 32
        if held < least:
            raise ConfigError(
                f"memory: {_size(self.memory)} is too little for a chunk of up to {chunk} tokens and the room of "
                f"{config.questions} questions; the least is {_size(bytes_for(least, config), up=True)}"
            )
        there = machine_bytes(config) if machine else None
        if there is not None and there < self.memory:
            raise ConfigError(
                f"memory: {_size(self.memory)} do not fit this machine beside {config.model!r}; "
                f"{_size(max(there, 0))} do, or say auto"
            )
        return max(least, min(held, room // 32 * 32))


def long_enough(config: EngineConfig, caches: Sequence[CacheConfig], chunk: int) -> EngineConfig:
    """Return ``config`` with a ``max_model_len`` that is no obstacle to questions about what ``caches`` hold.

    Each may be shown as many chunks, of ``chunk`` tokens, as the model takes.
    """
    held = _longest(caches)
    need = held + CHUNKS * chunk + _beside(config, chunk)
    if need <= config.max_model_len:
        return config
    return replace(config, max_model_len=max(config.max_model_len, min(need, _limit(config))))


def rounded(tokens: int) -> int:
    """Return the largest of ``SIZES`` that ``tokens`` reach; below the smallest, whole blocks."""
    return max((size for size in SIZES if size <= tokens), default=max(tokens, 64) // 32 * 32)


def held_in(size: int, config: EngineConfig) -> int:
    """Return the ``max_tokens`` of sessions that a pool of ``size`` bytes holds beside its questions; 0 for none."""
    return max(0, min(_held_in(size, config, block) for block in _BLOCKS)) // 32 * 32


def _held_in(size: int, config: EngineConfig, block: int) -> int:
    blocks = size // block_bytes(model_path(config.model), config, block, ranks_of(config))
    # One more than the bound, as ``session_blocks`` says.
    return ((blocks - other_blocks(config, block)) // config.sessions - 1) * block


def bytes_for(tokens: int, config: EngineConfig) -> int:
    """Return the bytes, on each GPU, of the smallest pool whose sessions hold ``tokens``, whole blocks, each."""
    path, ranks = model_path(config.model), ranks_of(config)
    return max(
        (config.sessions * (tokens // block + 1) + other_blocks(config, block))
        * block_bytes(path, config, block, ranks)
        for block in _BLOCKS
    )


def quarter_slower(config: EngineConfig) -> int:
    """Return the ``max_tokens`` at which a chunk takes a quarter longer than at 4,096, from the model's shape alone.

    A chunk takes as long as its tokens need in the layers, whatever is held. To that comes its attention to what is
    held, on average three quarters of ``max_tokens``, for a compaction keeps a half; and its part of a compaction,
    whose comparisons grow with the square, but come the more rarely. The first goes with the parameters that a token
    passes, the others with layers times heads times their size: ``_work`` is their quotient. At 7B's shape a quarter
    is 9.5 ms, and comes at 18,700 tokens.
    """
    more = _CHUNK_MS / 4 / (0.75 * _HELD_MS + _COMPARED_MS)
    return LEAST + int(more * _work(config) / _SHAPE)


def _work(config: EngineConfig) -> float:
    """Return the parameters that each token passes for each component of its attention's queries."""
    path = model_path(config.model)
    text, shape = text_config(path), model_config(path)
    layer, block, merger = parameters(shape)
    layers, heads = int(text.num_hidden_layers), int(text.num_attention_heads)
    # Four patches make a token, each of which passes the tower.
    passed = layers * layer + 4 * int(shape.vision_config.depth) * block + merger
    return passed / (layers * heads * head_dim(text))


def machine_bytes(config: EngineConfig, share: int = 1) -> int | None:
    """Return the bytes that a KV pool may take here, on each GPU; None if the machine does not say.

    On a GPU that is what is free, but for the weights, ``RESERVE``, and a layer that a compaction reads.

    Args:
        config: of the engine.
        share: on a CPU one part of so many is taken; the whole is less by the weights.
    """
    import torch

    if torch.version.cuda is None and torch.version.hip is None:
        return free_memory() // share if share > 1 else free_memory() - weight_bytes(config)
    ranks = ranks_of(config)
    free = free_gpu_memory()[:ranks]
    if len(free) < ranks:
        return None
    usable = float(config.options.get("gpu_memory_utilization", GPU_SHARE)) * min(free)
    layers = int(text_config(model_path(config.model)).num_hidden_layers)
    return int(usable - weight_bytes(config) / ranks - RESERVE) * layers // (layers + 1)


def _beside(config: EngineConfig, chunk: int) -> int:
    """Return the tokens of a request beside those held: a chunk, or a question with what it is shown and marks."""
    return max(chunk, config.question_tokens + config.again_tokens + chunk) + 64


def _limit(config: EngineConfig) -> int:
    """Return the longest request that vLLM takes for the model, by the rule of its ``_get_and_verify_max_len``."""
    if os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "").strip().lower() in ("1", "true"):
        return 1 << 30
    text = text_config(model_path(config.model))
    rope = getattr(text, "rope_parameters", None) or {}
    scaled = rope.get("rope_type", "default") not in ("longrope", "llama3", "yarn")
    return int(text.max_position_embeddings * ((rope.get("factor") or 1.0) if scaled else 1.0))


def _longest(caches: Sequence[CacheConfig]) -> int:
    """Return the largest ``max_tokens`` of the caches that have a bound; 0 without one."""
    return max((cache.max_tokens for cache in caches if not _is_unbounded(cache)), default=0)


def _is_unbounded(cache: CacheConfig) -> bool:
    return cache.strategy == "full"


def _size(count: int, up: bool = False) -> str:
    """Return bytes as they may be typed, never more than they are; or with ``up``, never less."""
    unit, name = (10**8, "GB") if count >= 10**10 else (10**6, "MB")
    whole = -(-count // unit) if up else count // unit
    return f"{whole / 10:g}{name}" if name == "GB" else f"{whole}{name}"
