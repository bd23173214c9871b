"""``bench stream``: time per chunk, and memory, along one long stream."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from kvvideo.bench.frames import Frames, heading
from kvvideo.bench.machine import gpu_mb, host_bytes
from kvvideo.session import Engine, EngineConfig, VideoSession


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
    on_window: Callable[[Window], None] = lambda _: None,
) -> dict[str, object]:
    """Stream ``chunks`` chunks of made-up ``frames`` through one session; return the report.

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
    session.close()
    report: dict[str, object] = {
        **heading("stream", config, engine.block_size, frames),
        "max_model_len": config.max_model_len,
        "pool_bytes": engine.blocks * engine.scheduler.block_bytes,
        "windows": [asdict(row) for row in rows],
    }
    if len(rows) > 1:
        report["mean_ms"] = round(1000 * statistics.fmean(later), 2)
        report["time_ratio"] = round(rows[-1].ms / rows[1].ms, 3)
        report["host_growth_mb"] = round(rows[-1].host_mb - rows[1].host_mb, 1)
    engine.close()
    return report
