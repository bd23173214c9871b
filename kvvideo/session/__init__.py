"""Sessions: stream a video into vLLM and ask about it."""

from collections.abc import Sequence
from dataclasses import replace

from kvvideo.compression import load
from kvvideo.compression.config import CacheConfig
from kvvideo.session.arguments import engine_args
from kvvideo.session.base import Answer, Session, Span
from kvvideo.session.config import EngineConfig
from kvvideo.session.engine import Engine
from kvvideo.session.pool import with_room_for
from kvvideo.session.recall import Recall
from kvvideo.session.recent import RecentSession
from kvvideo.session.session import VideoSession
from kvvideo.session.summary import SummarySession

__all__ = [
    "BASELINES",
    "Answer",
    "Engine",
    "EngineConfig",
    "Recall",
    "RecentSession",
    "Session",
    "Span",
    "SummarySession",
    "VideoSession",
    "engine_args",
    "open_engine",
    "open_session",
]

BASELINES: dict[str, type[Session]] = {"recent": RecentSession, "summary": SummarySession}
"""Strategies that are no policy of a cache but another way to remember, with a session of their own."""


def open_session(engine: Engine) -> Session:
    """Open a session that remembers by the engine's strategy."""
    return BASELINES.get(engine.config.cache.strategy, VideoSession)(engine)


def open_engine(config: EngineConfig, caches: Sequence[CacheConfig]) -> Engine:
    """Start an engine that can be switched to any of ``caches``; each is tried, so that a wrong one is known at once.

    Raises:
        ConfigError: if one of them cannot be used; and what ``Engine`` raises.
    """
    unbounded = next((cache for cache in caches if not load(cache.strategy).bounded), None)
    largest = unbounded or max(caches, key=lambda cache: cache.max_tokens)
    engine = Engine(with_room_for(caches, replace(config, cache=largest)))
    for cache in caches:
        engine.use(cache)
        open_session(engine).close()
    return engine
