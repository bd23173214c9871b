"""``bench profile``: the time of one ingest, part by part."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kvvideo.bench import operations
from kvvideo.bench.frames import Frames, heading
from kvvideo.bench.spans import Spans
from kvvideo.session import Engine, EngineConfig, VideoSession

PREPARING = "prepare frames and text"
SCHEDULING = "schedule, update, fold (scheduler)"
INPUTS = "inputs and attention metadata (model runner)"
VISION = "vision tower"
EMBEDDING = "embeddings and positions"
LANGUAGE = "language model, but for what follows"
ATTENTION = "attention"
WRITING = "writing keys and values"
STATE = "side state of new tokens"
INDEXING = "index of chunks"
WATCHING = "watching queries"
COMPACTING = "compaction"
SAMPLING = "logits and sampling"
REST = "all else"

OURS = (STATE, INDEXING, WATCHING, COMPACTING)
"""Parts that a cache without compression does not have."""


STAGES = {
    "scheduling": SCHEDULING,
    "inputs": INPUTS,
    "vision": VISION,
    "embedding": EMBEDDING,
    "language": LANGUAGE,
    "attention": ATTENTION,
    "writing": WRITING,
    "state": STATE,
    "indexing": INDEXING,
    "watching": WATCHING,
    "compacting": COMPACTING,
    "sampling": SAMPLING,
}
"""Parts by the names of ``kvvideo.plugin.stages``."""


def watch(engine: Engine) -> Spans:
    """Return spans over the parts of ``engine``, not yet entered."""
    from kvvideo.plugin.stages import stages

    spans = Spans()
    for method in ("prompt", "process"):
        spans.add(PREPARING, engine, method)
    for stage, owner, method in stages(engine.core):
        spans.add(STAGES[stage], owner, method)
    return spans


def set_index(engine: Engine, on: bool) -> None:
    """Let the chunks that come be indexed, or not."""
    engine.on_workers(_set_index, on)
    engine.config = replace(engine.config, index=on)


def _set_index(worker: Any, on: bool) -> None:
    from kvvideo.plugin.inspect import bounded_builder

    bounded_builder(worker).indexes = on


LIMIT = 200
"""Most chunks of a cycle, for a cache that is never compacted has none: our choice."""


def ingest_cycle(session: VideoSession, frames: Frames) -> list[float]:
    """Ingest up to and including the next compaction; return the seconds that each chunk took."""
    took: list[float] = []
    before = session.stats().compactions
    while len(took) < LIMIT and session.stats().compactions == before:
        chunk = frames.chunk(session.chunks)
        began = time.perf_counter()
        session.ingest(chunk)
        took.append(time.perf_counter() - began)
    return took


def _least(config: EngineConfig, frames: Frames, tokens: float, live: float) -> dict[str, float]:
    """Return the least milliseconds that the matrix products of some parts need, by part."""
    work = operations.of_chunk(config, tokens, frames.tokens, live)
    rate = operations.rate(config)
    parts = {LANGUAGE: work.language, VISION: work.vision, ATTENTION: work.attention}
    return {name: round(1000 * count / rate, 3) for name, count in parts.items()}


def run(
    config: EngineConfig,
    cycles: int = 4,
    frame_tokens: int | None = None,
    chunk_seconds: float = 4.0,
    on_cycle: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Ingest made-up chunks over ``cycles`` compactions, with and without spans; return the report.

    Chunks are watched, left alone, and left without an index by turns of a cycle, from one compaction to the next, so
    that all are the same work. ``parts`` are milliseconds per chunk, mean; ``ms`` is a chunk's time when nothing is
    watched, ``ms_without_index`` the same when nothing is indexed either; ``least_ms`` is what the matrix products of
    a part would take at the machine's rate of large ones.
    """
    engine = Engine(config)
    frames, spans = Frames(config, frame_tokens, seconds=chunk_seconds), watch(engine)
    plain: list[float] = []
    bare: list[float] = []
    watched: list[float] = []
    with VideoSession(engine) as session:
        spans.add(INDEXING, session, "_note")
        for _ in range(2):  # warms up
            ingest_cycle(session, frames)
        began = session.stats()
        for number in range(cycles):
            plain += ingest_cycle(session, frames)
            set_index(engine, False)
            bare += ingest_cycle(session, frames)
            set_index(engine, True)
            with spans:
                watched += ingest_cycle(session, frames)
            on_cycle(number + 1)
        ended = session.stats()
    schedule, tokens = config.cache.schedule(engine.block_size), (ended.seen - began.seen) / len(plain + bare + watched)
    ends = (schedule.budget, schedule.max_tokens) if schedule else (began.live, ended.live)
    whole = 1000 * statistics.fmean(watched)
    parts = {name: 1000 * seconds / len(watched) for name, seconds in spans.seconds.items()}
    parts[REST] = whole - sum(parts.values())
    report = {
        **heading("profile", config, engine.block_size, frames),
        "chunks": len(watched),
        "ms": round(1000 * statistics.fmean(plain), 3),
        "ms_without_index": round(1000 * statistics.fmean(bare), 3),
        "ms_watched": round(whole, 3),
        "parts": {name: round(ms, 3) for name, ms in sorted(parts.items(), key=lambda part: -part[1])},
        "least_ms": _least(config, frames, tokens, statistics.fmean(ends)),
        "index_share": round(parts.get(INDEXING, 0.0) / whole, 4),
        "ours_share": round(sum(parts.get(name, 0.0) for name in OURS) / whole, 4),
    }
    engine.close()
    return report
