"""Memory is given back when and as promised: at compactions, at the end, on abort, and when it runs out."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kvvideo.compression.config import FORK_OF
from kvvideo.errors import EngineError
from kvvideo.prompt import question_text
from kvvideo.session import Engine, VideoSession
from tests.conftest import EngineFor
from tests.helpers.engines import (
    BLOCK,
    BUDGET,
    MAX_TOKENS,
    SINK,
    TOLERANCE,
    add,
    blocks_left,
    clip,
    clips,
    during_step,
    kept_positions,
    run,
)
from tests.helpers.reference import Model, Stream, keep_streaming
from tests.plugin.test_reference import check_answer, check_kept, check_plain, feed_chunk, ids


@pytest.fixture
def engine(engine_for: EngineFor) -> Engine:
    return engine_for("streaming")


def whole(tokens: int) -> int:
    return -(-tokens // BLOCK)


def held_after(seen: int) -> int:
    """Tokens alive after ``seen``, counted one by one."""
    live = 0
    for _ in range(seen):
        live += 1
        live = BUDGET if live == MAX_TOKENS else live
    return live


@pytest.mark.slow
def test_the_pool_gets_back_what_compactions_free(engine: Engine):
    total, free = engine.free_blocks, []
    (result,) = run(engine, [ids(300)], tokens=300, each_step=lambda _: free.append(engine.free_blocks))
    assert result.live == [held_after(seen) for seen in result.seen]
    assert max(result.live) < MAX_TOKENS
    assert result.blocks == [whole(live) for live in result.live]
    assert free[:-1] == [total - blocks for blocks in result.blocks]
    assert free[-1] == total


def test_evicted_blocks_return_before_more_are_taken(engine: Engine):
    """Nobody looks at the cache here, as ``stats`` also frees: a prompt needs no more blocks than the bound."""
    with blocks_left(engine, MAX_TOKENS // BLOCK):
        add(engine, ids(1500), 40)
        while engine.llm.has_unfinished_requests():
            (request,) = engine.scheduler.requests.values()
            before = engine.free_blocks, request.num_computed_tokens
            engine.step()
            engine.check_progress()
            assert (engine.free_blocks, request.num_computed_tokens) != before
        assert engine.free_blocks == MAX_TOKENS // BLOCK
        assert request.num_preemptions == 0


@pytest.mark.slow
def test_a_stream_of_a_hundred_times_the_pool(engine_for: EngineFor, reference: Model):
    """In blocks for less than two bounds, with max_model_len far below it, in constant host memory."""
    size = engine_for("streaming").scheduler.block_bytes
    engine = engine_for(
        "streaming", kv_bytes=(256 // BLOCK + 1) * size, max_model_len=512, step_tokens=512, sessions=1, questions=2
    )
    pool = engine.free_blocks * BLOCK
    assert pool == 256
    chunk, seen, stream = clip(1, 0.0, frames=20, side=112), 0, None
    with VideoSession(engine) as session:
        while seen < 100 * pool:
            session.ingest(chunk)
            stats = session.stats()
            assert seen < stats.seen
            seen = stats.seen
            assert (stats.live, stats.evicted) == (held_after(seen), seen - held_after(seen))
            assert stats.blocks == whole(stats.live)
            assert stats.bytes == stats.blocks * size
            assert engine.free_blocks == pool // BLOCK - stats.blocks
            (request,) = engine.scheduler.requests.values()
            assert len(request._all_token_ids) <= stats.live + 1
            assert len(request.prompt_token_ids) == stats.live
            assert not request.mm_features
            assert not request.block_hashes
            state = engine.core.model_executor.driver_worker.worker.model_runner.requests[request.request_id]
            assert len(state.prompt_token_ids) < 512
        assert seen > 40 * engine.config.max_model_len
        answer = session.ask("What is it?", max_tokens=12, logprobs=True)
        positions = session._live_positions()
        stream = Stream(reference, keep_streaming(SINK), BUDGET, MAX_TOKENS)
        for index in range(session.chunks):
            feed_chunk(stream, chunk, first=index == 0)
        assert stream.seen == seen
        assert stream.compactions == session.stats().compactions > 200
        check_kept(positions, stream)
        check_answer(stream, "What is it?", answer)


def test_abort_in_the_middle_of_a_prompt_and_of_an_answer(engine: Engine):
    total = engine.free_blocks
    long, short = add(engine, ids(1500), 50), add(engine, ids(100), 50)
    for _ in range(5):
        engine.step()
    assert engine.free_blocks < total - 4
    engine.llm.abort_request([long, short], internal=True)
    assert engine.free_blocks == total


def test_a_session_interrupted_in_a_chunk(engine: Engine):
    total = engine.free_blocks

    def interrupt() -> None:
        raise KeyboardInterrupt

    with VideoSession(engine) as session:
        session.ingest(clip(0, 0.0))
        with pytest.raises(KeyboardInterrupt), during_step(engine, interrupt):
            session.ingest(clip(1, 4.0))
        assert engine.free_blocks < total
    assert engine.free_blocks == total
    assert not session.alive


def test_an_answer_that_is_not_read_to_its_end(engine: Engine):
    with VideoSession(engine) as session:
        for chunk in clips(5):
            session.ingest(chunk)
        before, held = engine.free_blocks, session._live_positions()
        answers = session.stream(["What is it?", "Where?", "Why?"], max_tokens=60)
        for _ in range(4):
            next(answers)
        assert engine.free_blocks < before
        answers.close()
        assert engine.free_blocks == before
        assert np.array_equal(session._live_positions(), held)
        session.ingest(clips(6)[-1])


def test_blocks_are_shared_between_questions(engine: Engine):
    """Ten forks cost ten last blocks, not ten caches."""
    with VideoSession(engine) as session:
        for chunk in clips(4):
            session.ingest(chunk)
        live, free = session.stats().live, engine.free_blocks
        assert live % BLOCK
        assert live > 2 * BLOCK
        answers = session.stream(["?"] * 10, max_tokens=2)
        next(answers)
        shared = engine.scheduler.manager.req_to_blocks[session._id][: live // BLOCK]
        assert [block.ref_cnt for block in shared] == [11] * (live // BLOCK)
        fork = whole(live % BLOCK + len(engine.tokenizer.encode("\n?<|im_end|>\n<|im_start|>assistant\n")) + 1)
        assert free - engine.free_blocks <= 10 * fork
        assert len(list(answers)) > 0
        assert [block.ref_cnt for block in shared] == [1] * (live // BLOCK)


# When blocks run out ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_plain_request_is_recomputed_after_preemption(engine: Engine, reference: Model):
    prompts = [ids(30, 1), ids(25, 2)]
    with blocks_left(engine, 224 // BLOCK):
        results = run(engine, prompts, tokens=220, prompt_logprobs=False)
    assert results[1].preemptions > 0
    for prompt, result in zip(prompts, results, strict=True):
        check_plain(reference, "streaming", prompt, result)


def test_a_preempted_session_ends_and_the_other_goes_on(engine_for: EngineFor, reference: Model):
    """Both are admitted, as each could go on alone; then there is not enough for both to grow."""
    engine = engine_for("streaming", options={"long_prefill_token_threshold": 1})
    stream = Stream(reference, keep_streaming(SINK), BUDGET, MAX_TOKENS)
    with VideoSession(engine) as session:
        lost = VideoSession(engine)
        session.ingest(clip(1, 0.0))
        lost.ingest(clip(2, 0.0))
        feed_chunk(stream, clip(1, 0.0), first=True)

        def starve() -> None:
            with pytest.raises(EngineError, match=r"lost its KV blocks .*preemption.*start a new one"):
                lost.ingest(clip(21, 4.0, frames=20, side=112))

        chunk = clip(13, 4.0, frames=20, side=112)
        with blocks_left(engine, MAX_TOKENS // BLOCK - lost.stats().blocks), during_step(engine, starve):
            session.ingest(chunk)
        feed_chunk(stream, chunk, first=False)
        assert not lost.alive
        assert session.alive
        pool = engine.scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1
        assert engine.free_blocks == pool - session.stats().blocks
        check_answer(stream, "What is it?", session.ask("What is it?", max_tokens=12, logprobs=True))
        for action in (lambda: lost.ingest(chunk), lambda: lost.ask("What is it?"), lost.stats):
            with pytest.raises(EngineError, match="ended"):
                action()


def test_a_first_chunk_is_recomputed_after_preemption(engine_for: EngineFor, reference: Model):
    """Nothing of it was folded yet, so nothing is lost, pixels included."""
    engine = engine_for("streaming", options={"long_prefill_token_threshold": 1})
    stream = Stream(reference, keep_streaming(SINK), BUDGET, MAX_TOKENS)
    chunk = clip(21, 0.0, frames=20, side=112)
    preempt, preempted = engine.scheduler._preempt_request, []

    def watched(request: Any, *args: Any, **options: Any) -> None:
        preempted.append(request.request_id)
        preempt(request, *args, **options)

    engine.scheduler._preempt_request = watched
    with VideoSession(engine) as session:
        with blocks_left(engine, 224 // BLOCK):
            add(engine, ids(30), 200)
            session.ingest(chunk)
            finish(engine)
        assert session._id in preempted
        feed_chunk(stream, chunk, first=True)
        assert session.stats().compactions == stream.compactions > 0
        check_kept(session._live_positions(), stream)
        check_answer(stream, "What is it?", session.ask("What is it?", max_tokens=12, logprobs=True))
    del engine.scheduler._preempt_request


def test_an_idle_session_that_holds_all_blocks_is_not_waited_for_in_vain(engine: Engine, reference: Model):
    stream = Stream(reference, keep_streaming(SINK), BUDGET, MAX_TOKENS)
    with VideoSession(engine) as session:
        for index, chunk in enumerate(clips(3, 1)):
            session.ingest(chunk)
            feed_chunk(stream, chunk, first=index == 0)
        other = VideoSession(engine)
        with blocks_left(engine, 1):
            with pytest.raises(EngineError, match=r"nothing can go on: 1 KV blocks are free"):
                other.ingest(clip(5, 0.0))
            assert not other.alive
            assert engine.free_blocks == 1
        check_answer(stream, "What is it?", session.ask("What is it?", max_tokens=12, logprobs=True))


def test_a_folded_session_that_cannot_grow_ends(engine: Engine):
    session = VideoSession(engine)
    session.ingest(clip(1, 0.0))
    total = engine.free_blocks + session.stats().blocks
    with blocks_left(engine, 0):
        with pytest.raises(EngineError, match="nothing can go on"):
            session.ingest(clip(2, 4.0, frames=16, side=112))
        assert not session.alive
    assert engine.free_blocks == total


def test_more_sessions_than_places(engine: Engine):
    places = engine.config.sessions + engine.config.questions
    sessions = [VideoSession(engine) for _ in range(places + 1)]
    for session in sessions[:-1]:
        session.ingest(clip(1, 0.0, frames=2))
    with pytest.raises(EngineError, match=r"nothing can go on.*4 sessions"):
        sessions[-1].ingest(clip(1, 0.0, frames=2))
    with pytest.raises(EngineError, match=r"nothing can go on"):
        sessions[0].ask("What is it?")
    sessions.pop(1).close()
    assert sessions[0].ask("What is it?", max_tokens=3).token_ids
    for session in sessions:
        session.close()


def check_questions_fail(session: VideoSession, match: str, free: int, **options: Any) -> None:
    engine = session.engine
    before = session.stats(), session._live_positions()
    with blocks_left(engine, free):
        with pytest.raises(EngineError, match=match):
            session.ask_all(["What is it?"] * 10, **options)
        assert engine.free_blocks == free
    assert session.stats() == before[0]
    assert np.array_equal(session._live_positions(), before[1])


@pytest.mark.parametrize(
    ("free", "tokens", "match"),
    [
        (0, 5, "ended before its answer.*ask fewer"),
        (9, 5, "ended before its answer.*ask fewer"),
        (10, 60, "nothing can go on|ended before its answer"),
        (24, 200, "ended before its answer.*ask fewer"),
    ],
)
def test_questions_without_room_fail_and_leave_the_session_whole(
    engine: Engine, reference: Model, free: int, tokens: int, match: str
):
    stream = Stream(reference, keep_streaming(SINK), BUDGET, MAX_TOKENS)
    with VideoSession(engine) as session:
        for index, chunk in enumerate(clips(4, 1)):
            session.ingest(chunk)
            feed_chunk(stream, chunk, first=index == 0)
        check_questions_fail(session, match, free, max_tokens=tokens)
        check_answer(stream, "What is it?", session.ask("What is it?", max_tokens=12, logprobs=True))


def fork_of(engine: Engine, session: object, prompt: list[int]) -> str:
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True, extra_args={FORK_OF: session})
    return str(engine.llm.add_request(engine.new_id("raw"), {"prompt_token_ids": prompt}, params))


def finish(engine: Engine) -> list[Any]:
    done = []
    while engine.llm.has_unfinished_requests():
        done += [output for output in engine.step() if output.finished]
        engine.check_progress()
    return done


@pytest.mark.parametrize("session", ["nobody", "", 7, None])
def test_a_question_about_nobody_fails_alone(engine: Engine, session: object):
    """Anyone can send such a request to a server. It must not take the engine down."""
    fork_of(engine, session, ids(5))
    add(engine, ids(50), 3)
    reasons = {output.request_id.partition("-")[0]: output.outputs[0].finish_reason for output in finish(engine)}
    assert reasons == {"raw": "error", "plain": "length"}


def test_a_refused_question_may_be_aborted_at_once(engine: Engine):
    request = fork_of(engine, "nobody", ids(5))
    engine.llm.abort_request([request], internal=True)
    assert finish(engine) == []


@pytest.mark.parametrize("length", [3, 15, 64, 159, 160, 161, 256])
def test_forks_of_whole_and_of_half_filled_blocks(engine: Engine, reference: Model, length: int):
    """Also of a stream too short to be folded, and of one just compacted."""
    from vllm import SamplingParams

    stream = Stream(reference, keep_streaming(SINK), BUDGET, MAX_TOKENS)
    stream.feed(reference.tokens(ids(length)))
    prompt, params = {"prompt_token_ids": ids(length)}, SamplingParams(max_tokens=1)
    request = engine.process(engine.new_id("raw"), prompt, params, resumable=True)
    engine.llm.engine_core.add_request(request)
    while not engine.scheduler.is_idle(request.request_id):
        engine.step()
    assert engine.scheduler.fold(request.request_id).position == length
    free = engine.free_blocks
    for _ in range(2):
        fork_of(engine, request.request_id, ids(9, 3))
        (output,) = finish(engine)
        asked = stream.fork()
        asked.feed(reference.tokens(ids(9, 3)))
        chosen, best = asked.score(output.outputs[0].token_ids)
        np.testing.assert_allclose(chosen, best, atol=TOLERANCE)
        assert engine.free_blocks == free
        assert np.array_equal(kept_positions(engine, request.request_id)[0], stream.positions[0].numpy())
    engine.llm.engine_core.abort_requests([request.request_id])


@pytest.mark.parametrize(
    "action",
    [
        lambda engine: VideoSession(engine).ingest(clip(0, 0.0, frames=60, side=280)),
        lambda engine: VideoSession(engine).ask("why? " * 1000, also=clip(0, 0.0)),
    ],
)
def test_what_is_too_long_for_the_model_is_refused(engine: Engine, action: Callable[[Engine], object]):
    with pytest.raises(EngineError, match=r"tokens|longer"):
        action(engine)


def question_length(engine: Engine, question: str) -> int:
    return len(engine.tokenizer.encode(question_text(question)))


def test_the_whole_stream_must_fit_without_compression(engine_for: EngineFor):
    engine = engine_for("full", max_model_len=256, kv_bytes=1 << 22)
    with VideoSession(engine) as session:
        stream = iter(clips(30, frames=2))
        with pytest.raises(EngineError, match=r"on top of the \d+ tokens held exceeds max_model_len=256"):
            deque(map(session.ingest, stream))
        assert session.chunks > 2
        assert session.stats().live < 256
        with pytest.raises(EngineError, match=r"the question .*max_model_len=256"):
            session.ask("why? " * 30)
    with VideoSession(engine) as session:
        session.ingest(clip(0, 0.0))
        live = session.stats().live
        # What just fits is answered up to max_model_len, where vLLM cuts it.
        room = 255 - BLOCK - live
        asked = max((q for q in ("?" * n for n in range(256)) if question_length(engine, q) <= room), key=len)
        answer = session.ask(asked, max_tokens=500)
        assert len(answer.token_ids) <= 1 + room - question_length(engine, asked)
        with pytest.raises(EngineError, match=r"the question .*max_model_len=256"):
            session.ask(asked + "? ?")
        assert session.stats().live == live
