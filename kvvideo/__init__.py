"""Ask questions of very long videos: streaming KV-cache compression inside vLLM.

Names are loaded when first used, so that importing kvvideo, and ``kvvideo --help``, load no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvvideo.agenda import Agenda, Question
    from kvvideo.analyze import Asked
    from kvvideo.config import CacheConfig
    from kvvideo.errors import ConfigError, EngineError, KvvideoError, OutOfMemoryError, VideoError
    from kvvideo.memories.file import MemoryFile
    from kvvideo.memories.memory import Memory
    from kvvideo.playback import Playback
    from kvvideo.session import Answer, Engine, EngineConfig, Session, Span, VideoSession, engine_args, open_session
    from kvvideo.types import CacheStats, Chunk
    from kvvideo.video import Source, VideoReader

__version__ = "0.1.0"

_HOME = {
    "Agenda": "agenda",
    "Answer": "session",
    "Asked": "analyze",
    "CacheConfig": "config",
    "CacheStats": "types",
    "Chunk": "types",
    "ConfigError": "errors",
    "Engine": "session",
    "EngineConfig": "session",
    "EngineError": "errors",
    "KvvideoError": "errors",
    "Memory": "memories.memory",
    "MemoryFile": "memories.file",
    "OutOfMemoryError": "errors",
    "Playback": "playback",
    "Question": "agenda",
    "Session": "session",
    "Source": "video",
    "Span": "session",
    "VideoError": "errors",
    "VideoReader": "video",
    "VideoSession": "session",
    "engine_args": "session",
    "open_session": "session",
}

__all__ = [
    "Agenda",
    "Answer",
    "Asked",
    "CacheConfig",
    "CacheStats",
    "Chunk",
    "ConfigError",
    "Engine",
    "EngineConfig",
    "EngineError",
    "KvvideoError",
    "Memory",
    "MemoryFile",
    "OutOfMemoryError",
    "Playback",
    "Question",
    "Session",
    "Source",
    "Span",
    "VideoError",
    "VideoReader",
    "VideoSession",
    "engine_args",
    "open_session",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kvvideo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kvvideo.{_HOME[name]}"), name)
