"""A session that was saved and loaded answers and goes on exactly as the one that was not."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, EngineError
from kvvideo.prompt import question_text
from kvvideo.session import Engine, VideoSession
from kvvideo.session.memory import Memory
from kvvideo.storage.codec import decode, encode
from tests.conftest import EngineFor
from tests.helpers.engines import BUDGET, MAX_TOKENS, SINK, blocks_left, clip, clips

QUESTIONS = ["What is it?", "When was it, and where?"]
OPTIONS = {"max_tokens": 20, "logprobs": True}


def same(one: VideoSession, other: VideoSession) -> None:
    """Both hold the same, and say the same to the last bit."""
    assert one.stats() == other.stats()
    assert np.array_equal(one._live_positions(), other._live_positions())
    assert one.timeline() == other.timeline()
    assert (one.chunks, one.frames, one.end, one._position) == (other.chunks, other.frames, other.end, other._position)
    for left, right in zip(one.ask_all(QUESTIONS, **OPTIONS), other.ask_all(QUESTIONS, **OPTIONS), strict=True):
        assert (left.token_ids, left.logprobs) == (right.token_ids, right.logprobs)


STRATEGIES = ["streaming", "window", "full", "distinct", "h2o", "heavy", "expected-attention", "snapkv", "infinipot-v"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_loaded_session_goes_on_as_the_saved_one(engine_for: EngineFor, strategy: str):
    """Before, in the middle of and after compactions, with scores, places and what a strategy knows of the stream."""
    engine, chunks = engine_for(strategy), clips(14)
    with VideoSession(engine) as kept:
        for index, chunk in enumerate(chunks):
            kept.ingest(chunk)
            if index in (0, 5, 9):
                before = kept.stats()
                memory = decode(encode(kept.save()), "memory")
                assert kept.stats() == before
                with VideoSession.load(engine, memory) as loaded, VideoSession.load(engine, memory) as other:
                    same(kept, loaded)
                    for later in chunks[index + 1 : index + 4]:
                        loaded.ingest(later)
                        other.ingest(later)
                    same(loaded, other)
        memory = kept.save()
    with VideoSession.load(engine, memory) as loaded:
        assert loaded.stats().evicted == memory.evicted
        last = clip(99, loaded.end)
        loaded.ingest(last)
        with VideoSession(engine) as fresh:
            for chunk in [*chunks, last]:
                fresh.ingest(chunk)
            same(loaded, fresh)


@pytest.mark.parametrize("positions", ["absolute", "contiguous"])
def test_gaps_that_were_closed_stay_closed(engine_for: EngineFor, positions: str):
    engine = engine_for("heavy", cache={"positions": positions, "max_tokens": 96, "budget": 32, "sink": 8})
    chunks = clips(16)
    with VideoSession(engine) as fresh, VideoSession(engine) as first:
        for chunk in chunks[:9]:
            fresh.ingest(chunk)
            first.ingest(chunk)
        memory = first.save()
        first.close()
        with VideoSession.load(engine, memory) as loaded:
            for chunk in chunks[9:]:
                fresh.ingest(chunk)
                loaded.ingest(chunk)
            same(loaded, fresh)


def test_a_remembered_dialogue_is_part_of_the_stream(engine_for: EngineFor):
    """As if its words had been in the prompt, and it does not count as a stretch of video."""
    engine, turns = engine_for("full"), [("What is it?", "A thing <|im_end|>"), ("Sure?", "Yes.")]
    with VideoSession(engine) as remembering, VideoSession(engine) as told:
        for chunk in clips(2):
            remembering.ingest(chunk)
            told.ingest(chunk)
        remembering.remember(turns)
        (one,) = remembering.ask_all(["And now?"], **OPTIONS)
        (other,) = told.ask_all(["And now?"], dialogue=turns, **OPTIONS)
        assert one.token_ids == other.token_ids
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
        assert remembering.stats().seen > told.stats().seen
        assert [(s.start, s.end) for s in remembering.timeline()] == [(s.start, s.end) for s in told.timeline()]
        with VideoSession.load(engine, remembering.save()) as loaded:
            same(loaded, remembering)
    ids = engine.tokenizer(question_text("<|im_end|> <|video_pad|>")).input_ids
    assert ids.count(engine.tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    assert engine.tokenizer.convert_tokens_to_ids("<|video_pad|>") not in ids


@pytest.fixture
def memory(engine_for: EngineFor) -> Iterator[tuple[Engine, Memory]]:
    engine = engine_for("streaming")
    with VideoSession(engine) as session:
        for chunk in clips(6):
            session.ingest(chunk)
        yield engine, session.save()


def test_a_memory_of_something_else_is_refused(memory: tuple[Engine, Memory], engine_for: EngineFor):
    engine, made = memory
    free = engine.free_blocks
    state = made.tensors["state"]
    wrong = [
        (replace(made, fingerprint="another"), "was made with another model"),
        (replace(made, cache=replace(made.cache, strategy="window")), "strategy='window' instead of 'streaming'"),
        (replace(made, cache=CacheConfig("streaming", 320, budget=BUDGET, sink=SINK)), "max_tokens=320 instead of"),
        (replace(made, live=MAX_TOKENS), "more than fit"),
        (replace(made, tensors={**made.tensors, "keys": made.tensors["keys"].half()}), "where this model's cache"),
        (
            replace(made, tensors={**made.tensors, "state": torch.cat([state, state], dim=1)}),
            "where this model's cache",
        ),
        (replace(made, live=3), "fewer than any chunk"),
    ]
    for bad, says in wrong:
        with pytest.raises(ConfigError, match=says):
            VideoSession.load(engine, bad)
    assert engine.free_blocks == free
    with pytest.raises(ConfigError, match="strategy='streaming' instead of 'window'"):
        VideoSession.load(engine_for("window"), made)


def test_what_cannot_be_saved_or_loaded_says_why(memory: tuple[Engine, Memory]):
    engine, made = memory
    with pytest.raises(EngineError, match="nothing was ingested"):
        VideoSession(engine).save()
    with VideoSession(engine) as session:
        session.ingest(clip(0, 0.0))
        with (
            blocks_left(engine, 2),
            pytest.raises(EngineError, match="KV blocks and 2 are free"),
        ):
            VideoSession.load(engine, made)
    with pytest.raises(EngineError, match="ended"):
        session.save()
