"""The pace of a run is kept, and found for the next one like it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvvideo.compression.config import CacheConfig
from kvvideo.runs import pace
from kvvideo.runs.pace import Pace, Stopwatch, known
from kvvideo.session import EngineConfig
from kvvideo.video import Live, Source, VideoInfo
from tests.helpers.clips import clip

CONFIG = EngineConfig(model="tiny")
INFO = VideoInfo("a.mp4", 256, 144, 60.0, 25.0, "h264", "mov")
LOAD = 12.0


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "pace.json"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock: what is in it, it shows."""
    now = [100.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], time=lambda: 1e9 + now[0])
    monkeypatch.setattr(pace, "time", clock)
    return now


def source(**settings: Any) -> Source:
    return Source(str(clip("plain.mp4")), **settings)


def timed(now: list[float], chunks: int, seconds: float = 2.0, config: EngineConfig = CONFIG, **settings: Any) -> None:
    """Note the pace of a run: the first of its chunks comes late, and there are two answers of 7 s after the second."""
    watch = Stopwatch(config, source(**settings), INFO, LOAD)
    now[0] += 50
    for number in range(chunks):
        now[0] += seconds
        watch.chunk(100 * number)
        if number == 1:
            now[0] += 14.0
            asked: Any = [SimpleNamespace(answer=SimpleNamespace(seconds=s)) for s in (14.0, 9.0)]
            watch.answered(asked)
    watch.keep()


def test_chunks_and_answers_are_timed_apart(now: list[float]) -> None:
    assert known(CONFIG, source(), INFO) is None
    timed(now, 8)
    found = known(CONFIG, source(), INFO)
    assert found == Pace(2.0, 7, 700, 7.0, LOAD, 1e9 + now[0])
    assert found.seconds(100, 10) == LOAD + 200 + 70
    assert replace(found, answer_seconds=None).seconds(100, 10) == LOAD + 200


def test_few_chunks_and_what_comes_as_it_happens_say_nothing(now: list[float], state: Path) -> None:
    timed(now, pace.LEAST_CHUNKS)
    timed(now, 100, live=Live(follow=True))
    assert not state.exists()
    timed(now, pace.LEAST_CHUNKS + 1)
    assert state.exists()


def test_the_last_run_of_each_setting_counts(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    h2o = replace(CONFIG, cache=CacheConfig("h2o:queries=0"))
    timed(now, 8)
    timed(now, 8, 5.0, h2o)
    timed(now, 8, 3.0)
    same = replace(CONFIG, cache=CacheConfig(max_tokens=100_000), max_model_len=200_000)
    for config, options, seconds in (
        (CONFIG, {}, 3.0),
        (same, {"start": 10.0}, 3.0),
        (h2o, {}, 5.0),
        (replace(CONFIG, cache=CacheConfig("h2o")), {}, None),
        (replace(CONFIG, dtype="float32"), {}, None),
        (replace(CONFIG, model="other"), {}, None),
        (CONFIG, {"fps": 4.0}, None),
        (CONFIG, {"max_pixels": 8 * 784, "min_pixels": 1}, None),
    ):
        found = known(config, source(**options), INFO)
        assert (found and found.chunk_seconds) == seconds, (config, options)
    monkeypatch.setattr(pace, "machine", lambda: "another")
    assert known(CONFIG, source(), INFO) is None


def test_the_oldest_make_room(now: list[float], state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "MOST_SETTINGS", 3)
    for fps in (2.0, 4.0, 6.0, 2.0, 8.0):
        timed(now, 8, fps=fps)
    assert [entry["setting"]["frames"] // 4 for entry in json.loads(state.read_text())] == [6, 2, 8]


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"setting": {}, "pace": {}}]', '{"a": 1}', "[" * 100_000, "\0"])
def test_a_damaged_file_is_as_none(text: str, now: list[float], state: Path) -> None:
    state.parent.mkdir()
    state.write_text(text)
    assert known(CONFIG, source(), INFO) is None
    timed(now, 8)
    assert known(CONFIG, source(), INFO) is not None


def test_where_nothing_can_be_kept_the_run_goes_on(now: list[float], state: Path) -> None:
    state.parent.write_text("in the way")
    timed(now, 8)
    assert known(CONFIG, source(), INFO) is None
