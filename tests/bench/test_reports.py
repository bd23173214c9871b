"""Every bench gives its report, in this process and with one engine; the commands themselves are slow tests."""

from collections.abc import Iterator
from importlib import import_module

import pytest

from kvvideo.bench import checkpoint, compaction, decode, profile, start, stream
from kvvideo.bench.frames import SMALL, Frames
from kvvideo.compression.config import CacheConfig
from kvvideo.session import Engine, EngineConfig

CONFIG = EngineConfig("tiny", CacheConfig("h2o", max_tokens=256), spare_rows=2)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(CONFIG)
    close = engine.close
    engine.close = lambda: None  # type: ignore[method-assign]
    yield engine
    close()


@pytest.fixture(autouse=True)
def one_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.use(CONFIG.cache)
    for module in ("bench.checkpoint", "bench.compaction", "bench.profile", "bench.stream", "session.engine"):
        monkeypatch.setattr(import_module(f"kvvideo.{module}"), "Engine", lambda config: engine)


def test_stream() -> None:
    report = stream.run(CONFIG, 12, Frames(CONFIG, source=SMALL), windows=3)
    rows = report["windows"]
    assert isinstance(rows, list)
    assert [row["chunk"] for row in rows] == [4, 8, 12]
    assert [row["tokens"] for row in rows] == sorted({row["tokens"] for row in rows})
    assert all(row["live"] <= row["peak_live"] <= 256 for row in rows)


def test_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PER_MINUTE", 3)
    report = checkpoint.run(CONFIG, 2)
    assert (report["minutes"], report["max_tokens"]) == (2, 256)
    assert report["bytes"] == pytest.approx(report["predicted_bytes"], rel=0.1)


def test_profile() -> None:
    report = profile.run(CONFIG, cycles=1)
    assert sum(report["parts"].values()) == pytest.approx(report["ms_watched"], abs=0.02)
    assert {"vision tower", "attention", "compaction", "watching queries", "all else"} <= report["parts"].keys()


def test_compaction() -> None:
    report = compaction.run(CONFIG, ["distinct", "h2o"], cycles=1)
    distinct, h2o = report["strategies"]
    assert distinct["watching_ms"] == 0.0 < h2o["watching_ms"]
    assert report["kernels"]["kernels"]


def test_decode() -> None:
    report = decode.run(["pyav"], seconds=4.0, size=(160, 96), repeats=1)
    (row,) = report["decoders"]
    assert row["times_real_time"] > 0


def test_start() -> None:
    report = start.run(CONFIG)
    assert [*report["seconds"]][-2:] == ["first chunk", "first answer"]  # type: ignore[misc]
