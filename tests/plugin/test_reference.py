"""vLLM with a bounded cache computes what plain transformers computes with the same tokens evicted."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from kvvideo.bench.rivals import as_video
from kvvideo.plugin import attention
from kvvideo.prompt import OPENING, VIDEO, chunk_text, question_text
from kvvideo.session import Answer, Engine, VideoSession
from kvvideo.types import Chunk
from tests.conftest import EngineFor
from tests.helpers.engines import (
    BUDGET,
    MAX_TOKENS,
    SHARE,
    SINK,
    TOLERANCE,
    Plain,
    clip,
    clips,
    during_step,
    run,
    step_size,
)
from tests.helpers.reference import (
    Contiguous,
    Keep,
    Model,
    Stream,
    expected_attention,
    grid_positions,
    half_norm,
    keep_best,
    keep_new_and_long,
    keep_streaming,
    keep_window,
    key_difference,
    key_norm,
    nearest_newer_key,
    neighbourhood,
    noted,
    value_norm,
)

KEEPS: dict[str, Keep | None] = {
    "full": None,
    "window": keep_window,
    "streaming": keep_streaming(SINK),
    "half-norm": keep_best(SINK, half_norm),
    "heavy": keep_best(SINK, noted("mass")),
    "h2o": keep_best(SINK, noted("mass")),
    "keydiff": keep_best(SINK, key_difference),
}
"""Strategies that keep the same however a stream is cut into steps. ``h2o`` is the exact one."""

NORM_KEEPS: dict[str, Keep] = {
    "knorm": keep_best(SINK, key_norm),
    "value-norm": keep_best(SINK, value_norm),
    "infinipot-v": keep_new_and_long(SINK),
    "distinct": keep_best(SINK, nearest_newer_key, recent=BUDGET // 10),
}
"""Strategies in which equal tokens tie, for nothing in the first layer tells them apart."""

WATCHING_KEEPS: dict[str, Keep] = {
    "h2o-late": keep_best(SINK, noted("late")),
    "snapkv": keep_best(SINK, neighbourhood(BUDGET // 4)),
    "tova": keep_best(0, noted("last"), recent=1),
    "expected-attention": keep_best(SINK, expected_attention),
}
"""Strategies that look at queries; all but the last keep something else if steps are cut elsewhere."""

each_strategy = pytest.mark.parametrize("strategy", list(KEEPS))
evicting = pytest.mark.parametrize("strategy", [name for name in KEEPS if name != "full"])


def stream_of(model: Model, strategy: str) -> Stream:
    return Stream(model, {**KEEPS, **NORM_KEEPS, **WATCHING_KEEPS}[strategy], BUDGET, MAX_TOKENS)


def ids(count: int, seed: int = 0) -> list[int]:
    """A prompt without special tokens."""
    return np.random.default_rng(seed).integers(20, 250, count).tolist()


def check_scores(said: Sequence[float], expected: Sequence[float]) -> None:
    assert len(said) == len(expected)
    np.testing.assert_allclose(said, expected, rtol=SHARE, atol=TOLERANCE)


def check_generated(stream: Stream, token_ids: Sequence[int], logprobs: Sequence[float]) -> None:
    """Each token was the likeliest, and just as likely as said."""
    chosen, best = stream.score(token_ids)
    check_scores(logprobs, chosen)
    check_scores(logprobs, best)


def check_kept(kept: Any, stream: Stream) -> None:
    """The same tokens are held, layer by layer and head by head."""
    assert np.array_equal(kept, torch.stack(stream.positions).numpy())


def check_plain(model: Model, strategy: str, prompt: Sequence[int], result: Plain) -> Stream:
    """All log probabilities, and what was held when last looked: before the last token but one was computed."""
    stream = stream_of(model, strategy)
    rows = stream.feed(model.tokens(prompt))
    if result.prompt:
        check_scores(result.prompt, rows[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0].tolist())
    seen = len(result.token_ids) - 2
    check_generated(stream, result.token_ids[:seen], result.logprobs[:seen])
    assert (result.seen[-1], result.live[-1]) == (stream.seen, stream.live)
    assert result.compactions[-1] == stream.compactions
    check_kept(result.kept, stream)
    check_generated(stream, result.token_ids[seen:], result.logprobs[seen:])
    return stream


def feed_chunk(stream: Stream, chunk: Chunk, first: bool) -> None:
    text = (OPENING if first else "") + chunk_text(chunk.start, chunk.words)
    stream.feed(stream.model.tokens(text, chunk.frames, chunk.fps))


def position_of_next(stream: Stream) -> int:
    """Return where the next chunk of ``stream`` begins: its first one comes after the opening."""
    return stream.next or len(stream.model.tokens(OPENING).embeddings)


def check_answer(stream: Stream, question: str, answer: Answer, also: Chunk | None = None) -> None:
    asked = stream.fork()
    if also is not None:
        feed_chunk(asked, also, first=False)
    asked.feed(stream.model.tokens(question_text(question)))
    check_generated(asked, answer.token_ids, answer.logprobs)


def test_positions_of_a_video_agree_with_transformers(reference: Model):
    grid = (3, 12, 8)
    config = reference.config
    pads = grid[0] * grid[1] * grid[2] // 4
    tokens = torch.tensor([[1, 2, 3] + [config.video_token_id] * pads + [4]])
    types = (tokens == config.video_token_id).int() * 2
    index, _ = reference.hf.model.get_rope_index(
        tokens, types, video_grid_thw=torch.tensor([grid]), second_per_grid_ts=torch.tensor([0.5])
    )
    expected = grid_positions(3, 6, 4, 0.5 * config.vision_config.tokens_per_second) + 3
    assert torch.equal(index[:, 0, 3:-1], expected)


@each_strategy
def test_requests_of_all_lengths_in_one_batch(engine_for: EngineFor, reference: Model, strategy: str):
    lengths = [700, 1, 159, 160, 161, 333]
    prompts = [ids(length, seed) for seed, length in enumerate(lengths)]
    results = run(engine_for(strategy), prompts, tokens=[3, 20, 2, 2, 2, 40])
    for prompt, result in zip(prompts, results, strict=True):
        check_plain(reference, strategy, prompt, result)
    assert strategy == "full" or results[0].compactions[-1] == 6


@pytest.mark.slow
@each_strategy
def test_a_long_answer(engine_for: EngineFor, reference: Model, strategy: str):
    prompt = ids(40, 7)
    (result,) = run(engine_for(strategy), [prompt], tokens=440)
    stream = check_plain(reference, strategy, prompt, result)
    assert strategy == "full" or stream.compactions == 4


@evicting
@pytest.mark.parametrize("size", [7, 33, 100])
def test_prefill_in_small_steps(engine_for: EngineFor, reference: Model, strategy: str, size: int):
    engine = engine_for(strategy)
    prompts = [ids(400, 11), ids(170, 12)]
    with step_size(engine, size):
        results = run(engine, prompts, tokens=4)
    assert len(results[0].seen) >= 400 / size
    for prompt, result in zip(prompts, results, strict=True):
        check_plain(reference, strategy, prompt, result)


def test_an_engine_started_with_small_steps(engine_for: EngineFor, reference: Model):
    engine = engine_for("heavy", step_tokens=48)
    prompts = [ids(400, 11), ids(170, 12)]
    results = run(engine, prompts, tokens=4)
    assert max(np.diff(results[0].seen)) <= 48
    for prompt, result in zip(prompts, results, strict=True):
        check_plain(reference, "heavy", prompt, result)


def varied_chunks(count: int) -> list[Chunk]:
    """Consecutive chunks that differ in length, size and rate."""
    shapes = [(8, 56, 2.0), (2, 84, 1.0), (16, 56, 4.0), (6, 112, 2.0), (4, 28, 0.5), (10, 56, 1.0)]
    chunks: list[Chunk] = []
    for index in range(count):
        frames, side, fps = shapes[index % len(shapes)]
        chunks.append(clip(index, chunks[-1].end if chunks else 0.0, frames, side, fps))
    return chunks


def feed_both(session: VideoSession, stream: Stream, chunk: Chunk, first: bool) -> None:
    """Let both see ``chunk``, and check that they hold the same."""
    session.ingest(chunk)
    feed_chunk(stream, chunk, first)
    stats = session.stats()
    assert (stats.seen, stats.live, stats.compactions) == (stream.seen, stream.live, stream.compactions)
    check_kept(session._live_positions(), stream)


@each_strategy
def test_a_session(engine_for: EngineFor, reference: Model, strategy: str):
    """Folded at each chunk, asked in between, it equals one stream that was never folded nor asked."""
    engine, stream = engine_for(strategy), stream_of(reference, strategy)
    chunks = varied_chunks(34)
    with VideoSession(engine) as session:
        for index, chunk in enumerate(chunks[:-1]):
            feed_both(session, stream, chunk, first=index == 0)
            if index % 6 == 3:
                for question in ("What is it?", "Where was the red ball when it all began?"):
                    check_answer(stream, question, session.ask(question, max_tokens=12, logprobs=True))
                also = chunks[index + 1].until(chunks[index + 1].times[0])
                answer = session.ask("And now?", also=also, max_tokens=8, logprobs=True)
                check_answer(stream, "And now?", answer, also)
    assert strategy == "full" or stream.compactions >= 8


@pytest.mark.parametrize("strategy", ["full", "streaming", "heavy"])
def test_a_session_of_chunks_with_words(engine_for: EngineFor, reference: Model, strategy: str):
    """Words are tokens of the stream like any other: the model sees them before the frames, and they are evicted."""
    engine, stream = engine_for(strategy), stream_of(reference, strategy)
    chunks = [replace(chunk, words=f"Number {n}.") if n % 3 else chunk for n, chunk in enumerate(varied_chunks(16))]
    with VideoSession(engine) as session:
        for index, chunk in enumerate(chunks[:-1]):
            feed_both(session, stream, chunk, first=index == 0)
        answer = session.ask("And now?", also=chunks[-1], max_tokens=8, logprobs=True)
        check_answer(stream, "And now?", answer, chunks[-1])
    assert strategy == "full" or stream.compactions >= 3


@pytest.mark.slow
@evicting
def test_a_session_beside_others_and_in_small_steps(engine_for: EngineFor, reference: Model, strategy: str):
    """Eviction depends on a session's own tokens, whatever is computed beside them."""
    engine, stream, other = engine_for(strategy), stream_of(reference, strategy), stream_of(reference, strategy)
    first, second, asked = VideoSession(engine), VideoSession(engine), VideoSession(engine)
    asked.ingest(clip(77, 0.0))
    for index, (chunk, beside) in enumerate(zip(clips(9, 1, frames=24), clips(9, 2, frames=30), strict=True)):
        questions = asked.stream(["What is it?", "Where?"], max_tokens=5)
        next(questions)
        with step_size(engine, [1024, 24, 61][index % 3]), during_step(engine, lambda it=beside: second.ingest(it)):
            first.ingest(chunk)
        assert len({i for i, answer in questions if answer.finish_reason}) == 2
        feed_chunk(stream, chunk, first=index == 0)
        feed_chunk(other, beside, first=index == 0)
        check_kept(first._live_positions(), stream)
        check_kept(second._live_positions(), other)
    assert stream.compactions > 1
    check_answer(stream, "What is it?", first.ask("What is it?", max_tokens=12, logprobs=True))
    check_answer(other, "What is it?", second.ask("What is it?", max_tokens=12, logprobs=True))
    for session in (first, second, asked):
        session.close()


def test_a_question_without_a_session_is_bounded_too(engine_for: EngineFor, reference: Model):
    engine, stream = engine_for("heavy"), stream_of(reference, "heavy")
    also = clip(5, 0.0, frames=20, side=112)
    answer = VideoSession(engine).ask("What is it?", also=also, max_tokens=12, logprobs=True)
    feed_chunk(stream, also, first=True)
    stream.feed(reference.tokens(question_text("What is it?")))
    assert stream.compactions == 1
    check_generated(stream, answer.token_ids, answer.logprobs)


def test_video_and_text_side_by_side(engine_for: EngineFor, reference: Model):
    """Plain requests with a video go through the same cache as text."""
    strategy = "half-norm"
    engine = engine_for(strategy)
    chunk = clip(3, 0.0, frames=12, side=140)
    text = OPENING + chunk_text(0.0) + question_text("What is it?")
    video, plain = run(engine, [engine.prompt(text, chunk), ids(300, 4)], tokens=100, prompt_logprobs=False)
    stream = stream_of(reference, strategy)
    stream.feed(reference.tokens(text, chunk.frames, chunk.fps))
    check_generated(stream, video.token_ids[:-2], video.logprobs[:-2])
    check_kept(video.kept, stream)
    check_generated(stream, video.token_ids[-2:], video.logprobs[-2:])
    assert stream.compactions > 1
    check_plain(reference, strategy, ids(300, 4), plain)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [*NORM_KEEPS, *WATCHING_KEEPS])
def test_a_long_video_in_one_request(engine_for: EngineFor, reference: Model, strategy: str):
    """All tokens differ, so none tie. A frame has more patches than are recent: some have no counterpart."""
    engine, stream = watching_engine(engine_for, strategy), stream_of(reference, strategy)
    chunk = clip(3, 0.0, frames=40, side=140)
    (video,) = run(engine, [engine.prompt(f"ab{VIDEO}cd", chunk)], tokens=4, prompt_logprobs=False)
    stream.feed(reference.tokens(f"ab{VIDEO}cd", chunk.frames, chunk.fps))
    check_generated(stream, video.token_ids[:-2], video.logprobs[:-2])
    check_kept(video.kept, stream)
    check_generated(stream, video.token_ids[-2:], video.logprobs[-2:])
    assert stream.compactions == 4


@pytest.mark.parametrize("strategy", list(WATCHING_KEEPS))
def test_a_session_of_those_that_watch_steps(engine_for: EngineFor, reference: Model, strategy: str):
    """Here a step is a chunk, cut at compactions, as it is in the reference."""
    engine, stream = watching_engine(engine_for, strategy), stream_of(reference, strategy)
    with VideoSession(engine) as session:
        for index, chunk in enumerate(varied_chunks(24)):
            session.ingest(chunk)
            feed_chunk(stream, chunk, first=index == 0)
            check_kept(session._live_positions(), stream)
            if index % 6 == 3:
                check_answer(stream, "What is it?", session.ask("What is it?", max_tokens=12, logprobs=True))
    assert stream.compactions >= 5


@pytest.mark.parametrize("strategy", ["streaming", "half-norm", "heavy"])
def test_gaps_are_closed(engine_for: EngineFor, reference: Model, strategy: str):
    """Keys turned again and again are those turned once, from how they were before any rotation."""
    engine = engine_for(strategy, cache={"positions": "contiguous"})
    stream = Contiguous(reference, KEEPS[strategy], BUDGET, MAX_TOKENS)
    with VideoSession(engine) as session:
        for index, chunk in enumerate(varied_chunks(34)):
            session.ingest(chunk)
            feed_chunk(stream, chunk, first=index == 0)
            check_kept(session._live_positions(), stream)
            if index % 6 == 3:
                check_answer(stream, "What is it?", session.ask("What is it?", max_tokens=12, logprobs=True))
    assert stream.compactions >= 8
    spans = [axes[..., 0].amax(dim=1) - axes[..., 0].amin(dim=1) for axes in stream.axes]
    assert max(int(span.max()) for span in spans) < MAX_TOKENS + BUDGET
    assert stream.next > 2 * (MAX_TOKENS + BUDGET)


@pytest.mark.parametrize("positions", ["absolute", "contiguous"])
def test_positions_may_run_on_for_ever(
    engine_for: EngineFor, reference: Model, positions: str, monkeypatch: pytest.MonkeyPatch
):
    """The model's rotary table ends at 4 x 512 positions; the stream goes past that, and nothing shows it."""
    monkeypatch.setattr(attention, "AT_ONCE", 1)  # block by block, as a long cache is moved
    short = {"hf_overrides": {"text_config": {"max_position_embeddings": 512}}}
    engine = engine_for("streaming", cache={"positions": positions}, options=short, max_model_len=512)
    assert engine.position_limit == 512
    kind = Contiguous if positions == "contiguous" else Stream
    stream = kind(reference, KEEPS["streaming"], BUDGET, MAX_TOKENS)
    with VideoSession(engine) as session:
        for index, chunk in enumerate(clips(40, frames=4, fps=0.05)):
            session.ingest(chunk)
            feed_chunk(stream, chunk, first=index == 0)
            assert session._position <= 512
            if index % 10 == 9:
                check_answer(stream, "What is it?", session.ask("What is it?", max_tokens=12, logprobs=True))
                shares = [span.share for span in session.timeline()]
                assert shares[0] > 0
                assert shares[-1] > 0
    assert stream.next > 4 * 512


def watching_engine(engine_for: EngineFor, strategy: str) -> Engine:
    if strategy == "h2o-late":
        return engine_for("h2o", cache={"queries": None})
    return engine_for(strategy)


@pytest.fixture(scope="module")
def roomy(engine_for: EngineFor) -> Engine:
    """A bound that nothing here reaches."""
    return engine_for("streaming", cache={"max_tokens": 1536, "budget": 512})


def test_a_bound_that_is_not_reached_changes_nothing(roomy: Engine, vanilla: Any):
    from vllm import SamplingParams

    chunk = clip(3, 0.0, frames=12, side=84)
    text = OPENING + chunk_text(0.0) + question_text("What is it?")
    words: list[Any] = [{"prompt_token_ids": ids(n, n)} for n in (1, 31, 600)]
    results = run(roomy, [*words, roomy.prompt(text, chunk)], tokens=60, prompt_logprobs=False)
    params = SamplingParams(max_tokens=60, temperature=0, logprobs=0, ignore_eos=True)
    video = {"prompt": text, "multi_modal_data": {"video": [as_video(chunk)]}}
    for expected, result in zip(vanilla.generate([*words, video], params, use_tqdm=False), results, strict=True):
        said = expected.outputs[0]
        assert list(said.token_ids) == result.token_ids
        scores = [step[token].logprob for token, step in zip(said.token_ids, said.logprobs, strict=True)]
        np.testing.assert_allclose(result.logprobs, scores, rtol=0, atol=1e-5)
