"""An engine that was switched to another strategy works as one that was started with it."""

from collections.abc import Iterator
from typing import Any

import pytest

from kvvideo import compression
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.plugin.inspect import bounded_layers
from kvvideo.session import Engine, VideoSession
from kvvideo.session.pool import page_bytes
from tests.conftest import EngineFor
from tests.helpers.engines import BUDGET, MAX_TOKENS, SINK, clips


def bounded(strategy: str, **options: Any) -> CacheConfig:
    return CacheConfig(strategy, **{"max_tokens": MAX_TOKENS, "budget": BUDGET, "sink": SINK, **options})


def watch(engine: Engine) -> list[Any]:
    """Return what a session holds and says, chunk by chunk."""
    seen: list[Any] = []
    with VideoSession(engine) as session:
        for chunk in clips(12):
            session.ingest(chunk)
            stats = session.stats()
            seen.append((stats.seen, stats.live, stats.blocks, stats.compactions, session._live_positions().tolist()))
        answer = session.ask("What is it?", max_tokens=12, logprobs=True)
        seen.append((answer.token_ids, [round(p, 4) for p in answer.logprobs]))
    return seen


@pytest.fixture
def switched(engine_for: EngineFor) -> Iterator[Engine]:
    engine = engine_for("full", spare_rows=3)
    yield engine
    engine.use(bounded("full"))


@pytest.mark.parametrize("strategy", ["streaming", "distinct", "heavy", "full"])
def test_a_switched_engine_is_as_good_as_a_new_one(engine_for: EngineFor, switched: Engine, strategy: str):
    for other in ("heavy", "streaming"):
        switched.use(bounded(other))
        watch(switched)
    switched.use(bounded(strategy))
    assert watch(switched) == watch(engine_for(strategy))


def test_positions_can_be_switched_too(engine_for: EngineFor, switched: Engine):
    switched.use(bounded("heavy", positions="contiguous"))
    assert watch(switched) == watch(engine_for("heavy", cache={"positions": "contiguous"}))


def test_what_cannot_be_switched_to(engine_for: EngineFor, switched: Engine):
    with pytest.raises(ConfigError, match=r"h2o.*side state"):
        engine_for("streaming").use(bounded("h2o"))
    with pytest.raises(ConfigError, match="kv_bytes"):
        switched.use(CacheConfig("streaming", max_tokens=1 << 24))
    with VideoSession(switched) as session:
        session.ingest(clips(1)[0])
        with pytest.raises(ConfigError, match="close all sessions"):
            switched.use(bounded("streaming"))
        assert switched.config.cache.strategy == "full"
        session.ask("What is it?", max_tokens=2)


class Qwen7B:
    """Shape of Qwen2.5-VL-7B's language model."""

    num_key_value_heads, num_attention_heads, hidden_size, num_hidden_layers = 4, 28, 3584, 28


@pytest.mark.parametrize("strategy", [s for s in compression.strategies() if s != "full"])
@pytest.mark.parametrize("positions", ["absolute", "contiguous"])
def test_what_a_strategy_writes_down_is_small(strategy: str, positions: str):
    from kvvideo.compression.rows import state_rows

    config = CacheConfig(strategy, positions=positions)
    size, head_dim = 16, Qwen7B.hidden_size // Qwen7B.num_attention_heads
    bare = page_bytes(Qwen7B, size, 2, 0)
    page = page_bytes(Qwen7B, size, 2, state_rows(config))
    remembered = compression.load(strategy).stream_bytes(Qwen7B.num_attention_heads, head_dim)
    whole = bare * config.max_tokens // size
    assert (page - bare) / bare + remembered / whole < 0.05


def test_what_is_remembered_of_a_stream_is_counted(engine_for: EngineFor):
    engine = engine_for("expected-attention", questions=3)
    with VideoSession(engine) as session:
        session.ingest(clips(1)[0])
        impls = engine.llm.collective_rpc(_impls)[0]
        held = sum(t.numel() * t.element_size() for impl in impls for s in impl.streams.values() for t in s.values())
        assert session.stats().bytes - session.stats().blocks * engine.scheduler.block_bytes == held > 0
    assert not any(impl.streams for impl in impls)


def _impls(worker: Any) -> list[Any]:
    return [layer.impl for layer in bounded_layers(worker)]
