"""Streaming a video into vLLM and asking about it."""

from kvvideo.session.base import Answer, Session, Span
from kvvideo.session.engine import Engine, EngineConfig, engine_args
from kvvideo.session.recent import RecentSession
from kvvideo.session.session import VideoSession
from kvvideo.session.summary import SummarySession

__all__ = [
    "BASELINES",
    "Answer",
    "Engine",
    "EngineConfig",
    "RecentSession",
    "Session",
    "Span",
    "SummarySession",
    "VideoSession",
    "engine_args",
    "open_session",
]

BASELINES: dict[str, type[Session]] = {"recent": RecentSession, "summary": SummarySession}
"""Strategies that are no policy of a cache but another way to remember, with a session of their own."""


def open_session(engine: Engine) -> Session:
    """A session that remembers by the engine's strategy."""
    return BASELINES.get(engine.config.cache.strategy, VideoSession)(engine)
