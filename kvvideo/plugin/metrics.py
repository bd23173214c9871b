"""Publish what the bounded cache does as Prometheus metrics, beside vLLM's own at ``/metrics``.

The scheduler counts, in the engine's process; ``CacheStatLogger``, which vLLM finds by the entry point group
``vllm.stat_logger_plugins``, publishes in the server's. Between them vLLM carries its ``SchedulerStats``. These
have no place for a plug-in's figures, so they travel in the one open mapping from names to counts there is,
and are taken out of it before vLLM's own loggers, which come later, look at it.
"""

from functools import cache
from typing import Any

from prometheus_client import Counter, Gauge
from vllm.v1.metrics.loggers import StatLoggerBase

from kvvideo.compression.config import CacheConfig
from kvvideo.plugin.settings import cache_config

_LABELS = ("model_name", "engine")

_COUNTERS = {
    "kvvideo_compactions": "Times that the KV cache of a request was compacted.",
    "kvvideo_evicted_tokens": "Tokens evicted from the KV cache by compactions.",
    "kvvideo_freed_blocks": "KV blocks that compactions gave back to vLLM's pool while their request went on.",
}

_GAUGES = {
    "kvvideo_live_tokens": "Tokens that requests and sessions hold in the KV cache; shared ones count once.",
    "kvvideo_sessions": "Streams that wait for their next chunk, with all they hold.",
}

_INFO = ("strategy", "max_tokens", "budget", "positions")


def put(
    stats: Any, *, compactions: int, evicted_tokens: int, freed_blocks: int, live_tokens: int, sessions: int
) -> None:
    """Let vLLM's ``SchedulerStats`` carry our figures.

    Args:
        stats: vLLM's; where nobody takes the figures out again, vLLM would count them as its own.
        compactions: times that caches were compacted since figures were last sent: right whichever server gets them.
        evicted_tokens: tokens that this evicted.
        freed_blocks: blocks that this gave back.
        live_tokens: tokens held now.
        sessions: sessions that are idle now.
    """
    figures = (compactions, evicted_tokens, freed_blocks, live_tokens, sessions)
    stats.num_kv_fetch_reqs_by_stage |= dict(zip((*_COUNTERS, *_GAUGES), figures, strict=True))


class CacheStatLogger(StatLoggerBase):
    """Publishes the figures of one engine; nothing at all if its cache is not bounded by kvvideo."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._vllm_config = vllm_config
        self._config: CacheConfig | None = cache_config(vllm_config)
        self._labels = (vllm_config.model_config.served_model_name, str(engine_index))
        self._counters: dict[str, Any] = {}
        self._gauges: dict[str, Any] = {}
        if self._config is not None:
            counters, gauges, _ = _metrics()
            self._counters = {name: metric.labels(*self._labels) for name, metric in counters.items()}
            self._gauges = {name: metric.labels(*self._labels) for name, metric in gauges.items()}

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Publish the statistics of a step that has any, and take our figures out of them.

        Args:
            scheduler_stats: vLLM's ``SchedulerStats``; None if there are none.
            iteration_stats: not looked at.
            mm_cache_stats: not looked at.
            engine_idx: not looked at, for each engine has a logger of its own.
        """
        del iteration_stats, mm_cache_stats, engine_idx
        figures = {} if scheduler_stats is None else scheduler_stats.num_kv_fetch_reqs_by_stage
        for name, counter in self._counters.items():
            counter.inc(figures.pop(name, 0))
        for name, gauge in self._gauges.items():
            if name in figures:
                gauge.set(figures.pop(name))

    def log_engine_initialized(self) -> None:
        """Publish the settings, once the engine has settled its configuration."""
        if self._config is None:
            return
        schedule = self._config.schedule(self._vllm_config.cache_config.block_size)
        bound = (0, 0) if schedule is None else (schedule.max_tokens, schedule.budget)
        _, _, info = _metrics()
        info.labels(*self._labels, self._config.strategy, *map(str, bound), self._config.positions).set(1)


@cache
def _metrics() -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Return counters, gauges, and the one that tells the settings: once a process, for names may not come twice."""
    counters = {name: Counter(name, text, _LABELS) for name, text in _COUNTERS.items()}
    gauges = {name: Gauge(name, text, _LABELS, multiprocess_mode="mostrecent") for name, text in _GAUGES.items()}
    about = "How the KV cache of each request is bounded, in tokens; 0 for not at all."
    info = Gauge("kvvideo_cache_info", about, (*_LABELS, *_INFO), multiprocess_mode="mostrecent")
    return counters, gauges, info
