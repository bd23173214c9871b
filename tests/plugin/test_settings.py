"""Settings that cannot work are refused before anything goes wrong; where nothing was asked for, nothing changes."""

import gc
import os
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kvvideo.compression.config import KEY
from kvvideo.errors import ConfigError, OutOfMemoryError
from kvvideo.plugin import compat
from kvvideo.plugin.settings import SCHEDULER, cache_config, conflicts, rotates_plainly
from kvvideo.session import Engine, VideoSession
from kvvideo.session.arguments import engine_args
from kvvideo.session.config import EngineConfig
from kvvideo.session.pool import block_bytes
from tests.conftest import EngineFor
from tests.helpers.engines import BLOCK, BUDGET, MAX_TOKENS, SINK, clip
from tests.helpers.reference import Model
from tests.plugin.test_reference import check_scores, ids, stream_of


def vllm_config(**changes: Any) -> SimpleNamespace:
    """As much of a VllmConfig as the checks read, with nothing wrong in it but ``changes``, as ``part__name``."""
    parts: dict[str, Any] = {
        "additional_config": {KEY: {"strategy": "streaming"}},
        "cache_config": SimpleNamespace(enable_prefix_caching=False, cache_dtype="auto", block_size=16),
        "scheduler_config": SimpleNamespace(async_scheduling=False, scheduler_cls=SCHEDULER),
        "parallel_config": SimpleNamespace(pipeline_parallel_size=1, decode_context_parallel_size=1),
        "model_config": SimpleNamespace(use_mla=False, get_sliding_window=lambda: None),
        "speculative_config": None,
        "kv_transfer_config": None,
        "use_v2_model_runner": False,
    }
    for name, value in changes.items():
        part, _, field = name.partition("__")
        if field:
            setattr(parts[part], field, value)
        else:
            parts[part] = value
    return SimpleNamespace(**parts)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cache_config__enable_prefix_caching": True}, ["prefix caching", "--no-enable-prefix-caching"]),
        ({"scheduler_config__async_scheduling": True}, ["async scheduling", "--no-async-scheduling"]),
        ({"scheduler_config__scheduler_cls": None}, ["scheduler is the default", f"--scheduler-cls {SCHEDULER}"]),
        ({"scheduler_config__scheduler_cls": dict}, ["scheduler is builtins.dict", "--scheduler-cls"]),
        ({"speculative_config": object()}, ["speculative decoding", "--speculative-config"]),
        ({"cache_config__cache_dtype": "fp8"}, ["fp8 KV cache", "--kv-cache-dtype auto"]),
        ({"cache_config__cache_dtype": "fp8_e5m2"}, ["fp8_e5m2 KV cache", "--kv-cache-dtype auto"]),
        ({"kv_transfer_config": object()}, ["KV connector", "--kv-transfer-config"]),
        ({"parallel_config__pipeline_parallel_size": 2}, ["pipeline", "--pipeline-parallel-size 1"]),
        ({"parallel_config__decode_context_parallel_size": 2}, ["context", "--decode-context-parallel-size 1"]),
        ({"model_config__use_mla": True}, ["MLA"]),
        ({"model_config__get_sliding_window": lambda: 128}, ["sliding-window"]),
        ({"use_v2_model_runner": True}, ["runner V2", "VLLM_USE_V2_MODEL_RUNNER=0"]),
    ],
)
def test_what_eviction_would_break_is_refused(changes: dict[str, Any], words: list[str]):
    config = vllm_config(**changes)
    assert len(conflicts(config)) == 1
    with pytest.raises(ConfigError) as caught:
        cache_config(config)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_all_problems_are_told_at_once():
    config = vllm_config(cache_config__enable_prefix_caching=True, scheduler_config__async_scheduling=True)
    with pytest.raises(ConfigError, match=r"(?s)prefix caching.*async scheduling"):
        cache_config(config)


def test_nothing_wrong_is_not_refused():
    config = cache_config(vllm_config())
    assert config is not None
    assert config.strategy == "streaming"
    assert cache_config(vllm_config(scheduler_config__scheduler_cls=_scheduler_class())) is not None


def _scheduler_class() -> type:
    from kvvideo.plugin.scheduler import SessionScheduler

    return SessionScheduler


def test_engines_that_ask_for_nothing_are_left_alone():
    assert cache_config(vllm_config(additional_config={}, cache_config__enable_prefix_caching=True)) is None
    assert cache_config(vllm_config(additional_config={"other": 1})) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"enable_prefix_caching": True}, ["prefix caching"]),
        ({"scheduler_cls": None}, ["the scheduler is", "--scheduler-cls"]),
        ({"additional_config": {KEY: {"strategy": "streaming", "windw": 3}}}, ["windw", "not a setting", "window"]),
        (
            {"additional_config": {KEY: {"max_tokens": BLOCK + 8, "budget": BLOCK - 12, "sink": 1}}},
            [f"max_tokens: {BLOCK + 8}", f"blocks of {BLOCK}"],
        ),
    ],
)
def test_an_engine_does_not_start_with_them(
    model_dir: str, engine_for: EngineFor, options: dict[str, Any], words: list[str]
):
    running = engine_for("streaming")
    with pytest.raises(ConfigError) as caught:
        Engine(EngineConfig(model=model_dir, dtype="float32", max_model_len=512, options=options))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    with VideoSession(running) as session:  # a failed start does not disturb those that run
        session.ingest(clip(0, 0.0))
        assert session.ask("What is it?", max_tokens=2).token_ids


@pytest.mark.parametrize("size", [1 << 16, 1 << 20])
def test_a_pool_too_small_for_one_cache_is_out_of_memory(model_dir: str, size: int):
    with pytest.raises(OutOfMemoryError, match="does not fit"):
        Engine(EngineConfig(model=model_dir, dtype="float32", max_model_len=8192, kv_bytes=size))


@pytest.mark.parametrize("model", ["no/such/directory", "/nowhere"])
def test_a_model_that_is_not_there(model: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=f"there is no directory '{model}'"):
        Engine(EngineConfig(model=model))


def test_the_pool_is_what_its_sessions_need(engine_for: EngineFor, model_dir: str):
    engine = engine_for("heavy")
    assert engine.scheduler.block_bytes == block_bytes(model_dir, engine.config, engine.block_size)
    per_session, per_question = MAX_TOKENS // BLOCK + 1, 1024 // BLOCK + 2
    assert engine.free_blocks == 4 * per_session + 10 * per_question


def test_the_bundled_model_says_what_it_cannot(engine_for: EngineFor):
    """In its configuration: it repeats what it said at other moments, and never saw a frame of more than 16 tokens."""
    from kvvideo.session.prediction import frame_pixels

    engine = engine_for("streaming")
    assert not engine.knows_dialogue
    assert frame_pixels(engine.config) == (4 * 28**2, 16 * 28**2)


# Plain vLLM ------------------------------------------------------------------------------------------


def test_vllms_own_entry_point_with_the_bounded_cache(llm_for: Callable[..., Any], reference: Model):
    from vllm import SamplingParams

    llm = llm_for(
        max_num_batched_tokens=256,
        **engine_args(strategy="streaming", max_tokens=MAX_TOKENS, budget=BUDGET, sink=SINK),
    )
    prompts = [ids(900, 1), ids(70, 2), ids(400, 3)]
    params = SamplingParams(max_tokens=100, temperature=0, logprobs=0, prompt_logprobs=0, ignore_eos=True)
    for prompt, output in zip(
        prompts, llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False), strict=True
    ):
        stream = stream_of(reference, "streaming")
        rows = stream.feed(reference.tokens(prompt))
        shown = [step[t].logprob for t, step in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)]
        check_scores(shown, rows[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist())
        said = output.outputs[0]
        scores = [step[t].logprob for t, step in zip(said.token_ids, said.logprobs, strict=True)]
        chosen, best = stream.score(said.token_ids)
        check_scores(scores, chosen)
        check_scores(scores, best)


def test_an_engine_without_our_settings_is_plain_vllm(vanilla: Any):
    """Even in a process where bounded engines run."""
    from vllm import SamplingParams
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    core = vanilla.llm_engine.engine_core.engine_core
    assert type(core.scheduler) is Scheduler
    (manager,) = core.scheduler.kv_cache_manager.coordinator.single_type_managers
    assert type(manager.kv_cache_spec) is FullAttentionSpec
    assert type(manager).__name__ == "FullAttentionManager"
    free = core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks
    before = free()
    core.add_request(_core_request(vanilla, ids(1500)))
    core.step()
    core.step()
    assert before - free() == -(-1500 // BLOCK), "no block of a long prompt is given back"
    core.abort_requests([*core.scheduler.requests])
    params = SamplingParams(max_tokens=5, temperature=0)
    twice = vanilla.generate([{"prompt_token_ids": ids(500)}] * 2, params, use_tqdm=False)
    assert twice[0].outputs[0].token_ids == twice[1].outputs[0].token_ids


def _core_request(llm: Any, prompt: list[int]) -> Any:
    from vllm import SamplingParams

    engine, params = llm.llm_engine, SamplingParams(max_tokens=5, ignore_eos=True)
    request = engine.input_processor.process_inputs(
        "long", {"prompt_token_ids": prompt}, params, engine.get_supported_tasks()
    )
    return engine.engine_core.engine_core.preprocess_add_request(request)[0]


def test_the_arguments_switch_everything_on():
    arguments = engine_args(strategy="window", max_tokens=512)
    assert arguments["additional_config"][KEY]["strategy"] == "window"
    assert arguments["scheduler_cls"] == SCHEDULER
    assert arguments["enable_prefix_caching"] is False
    assert arguments["async_scheduling"] is False
    assert os.environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    with pytest.raises(ConfigError, match="budgets: not a setting"):
        engine_args(budgets=3)


# Processes -------------------------------------------------------------------------------------------


def test_preparing_twice_changes_nothing():
    from kvvideo.plugin.register import register

    modules, libraries = dict(sys.modules), [*compat._libraries]
    compat.prepare()
    compat.prepare.cache_clear()
    compat.prepare()
    register()
    register()
    assert libraries == compat._libraries
    assert {name: sys.modules.get(name) for name in ("torchvision", "torchaudio", "torchcodec")} == {
        name: modules.get(name) for name in ("torchvision", "torchaudio", "torchcodec")
    }


@pytest.mark.slow
def test_closing_an_engine_gives_its_memory_back_and_leaves_others_running(model_dir: str, engine_for: EngineFor):
    other = engine_for("streaming")
    config = EngineConfig(model=model_dir, dtype="float32", max_model_len=512, kv_bytes=16 << 20)
    engine = Engine(config)
    session = VideoSession(engine)
    session.ingest(clip(0, 0.0))
    runner = engine.core.model_executor.driver_worker.worker.model_runner
    held = [weakref.ref(runner.kv_caches[0]), weakref.ref(next(runner.model.parameters()))]
    del runner
    engine.close()
    engine.close()
    gc.collect()
    assert all(tensor is None or not tensor.numel() for tensor in (ref() for ref in held))
    session.close()
    assert not session.alive
    with VideoSession(other) as alive:
        alive.ingest(clip(0, 0.0))
        assert alive.ask("What is it?", max_tokens=3).token_ids
    with VideoSession(engine := Engine(config)) as again:
        again.ingest(clip(0, 0.0))
        assert again.ask("What is it?", max_tokens=3).token_ids
    engine.close()


def test_an_engine_nobody_holds_is_closed(model_dir: str, engine_for: EngineFor):
    other = engine_for("streaming")
    engine = Engine(EngineConfig(model=model_dir, dtype="float32", max_model_len=512, kv_bytes=16 << 20))
    held = weakref.ref(engine.core)
    del engine
    gc.collect()
    assert held() is None
    with VideoSession(other) as alive:
        alive.ingest(clip(0, 0.0))
        assert np.isfinite(alive.ask("What is it?", max_tokens=3, logprobs=True).logprobs).all()


@pytest.mark.parametrize(
    ("rope", "plain"),
    [
        ({"rope_type": "default", "mrope_section": [16, 24, 24]}, True),
        ({"rope_type": "mrope"}, True),
        ({}, True),
        ({"rope_type": "yarn", "factor": 4.0}, False),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, False),
    ],
)
def test_keys_are_moved_only_where_rotation_is_plain(rope: dict[str, Any], plain: bool):
    assert rotates_plainly(SimpleNamespace(rope_parameters=rope)) is plain
