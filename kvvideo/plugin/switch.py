"""Put another strategy or budget in place while no request is open, which spares loading the model again."""

from typing import Any

from kvvideo.compression.config import CacheConfig
from kvvideo.compression.rows import state_rows
from kvvideo.errors import ConfigError
from kvvideo.plugin.inspect import bounded_layers
from kvvideo.plugin.spec import BoundedSpec


def switched(spec: BoundedSpec, config: CacheConfig) -> BoundedSpec:
    """Return ``spec`` with the schedule of ``config``; its pages stay as they are.

    Raises:
        ConfigError: if they have too few rows for the strategy's side state.
    """
    needed = state_rows(config)
    if needed > spec.state_rows:
        raise ConfigError(
            f"strategy: {config.strategy!r} needs {needed} rows of side state and the cache was made with "
            f"{spec.state_rows}; name it when the engine is started, or raise spare_rows"
        )
    return spec.scheduled(config.schedule(spec.block_size))


def switch_worker(worker: Any, settings: dict[str, Any]) -> None:
    """Let the layers and builders work by ``settings``; run in each worker through ``collective_rpc``.

    Args:
        worker: vLLM's.
        settings: of a ``CacheConfig``, as a dict.

    Raises:
        ConfigError: if the pages have too few rows for the strategy's side state.
    """
    runner, config = worker.model_runner, CacheConfig.from_dict(settings)
    for group in runner.kv_cache_config.kv_cache_groups:
        group.kv_cache_spec = switched(group.kv_cache_spec, config)
    for layer in bounded_layers(worker):
        layer.impl.configure(config)
    for attention in (group for groups in runner.attn_groups for group in groups):
        attention.kv_cache_spec = switched(attention.kv_cache_spec, config)
        for builder in attention.metadata_builders:
            builder.configure(switched(builder.kv_cache_spec, config), config)


def switch_scheduler(scheduler: Any, config: CacheConfig) -> None:
    """Let the scheduler work by ``config``.

    Raises:
        ConfigError: if a request is open, or the strategy does not fit the cache that was made.
    """
    if scheduler.requests:
        raise ConfigError("strategy: close all sessions before another strategy or budget is put in place")
    scheduler.manager.configure(switched(scheduler.manager.kv_cache_spec, config))
    scheduler.config, scheduler.schedule_rule = config, scheduler.manager.schedule
