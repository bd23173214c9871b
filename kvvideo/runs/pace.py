"""The pace of earlier runs on this machine, kept so that ``--dry-run`` can say how long the next will take.

It is in ``pace.json`` of the state directory: the last run of each setting that decides it.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvvideo.errors import KvvideoError
from kvvideo.runs.journal import state_directory
from kvvideo.runs.streaming import Asked
from kvvideo.session import EngineConfig
from kvvideo.storage.disk import durable
from kvvideo.video import Source, VideoInfo

logger = logging.getLogger("kvvideo.runs")

LEAST_CHUNKS = 5
"""Chunks that a run must have timed for its pace to be kept. One more comes first, which waits for the decoder."""
MOST_SETTINGS = 100
"""Settings whose pace is kept; the oldest make room."""

Setting = dict[str, Any]


@dataclass(frozen=True)
class Pace:
    """The pace of a run.

    Attributes:
        chunk_seconds: mean of a chunk, with decoding and checkpoints, without answers.
        chunks: that were timed.
        tokens: most tokens held meanwhile.
        answer_seconds: mean of an answer, of those given at once too; None if nothing was asked.
        load_seconds: loading the model.
        at: when that was, in seconds since the epoch.
    """

    chunk_seconds: float
    chunks: int
    tokens: int
    answer_seconds: float | None
    load_seconds: float
    at: float

    def seconds(self, chunks: int, answers: int) -> float:
        """Return how long a run takes: loading the model, so many chunks, and as many answers."""
        return self.load_seconds + chunks * self.chunk_seconds + answers * (self.answer_seconds or 0.0)


class Stopwatch:
    """Times the chunks of a run, apart from the answers between them.

    Args:
        config: of the engine.
        source: the video.
        info: of the video.
        load_seconds: what loading the model took.
    """

    def __init__(self, config: EngineConfig, source: Source, info: VideoInfo, load_seconds: float) -> None:
        # What is not read as fast as it can be says nothing of the machine.
        self._setting = setting(config, source, info) if source.replayable else None
        self._load = load_seconds
        self._began: float | None = None
        self._chunks, self._streaming, self._tokens = 0, 0.0, 0
        self._answers, self._asking, self._between = 0, 0.0, 0.0

    def chunk(self, tokens: int) -> None:
        """Note that a chunk was ingested, after which so many ``tokens`` are held."""
        now = time.perf_counter()
        if self._began is not None:
            self._chunks += 1
            self._streaming += now - self._began - self._between
        self._began, self._between = now, 0.0
        self._tokens = max(self._tokens, tokens)

    def answered(self, asked: Sequence[Asked]) -> None:
        """Note answers that were given together."""
        took = max(one.answer.seconds for one in asked)
        self._answers += len(asked)
        self._asking += took
        self._between += took

    def keep(self) -> None:
        """Keep the pace, if enough chunks were timed. Where that fails, there is just nothing to say next time."""
        if self._setting is None or self._chunks < LEAST_CHUNKS:
            return
        pace = Pace(
            chunk_seconds=round(self._streaming / self._chunks, 6),
            chunks=self._chunks,
            tokens=self._tokens,
            answer_seconds=round(self._asking / self._answers, 6) if self._answers else None,
            load_seconds=round(self._load, 3),
            at=round(time.time()),
        )
        try:
            path = _path()
            others = [entry for entry in _entries(path) if entry[0] != self._setting]
            kept = [*others[1 - MOST_SETTINGS :], (self._setting, pace)]
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with durable(path) as stream:
                text = json.dumps([{"setting": setting, "pace": asdict(pace)} for setting, pace in kept], indent=1)
                stream.write(text.encode())
        except (KvvideoError, OSError) as error:
            logger.debug("the pace of this run is not kept: %s", error)


def known(config: EngineConfig, source: Source, info: VideoInfo) -> Pace | None:
    """Return the pace of the last run like this one on this machine; None if there was none."""
    wanted = setting(config, source, info)
    try:
        return next((pace for found, pace in _entries(_path()) if found == wanted), None)
    except KvvideoError:
        return None


def setting(config: EngineConfig, source: Source, info: VideoInfo) -> Setting:
    """Return what decides how long a chunk takes, as JSON has it. How much is held is no part of it."""
    planned = source.plan(info)
    return {
        "model": config.model,
        "dtype": config.dtype,
        "strategy": config.cache.strategy,
        "options": [[name, value] for name, value in config.cache.options],
        "frame": [planned.width, planned.height],
        "frames": round(source.chunk_seconds * source.fps),
        "machine": machine(),
    }


def machine() -> str:
    """Return the processor that models run on, and how many cores there are. A host's name changes in containers."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()
    return f"{name}, {cores} cores"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as info:
            return next(line.partition(":")[2].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _path() -> Path:
    return state_directory() / "pace.json"


def _entries(path: Path) -> list[tuple[Setting, Pace]]:
    """Return what was kept, the newest last; nothing of a file that is not there or damaged."""
    try:
        return [(dict(entry["setting"]), Pace(**entry["pace"])) for entry in json.loads(path.read_bytes())]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
