"""Read the cache settings out of a vLLM config, and refuse what would be silently wrong with them."""

from typing import Any

from kvvideo.compression.config import KEY, SPARE, CacheConfig
from kvvideo.errors import ConfigError

SCHEDULER = "kvvideo.plugin.scheduler.SessionScheduler"
"""Path of the only scheduler that knows which blocks are free again."""

INDEX = "kvvideo_index"
"""Key in vLLM's ``additional_config`` of ``EngineConfig.index``."""


def cache_config(vllm_config: Any) -> CacheConfig | None:
    """Return the settings under ``additional_config["kvvideo"]``, checked; None if the engine has none.

    Raises:
        ConfigError: if they are invalid, or an engine setting cannot be combined with them.
    """
    additional = vllm_config.additional_config
    if not isinstance(additional, dict) or KEY not in additional:
        return None
    config = CacheConfig.from_dict(additional[KEY])
    if problems := conflicts(vllm_config):
        between = "\n  " if len(problems) > 1 else " "
        raise ConfigError("these engine settings do not go with a bounded cache:" + between + between.join(problems))
    config.schedule(vllm_config.cache_config.block_size)
    if config.positions == "contiguous" and not rotates_plainly(vllm_config.model_config.hf_text_config):
        raise ConfigError("positions: the model's rotary embedding is scaled, so keys cannot be moved; use absolute")
    return config


def spare_rows(vllm_config: Any) -> int:
    """Return the rows of side state to keep ready beside those of the cache; see ``EngineConfig.spare_rows``."""
    return int(vllm_config.additional_config[KEY].get(SPARE, 0))


def is_indexed(vllm_config: Any) -> bool:
    """Return True if the chunks of streams are indexed; see ``EngineConfig.index``."""
    return bool(vllm_config.additional_config.get(INDEX, False))


def rotates_plainly(text_config: Any) -> bool:
    """Return True if keys are rotated by their position times a frequency, over the whole head, and not otherwise."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    plain = rope.get("rope_type", rope.get("type", "default")) in ("default", "mrope")
    return plain and float(rope.get("partial_rotary_factor", 1.0)) == 1.0


def conflicts(vllm_config: Any) -> list[str]:
    """Return what is set in ``vllm_config`` that evicting tokens would silently break, each with what to do instead."""
    cache, scheduler = vllm_config.cache_config, vllm_config.scheduler_config
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    name = scheduler.scheduler_cls
    if isinstance(name, type):
        name = f"{name.__module__}.{name.__qualname__}"
    checks = [
        (
            cache.enable_prefix_caching,
            "prefix caching: cached blocks change under eviction; "
            "pass --no-enable-prefix-caching (enable_prefix_caching=False)",
        ),
        (
            scheduler.async_scheduling,
            "async scheduling: the next step is laid out before this one has compacted; "
            "pass --no-async-scheduling (async_scheduling=False)",
        ),
        (name != SCHEDULER, f"the scheduler is {name or 'the default'}; pass --scheduler-cls {SCHEDULER}"),
        (
            vllm_config.speculative_config is not None,
            "speculative decoding: rejected tokens cannot be un-evicted; remove --speculative-config",
        ),
        (
            str(cache.cache_dtype).startswith(("fp8", "int8", "int4", "nvfp4")),
            f"a {cache.cache_dtype} KV cache: "
            "surviving keys would be quantised again at every compaction; pass --kv-cache-dtype auto",
        ),
        (
            vllm_config.kv_transfer_config is not None,
            "a KV connector: it addresses tokens by position, which eviction changes; remove --kv-transfer-config",
        ),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism is untested; pass --pipeline-parallel-size 1"),
        (
            parallel.decode_context_parallel_size > 1,
            "context parallelism splits a sequence over ranks; pass --decode-context-parallel-size 1",
        ),
        (model.use_mla, "the model uses MLA, whose cache has no keys and values to choose from"),
        (
            model.get_sliding_window() is not None,
            "the model has sliding-window layers, which free blocks by a rule of their own",
        ),
        (
            bool(vllm_config.use_v2_model_runner),
            "model runner V2 is unproven here; set VLLM_USE_V2_MODEL_RUNNER=0 in the environment",
        ),
    ]
    return [message for broken, message in checks if broken]
