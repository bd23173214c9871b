"""``bench compaction``: the cost of each strategy beside the model's own work."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kvvideo.bench import kernels
from kvvideo.bench.frames import Frames, heading
from kvvideo.bench.profile import COMPACTING, STATE, WATCHING, ingest_cycle, watch
from kvvideo.compression import load_all
from kvvideo.session import BASELINES, Engine, EngineConfig, VideoSession
from kvvideo.session.allowance import long_enough
from kvvideo.session.pool import with_room_for


@dataclass(frozen=True)
class Cost:
    """Cost of one strategy.

    Attributes:
        strategy: its name.
        ms: per chunk when nothing is timed inside, compactions included, mean.
        compaction_ms: of one compaction, in all layers.
        watching_ms: of looking at the queries, per chunk.
        state_ms: of noting the position and place of new tokens, per chunk.
        share: of these three in the time of a chunk, measured in the same chunks.
        own_share: without ``state_ms``, which all strategies pay.
        compactions: number that was measured.
    """

    strategy: str
    ms: float
    compaction_ms: float
    watching_ms: float
    state_ms: float
    share: float
    own_share: float
    compactions: int


def names() -> list[str]:
    """Return the names of the strategies that compact a cache."""
    return [name for name, policy in load_all()[0].items() if name not in BASELINES and policy.bounded]


def run(
    config: EngineConfig,
    strategies: Sequence[str],
    cycles: int = 3,
    frame_tokens: int | None = None,
    on_strategy: Callable[[Cost], None] = lambda _: None,
) -> dict[str, Any]:
    """Stream over ``cycles`` compactions under each strategy with nothing timed inside, and as many timed.

    Returns the report.
    """
    caches = [replace(config.cache, strategy=name) for name in strategies]
    engine = Engine(long_enough(with_room_for(caches, replace(config, cache=caches[0])), caches, 1024))
    frames, costs = Frames(config, frame_tokens), []
    for cache in caches:
        engine.use(cache)
        costs.append(_measure(engine, cache.strategy, cycles, frames))
        on_strategy(costs[-1])
    report = heading("compaction", config, engine.block_size, frames)
    del report["strategy"]
    engine.close()
    return {**report, "strategies": [asdict(cost) for cost in costs], "kernels": kernels.run(config)}


def _measure(engine: Engine, strategy: str, cycles: int, frames: Frames) -> Cost:
    spans = watch(engine)
    plain: list[float] = []
    watched: list[float] = []
    compactions = 0
    with VideoSession(engine) as session:
        for _ in range(2):  # warms up
            ingest_cycle(session, frames)
        for _ in range(cycles):
            plain += ingest_cycle(session, frames)
            before = session.stats().compactions
            with spans:
                watched += ingest_cycle(session, frames)
            compactions += session.stats().compactions - before
    whole = sum(watched)
    compacting, watching, state = (spans.seconds.get(name, 0.0) for name in (COMPACTING, WATCHING, STATE))
    return Cost(
        strategy,
        round(1000 * statistics.fmean(plain), 2),
        round(1000 * compacting / max(compactions, 1), 3),
        round(1000 * watching / len(watched), 3),
        round(1000 * state / len(watched), 3),
        round((compacting + watching + state) / whole, 4),
        round((compacting + watching) / whole, 4),
        compactions,
    )
