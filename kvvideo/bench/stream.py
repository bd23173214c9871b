"""``bench stream``: time per chunk, and memory, along one long stream; and of looking again at its end."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvvideo.bench.frames import Frames, heading
from kvvideo.bench.machine import gpu_mb, host_bytes
from kvvideo.session import Engine, EngineConfig, VideoSession
from kvvideo.session.index import ChunkIndex
from kvvideo.session.recall import Recall
from kvvideo.types import Chunk

QUESTION = "Which letter is on screen now?"
REPEATS = 5
"""Questions whose median is taken: our choice."""


@dataclass(frozen=True)
class Window:
    """A stretch of the stream.

    Attributes:
        chunk: number of the last chunk in it.
        ms: median milliseconds per chunk.
        tokens: seen since the beginning of the stream.
        live: tokens held at its end.
        peak_live: most tokens held after any of its chunks.
        blocks: KV blocks held at its end.
        free_blocks: blocks free in vLLM's pool at its end.
        host_mb: resident memory of the process at its end.
        gpu_mb: most memory of the GPU in use so far; None without one.
    """

    chunk: int
    ms: float
    tokens: int
    live: int
    peak_live: int
    blocks: int
    free_blocks: int
    host_mb: float
    gpu_mb: float | None


def run(
    config: EngineConfig,
    chunks: int,
    frames: Frames,
    windows: int = 20,
    recall: int = 0,
    on_window: Callable[[Window], None] = lambda _: None,
) -> dict[str, object]:
    """Stream ``chunks`` chunks of made-up ``frames`` through one session; return the report.

    With ``recall``, a question is asked at the end without and with that many chunks shown again; see ``looking``.
    Ratios compare the last window with the second: the first pays for warming up. ``mean_ms`` is of all
    chunks but the first window's, compactions included, which medians do not show.
    """
    engine = Engine(config)
    session = VideoSession(engine)
    rows: list[Window] = []
    size = max(1, chunks // windows)
    took: list[float] = []
    later: list[float] = []
    peak = 0
    for number in range(1, chunks + 1):
        chunk = frames.chunk(number - 1)
        began = time.perf_counter()
        session.ingest(chunk)
        took.append(time.perf_counter() - began)
        stats = session.stats()
        peak = max(peak, stats.live)
        if number % size == 0 or number == chunks:
            rows.append(
                Window(
                    number,
                    round(statistics.median(took) * 1000, 2),
                    stats.seen,
                    stats.live,
                    peak,
                    stats.blocks,
                    engine.free_blocks,
                    round(host_bytes() / 1e6, 1),
                    gpu_mb(),
                )
            )
            on_window(rows[-1])
            later += took if len(rows) > 1 else []
            took, peak = [], 0
    report: dict[str, object] = {
        **heading("stream", config, engine.block_size, frames),
        "index": config.index,
        "index_bytes": session.index.bytes,
        "max_model_len": config.max_model_len,
        "pool_bytes": engine.blocks * engine.scheduler.block_bytes,
        "windows": [asdict(row) for row in rows],
    }
    if len(rows) > 1:
        report |= _ratios(rows, later)
    if recall:
        report["looking"] = looking(session, frames, recall)
    session.close()
    engine.close()
    return report


def _ratios(rows: Sequence[Window], later: Sequence[float]) -> dict[str, float]:
    return {
        "mean_ms": round(1000 * statistics.fmean(later), 2),
        "time_ratio": round(rows[-1].ms / rows[1].ms, 3),
        "host_growth_mb": round(rows[-1].host_mb - rows[1].host_mb, 1),
    }


class Anew:
    """Made-up frames of the same stretches, never twice the same, for vLLM remembers what it has seen."""

    def __init__(self, frames: Frames) -> None:
        self._frames, self._viewer = frames, 0

    def chunks(self, stretches: Sequence[tuple[float, float]]) -> list[Chunk | None]:
        """Return the frames of each stretch; no time is spent on decoding."""
        self._viewer += 1
        return [self._frames.chunk(round(start / self._frames.seconds), self._viewer) for start, _ in stretches]


class Apart(ChunkIndex):
    """An index in which no chunks are one event: made-up weights look at all alike, which would make one of them."""

    def _goes_on(self, *_: Any) -> bool:
        return False


def looking(session: VideoSession, frames: Frames, recall: int) -> dict[str, Any]:
    """Return the median milliseconds of finding chunks, and to the first token with 0, 1 and ``recall`` shown again.

    ``chunk_ms`` is what each chunk adds.
    """
    again, engine = Anew(frames), session.engine
    session.index = Apart.of_tensors(session.index.as_tensors())
    finding, first = list[float](), dict[int, list[float]]()
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        engine.drive(session.finding([QUESTION]))
        finding.append(time.perf_counter() - began)
        for count in sorted({0, 1, recall}):
            answer = session.ask(QUESTION, recall=Recall(count, again), max_tokens=1)
            first.setdefault(count, []).append(answer.first_token_seconds)
            shown = len(answer.looked_at)
    # The first of each warms up.
    found = 1000 * statistics.median(finding[1:])
    tokens = {count: 1000 * statistics.median(seconds[1:]) for count, seconds in first.items()}
    return {
        "finding_ms": round(found, 2),
        "first_token_ms": {count: round(ms, 2) for count, ms in tokens.items()},
        "shown": shown,
        "chunk_ms": round((tokens[recall] - tokens[0] - found) / shown, 2) if shown else None,
        "chunk_tokens": engine.chunk_tokens(frames.chunk(0)),
    }
