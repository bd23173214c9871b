"""The size of a cache comes from a wish, the model's shape and what the machine has; what is exact wins."""

import re
import subprocess
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kvvideo
from kvvideo.bench.shapes import shaped
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.runs.ingest import recorded_tokens
from kvvideo.runs.origin import engine_for
from kvvideo.runs.recall import Looking
from kvvideo.session import EngineConfig, allowance, machine
from kvvideo.session.allowance import AUTO, LEAST, SIZES, Allowance, bytes_for, chunk_tokens, held_in, rounded
from kvvideo.session.memory import Memory
from kvvideo.session.pool import pool_bytes, sessions_in
from kvvideo.session.prediction import frame_pixels
from tests.helpers import ROOT

GB = 10**9
TINY, B3, B7 = EngineConfig("tiny"), *(shaped(EngineConfig(index=False), shape) for shape in ("3b", "7b"))
CHUNK = chunk_tokens(2.0, 4.0, 128 * 28**2)


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have this machine a GPU with so many bytes free, or without one so many of host memory."""

    def say(free: int, gpus: int = 1) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0" if gpus else None)
        monkeypatch.setattr(allowance, "free_gpu_memory", lambda: [free] * gpus)
        monkeypatch.setattr(allowance, "free_memory", lambda: free)

    return say


def settled(config: EngineConfig, memory: str = AUTO, tokens: int | None = None, length: int | None = None) -> Any:
    return Allowance.parse(memory, tokens, length).settle(config, [config.cache], CHUNK)[0]


@given(
    wish=st.integers(0, 80 * GB),
    config=st.sampled_from([TINY, B3, B7]),
    strategy=st.sampled_from(["distinct", "h2o", "snapkv"]),
    contiguous=st.booleans(),
    sessions=st.integers(1, 9),
    questions=st.integers(0, 20),
    again=st.integers(0, 30_000),
    ranks=st.sampled_from([1, 2]),
)
def test_a_pool_never_takes_more_than_the_wish_and_one_block_more_would(
    wish: int,
    config: EngineConfig,
    strategy: str,
    contiguous: bool,
    sessions: int,
    questions: int,
    again: int,
    ranks: int,
):
    cache = CacheConfig(strategy, positions="contiguous" if contiguous else "absolute")
    more = {"sessions": sessions, "questions": questions, "again_tokens": again}
    config = replace(config, cache=cache, options={"tensor_parallel_size": ranks}, **more)
    tokens = held_in(wish, config)
    assert tokens % 32 == 0
    if tokens >= 128:
        own = replace(config, cache=replace(cache, max_tokens=tokens))
        assert all((pool_bytes(own, size) or 0) <= wish for size in (16, 32))
        assert all(sessions_in(wish, own, size) >= sessions for size in (16, 32))
        assert max(pool_bytes(own, size) or 0 for size in (16, 32)) == bytes_for(tokens, config) <= wish
    assert bytes_for(tokens + 32, config) > wish
    assert held_in(wish + GB, config) >= tokens


@given(st.integers(64, 10**6))
def test_auto_comes_to_one_of_a_few_numbers(tokens: int):
    found = rounded(tokens)
    assert found <= tokens
    assert found in SIZES or tokens < SIZES[0]
    assert 3 * found >= 2 * tokens - 96 or found == SIZES[-1]
    assert rounded(found) == found


def test_the_bundled_model_stays_at_what_it_was(has: Any):
    for free, gpus in ((24 * GB, 0), (80 * GB, 1)):
        has(free, gpus)
        assert settled(TINY) == TINY


def test_auto_is_what_pays_off_if_it_is_there(has: Any):
    has(80 * GB)
    at_most = {name: settled(config).cache.max_tokens for name, config in (("3b", B3), ("7b", B7))}
    assert at_most == {"3b": 12_288, "7b": 16_384}
    has(21 * GB)
    assert 2048 <= settled(B7).cache.max_tokens < LEAST
    # Weights that seem not to fit are for the engine to find out, as is a GPU that says nothing.
    has(8 * GB)
    assert settled(B7).cache.max_tokens == LEAST
    has(80 * GB, 1)
    assert settled(replace(B7, options={"tensor_parallel_size": 2})).cache.max_tokens == LEAST
    # On a CPU, an eighth of what is free.
    has(8 * GB, 0)
    assert settled(B3).cache.max_tokens == rounded(held_in(GB, B3)) == 8192


def test_the_shape_that_was_measured_is_the_one_that_is_meant():
    assert allowance._work(B7) == pytest.approx(allowance._SHAPE, rel=0.001)
    assert allowance.quarter_slower(B7) == pytest.approx(18_700, rel=0.01)


def test_a_wish_is_no_question_of_time(has: Any):
    has(80 * GB)
    config = settled(B7, "8GB")
    assert config.cache.max_tokens > 100_000
    assert pool_bytes(config, 16) <= 8 * GB
    assert config.max_model_len > config.cache.max_tokens + CHUNK


@pytest.mark.parametrize(
    ("memory", "says"),
    [
        ("90GB", r"memory: 90GB do not fit this machine beside '.*'; [\d.]+GB do, or say auto"),
        (
            "500MB",
            r"memory: 500MB is too little for a chunk of up to 544 tokens and .* 16 questions; the least is \d+MB",
        ),
        ("8", r"memory: '8' is not a size; write a number and its unit, such as 500MB, 2GB or 1GiB, or auto"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(has: Any, memory: str, says: str):
    has(80 * GB)
    with pytest.raises(ConfigError, match=says) as error:
        settled(B7, memory)
    if told := re.search(r"(?:least is |; )([\d.]+[GM]B)", str(error.value)):
        assert settled(B7, told[1]).cache.max_tokens >= CHUNK


def test_exact_settings_win(has: Any):
    has(80 * GB)
    config = settled(B7, "8GB", tokens=1000)
    assert (config.cache.max_tokens, config.max_model_len) == (1000, 32768)
    # The length that was typed bounds what is left open.
    config = settled(B7, AUTO, length=8192)
    assert config.max_model_len == 8192
    assert config.cache.max_tokens == 6144
    assert settled(B7, "8GB", length=8192).cache.max_tokens < 8192


def test_a_cache_above_the_longest_request_is_refused(has: Any):
    has(80 * GB)
    with pytest.raises(
        ConfigError, match=r"max_tokens: a cache of 100000 .* max_model_len=32768; use at most 32224, or l"
    ):
        settled(B7, tokens=100_000, length=32768)
    with pytest.raises(ConfigError, match=r"more than the 32768 tokens that 'tiny' takes \(max_position_embeddings\)"):
        settled(TINY, tokens=100_000)
    with pytest.raises(ConfigError, match="max_model_len: 600 tokens have no room for a chunk of up to 544 and a"):
        settled(B7, "8GB", length=600)
    assert settled(B7, tokens=100_000).max_model_len > 100_000
    # A question is shown less again rather than less is held.
    assert settled(B7, "auto", length=6144).cache.max_tokens == 4096
    # Nothing is evicted of this one, so its max_tokens is none.
    full = replace(B7, cache=CacheConfig("full", max_tokens=100_000))
    assert settled(full, tokens=100_000, length=32768).max_model_len == 32768


def test_an_unbounded_cache_takes_the_wish_whole(has: Any):
    has(80 * GB)
    config = settled(replace(B7, cache=CacheConfig("full")), "4GB")
    assert config.kv_bytes == 4 * GB
    assert 32768 < config.max_model_len < 4 * GB // 57344
    config = settled(replace(B7, cache=CacheConfig("full")), "40GB")
    assert 120_000 < config.max_model_len <= 128_000


def test_rope_scaling_bounds_the_longest_request_as_in_vllm(monkeypatch: pytest.MonkeyPatch):
    class Text:
        max_position_embeddings = 1000
        rope_parameters: dict[str, Any] = {"rope_type": "linear", "factor": 4.0}  # noqa: RUF012

    monkeypatch.setattr(allowance, "text_config", lambda path: Text)
    assert allowance._limit(TINY) == 4000
    Text.rope_parameters["rope_type"] = "yarn"
    assert allowance._limit(TINY) == 1000
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    assert allowance._limit(TINY) > 10**6


def test_steps_and_requests_are_as_large_as_frames_make_them(has: Any):
    has(80 * GB)
    chunk = chunk_tokens(2.0, 4.0, 4096 * 28**2)
    config = Looking(4).room_in(B7, 2.0, 4.0, 4096 * 28**2)
    config = Allowance(2 * GB * 10).settle(config, [config.cache], chunk)[0]
    assert config.step_tokens >= chunk > 8192
    assert config.max_model_len >= min(128_000, config.cache.max_tokens + 5 * chunk)


def test_several_strategies_share_one_number_that_holds_for_all(has: Any):
    has(80 * GB)
    caches = [CacheConfig(), CacheConfig("h2o", positions="contiguous")]
    config, found = Allowance(4 * GB).settle(B7, caches, CHUNK)
    assert found[0].max_tokens == found[1].max_tokens == config.cache.max_tokens
    assert pool_bytes(replace(config, cache=found[1]), 16) <= 4 * GB


def test_questions_about_a_large_memory_have_room():
    seconds = {"fps": 2.0, "chunk_seconds": 4.0, "max_pixels": 128 * 28**2}
    cache, tensors = CacheConfig(max_tokens=60_000), {"keys": torch.zeros(1)}
    memory = Memory(B7.model, "", cache, "", 0, 0, 0, 0, 0, 0, 0.0, tensors, seconds)
    assert engine_for(memory, EngineConfig()).max_model_len > 60_000 + 30 * CHUNK
    small = replace(memory, cache=CacheConfig())
    assert engine_for(small, EngineConfig()).max_model_len == EngineConfig.max_model_len


def test_python_says_it_as_the_command_line_does(monkeypatch: pytest.MonkeyPatch):
    found = []

    def settle(self: Allowance, config: EngineConfig, caches: list[CacheConfig], chunk: int) -> Any:
        found.append((self.memory, self.max_tokens, self.max_model_len, chunk))
        return config, caches

    monkeypatch.setattr(Allowance, "settle", settle)
    video = str(ROOT / "samples" / "letters-1m.mp4")
    kvvideo.analyze(video, "What?", model="tiny")
    kvvideo.analyze(video, "What?", model="tiny", memory="2GB", max_model_len=9000)
    kvvideo.analyze(video, "What?", model="tiny", memory="2GB", max_tokens=500)
    kvvideo.analyze(video, "What?", model="tiny", cache=CacheConfig(max_tokens=600))
    assert found == [(None, None, None, 96), (2 * GB, None, 9000, 96), (2 * GB, 500, None, 96), (None, 600, None, 96)]
    with pytest.raises(ConfigError, match="memory: 'lots' is not a size"):
        kvvideo.analyze(video, "What?", model="tiny", memory="lots")


def test_the_driver_says_what_a_gpu_has(monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []

    def answer(command: list[str], **_: Any) -> Any:
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "81000\n24000\n", "")

    monkeypatch.setattr(subprocess, "run", answer)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.free_gpu_memory() == [81000 << 20, 24000 << 20]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    machine.free_gpu_memory()
    assert ["--id=2,3" in command for command in asked] == [False, True]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.free_gpu_memory() == []
    assert len(asked) == 2
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert machine.free_gpu_memory() == []


def test_this_machine_has_memory():
    assert 1 << 24 < machine.free_memory() < 1 << 50


def test_a_file_says_the_tokens_of_what_is_gone_on_with(tmp_path: Any):
    output = tmp_path / "a.kvv"
    assert recorded_tokens(output) is None
    (tmp_path / "a.kvv.part").mkdir()
    facts = tmp_path / "a.kvv.part" / "run.json"
    facts.write_text('{"cache": {"max_tokens": 777}}')
    assert recorded_tokens(output) == 777
    facts.write_text('{"cache": 3}')
    assert recorded_tokens(output) is None
    facts.unlink()
    output.write_bytes(b"no memory")
    assert recorded_tokens(output) is None


def test_the_page_says_what_auto_comes_to(has: Any):
    page = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    rows = {
        name: cells for name, *cells in re.findall(r"^\| (.+?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", page, re.M)
    }
    for name, model in (("tiny", TINY), ("3B", B3), ("7B", B7)):
        reading = (2.0, 4.0, frame_pixels(model)[1])
        config = Looking().room_in(model, *reading)
        said = rows["`tiny`" if name == "tiny" else f"Qwen2.5-VL-{name}"]
        for at, gigabytes in enumerate((8, 16, 24, 80)):
            has(gigabytes << 30)
            room = held_in(allowance.machine_bytes(config) or 0, config)
            tokens = Allowance().settle(config, [config.cache], chunk_tokens(*reading))[0].cache.max_tokens
            assert said[at] == (f"{tokens:,}" if room else "does not fit")
            if name != "tiny":
                assert rows[f"room for, {name}"][at] == (f"{room // 1000:,},000" if room else "–")
