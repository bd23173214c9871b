"""Sessions: questions leave no trace, folds none either, and what is reported is what is held."""

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from operator import and_

import numpy as np
import pytest
import torch

from kvvideo.errors import EngineError
from kvvideo.prompt import chunk_text, question_text
from kvvideo.session import Answer, Engine, VideoSession
from tests.conftest import EngineFor
from tests.helpers.engines import BLOCK, BUDGET, DTYPE, EXACT, MAX_TOKENS, SINK, TOLERANCE, UNSCORED, clip, clips
from tests.helpers.reference import Model
from tests.plugin.test_reference import KEEPS, check_answer, check_kept, each_strategy, feed_chunk, stream_of

QUESTIONS = [f"What was number {n}?" for n in range(10)]


def said(answers: list[Answer]) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


def same_scores(some: list[Answer], others: list[Answer]) -> None:
    for one, other in zip(some, others, strict=True):
        if EXACT:
            assert one.token_ids == other.token_ids
        pairs = zip(one.token_ids, other.token_ids, strict=True)
        same = sum(accumulate((a == b for a, b in pairs), and_))
        np.testing.assert_allclose(
            one.logprobs[:same], other.logprobs[:same], rtol=0, atol=1e-5 if EXACT else TOLERANCE
        )


@each_strategy
def test_questions_leave_no_trace(engine_for: EngineFor, strategy: str):
    """One, ten at once, with frames of the next chunk, or dropped half-way: no later answer changes."""
    engine, chunks = engine_for(strategy), clips(10)
    with VideoSession(engine) as asked, VideoSession(engine) as silent:
        for index, chunk in enumerate(chunks[:-1]):
            asked.ingest(chunk)
            silent.ingest(chunk)
            before = asked.stats(), asked._live_positions(), asked.timeline()
            asked.ask("What is it?", max_tokens=3)
            asked.ask_all(QUESTIONS, max_tokens=4)
            asked.ask("And now?", also=chunks[index + 1].until(chunks[index + 1].times[3]), max_tokens=40)
            dropped = asked.stream(QUESTIONS[:3], max_tokens=50)
            next(dropped)
            dropped.close()
            assert asked.stats() == before[0] == silent.stats()
            assert np.array_equal(asked._live_positions(), before[1])
            assert np.array_equal(asked._live_positions(), silent._live_positions())
            assert asked.timeline() == before[2]
        options = {"max_tokens": 20, "logprobs": True}
        same_scores(asked.ask_all(QUESTIONS, **options), silent.ask_all(QUESTIONS, **options))


def test_an_answer_ends_at_the_end_marker_or_at_its_limit(engine_for: EngineFor):
    engine = engine_for("streaming")
    end = engine.tokenizer.eos_token_id
    with VideoSession(engine) as session:
        session.ingest(clip(0, 0.0))
        (long,) = session.ask_all(["What is it?"], max_tokens=200)
        assert (len(long.token_ids), long.finish_reason) == (200, "length")
        process, engine.process = engine.process, type(engine).process.__get__(engine)  # type: ignore[method-assign]
        (answer,) = session.ask_all(["What is it?"], max_tokens=200)
        engine.process = process  # type: ignore[method-assign]
        stop = long.token_ids.index(end) + 1
        assert (answer.token_ids, answer.finish_reason) == (long.token_ids[:stop], "stop")
        assert answer.text == engine.tokenizer.decode(answer.token_ids, skip_special_tokens=True).strip()


@pytest.mark.slow
def test_questions_at_once_are_answered_as_one_by_one(engine_for: EngineFor):
    engine, options = engine_for("half-norm"), {"max_tokens": 30, "logprobs": True}
    with VideoSession(engine) as session:
        for chunk in clips(8):
            session.ingest(chunk)
        questions = [*QUESTIONS, "A longer question than the others, is it not?", "?"]
        assert len(questions) > engine.config.questions
        together = session.ask_all(questions, **options)
        alone = [session.ask(question, **options) for question in questions]
        assert [answer.question for answer in together] == questions
        same_scores(together, alone)
        also = clip(99, session.end, frames=4)
        same_scores(
            session.ask_all(QUESTIONS, also=also, **options),
            [session.ask(question, also=also, **options) for question in QUESTIONS],
        )


def test_an_answer_grows_past_the_bound_without_evicting(engine_for: EngineFor, reference: Model):
    """A fork may hold more than ``max_tokens``: it shares blocks, so it must not compact them."""
    engine, stream = engine_for("streaming"), stream_of(reference, "streaming")
    also = clip(50, 4.0, frames=20, side=112)
    with VideoSession(engine) as session:
        for index, chunk in enumerate(clips(4)):
            session.ingest(chunk)
            feed_chunk(stream, chunk, first=index == 0)
        answer = session.ask("What is it?", also=also, max_tokens=30, logprobs=True)
        assert stream.live + 160 > MAX_TOKENS
        check_answer(stream, "What is it?", answer, also)
        check_kept(session._live_positions(), stream)


def test_what_a_question_shares_is_counted_once(engine_for: EngineFor):
    """As ``/metrics`` has it: all that the session holds, and of its questions what they add."""
    engine, question = engine_for("streaming"), "What is it?"
    scheduler = engine.scheduler
    with VideoSession(engine) as session:
        for chunk in clips(4):
            session.ingest(chunk)
        live = session.stats().live
        assert sum(map(scheduler._held, scheduler.requests.values())) == live
        answers = session.stream([question, question], max_tokens=30)
        next(answers)
        asked = len(engine.tokenizer(question_text(question)).input_ids)
        assert sum(map(scheduler._held, scheduler.requests.values())) == live + 2 * asked
        answers.close()


@pytest.mark.parametrize("strategy", ["streaming", "heavy"])
def test_many_folds_change_no_position(engine_for: EngineFor, reference: Model, strategy: str):
    """A hundred chunks, each folded, beside a reference that never was: positions run on past 1,000."""
    engine, stream = engine_for(strategy), stream_of(reference, strategy)
    with VideoSession(engine) as session:
        for index, chunk in enumerate(clips(100, frames=4, fps=1.0)):
            session.ingest(chunk)
            feed_chunk(stream, chunk, first=index == 0)
            assert session._position == stream.next
        assert stream.next > 1000
        assert session.stats().compactions == stream.compactions > 10
        check_kept(session._live_positions(), stream)
        check_answer(stream, "What is it?", session.ask("What is it?", max_tokens=12, logprobs=True))


def test_timeline_of_streaming(engine_for: EngineFor):
    """The sinks are in the first chunk, the rest is recent."""
    with VideoSession(engine_for("streaming")) as session:
        counts: list[int] = []
        for chunk in clips(12):
            session.ingest(chunk)
            counts.append(session.stats().seen - sum(counts))
            kept: list[int] = []
            for token in range(sum(counts)):
                kept.append(token)
                if len(kept) == MAX_TOKENS:
                    kept = kept[:SINK] + kept[-(BUDGET - SINK) :]
            ends = np.cumsum(counts)
            held = np.bincount(np.searchsorted(ends, kept, side="right"), minlength=len(counts))
            timeline = session.timeline()
            assert [(span.start, span.end) for span in timeline] == [(4.0 * i, 4.0 * i + 4) for i in range(len(counts))]
            np.testing.assert_allclose([span.share for span in timeline], held / counts, atol=1e-9)
        assert timeline[0].share == SINK / counts[0]
        assert timeline[-1].share == 1.0
        gone = [span for span in timeline if span.share == 0]
        assert len(gone) > 2
        assert session.held() == [(0.0, gone[0].start), (gone[-1].end, 48.0)]
        assert gone[0].start == 4.0


def test_timeline_of_all_strategies_adds_up(engine_for: EngineFor):
    for strategy in KEEPS if EXACT else set(KEEPS) & set(UNSCORED):
        with VideoSession(engine_for(strategy)) as session:
            sizes: list[int] = []
            for chunk in clips(9):
                session.ingest(chunk)
                sizes.append(session.stats().seen - sum(sizes))
            held = sum(span.share * size for span, size in zip(session.timeline(), sizes, strict=True))
            assert held == pytest.approx(session.stats().live)
            if strategy == "full":
                assert session.held() == [(0.0, 36.0)]
            if strategy == "window":
                assert session.timeline()[0].share == 0
                assert session.held()[0][0] > 0


def test_a_gap_in_the_source_is_a_gap_in_what_is_held(engine_for: EngineFor):
    with VideoSession(engine_for("full")) as session:
        session.ingest(clip(0, 10.0))
        session.ingest(clip(1, 100.0))
        assert session.held() == [(10.0, 14.0), (100.0, 104.0)]
        assert (session.chunks, session.frames, session.end) == (2, 16, 104.0)


def test_statistics_before_during_and_after(engine_for: EngineFor):
    engine = engine_for("streaming")
    session = VideoSession(engine)
    assert session.timeline() == session.held() == []
    session.ingest(clip(0, 0.0))
    stats = session.stats()
    assert stats.seen == stats.live > 0
    assert (stats.evicted, stats.compactions) == (0, 0)
    assert stats.blocks == -(-stats.live // BLOCK)
    text = engine.llm.model_config.hf_config.text_config
    head = text.hidden_size // text.num_attention_heads
    slot = text.num_key_value_heads * (2 * head * getattr(torch, DTYPE).itemsize + 2 * 4)
    assert stats.bytes == stats.blocks * BLOCK * slot * text.num_hidden_layers
    session.close()
    session.close()
    with pytest.raises(EngineError, match="ended"):
        session.stats()


# What is done at the same time -----------------------------------------------------------------------


def test_answers_of_two_sessions_read_in_turns(engine_for: EngineFor):
    """Whoever steps computes for all; nobody's answer is lost, not even the end of one."""
    engine = engine_for("streaming")
    with VideoSession(engine) as first, VideoSession(engine) as second, VideoSession(engine) as third:
        for session in (first, second):
            for chunk in clips(6, seed=1 if session is first else 2):
                session.ingest(chunk)
        options = {"max_tokens": 9, "logprobs": True}
        alone = first.ask_all(QUESTIONS[:2], **options), second.ask_all(QUESTIONS[2:4], **options)
        mine, yours = first.stream(QUESTIONS[:2], **options), second.stream(QUESTIONS[2:4], **options)
        read: tuple[dict[int, Answer], dict[int, Answer]] = ({}, {})
        read[0].update([next(mine)])
        read[1].update([next(yours)])
        for chunk in clips(3):
            third.ingest(chunk)
        third.ask("Until both have long been answered?", max_tokens=30)
        read[1].update(yours)
        read[0].update(mine)
        for expected, got in zip(alone, read, strict=True):
            same_scores(expected, [got[0], got[1]])


def test_a_chunk_must_wait_for_the_answers(engine_for: EngineFor):
    """They share its blocks, which compaction would rewrite under them."""
    with VideoSession(engine_for("streaming")) as session:
        for chunk in clips(3):
            session.ingest(chunk)
        answers = session.stream(["What is it?"], max_tokens=9)
        next(answers)
        with pytest.raises(EngineError, match="still being answered"):
            session.ingest(clip(4, 12.0))
        assert session.chunks == 3
        assert list(answers)[-1][1].finish_reason
        session.ingest(clip(4, 12.0))
        assert session.chunks == 4


@pytest.mark.parametrize("ended", ["by itself", "by the client", "with its session"])
def test_a_chunk_that_any_client_sends_waits_for_open_questions(engine_for: EngineFor, ended: str):
    """The scheduler sees to it, for a client of a server knows nothing of blocks that are shared."""
    from vllm import SamplingParams

    engine, chunks = engine_for("streaming"), clips(7)
    with VideoSession(engine) as session, VideoSession(engine) as other:
        for chunk in chunks[:6]:
            session.ingest(chunk)
            other.ingest(chunk)
        expected = session.ask("What is it?", max_tokens=30)
        answers = session.stream(["What is it?", "And that?"], max_tokens=30)
        next(answers)
        params = SamplingParams(max_tokens=1, temperature=0, detokenize=False, ignore_eos=True)
        prompt = engine.prompt(chunk_text(chunks[6].start), chunks[6])
        request = engine.process(session._id, prompt, params, True)
        request.prompt_token_ids = list(request.prompt_token_ids)
        before = engine.scheduler.stats_of(session._id)
        engine.llm.engine_core.add_request(request)
        for _ in range(5):
            engine.step()
        assert engine.scheduler.stats_of(session._id) == before
        if ended == "with its session":
            session.close()
            list(answers)
            assert not engine.scheduler._postponed
            return
        if ended == "by itself":
            assert dict(answers)[0].token_ids == expected.token_ids
        answers.close()
        while engine.scheduler.stats_of(session._id).seen == before.seen or not engine.scheduler.is_idle(session._id):
            engine.step()
        other.ingest(chunks[6])
        engine.scheduler.fold(session._id)
        # What a client sends itself is not indexed.
        assert replace(session.stats(), index_bytes=other.stats().index_bytes) == other.stats()
        assert np.array_equal(session._live_positions(), other._live_positions())
        same_scores([session.ask("What is it?", logprobs=True)], [other.ask("What is it?", logprobs=True)])


def test_closing_a_session_lets_its_questions_finish(engine_for: EngineFor):
    engine = engine_for("streaming")
    session = VideoSession(engine)
    for chunk in clips(5):
        session.ingest(chunk)
    expected = session.ask("What is it?", max_tokens=30)
    answers = session.stream(["What is it?"], max_tokens=30)
    next(answers)
    session.close()
    with VideoSession(engine) as other:  # takes the blocks that are free now
        other.ingest(clip(7, 0.0, frames=40, side=112))
        assert list(answers)[-1][1].token_ids == expected.token_ids


@pytest.mark.parametrize(
    ("action", "match"),
    [
        (lambda session: session.ingest(clip(1, 4.0)), "was ended; start a new one"),
        (lambda session: session.ask("What is it?"), "was ended"),
        (lambda session: session.ask("What is it?", also=clip(1, 4.0)), "was ended"),
        (lambda session: session.stats(), "ended"),
        (lambda session: session.timeline(), "ended"),
    ],
)
def test_a_closed_session_says_so(engine_for: EngineFor, action: Callable[[VideoSession], object], match: str):
    session = VideoSession(engine_for("streaming"))
    session.ingest(clip(0, 0.0))
    session.close()
    with pytest.raises(EngineError, match=match):
        action(session)


def test_there_must_be_something_to_ask_about(engine_for: EngineFor):
    with pytest.raises(EngineError, match="nothing was ingested"):
        VideoSession(engine_for("streaming")).ask("What is it?")


def test_a_strategy_that_breaks_its_contract_is_named(model_dir: str, engine_for: EngineFor):
    engine: Engine = engine_for("wrong")
    session = VideoSession(engine)
    with pytest.raises(EngineError, match=r"Wrong selected \(2, 63\) tokens instead of .* \(2, 64\)"):
        for_ever(session)
    assert not session.alive


def for_ever(session: VideoSession) -> None:
    for chunk in clips(50):
        session.ingest(chunk)
