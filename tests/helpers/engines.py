"""Driving a real engine from tests: plain requests, sessions side by side, and what the cache holds meanwhile."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kvvideo.session import Engine
from kvvideo.types import Chunk

MAX_TOKENS, BUDGET, SINK = 160, 64, 20
"""The schedule of all engines of the suite, in blocks of 32: 5 blocks, of which 2 stay."""

ON_GPU = torch.cuda.is_available()

BLOCK = 16 if ON_GPU else 32
"""Tokens in one KV block of the suite's engines."""

DTYPE = os.environ.get("KVVIDEO_TEST_DTYPE", "float32")
"""Type of numbers of all engines. Below float32 only strategies that look at nothing but positions can be compared."""

EXACT = DTYPE == "float32"

TOLERANCE, SHARE = (1e-4, 0.0) if EXACT else (0.1, 0.03)
"""Largest error of a log probability, and its share, against a reference in float32 with the same weights."""

UNSCORED = ("full", "window", "streaming", "recent", "summary", "wrong")
"""Strategies that keep the same whatever keys and attention are."""

GPU_OPTIONS: dict[str, Any] = {
    "enforce_eager": not os.environ.get("KVVIDEO_TEST_COMPILE"),
    "attention_backend": os.environ.get("KVVIDEO_TEST_BACKEND", "TRITON_ATTN" if EXACT else "FLASH_ATTN"),
}
"""Options of vLLM for all engines on a GPU. Compiling each of them would take minutes."""

SETTINGS = {"h2o": {"queries": 0, "window": BUDGET // 4}}
"""Options of strategies that by default depend on how steps are cut, or with this budget choose nothing."""

_ids = itertools.count()


def clip(seed: int, start: float, frames: int = 8, side: int = 56, fps: float = 2.0) -> Chunk:
    """``frames`` frames of noise."""
    shape = (frames, side, side, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    times = tuple(start + i / fps for i in range(frames))
    return Chunk(pixels, times, start, start + frames / fps, fps)


def clips(count: int, seed: int = 0, **options: Any) -> list[Chunk]:
    """Consecutive chunks of one stream."""
    made: list[Chunk] = []
    for index in range(count):
        made.append(clip(seed * 1000 + index, made[-1].end if made else 0.0, **options))
    return made


@dataclass
class Plain:
    """Results of one request without a session.

    Attributes:
        prompt: log probability of each prompt token but the first.
        token_ids, logprobs: of what was generated.
        kept: temporal positions held at the end, ``[layers, kv_heads, live]``.
        seen, live, compactions, blocks: of each step.
        preemptions: times the request had to start over.
    """

    prompt: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    kept: npt.NDArray[np.int32] | None = None
    seen: list[int] = field(default_factory=list)
    live: list[int] = field(default_factory=list)
    compactions: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    preemptions: int = 0
    finish_reason: str = ""


def talkative(engine: Engine) -> Engine:
    """``engine``, whose answers do not stop at the end marker."""
    process = engine.process

    def ignoring_the_end(request_id: str, prompt: dict[str, Any], params: Any, resumable: bool = False) -> Any:
        params.ignore_eos = True
        return process(request_id, prompt, params, resumable)

    engine.process = ignoring_the_end  # type: ignore[method-assign]
    return engine


def kept_positions(engine: Engine, request_id: str) -> npt.NDArray[np.int32]:
    """Temporal positions that the workers hold for a request, ``[layers, kv_heads, live]``."""
    from kvvideo.plugin.inspect import live_positions

    live = engine.scheduler.stats_of(request_id).live
    arguments = (engine.scheduler.live_block_ids(request_id), live)
    return np.asarray(engine.llm.collective_rpc(live_positions, args=arguments)[0])


def add(engine: Any, prompt: Sequence[int] | dict[str, Any], tokens: int, prompt_logprobs: bool = True) -> str:
    """Send a request of its own; returns its id. It always generates ``tokens`` tokens, greedily."""
    from vllm import SamplingParams

    params = SamplingParams(
        max_tokens=tokens, temperature=0, logprobs=0, ignore_eos=True, prompt_logprobs=0 if prompt_logprobs else None
    )
    name = f"plain-{next(_ids)}"
    asked = prompt if isinstance(prompt, dict) else {"prompt_token_ids": list(prompt)}
    return str(engine.llm.add_request(name, asked, params))


def run(
    engine: Engine,
    prompts: Sequence[Sequence[int] | dict[str, Any]],
    tokens: int | Sequence[int] = 1,
    each_step: Callable[[list[str]], None] = lambda _: None,
    prompt_logprobs: bool = True,
) -> list[Plain]:
    """Run requests side by side to their ends, looking at the cache after each step."""
    counts = [tokens] * len(prompts) if isinstance(tokens, int) else tokens
    names = [add(engine, p, n, prompt_logprobs) for p, n in zip(prompts, counts, strict=True)]
    results = {name: Plain() for name in names}
    outer = {name.rpartition("-")[0]: name for name in names}
    while engine.llm.has_unfinished_requests():
        running = {name: engine.scheduler.requests[name] for name in names if name in engine.scheduler.requests}
        outputs = engine.step()
        engine.check_progress()
        for name, request in running.items():
            results[name].preemptions = request.num_preemptions
            if name in engine.scheduler.requests and request.num_computed_tokens:
                stats = engine.scheduler.stats_of(name)
                result = results[name]
                result.seen.append(stats.seen)
                result.live.append(stats.live)
                result.compactions.append(stats.compactions)
                result.blocks.append(stats.blocks)
                result.kept = kept_positions(engine, name)
        for output in outputs:
            if output.finished and output.request_id in outer:
                result, said = results[outer[output.request_id]], output.outputs[0]
                result.token_ids = list(said.token_ids)
                result.logprobs = [step[t].logprob for t, step in zip(said.token_ids, said.logprobs, strict=True)]
                result.finish_reason = said.finish_reason
                if prompt_logprobs:
                    shown = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
                    result.prompt = [step[t].logprob for t, step in shown]
        each_step(names)
    return [results[name] for name in names]


@contextmanager
def step_size(engine: Engine, tokens: int) -> Iterator[None]:
    """No step computes more than ``tokens`` tokens meanwhile, as if the engine had been started so."""
    scheduler = engine.scheduler
    before = scheduler.max_num_scheduled_tokens
    scheduler.max_num_scheduled_tokens = tokens
    try:
        yield
    finally:
        scheduler.max_num_scheduled_tokens = before


@contextmanager
def blocks_left(engine: Engine, count: int) -> Iterator[None]:
    """The pool has only ``count`` free blocks meanwhile: something else holds the rest."""
    pool = engine.scheduler.kv_cache_manager.block_pool
    taken = pool.get_new_blocks(engine.free_blocks - count)
    try:
        yield
    finally:
        pool.free_blocks(taken)


@contextmanager
def during_step(engine: Engine, action: Callable[[], None]) -> Iterator[None]:
    """Run ``action`` once, just before the engine's next step: what it sends is computed in that very step."""
    step = engine.step
    due = [action]

    def stepping() -> Any:
        if due:
            due.pop()()
        return step()

    engine.step = stepping  # type: ignore[method-assign]
    try:
        yield
    finally:
        del engine.step  # type: ignore[method-assign]
        assert not due, "no step was made"
