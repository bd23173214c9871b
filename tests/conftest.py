"""Real engines, started once each and shared by all tests that use the same configuration."""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings

import kvvideo.session
from kvvideo.compression.config import CacheConfig
from kvvideo.plugin import compat
from kvvideo.session import Engine
from kvvideo.session.config import EngineConfig
from kvvideo.session.engine import model_path
from tests.helpers import engines, toys

# Triton asks once, while it is imported, whether to interpret. Without a GPU nothing but tests of its kernels needs it.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# The machine may be shared: how long an example takes says nothing.
settings.register_profile("kvvideo", deadline=None)
settings.load_profile("kvvideo")
# Triton's float32 is tf32 otherwise, with an error of 3e-4.
os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
torch.backends.cudnn.allow_tf32 = False
# Whoever runs the tests in the background has them ignore Ctrl-C, and with them all that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# What interrupted runs leave must not lie about in the home of whoever runs the tests, nor where the other tests that
# run at the same time would find it.
os.environ["KVVIDEO_STATE_DIR"] = tempfile.mkdtemp(prefix="kvvideo-tests-")
# Nor may what they have set for themselves change what is tested.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="kvvideo-tests-")
# The model is tiny and the machine may be shared: more threads would only wait for each other.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
torch.set_num_threads(1)
compat.prepare()


@pytest.fixture(scope="session")
def model_dir() -> str:
    """The bundled model; ``KVVIDEO_TEST_MODEL`` names another."""
    return os.environ.get("KVVIDEO_TEST_MODEL") or model_path("tiny")


@pytest.fixture(scope="session")
def reference(model_dir: str) -> Any:
    """The same weights in transformers."""
    from tests.helpers.reference import Model

    return Model(model_dir, getattr(torch, engines.DTYPE))


EngineFor = Callable[..., Engine]
started: dict[str, Engine] = {}


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """After each test all blocks of all engines are free, and nobody remembers a request."""
    yield
    for engine in started.values():
        scheduler = engine.scheduler
        if left := [*scheduler.requests]:
            engine.llm.abort_request(left, internal=True)
            engine.core.abort_requests(left)
            engine.step()
        assert not left
        assert not any(scheduler.manager.req_to_blocks.values())
        assert not scheduler._pasts | scheduler._forks
        assert scheduler.num_waiting_for_streaming_input == 0
        engine.step()
        pool = scheduler.kv_cache_manager.block_pool
        assert engine.free_blocks == pool.num_gpu_blocks - 1
        assert all(block.ref_cnt == 0 for block in pool.blocks if not block.is_null)
        assert not engine.llm.has_unfinished_requests()
        assert not engine.llm.output_processor.external_req_ids
        assert not engine._latest
        assert not engine.core.model_executor.driver_worker.worker.model_runner.requests
        assert not scheduler.encoder_cache_manager.cached or not any(scheduler.encoder_cache_manager.cached.values())


@pytest.fixture(scope="session")
def engine_for(model_dir: str) -> Iterator[EngineFor]:
    """Starts an engine of a strategy, or returns the one that runs already.

    Answers go on past the end marker to their ``max_tokens``, for a trained model's are too short to test much.
    """
    toys.register()

    def get(strategy: str, **options: Any) -> Engine:
        if not engines.EXACT and strategy not in engines.UNSCORED:
            pytest.skip(f"{engines.DTYPE} rounds what {strategy} scores by")
        key = repr((strategy, sorted(options.items())))
        if key not in started:
            cache = {"max_tokens": engines.MAX_TOKENS, "budget": engines.BUDGET, "sink": engines.SINK}
            cache |= engines.SETTINGS.get(strategy, {}) | options.pop("cache", {})
            settings = {"max_model_len": 2048, "step_tokens": 1024, "sessions": 4, "questions": 10, **options}
            if engines.ON_GPU:
                settings["options"] = engines.GPU_OPTIONS | settings.get("options", {})
                if strategy == "full":
                    settings.setdefault("kv_bytes", 1 << 28)  # vLLM would take what there is
            config = EngineConfig(
                model=model_dir, dtype=engines.DTYPE, cache=CacheConfig(strategy=strategy, **cache), **settings
            )
            started[key] = engines.talkative(Engine(config))
        return started[key]

    yield get
    for engine in started.values():
        engine.close()


@pytest.fixture
def one_engine(engine_for: EngineFor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands use an engine that runs already, for each start would take seconds."""
    engine = engine_for("distinct", cache={"max_tokens": 512, "budget": None, "sink": 32})
    monkeypatch.setattr(kvvideo.session, "Engine", lambda config: engine)
    monkeypatch.setattr(engine, "close", lambda: None)


@pytest.fixture(scope="session")
def llm_for(model_dir: str) -> Callable[..., Any]:
    """Starts vLLM's own ``LLM``. All live to the end, for one that goes takes down what they share."""
    from vllm import LLM

    alive = []

    def get(**options: Any) -> Any:
        settings = {"max_num_seqs": 16, "max_num_batched_tokens": 1024, "block_size": engines.BLOCK, **options}
        if engines.ON_GPU:
            settings |= {**engines.GPU_OPTIONS, "gpu_memory_utilization": 0.05, "async_scheduling": False}
        settings.setdefault("enforce_eager", True)
        alive.append(
            LLM(
                model_dir,
                dtype=engines.DTYPE,
                max_model_len=2048,
                kv_cache_memory_bytes=64 << 20,
                skip_mm_profiling=True,
                mm_processor_kwargs={"do_resize": False},
                limit_mm_per_prompt={"video": 1, "image": 0},
                **settings,
            )
        )
        return alive[-1]

    return get


@pytest.fixture(scope="session")
def vanilla(llm_for: Callable[..., Any], engine_for: EngineFor) -> Any:
    """vLLM as it comes, without our settings, in a process where engines with them have run."""
    engine_for("streaming")
    return llm_for()


@pytest.fixture(scope="module")
def no_looking_again() -> Iterator[None]:
    """Commands of a module's tests do not look again unless they say so: the tests are about what the cache holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVVIDEO_RECALL", "0")
        yield
