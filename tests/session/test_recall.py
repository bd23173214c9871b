"""Questions look again: what they are shown is what they found, answers say so, and the stream keeps no trace."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from kvvideo.compression.config import SHOWN_AT
from kvvideo.errors import EngineError
from kvvideo.plugin.inspect import take_sum
from kvvideo.plugin.sampling import answering
from kvvideo.prompt import VIDEO, chunk_text, question_text
from kvvideo.session import Answer, Engine, Recall, VideoSession
from kvvideo.session.index import Found
from kvvideo.session.recall import chosen, wanted
from kvvideo.types import Chunk, Hit
from tests.conftest import EngineFor
from tests.helpers.engines import BUDGET, MAX_TOKENS, add, clip, clips
from tests.helpers.reference import Model, Stream
from tests.plugin.test_reference import check_generated, feed_chunk, position_of_next, stream_of

QUESTION = "Where was the red ball when it all began?"
OTHERS = ["What is it?", "Which letter was shown, and in which corner?"]
OPTIONS: dict[str, Any] = {"max_tokens": 12, "logprobs": True}


class Frames:
    """Frames of a stream's chunks again; of those that begin at ``lost`` moments they are gone."""

    def __init__(self, chunks: Sequence[Chunk], lost: Sequence[float] = ()) -> None:
        self._by_time = {(chunk.start, chunk.end): chunk for chunk in chunks}
        self._lost = lost
        self.asked: list[tuple[float, float]] = []

    def chunks(self, stretches: Sequence[tuple[float, float]]) -> list[Chunk | None]:
        self.asked += stretches
        return [None if start in self._lost else self._by_time[start, end] for start, end in stretches]


class Nowhere:
    """Frames that nobody may ask for."""

    def chunks(self, stretches: Sequence[tuple[float, float]]) -> list[Chunk | None]:
        raise AssertionError(stretches)


@pytest.fixture
def prompts(
    engine_for: EngineFor, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Engine], list[tuple[str, list[Chunk]]]]:
    """Writes down all texts and frames that an engine is given from now on."""

    def watch(engine: Engine) -> list[tuple[str, list[Chunk]]]:
        seen: list[tuple[str, list[Chunk]]] = []
        prompt = engine.prompt

        def prompting(text: str, *chunks: Chunk) -> Any:
            seen.append((text, [*chunks]))
            return prompt(text, *chunks)

        monkeypatch.setattr(engine, "prompt", prompting)
        return seen

    return watch


def said(answers: Sequence[Answer]) -> list[tuple[Any, ...]]:
    return [(answer.text, answer.token_ids, answer.logprobs, answer.finish_reason) for answer in answers]


def same_memory(one: VideoSession, other: VideoSession) -> None:
    """Both hold the same to the last bit."""
    kept, wanted_ = one.save(), other.save()
    assert kept.tensors.keys() == wanted_.tensors.keys()
    for name, tensor in kept.tensors.items():
        assert torch.equal(tensor, wanted_.tensors[name]), name
    assert (kept.position, kept.live, kept.evicted) == (wanted_.position, wanted_.live, wanted_.evicted)
    assert one.stats() == other.stats()


@pytest.mark.parametrize(
    "strategy",
    ["streaming", *(pytest.param(name, marks=pytest.mark.slow) for name in ("distinct", "heavy", "snapkv"))],
)
def test_looking_leaves_no_trace(engine_for: EngineFor, strategy: str) -> None:
    """Asked after every chunk, or never: the same is held, to the last bit, and said."""
    engine, chunks = engine_for(strategy), clips(11, frames=28)
    recall = Recall(3, Frames(chunks))
    with VideoSession(engine) as asked, VideoSession(engine) as silent:
        looked = 0
        for index, chunk in enumerate(chunks[:-1]):
            asked.ingest(chunk)
            silent.ingest(chunk)
            answers = asked.ask_all([QUESTION, *OTHERS], recall=recall, max_tokens=2)
            also = chunks[index + 1].until(chunks[index + 1].times[2])
            answers += asked.ask_all(OTHERS, recall=recall, also=also, dialogue=[("What?", "That.")], max_tokens=2)
            asked.find([QUESTION], 2, also=also)
            looked += sum(bool(answer.looked_at) for answer in answers)
            dropped = asked.stream([QUESTION], recall=recall, max_tokens=20)
            next(dropped)
            dropped.close()
            same_memory(asked, silent)
        assert looked > 16
        assert asked.stats().compactions >= 4
        for options in (OPTIONS, {**OPTIONS, "recall": recall}):
            assert said([asked.ask(QUESTION, **options)]) == said([silent.ask(QUESTION, **options)])


@pytest.mark.parametrize("strategy", ["streaming", "heavy"])
def test_looking_beside_answers_and_a_chunk_that_waits(engine_for: EngineFor, strategy: str) -> None:
    """The chunk is computed when all forks have ended, those that look and those that do not; its sum is its own."""
    from vllm import SamplingParams

    engine, chunks = engine_for(strategy), clips(8)
    with VideoSession(engine) as session, VideoSession(engine) as other:
        for chunk in chunks[:7]:
            session.ingest(chunk)
            other.ingest(chunk)
        expected, found = said([other.ask(QUESTION, **OPTIONS)]), other.find([QUESTION, *OTHERS], 2)
        answers = session.stream([QUESTION], **OPTIONS)
        plain = add(engine, engine.prompt(chunk_text(0.0) + question_text(QUESTION), chunks[0]), 9, False)
        next(answers)
        looking = session.finding([QUESTION, *OTHERS])
        next(looking)
        params = SamplingParams(max_tokens=1, temperature=0, detokenize=False, ignore_eos=True)
        request = engine.process(str(session._id), engine.prompt(chunk_text(chunks[7].start), chunks[7]), params, True)
        request.prompt_token_ids = list(request.prompt_token_ids)
        before = engine.scheduler.stats_of(session._id)
        engine.llm.engine_core.add_request(request)
        with pytest.raises(EngineError, match="still being answered"):
            session.ingest(chunks[7])
        events = engine.drive(looking)
        assert [[event.whole for event in islice(some, 2)] for some in events] == found
        assert engine.scheduler.stats_of(session._id) == before
        assert said([[*answers][-1][1]]) == expected
        while engine.scheduler.stats_of(session._id).seen == before.seen or not engine.scheduler.is_idle(session._id):
            engine.step()
        while plain in engine.scheduler.requests:
            engine.step()
        other.ingest(chunks[7])
        (mine,) = engine.on_workers(take_sum, engine.scheduler.live_block_ids(session._id)[0])
        torch.testing.assert_close(mine / 16, other.index.as_tensors()["index"][-1].float(), rtol=0, atol=1e-5)
        kept, wanted_ = session.save().tensors, other.save().tensors
        for name in ("keys", "values", "state"):
            torch.testing.assert_close(kept[name], wanted_[name], rtol=0, atol=1e-5)


def test_without_recall_nothing_is_looked_for(engine_for: EngineFor, monkeypatch: pytest.MonkeyPatch) -> None:
    """None and a count of 0 are what they were before there was any, bit for bit, and cost no request."""
    engine, chunks = engine_for("streaming"), clips(8)
    with VideoSession(engine) as session:
        for chunk in chunks:
            session.ingest(chunk)
        plain = session.ask_all([QUESTION, *OTHERS], **OPTIONS)
        monkeypatch.setattr(session, "finding", None)
        for recall in (None, Recall(0, Nowhere())):
            answers = session.ask_all([QUESTION, *OTHERS], recall=recall, **OPTIONS)
            assert said(answers) == said(plain)
            assert [answer.looked_at for answer in answers] == [()] * 3


def test_what_is_held_in_full_is_not_shown_again(engine_for: EngineFor) -> None:
    """Before anything was evicted nothing is looked for; later, what has come since the latest compaction is not."""
    engine, chunks = engine_for("streaming"), clips(14)
    frames = Frames(chunks)
    with VideoSession(engine) as session:
        seen, looked = [0], 0
        for chunk in chunks:
            session.ingest(chunk)
            seen.append(session.stats().seen)
            answer = session.ask(QUESTION, recall=Recall(30, frames), max_tokens=1)
            hits = {(hit.start, hit.end) for hit in answer.looked_at}
            assert hits <= older(seen, session, chunks)
            assert bool(hits) == bool(session.stats().evicted)
            assert {*frames.asked} == hits
            looked += len(hits)
            frames.asked.clear()
        assert looked > 8


def older(seen: Sequence[int], session: VideoSession, chunks: Sequence[Chunk]) -> set[tuple[float, float]]:
    """Chunks that began before the latest compaction; ``seen`` are the tokens before each chunk."""
    compactions = session.stats().compactions
    latest = MAX_TOKENS + (compactions - 1) * (MAX_TOKENS - BUDGET) if compactions else 0
    return {(chunk.start, chunk.end) for before, chunk in zip(seen, chunks, strict=False) if before < latest}


@pytest.mark.parametrize("also", [False, True])
def test_the_reference_says_the_same_of_what_was_shown(
    engine_for: EngineFor, reference: Model, prompts: Callable[[Engine], list[tuple[str, list[Chunk]]]], also: bool
) -> None:
    """Chunks found, in order of time, at the positions at which they were streamed; then the next one's beginning."""
    engine, stream, chunks = engine_for("streaming"), stream_of(reference, "streaming"), clips(14)
    with VideoSession(engine) as session:
        seen, streamed_at = [0], {}
        for index, chunk in enumerate(chunks[:-1]):
            session.ingest(chunk)
            streamed_at[chunk.start] = position_of_next(stream)
            feed_chunk(stream, chunk, first=index == 0)
            seen.append(stream.seen)
        options: dict[str, Any] = {"also": chunks[-1].until(chunks[-1].times[3])} if also else {}
        best = [event.best for event in engine.drive(session.finding([QUESTION], **options))[0]]
        wanted_ = [hit for hit in best if (hit.start, hit.end) in older(seen, session, chunks)][:3]
        given = prompts(engine)
        answer = session.ask(QUESTION, recall=Recall(3, Frames(chunks)), **options, **OPTIONS)
    assert answer.looked_at == tuple(sorted(wanted_, key=lambda hit: hit.start))
    assert len(answer.looked_at) == min(3, len(wanted_)) > 0
    text, shown = given[-1]
    again = [(hit.start, hit.end) for hit in answer.looked_at]
    assert [(chunk.start, chunk.end) for chunk in shown] == again + [(c.start, c.end) for c in options.values()]
    assert text == "".join(chunk_text(chunk.start) for chunk in shown) + question_text(QUESTION)
    assert text.count(VIDEO) == len(shown)
    check_shown(stream, shown, streamed_at, answer)


def check_shown(stream: Stream, shown: Sequence[Chunk], streamed_at: dict[float, int], answer: Answer) -> None:
    asked = stream.fork()
    for chunk in shown:
        asked.next = streamed_at.get(chunk.start, stream.next)
        feed_chunk(asked, chunk, first=False)
        asked.next = max(asked.next, stream.next)
    asked.feed(stream.model.tokens(question_text(QUESTION)))
    check_generated(asked, answer.token_ids, answer.logprobs)


def test_each_question_is_shown_its_own(engine_for: EngineFor) -> None:
    """Several at once are answered, and look, as one by one."""
    engine, chunks = engine_for("streaming"), clips(16)
    recall = Recall(2, Frames(chunks))
    questions = [QUESTION, *OTHERS, *(f"What was number {n}?" for n in range(12))]
    with VideoSession(engine) as session:
        for chunk in chunks:
            session.ingest(chunk)
        together = session.ask_all(questions, recall=recall, max_tokens=3, logprobs=True)
        alone = [session.ask(question, recall=recall, max_tokens=3, logprobs=True) for question in questions]
        assert len({answer.looked_at for answer in alone}) > 1
        for one, other in zip(together, alone, strict=True):
            assert one.question == other.question
            assert [(hit.start, hit.end) for hit in one.looked_at] == [(hit.start, hit.end) for hit in other.looked_at]
            assert one.token_ids == other.token_ids
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def test_a_question_is_made_once_to_look_and_once_to_be_asked(
    engine_for: EngineFor, prompts: Callable[[Engine], list[tuple[str, list[Chunk]]]]
) -> None:
    engine, chunks = engine_for("streaming"), clips(14)
    with VideoSession(engine) as session:
        for chunk in chunks:
            session.ingest(chunk)
        given = prompts(engine)
        answers = session.ask_all([QUESTION, *OTHERS], recall=Recall(3, Frames(chunks)), max_tokens=1)
    assert all(answer.looked_at for answer in answers)
    assert len(given) == 6


def test_frames_that_are_gone_are_done_without(
    engine_for: EngineFor, prompts: Callable[[Engine], list[tuple[str, list[Chunk]]]]
) -> None:
    """Some, and the others are shown; all, and the answer is what it is without looking."""
    engine, chunks = engine_for("streaming"), clips(14)
    with VideoSession(engine) as session:
        for chunk in chunks:
            session.ingest(chunk)
        plain = session.ask(QUESTION, **OPTIONS)
        every = session.ask(QUESTION, recall=Recall(3, Frames(chunks)), **OPTIONS).looked_at
        assert len(every) >= 2
        some = session.ask(QUESTION, recall=Recall(3, Frames(chunks, [every[0].start])), **OPTIONS)
        assert some.looked_at == every[1:]
        seen = prompts(engine)
        none = session.ask(QUESTION, recall=Recall(3, Frames(chunks, [c.start for c in chunks])), **OPTIONS)
        assert none.looked_at == ()
        assert said([none]) == said([plain])
        assert seen[-1] == (question_text(QUESTION), [])


@pytest.mark.parametrize("remembered", [False, True])
def test_a_loaded_session_looks_as_before(engine_for: EngineFor, remembered: bool) -> None:
    """Whatever was said since."""
    engine, chunks = engine_for("streaming"), clips(14)
    recall = Recall(2, Frames(chunks))
    with VideoSession(engine) as session:
        for chunk in chunks:
            session.ingest(chunk)
        if remembered:
            session.remember([("What is it?", "A thing.")])
        expected = session.ask(QUESTION, recall=recall, **OPTIONS)
        memory = session.save()
    with VideoSession.load(engine, memory) as session:
        answer = session.ask(QUESTION, recall=recall, **OPTIONS)
    assert answer.looked_at == expected.looked_at != ()
    assert said([answer]) == said([expected])


SHORT: dict[str, dict[str, Any]] = {
    "max_model_len": {"max_model_len": 320, "questions": 2},
    "question_tokens": {"questions": 1, "question_tokens": 128, "sessions": 1},
}


@pytest.mark.parametrize("bound", list(SHORT))
def test_where_room_is_short_fewer_are_shown(
    engine_for: EngineFor, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is short. What can be asked at all can be asked with looking again."""
    monkeypatch.setattr("kvvideo.session.index._EVENT", 2.0)  # each chunk by itself, for there to be many
    engine, chunks = engine_for("streaming", **SHORT[bound]), clips(12)
    recall = Recall(8, Frames(chunks))
    with VideoSession(engine) as session:
        for chunk in chunks:
            session.ingest(chunk)
        shown = []
        for max_tokens in range(1, 200, 22):
            answer = session.ask(QUESTION, recall=recall, max_tokens=max_tokens)
            shown.append(len(answer.looked_at))
        assert shown == sorted(shown, reverse=True)
        assert 1 < shown[0] < 8
        assert shown[-1] == 0


@pytest.mark.parametrize("bound", list(SHORT))
def test_the_longest_question_can_look(engine_for: EngineFor, bound: str) -> None:
    """Up to the length that is refused without looking again, too."""
    engine, chunks = engine_for("streaming", **SHORT[bound]), clips(12)
    recall = Recall(8, Frames(chunks))
    with VideoSession(engine) as session:
        for chunk in chunks:
            session.ingest(chunk)
        longest = 0
        for words in range(0, 400, 5):
            question = "what " * words
            try:
                plain = session.ask(question, max_tokens=1, logprobs=True)
            except EngineError:
                break
            longest = words
            answer = session.ask(question, recall=recall, max_tokens=1, logprobs=True)
            if not answer.looked_at:
                assert said([answer]) == said([plain])
        assert 0 < longest < 395
        with pytest.raises(EngineError, match=r"max_model_len|longer than|nothing can go on"):
            session.ask("what " * (longest + 5), recall=recall, max_tokens=1)
        same = session.stats()
        assert session.ask(QUESTION, recall=recall, max_tokens=1).looked_at
        assert session.stats() == same


def test_a_question_about_a_session_that_is_not_there_is_refused_alone(engine_for: EngineFor) -> None:
    """Beside others that look, and answers, which go on."""
    from kvvideo.plugin.sampling import looking

    engine, chunks = engine_for("streaming"), clips(10)
    recall = Recall(2, Frames(chunks))
    with VideoSession(engine) as session:
        for chunk in chunks:
            session.ingest(chunk)
        expected = session.ask(QUESTION, recall=recall, **OPTIONS)
        prompt = engine.prompt(question_text(QUESTION))
        lost = engine.ask(engine.process(engine.new_id("question"), prompt, looking("nobody")), looks=True)
        answer = session.ask(QUESTION, recall=recall, **OPTIONS)
        assert said([answer]) == said([expected])
        assert engine.take(lost).outputs[0].finish_reason == "error"
        assert engine.queries(lost) is None
        engine.forget(lost)


@pytest.mark.parametrize("shown_at", ["ab", [-1], [10**9], [0.5]])
def test_chunks_that_were_streamed_nowhere_are_refused_alone(engine_for: EngineFor, shown_at: Any) -> None:
    engine, chunks = engine_for("streaming"), clips(10)
    with VideoSession(engine) as session:
        for chunk in chunks:
            session.ingest(chunk)
        expected = session.ask(QUESTION, **OPTIONS)
        params = answering(session._id, 3, 0.0, None, False)
        assert params.extra_args is not None
        params.extra_args[SHOWN_AT] = shown_at
        prompt = engine.prompt(chunk_text(chunks[0].start) + question_text(QUESTION), chunks[0])
        stray = engine.ask(engine.process(engine.new_id("question"), prompt, params))
        assert said([session.ask(QUESTION, **OPTIONS)]) == said([expected])
        assert engine.take(stray).outputs[0].finish_reason == "error"
        engine.forget(stray)


def test_a_session_that_is_lost_while_it_looks_says_so(engine_for: EngineFor) -> None:
    engine, chunks = engine_for("streaming"), clips(8)
    session = VideoSession(engine)
    for chunk in chunks:
        session.ingest(chunk)
    looking = session.finding([QUESTION])
    next(looking)
    (asked,) = [name for name in engine.scheduler.requests if name != session._id]
    engine.scheduler._refused.append(asked)
    with pytest.raises(EngineError, match="ended before its answer"):
        engine.drive(looking)
    session.close()


def event(start: float, end: float, score: float) -> Found:
    return Found(Hit(start - 4, end + 4, score), Hit(start, end, score))


def test_only_what_ended_before_the_first_eviction_is_wanted() -> None:
    events = [event(8.0, 12.0, 0.5), event(20.0, 24.0, 0.3), event(0.0, 4.0, 0.2), event(16.0, 20.0, 0.1)]
    assert [hit.start for hit in wanted(iter(events), 2, 20.0)] == [8.0, 0.0]
    assert [hit.start for hit in wanted(iter(events), 9, 20.0)] == [8.0, 0.0, 16.0]
    assert wanted(iter(events), 9, 3.0) == []


def test_what_fits_is_shown_the_best_first() -> None:
    chunks = {(c.start, c.end): c for c in clips(5)}
    hits = [Hit(8.0, 12.0, 0.5), Hit(0.0, 4.0, 0.3), Hit(4.0, 8.0, 0.1)]
    for room, starts in ((9, []), (10, [8.0]), (19, [8.0]), (20, [0.0, 8.0]), (99, [0.0, 4.0, 8.0])):
        shown = chosen(hits, chunks, lambda _: 10, room)
        assert [hit.start for hit in shown.hits] == [chunk.start for chunk in shown.chunks] == starts
    sizes = {8.0: 100, 0.0: 10, 4.0: 10}
    assert [chunk.start for chunk in chosen(hits, chunks, lambda chunk: sizes[chunk.start], 30).chunks] == [0.0, 4.0]


def test_a_chunk_is_as_long_as_is_said(engine_for: EngineFor) -> None:
    engine = engine_for("streaming")
    for chunk in (clip(0, 0.0), clip(1, 4000.0, frames=2, side=112), clip(2, 86_399.5, frames=6, side=84)):
        text = question_text(QUESTION)
        alone = engine.prompt(chunk_text(3.0) + text, clip(3, 3.0))
        both = engine.prompt(chunk_text(3.0) + chunk_text(chunk.start) + text, clip(3, 3.0), chunk)
        longer = len(both["prompt_token_ids"]) - len(alone["prompt_token_ids"])
        assert engine.chunk_tokens(chunk) == longer
