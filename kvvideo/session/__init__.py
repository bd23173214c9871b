"""Streaming a video into vLLM and asking about it."""

from kvvideo.session.engine import Engine
from kvvideo.session.session import Answer, VideoSession

__all__ = ["Answer", "Engine", "VideoSession"]
