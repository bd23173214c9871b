"""Compiled models and CUDA graphs, which only a GPU has."""

from typing import Any

import pytest
import torch

from kvvideo.session import VideoSession
from tests.conftest import EngineFor
from tests.helpers.engines import EXACT, ON_GPU, clip
from tests.helpers.reference import Model
from tests.plugin.test_reference import check_answer, check_kept, feed_chunk, stream_of, varied_chunks

pytestmark = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")


@pytest.mark.parametrize("strategy", ["streaming", "heavy"])
def test_graphs_leave_attention_out(engine_for: EngineFor, reference: Model, strategy: str):
    """Graphs are of what lies between the attention layers, for a graph of it all would skip compaction."""
    from vllm.config import CUDAGraphMode

    engine = engine_for(strategy, options={"enforce_eager": False})
    compilation = engine.llm.vllm_config.compilation_config
    assert compilation.cudagraph_mode == CUDAGraphMode.PIECEWISE
    assert compilation.cudagraph_capture_sizes
    stream = stream_of(reference, strategy)
    with VideoSession(engine) as session:
        for index, chunk in enumerate([clip(7, 0.0, frames=2), *varied_chunks(20)]):
            session.ingest(chunk)
            feed_chunk(stream, chunk, first=index == 0)
            check_kept(session._live_positions(), stream)
            if index % 4 == 3:
                check_answer(stream, "What is it?", session.ask("What is it?", max_tokens=12, logprobs=True))
    assert stream.compactions > 3


def test_the_vision_towers_graphs_change_nothing(engine_for: EngineFor):
    """Chunks of many sizes, each of which is padded to the next that was captured."""
    if EXACT:
        pytest.skip("in float32 the vision tower is not captured")
    engine = engine_for("streaming", options={"enforce_eager": False})
    runner = engine.core.model_executor.driver_worker.worker.model_runner
    manager, seen = runner.encoder_cudagraph_manager, []
    execute = manager.execute

    def both(inputs: dict[str, Any]) -> Any:
        made = [part.clone() for part in execute(inputs)]
        seen.append((made, runner.model.embed_multimodal(**inputs)))
        return made

    manager.execute = both
    try:
        with VideoSession(engine) as session:
            for index, frames in enumerate((2, 8, 8, 16)):
                session.ingest(clip(index, 8.0 * index, frames=frames, side=56 if index else 112))
    finally:
        del manager.execute
    assert manager.graph_hits >= 4
    assert len(seen) == 4
    for made, plain in seen:
        assert all(torch.equal(a, b) for a, b in zip(made, plain, strict=True))


def test_an_unbounded_cache_takes_what_the_gpu_has(engine_for: EngineFor):
    """Without a bound vLLM measures what is free, which also captures graphs to see what they take."""
    engine = engine_for("full", kv_bytes=None, options={"gpu_memory_utilization": 0.1, "enforce_eager": False})
    assert engine.free_blocks * engine.scheduler.block_bytes > 1 << 30
    with VideoSession(engine) as session:
        session.ingest(clip(7, 0.0))
        assert session.ask("What is it?", max_tokens=3).token_ids
