"""Every bench gives its report, in this process and with one engine; the commands themselves are slow tests."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from kvvideo.bench import checkpoint, compaction, decode, memory, profile, recall, start, stream
from kvvideo.bench.frames import SMALL, Frames
from kvvideo.compression.config import CacheConfig
from kvvideo.session import Engine, EngineConfig, VideoSession

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
    benches = ("checkpoint", "compaction", "memory", "profile", "stream")
    for module in ("session.engine", *(f"bench.{name}" for name in benches)):
        monkeypatch.setattr(import_module(f"kvvideo.{module}"), "Engine", lambda config: engine)


def test_stream() -> None:
    report = stream.run(CONFIG, 12, Frames(CONFIG, source=SMALL), windows=3)
    rows = report["windows"]
    assert isinstance(rows, list)
    assert [row["chunk"] for row in rows] == [4, 8, 12]
    assert [row["tokens"] for row in rows] == sorted({row["tokens"] for row in rows})
    assert all(row["live"] <= row["peak_live"] <= 256 for row in rows)


def test_looking_again_at_the_end_of_a_stream() -> None:
    report = stream.run(CONFIG, 12, Frames(CONFIG, source=SMALL), windows=3, recall=2)
    looking: Any = report["looking"]
    assert looking["shown"] == 2
    assert [*looking["first_token_ms"]] == [0, 1, 2]
    assert 0 < looking["finding_ms"] < looking["first_token_ms"][2]
    frames = Frames(CONFIG, source=SMALL)
    assert report["index_bytes"] == 12 * 6 * 2 * 64 * 2
    again = stream.Anew(frames)
    first, second = (again.chunks([(8.0, 12.0)])[0] for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first.start, first.end) == (second.start, second.end) == (8.0, 12.0)
    assert first.frames.tobytes() != second.frames.tobytes() != frames.chunk(2).frames.tobytes()


def test_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "PER_MINUTE", 3)
    report = checkpoint.run(CONFIG, 2)
    assert (report["minutes"], report["max_tokens"]) == (2, 256)
    assert report["bytes"] == pytest.approx(report["predicted_bytes"], rel=0.1)


def test_profile() -> None:
    report = profile.run(CONFIG, cycles=1)
    assert sum(report["parts"].values()) == pytest.approx(report["ms_watched"], abs=0.02)
    ours = {"compaction", "watching queries", "index of chunks"}
    assert {"vision tower", "attention", "all else", *ours} <= report["parts"].keys()
    assert report["index_share"] == pytest.approx(report["parts"]["index of chunks"] / report["ms_watched"], abs=1e-3)
    assert 0 < report["index_share"] < report["ours_share"]


def test_without_an_index_nothing_is_indexed(engine: Engine) -> None:
    frames = Frames(CONFIG, source=SMALL)
    with VideoSession(engine) as session:
        profile.set_index(engine, False)
        session.ingest(frames.chunk(0))
        profile.set_index(engine, True)
        session.ingest(frames.chunk(1))
        assert len(session.index) == 1


def test_recall() -> None:
    report = recall.run(CONFIG, ["streaming", "distinct"], [0.3], [0.5, 1.0], clips=1)
    assert [(cell["strategy"], cell["minutes"]) for cell in report["cells"]] == [
        ("streaming", 0.5),
        ("distinct", 0.5),
        ("streaming", 1.0),
        ("distinct", 1.0),
    ]
    for cell in report["cells"]:
        assert cell["asked"] > 0
        assert cell["found"] == sorted(cell["found"])
        assert cell["found"][-1] <= cell["asked"]
        assert all(low <= share <= high for share, (low, high) in zip(cell["among"], cell["intervals"], strict=True))
    assert report["cells"][2]["among"][1] > 0.9
    assert not report["skipped"]


def test_recall_leaves_out_what_has_no_room() -> None:
    report = recall.run(CONFIG, ["streaming"], [0.01], [0.5], clips=1)
    assert not report["cells"]
    assert [skipped["strategy"] for skipped in report["skipped"]] == ["streaming"]
    assert "sink" in report["skipped"][0]["reason"]


def test_memory_with_looking_again() -> None:
    report = memory.run(CONFIG, ["streaming", "recent"], [0.2], recalls=[2], minutes=1.0, clips=1)
    full, without, again, recent = report["cells"]
    assert [cell["recall"] for cell in report["cells"]] == [0, 0, 2, 0]
    assert again["backward"] > without["backward"]
    assert (full["real_time_changed"], without["real_time_changed"], recent["index_bytes"]) == (0, 0, 0)
    assert again["index_bytes"] == without["index_bytes"] > 0
    assert again["ms_per_question"] > 0


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
