"""Streaming a video into vLLM and asking about it."""

from kvvideo.session.engine import Engine, EngineConfig, engine_args
from kvvideo.session.session import Answer, Span, VideoSession

__all__ = ["Answer", "Engine", "EngineConfig", "Span", "VideoSession", "engine_args"]
