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
    from kvvideo.runs.entry import analyze
    from kvvideo.runs.playback import Playback
    from kvvideo.runs.streaming import Asked
    from kvvideo.session import Answer, Engine, EngineConfig, Session, Span, VideoSession, engine_args, open_session
    from kvvideo.session.memory import Memory
    from kvvideo.storage.file import MemoryFile
    from kvvideo.types import CacheStats, Chunk, Progress
    from kvvideo.video import Source, VideoReader

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
    "Progress",
    "Question",
    "Session",
    "Source",
    "Span",
    "VideoError",
    "VideoReader",
    "VideoSession",
    "__version__",
    "analyze",
    "engine_args",
    "open_session",
]

_HOMES = (
    "errors",
    "types",
    "compression.config",
    "runs.agenda",
    "video",
    "session",
    "session.memory",
    "storage.file",
    "runs.entry",
    "runs.playback",
)
"""Modules that the names of ``__all__`` are looked for in, those that load fast before others."""


def __getattr__(name: str) -> Any:
    for home in _HOMES if name in __all__ else ():
        module = importlib.import_module(f"kvvideo.{home}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module 'kvvideo' has no attribute {name!r}")
