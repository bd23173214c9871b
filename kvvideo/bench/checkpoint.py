"""``bench checkpoint``: the cost of a checkpoint every minute of video, and its size."""

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kvvideo.bench.frames import SMALL, Frames
from kvvideo.bench.machine import describe
from kvvideo.runs.forecast import memory_bytes
from kvvideo.session import Engine, EngineConfig, VideoSession
from kvvideo.storage.checkpoints import Checkpoints

PER_MINUTE = 15
"""Chunks of 4 s."""


def run(
    config: EngineConfig, minutes: int, on_minute: Callable[[int, float], None] = lambda *_: None
) -> dict[str, object]:
    """Stream minutes of made-up frames through one session, each with and without a checkpoint; return the report.

    Both times the minute begins from the same memory, so that it is the same work, and the order is random,
    so that other work on the machine hits both alike. The checkpoint is taken at the minute's beginning, so that
    the minute also bears what writing it in the background takes from the stream, and ends when it is on the disk.

    Args:
        config: settings of the engine.
        minutes: minutes to measure. Before them the stream runs until the cache was compacted.
        on_minute: called with each minute's number and milliseconds.
    """
    engine = Engine(config)
    chance, frames = random.Random(config.seed), Frames(config, source=SMALL)
    took: dict[bool, list[float]] = {False: [], True: []}
    gathering: list[float] = []
    sizes: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory(prefix="kvvideo-") as folder, Checkpoints(Path(folder), max_bytes=0) as store:
        session = _compacted(engine, frames)
        for number in range(1, minutes + 1):
            start, first = session.save(), chance.random() < 0.5
            for kept in (first, not first):
                session.close()
                session = VideoSession.load(engine, start)
                began = time.perf_counter()
                if kept:
                    store.add(session.save())
                    gathering.append(time.perf_counter() - began)
                _minute(session, frames)
                store.flush()
                took[kept].append(time.perf_counter() - began)
                on_minute(number, took[kept][-1] * 1000)
            sizes.append((start.live, store.bytes))
        writing = [_written(session, frames, store) for _ in range(5)]
        session.close()
    tokens, size = max(sizes)
    schedule = config.cache.schedule(engine.block_size)
    engine.close()
    return {
        "bench": "checkpoint",
        "machine": describe(),
        "model": config.model,
        "strategy": config.cache.strategy,
        "max_tokens": schedule.max_tokens if schedule else None,
        "minutes": minutes,
        **_costs(took, gathering),
        "writing_ms": _summary(writing),
        "tokens": tokens,
        "bytes": size,
        "predicted_bytes": memory_bytes(config, tokens),
    }


def _compacted(engine: Engine, frames: Frames) -> VideoSession:
    """Return a session after the minute of its first compaction, or ten minutes if there is none."""
    session = VideoSession(engine)
    for _ in range(10):
        _minute(session, frames)
        if session.stats().compactions:
            break
    return session


def _written(session: VideoSession, frames: Frames, store: Checkpoints) -> float:
    """Return the seconds that the thread takes to write a checkpoint; in the stream it runs beside it."""
    _minute(session, frames)
    memory = session.save()
    began = time.perf_counter()
    store.add(memory)
    store.flush()
    return time.perf_counter() - began


def _costs(took: dict[bool, list[float]], gathering: list[float]) -> dict[str, object]:
    """Return what minutes took with a checkpoint and without, and the difference."""
    costs = [with_one - without for with_one, without in zip(took[True], took[False], strict=True)]
    whole = statistics.fmean(took[False])
    return {
        "ms_per_minute": _summary(took[False]),
        "ms_per_minute_with": _summary(took[True]),
        "cost_ms": _summary(costs),
        "cost_share": round(statistics.median(costs) / whole, 4),
        "gathering_ms": _summary(gathering),
        "gathering_share": round(statistics.median(gathering) / whole, 4),
    }


def _minute(session: VideoSession, frames: Frames) -> None:
    """Let ``session`` see one more minute of made-up chunks."""
    for _ in range(PER_MINUTE):
        session.ingest(frames.chunk(session.chunks))


def _summary(seconds: list[float]) -> dict[str, float]:
    """Return mean and median in milliseconds."""
    return {"mean": round(1000 * statistics.fmean(seconds), 2), "median": round(1000 * statistics.median(seconds), 2)}
