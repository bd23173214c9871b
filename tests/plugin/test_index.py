"""Chunks leave the mean un-rotated keys that plain transformers finds; questions ask with its un-rotated queries."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kvvideo.compression.config import CacheConfig
from kvvideo.prompt import OPENING, chunk_text, dialogue_text, question_text
from kvvideo.session import Engine, VideoSession
from kvvideo.session.index import ChunkIndex
from kvvideo.storage.codec import decode, encode
from kvvideo.types import Chunk, Hit
from tests.conftest import EngineFor
from tests.helpers.engines import BUDGET, EXACT, MAX_TOKENS, SINK, add, clip, clips, during_step, step_size
from tests.helpers.reference import Contiguous, Model, Stream, keep_best, nearest_newer_key, neighbourhood
from tests.plugin.test_reference import KEEPS, check_kept, varied_chunks

QUESTION = "Where was the red ball when it all began?"

KEEP = {
    **KEEPS,
    "snapkv": keep_best(SINK, neighbourhood(BUDGET // 4)),
    "distinct": keep_best(SINK, nearest_newer_key, recent=BUDGET // 10),
}

TOLERANCE = 1e-4 if EXACT else 0.05


class Indexed:
    """A stream of the reference, and the mean of the keys of each chunk's video tokens before rotation."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.model = stream, stream.model
        self.means: list[Tensor] = []
        self.spans: list[tuple[float, float, int]] = []
        self._pieces: list[list[Tensor]] = []
        computed = stream._forward

        def computing(*args: Any) -> Tensor:
            result = computed(*args)
            self._pieces.append([self.model.keys[layer][0].clone() for layer in range(stream.layers)])
            return result

        stream._forward = computing  # type: ignore[method-assign, assignment]

    def feed(self, chunk: Chunk) -> None:
        text = (OPENING if not self.stream.seen else "") + chunk_text(chunk.start)
        tokens = self.model.tokens(text, chunk.frames, chunk.fps)
        self._pieces.clear()
        self.stream.feed(tokens)
        layers = [
            torch.cat(parts).reshape(len(tokens), self.stream.heads, -1) for parts in zip(*self._pieces, strict=True)
        ]
        self.means.append(torch.stack([keys[tokens.patches >= 0].mean(0) for keys in layers]))
        self.spans.append((chunk.start, chunk.end, 1))

    def query(self, question: str, also: Chunk | None = None, before: str = "") -> Tensor:
        """Query of the last token of ``question``, ``[layers, heads, dim]``, before rotation."""
        asked = self.stream.fork()
        if also is not None:
            asked.feed(self.model.tokens(chunk_text(also.start), also.frames, also.fps))
        asked.feed(self.model.tokens(before + question_text(question)))
        last = torch.stack([self.model.queries[layer][0, -1] for layer in range(self.stream.layers)])
        return last.reshape(self.stream.layers, self.model.config.text_config.num_attention_heads, -1)

    def check(self, session: VideoSession) -> None:
        """The session's index is that of the chunks fed, and it holds the same tokens."""
        held = session.index.as_tensors()
        assert [tuple(span) for span in held["index_spans"].tolist()] == self.spans
        near(held["index"], torch.stack(self.means))
        check_kept(session._live_positions() + self.stream.next - session._position, self.stream)


def near(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.float(), wanted, rtol=0, atol=TOLERANCE)


def indexed(model: Model, strategy: str, kind: type[Stream] = Stream) -> Indexed:
    return Indexed(kind(model, KEEP[strategy], BUDGET, MAX_TOKENS))


def asked_with(
    session: VideoSession, questions: Sequence[str], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[list[Tensor], list[list[Hit]]]:
    """Queries that a session's questions look for chunks with, and the chunks that they find."""
    engine, taken = session.engine, list[Tensor]()
    queries = engine.queries

    def taking(name: str) -> Tensor | None:
        query = queries(name)
        assert query is not None
        taken.append(query)
        return query

    with monkeypatch.context() as patch:
        patch.setattr(engine, "queries", taking)
        found = session.find(questions, 3, **options)
    return taken, found


def with_long_ones(count: int) -> list[Chunk]:
    """Chunks of all sizes; every fifth has more tokens than there are from one compaction to the next."""
    chunks: list[Chunk] = []
    for index, chunk in enumerate(varied_chunks(count)):
        start = chunks[-1].end if chunks else 0.0
        frames, side = (30, 112) if index % 5 == 4 else (len(chunk.frames), chunk.frames.shape[1])
        chunks.append(clip(index, start, frames, side, chunk.fps))
    return chunks


@pytest.mark.parametrize("strategy", ["streaming", "h2o", "distinct", "snapkv", "heavy", "full"])
def test_a_session_indexes_what_it_computes(
    engine_for: EngineFor, reference: Model, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is evicted, by head or by layer, and though compactions cut chunks into three."""
    engine, stream = engine_for(strategy), indexed(reference, strategy)
    with VideoSession(engine) as session:
        for index, chunk in enumerate(with_long_ones(12)):
            before = session.stats().compactions
            session.ingest(chunk)
            stream.feed(chunk)
            assert strategy == "full" or index % 5 != 4 or session.stats().compactions - before >= 2
            if index % 4 == 3:
                stream.check(session)
                ((query,), _) = asked_with(session, [QUESTION], monkeypatch)
                near(query, stream.query(QUESTION))
        assert strategy == "full" or stream.stream.compactions >= 4
        stream.check(session)


@pytest.mark.parametrize("strategy", ["streaming", "h2o", "heavy"])
def test_sessions_side_by_side_in_small_steps(engine_for: EngineFor, reference: Model, strategy: str) -> None:
    """Two sessions' chunks in one step, cut where its limit wants it, with questions and a plain request of frames."""
    engine, (first, second) = engine_for(strategy), [indexed(reference, strategy) for _ in range(2)]
    text = OPENING + chunk_text(0.0) + question_text(QUESTION)
    with VideoSession(engine) as one, VideoSession(engine) as other, VideoSession(engine) as asked:
        asked.ingest(clip(77, 0.0))
        for index, (chunk, beside) in enumerate(zip(clips(6, 1, frames=24), clips(6, 2, frames=30), strict=True)):
            answers = asked.stream(["What is it?", "Where?"], max_tokens=4)
            next(answers)
            looking = asked.finding([QUESTION])
            next(looking)
            plain = add(engine, engine.prompt(text, clip(index, 0.0)), 3, prompt_logprobs=False)
            sizes = [1024, 24, 61]
            with step_size(engine, sizes[index % 3]), during_step(engine, partial(other.ingest, beside)):
                one.ingest(chunk)
            list(answers)
            assert engine.drive(looking) is not None
            while plain in engine.scheduler.requests:
                engine.step()
            first.feed(chunk)
            second.feed(beside)
        assert min(first.stream.compactions, second.stream.compactions) >= 2
        first.check(one)
        second.check(other)


@pytest.mark.parametrize("strategy", ["streaming", "heavy"])
def test_gaps_that_close_do_not_show(
    engine_for: EngineFor, reference: Model, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_for(strategy, cache={"positions": "contiguous"})
    stream = indexed(reference, strategy, Contiguous)
    with VideoSession(engine) as session:
        for chunk in varied_chunks(24):
            session.ingest(chunk)
            stream.feed(chunk)
        stream.check(session)
        near(asked_with(session, [QUESTION], monkeypatch)[0][0], stream.query(QUESTION))
    assert stream.stream.compactions >= 4


@pytest.mark.parametrize("positions", ["absolute", "contiguous"])
def test_positions_that_are_counted_anew_do_not_show(
    engine_for: EngineFor, reference: Model, positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"hf_overrides": {"text_config": {"max_position_embeddings": 512}}}
    engine = engine_for("streaming", cache={"positions": positions}, options=short, max_model_len=512)
    stream = indexed(reference, "streaming", Contiguous if positions == "contiguous" else Stream)
    with VideoSession(engine) as session:
        for chunk in clips(24, frames=4, fps=0.05):
            session.ingest(chunk)
            stream.feed(chunk)
        stream.check(session)
        near(asked_with(session, [QUESTION], monkeypatch)[0][0], stream.query(QUESTION))
        assert stream.stream.next > 2 * 512 > 512 >= session._position


@pytest.mark.parametrize("strategy", ["streaming", "heavy"])
def test_a_loaded_session_goes_on_with_its_index(
    engine_for: EngineFor, reference: Model, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latest moment and, as ``/seek`` does, an earlier one, with other chunks after that."""
    engine, stream, chunks = engine_for(strategy), indexed(reference, strategy), varied_chunks(20)
    memories = []
    with VideoSession(engine) as session:
        for index, chunk in enumerate(chunks[:14]):
            session.ingest(chunk)
            if index in (5, 13):
                memories.append(decode(encode(session.save()), "memory"))
    with VideoSession.load(engine, memories[1]) as session:
        for chunk in chunks:
            stream.feed(chunk)
        for chunk in chunks[14:]:
            session.ingest(chunk)
        stream.check(session)
        near(asked_with(session, [QUESTION], monkeypatch)[0][0], stream.query(QUESTION))
    sought = indexed(reference, strategy)
    with VideoSession.load(engine, memories[0]) as session:
        others = [clip(500 + index, chunk.start) for index, chunk in enumerate(chunks[6:14])]
        for chunk in [*chunks[:6], *others]:
            sought.feed(chunk)
        for chunk in others:
            session.ingest(chunk)
        sought.check(session)


def next_is(engine: Engine, block: int) -> None:
    """Let the pool give out ``block`` before all others."""
    pool = engine.scheduler.kv_cache_manager.block_pool
    order = [free.block_id for free in pool.free_block_queue.get_all_free_blocks()]
    # What is freed is given out first.
    pool.free_blocks(reversed(pool.get_new_blocks(order.index(block) + 1)))


def close(engine: Engine, block: int) -> None:
    """Close a session that took ``block`` first."""
    with VideoSession(engine) as session:
        session.ingest(clip(9, 0.0))
        assert engine.scheduler.live_block_ids(session._id)[0] == block


def cut_off(engine: Engine, block: int) -> None:
    """Close a session that took ``block`` first in the middle of a chunk."""
    session = VideoSession(engine)
    with step_size(engine, 24):
        work = session.ingesting(clip(9, 0.0, side=112))
        for _ in range(3):
            next(work)
            engine.step()
        assert engine.scheduler.live_block_ids(session._id)[0] == block
        assert not engine.scheduler.is_idle(session._id)
        session.close()


def ask_alone(engine: Engine, block: int) -> None:
    """Ask about frames without a session: a request of its own, which took ``block`` first."""
    seen = []

    def look() -> None:
        (request,) = engine.scheduler.requests
        seen.append(engine.scheduler.live_block_ids(request)[0])

    answers = VideoSession(engine).stream([QUESTION], also=clip(5, 0.0), max_tokens=4)
    next(answers)
    look()
    list(answers)
    assert seen == [block]


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("before", [close, cut_off, ask_alone])
def test_who_had_its_blocks_before_leaves_nothing(
    engine_for: EngineFor, reference: Model, before: Callable[[Engine, int], None], loaded: bool
) -> None:
    engine, stream, chunks = engine_for("streaming"), indexed(reference, "streaming"), varied_chunks(8)
    with VideoSession(engine) as session:
        for chunk in chunks[:6]:
            session.ingest(chunk)
        memory = session.save()
    block = 7
    next_is(engine, block)
    before(engine, block)
    next_is(engine, block)
    with VideoSession.load(engine, memory) if loaded else VideoSession(engine) as session:
        for index, chunk in enumerate(chunks):
            stream.feed(chunk)
            if not loaded or index >= 6:
                session.ingest(chunk)
            if session._id:
                assert engine.scheduler.live_block_ids(session._id)[0] == block
        stream.check(session)


def test_a_switched_engine_indexes_for_the_next_strategy(engine_for: EngineFor, reference: Model) -> None:
    engine = engine_for("full", spare_rows=3)
    try:
        for strategy in ("streaming", "heavy", "half-norm"):
            engine.use(CacheConfig(strategy, max_tokens=MAX_TOKENS, budget=BUDGET, sink=SINK))
            stream = indexed(reference, strategy)
            with VideoSession(engine) as session:
                for chunk in with_long_ones(6):
                    session.ingest(chunk)
                    stream.feed(chunk)
                stream.check(session)
            assert stream.stream.compactions >= 2
    finally:
        engine.use(CacheConfig("full", max_tokens=MAX_TOKENS, budget=BUDGET, sink=SINK))


def test_nothing_is_indexed_where_nobody_wants_it(engine_for: EngineFor, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_for("streaming")
    monkeypatch.setattr(engine, "config", replace(engine.config, index=False))
    with VideoSession(engine) as session:
        session.ingest(clip(0, 0.0))
        assert len(session.index) == session.index.bytes == 0
        assert "index" not in session.save().tensors
        assert session.find([QUESTION], 3) == [[]]


@pytest.mark.parametrize("size", [1024, 16])
def test_each_question_asks_with_its_own_query(
    engine_for: EngineFor, reference: Model, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several at once, in steps that cut them, after frames of the next chunk or a dialogue; beside answers."""
    engine, stream = engine_for("streaming"), indexed(reference, "streaming")
    questions = [QUESTION, "What?", "Which letter was shown, and in which corner of the picture was it when?"]
    turns = [("What is it?", "A thing.")]
    told = dialogue_text(turns)
    with VideoSession(engine) as session, VideoSession(engine) as other:
        for chunk in varied_chunks(9):
            session.ingest(chunk)
            stream.feed(chunk)
            other.ingest(chunk)
        answers = other.stream(["What is it?"], max_tokens=30)
        next(answers)
        also = clip(70, session.end, frames=4)
        given: list[tuple[dict[str, Any], str]] = [({}, ""), ({"also": also}, ""), ({"dialogue": turns}, told)]
        for options, before in given:
            with step_size(engine, size):
                queries, found = asked_with(session, questions, monkeypatch, **options)
            for question, query in zip(questions, queries, strict=True):
                near(query, stream.query(question, options.get("also"), before))
            assert all(found)
        list(answers)


def test_scores_are_shares_of_attention(
    engine_for: EngineFor, reference: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each head's scores over the chunks, with the median slope of pairs half the stream apart taken out, added up."""
    engine = engine_for("streaming")
    with VideoSession(engine) as session:
        for chunk in clips(9):
            session.ingest(chunk)
        ((query,), _) = asked_with(session, [QUESTION], monkeypatch)
        check_scores(session.index, query)
        short = ChunkIndex()
        keys = session.index.as_tensors()["index"]
        for number in range(7):
            short.append(keys[number], float(number), float(number + 1))
        check_scores(short, query)


def check_scores(index: ChunkIndex, query: Tensor) -> None:
    keys = index.as_tensors()["index"].double().numpy()
    asked = query.double().numpy()
    total = np.zeros(len(keys))
    for layer in range(keys.shape[1]):
        for head in range(asked.shape[1]):
            group = head // (asked.shape[1] // keys.shape[2])
            logits = keys[:, layer, group] @ asked[layer, head] / keys.shape[3] ** 0.5
            if len(logits) >= 8:
                half = len(logits) // 2
                apart = len(logits) - half
                slopes = sorted((logits[n + apart] - logits[n]) / apart for n in range(half))
                logits = logits - slopes[(half - 1) // 2] * np.arange(len(logits))
            shares = np.exp(logits - logits.max())
            total += shares / shares.sum()
    wanted = total / asked.shape[0] / asked.shape[1]
    assert wanted.sum() == pytest.approx(1)
    np.testing.assert_allclose(index.scores(query).numpy(), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("step", ["refused", "preempted"])
def test_a_question_that_ends_before_it_has_looked_ends_alone(
    engine_for: EngineFor, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One about a session that is not there, which any client could send, or one that lost its blocks."""
    from kvvideo.plugin.sampling import looking

    engine = engine_for("streaming")
    with VideoSession(engine) as session:
        for chunk in clips(6):
            session.ingest(chunk)
        before = session.find([QUESTION], 3)
        name = session._id if step == "preempted" else "nobody"
        prompt = engine.prompt(question_text(QUESTION))
        lost = engine.ask(engine.process(engine.new_id("question"), prompt, looking(str(name))), looks=True)
        if step == "preempted":
            request = next(r for r in engine.scheduler.requests.values() if r.request_id != session._id)
            engine.scheduler._refused.append(request.request_id)
        work = session.finding([QUESTION])
        next(work)
        (events,) = engine.drive(work)
        assert [[event.whole for event in events][:3]] == before
        assert engine.queries(lost) is None
        assert engine.take(lost).finished
        engine.forget(lost)
