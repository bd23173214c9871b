"""Ask questions of very long videos: streaming KV-cache compression inside vLLM.

Names are loaded when first used, so that importing kvvideo, and ``kvvideo --help``, load no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from kvvideo._version import __version__

if TYPE_CHECKING:
    from kvvideo.compression.config import CacheConfig
    from kvvideo.errors import ConfigError, EngineError, KvvideoError, OutOfMemoryError, VideoError
    from kvvideo.runs.agenda import Agenda, Question
    from kvvideo.runs.playback import Playback
    from kvvideo.runs.streaming import Asked
    from kvvideo.session import Answer, Engine, EngineConfig, Session, Span, VideoSession, engine_args, open_session
    from kvvideo.session.memory import Memory
    from kvvideo.storage.file import MemoryFile
    from kvvideo.types import CacheStats, Chunk
    from kvvideo.video import Source, VideoReader

_HOME = {
    "Agenda": "runs.agenda",
    "Answer": "session",
    "Asked": "runs.streaming",
    "CacheConfig": "compression.config",
    "CacheStats": "types",
    "Chunk": "types",
    "ConfigError": "errors",
    "Engine": "session",
    "EngineConfig": "session",
    "EngineError": "errors",
    "KvvideoError": "errors",
    "Memory": "session.memory",
    "MemoryFile": "storage.file",
    "OutOfMemoryError": "errors",
    "Playback": "runs.playback",
    "Question": "runs.agenda",
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
    "__version__",
    "engine_args",
    "open_session",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kvvideo' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kvvideo.{_HOME[name]}"), name)
