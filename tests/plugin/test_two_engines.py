"""Two engines of one process share nothing that a step leaves for its attention layers."""

import sys
from typing import Any

import pytest
import torch

from kvvideo.session import VideoSession
from tests.conftest import EngineFor
from tests.helpers.engines import clip
from tests.helpers.reference import Model
from tests.plugin.test_reference import check_answer, check_kept, feed_chunk, stream_of


@pytest.mark.parametrize("strategy", ["streaming", "heavy"])
def test_a_step_inside_anothers_changes_nothing(engine_for: EngineFor, reference: Model, strategy: str):
    """The other engine computes a chunk after the model was told the positions, and before its layers note them."""
    engine, other = engine_for(strategy), engine_for("window")
    layer = engine.core.model_executor.driver_worker.worker.model_runner.model.language_model.model.layers[0]
    streams = [stream_of(reference, name) for name in (strategy, "window")]
    with VideoSession(engine) as outer, VideoSession(other) as inner:

        def between(*_: Any) -> None:
            chunk = clip(100 + inner.chunks, 4.0 * inner.chunks, frames=6)
            inner.ingest(chunk)
            feed_chunk(streams[1], chunk, first=inner.chunks == 1)

        hook = layer.register_forward_pre_hook(between)
        try:
            for index in range(14):
                chunk = clip(index, 4.0 * index)
                outer.ingest(chunk)
                feed_chunk(streams[0], chunk, first=index == 0)
                check_kept(outer._live_positions(), streams[0])
                check_kept(inner._live_positions(), streams[1])
        finally:
            hook.remove()
        for session, stream in zip((outer, inner), streams, strict=True):
            assert stream.compactions > 1
            check_answer(stream, "What is it?", session.ask("What is it?", max_tokens=8, logprobs=True))


def test_no_module_of_the_plug_in_keeps_a_tensor(engine_for: EngineFor):
    """Nor does a class: what a step computes with has an owner that goes with its engine."""
    with VideoSession(engine_for("heavy")) as session:
        for index in range(4):
            session.ingest(clip(index, 4.0 * index))
    for name, module in [*sys.modules.items()]:
        if name.startswith("kvvideo.plugin"):
            classes = [value for value in vars(module).values() if isinstance(value, type)]
            held = [value for owner in (module, *classes) for value in vars(owner).values()]
            assert not [value for value in held if isinstance(value, torch.Tensor)], name
