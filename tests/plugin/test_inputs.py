"""Prompts are what vLLM's own processor makes, to the last bit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvvideo.bench.rivals import as_video
from kvvideo.errors import EngineError
from kvvideo.plugin.history import History, encode
from kvvideo.prompt import OPENING, chunk_text, plain, question_text
from kvvideo.session import Engine
from kvvideo.types import Chunk
from tests.conftest import EngineFor
from tests.helpers.engines import clip

SIDES = st.sampled_from([28, 56, 84, 140])


@pytest.fixture
def engine(engine_for: EngineFor) -> Engine:
    return engine_for("streaming")


def made(engine: Engine, prompt: Any) -> Any:
    """The request that vLLM makes of ``prompt``."""
    from vllm import SamplingParams

    return engine.process("test", prompt, SamplingParams(max_tokens=1), resumable=True)


@given(
    count=st.integers(1, 9),
    height=SIDES,
    width=SIDES,
    fps=st.floats(0.1, 30),
    start=st.floats(0, 1e6),
    words=st.text(max_size=20),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_vllms_processor_makes(
    engine: Engine, count: int, height: int, width: int, fps: float, start: float, words: str, seed: int
) -> None:
    frames = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    chunk = Chunk(frames, tuple(i / fps for i in range(count)), start, start + count / fps, fps)
    text = OPENING + chunk_text(start) + question_text(words)
    theirs = made(engine, {"prompt": text, "multi_modal_data": {"video": [as_video(chunk)]}})
    ours = made(engine, engine.prompt(text, chunk))
    assert ours.prompt_token_ids == theirs.prompt_token_ids
    (own,), (other,) = ours.mm_features, theirs.mm_features
    assert (own.modality, own.mm_position) == (other.modality, other.mm_position)
    assert own.data.keys() == other.data.keys()
    for name, value in other.data.items():
        assert own.data[name].field == value.field
        # vLLM rounds the seconds between frames to the model's dtype.
        assert torch.equal(own.data[name].data.to(value.data.dtype), value.data)
        assert own.data[name].data.dtype == value.data.dtype or name == "second_per_grid_ts"


@given(words=st.text(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_words_alone(engine: Engine, words: str) -> None:
    text = OPENING + plain(words)
    assert made(engine, engine.prompt(text)).prompt_token_ids == made(engine, {"prompt": text}).prompt_token_ids


def test_frames_that_do_not_lie_one_after_the_other(engine: Engine) -> None:
    """Such as every second one, or a part cut out of them."""
    whole = np.random.default_rng(0).integers(0, 256, (8, 112, 112, 3), dtype=np.uint8)
    part = whole[::2, 28:84, ::-1][:, :, :56]
    text = chunk_text(0.0)
    loose, tight = (
        engine.prompt(text, Chunk(frames, (0.0, 0.5, 1.0, 1.5), 0.0, 2.0, 2.0)) for frames in (part, part.copy())
    )
    (one,), (other,) = (prompt["mm_kwargs"]["video"] for prompt in (loose, tight))
    assert torch.equal(one["pixel_values_videos"].data, other["pixel_values_videos"].data)


def test_no_two_chunks_are_taken_for_one(engine: Engine) -> None:
    """Or the second would get what the vision tower made of the first."""
    first, second = (engine.prompt(chunk_text(0.0), clip(seed, 0.0)) for seed in (0, 1))
    assert first["mm_hashes"] != second["mm_hashes"]


@pytest.mark.parametrize("shape", [(8, 50, 56, 3), (8, 56, 30, 3), (0, 56, 56, 3)])
def test_frames_that_are_no_whole_tokens_are_refused(engine: Engine, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="multiples of 28"):
        engine.prompt(chunk_text(0.0), Chunk(np.zeros(shape, np.uint8), (0.0,) * shape[0], 0.0, 4.0, 2.0))


@given(
    count=st.integers(1, 9),
    height=SIDES,
    width=SIDES,
    fps=st.floats(0.1, 30),
    past=st.none() | st.tuples(st.integers(40, 200), st.integers(0, 10**6)),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_next_position_follows_from_the_grid(
    engine: Engine, count: int, height: int, width: int, fps: float, past: tuple[int, int] | None
) -> None:
    """As from the positions of all tokens, which vLLM makes."""
    from kvvideo.plugin.model import next_position

    model = engine.core.model_executor.driver_worker.worker.model_runner.model
    chunk = Chunk(np.zeros((count, height, width, 3), np.uint8), (0.0,) * count, 0.0, count / fps, fps)
    request = made(engine, engine.prompt(OPENING + chunk_text(0.0) + "and then", chunk))
    before = [] if past is None else encode(History(*past))
    ids = before + request.prompt_token_ids
    features = [
        replace(f, mm_position=replace(f.mm_position, offset=f.mm_position.offset + len(before)))
        for f in request.mm_features
    ]
    _, delta = model.get_mrope_input_positions(ids, features)
    assert next_position(model.config, ids, features) == len(ids) + delta
    assert next_position(model.config, before, []) == (0 if past is None else past[1])
