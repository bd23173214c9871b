"""The loop that all runs share: who waits for whom, and how far a stream is said to be."""

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from kvvideo.errors import FullError
from kvvideo.runs import streaming
from kvvideo.runs.agenda import Agenda, Question, Task
from kvvideo.runs.streaming import Asked, Meter, batches
from kvvideo.session import VideoSession, open_session
from kvvideo.types import Progress
from tests.conftest import EngineFor
from tests.helpers.engines import MAX_TOKENS, clips

OPTIONS = {"max_tokens": 6, "logprobs": True}


@pytest.mark.parametrize("strategy", ["streaming", "recent"])
def test_questions_wait_for_those_that_are_open(engine_for: EngineFor, strategy: str):
    """An answer that nobody reads on does not change what is asked of the session meanwhile."""
    engine = engine_for(strategy)
    questions = [f"What is {n}?" for n in range(engine.config.questions)]
    most, step = 0, engine.step

    def stepping() -> Any:
        nonlocal most
        most = max(most, engine.open_questions)
        return step()

    with VideoSession(engine) as other, open_session(engine) as session:
        for chunk in clips(2):
            other.ingest(chunk)
            session.ingest(chunk)
        alone = session.ask_all(questions, **OPTIONS)
        waiting = other.stream(questions[:3], max_tokens=20)
        next(waiting)
        engine.step = stepping  # type: ignore[method-assign]
        try:
            together = session.ask_all(questions, **OPTIONS)
        finally:
            del engine.step  # type: ignore[method-assign]
        waiting.close()
    assert most == engine.config.questions
    for one, same in zip(together, alone, strict=True):
        assert (one.question, one.token_ids) == (same.question, same.token_ids)
        assert one.logprobs == pytest.approx(same.logprobs, abs=1e-4)


def test_how_far_a_stream_is(engine_for: EngineFor, monkeypatch: pytest.MonkeyPatch):
    engine = engine_for("streaming")
    schedule = engine.config.cache.schedule(engine.block_size)
    now = [10.0]
    monkeypatch.setattr(streaming, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    reader: Any = SimpleNamespace(live=SimpleNamespace(behind=3.0, dropped=1.5))
    with VideoSession(engine) as session:
        session.ingest(clips(1)[0])
        meter, live = Meter(session, schedule, 60.0), Meter(session, None, reader=reader)
        # The frames before say nothing of how fast it goes now.
        assert meter.progress() == Progress(
            position=4.0, end=60.0, rate=None, cache=session.stats(), max_tokens=MAX_TOKENS
        )
        for chunk in clips(3)[1:]:
            session.ingest(chunk)
        now[0] += 4.0
        assert meter.progress() == Progress(
            position=12.0, end=60.0, rate=4.0, cache=session.stats(), max_tokens=MAX_TOKENS
        )
        assert live.progress() == Progress(
            position=12.0, end=None, rate=4.0, cache=session.stats(), max_tokens=None, behind=3.0, dropped=1.5
        )


def test_a_session_that_is_full_is_asked_what_is_left(engine_for: EngineFor) -> None:
    """They are answered from the tokens held by then; a moment never reached stays on the agenda."""
    engine = engine_for("full", max_model_len=256, kv_bytes=1 << 22)
    questions = [Question("Early?", 3.0), Question("At the end?"), Question("Late?", 100.0)]
    asked: list[Asked] = []
    agenda = Agenda(questions, task=Task("caption", 2.5))
    with VideoSession(engine) as session:
        found = batches(session, clips(40, frames=4, side=168), agenda, max_tokens=2)
        with pytest.raises(FullError, match="exceeds max_model_len=256") as caught:
            deque(map(asked.extend, found))
    assert [(one.answer.question[:5], one.at, one.error) for one in asked] == [
        ("Descr", 2.5, None),
        ("Early", 3.0, None),
        ("Descr", 4.0, caught.value),
        ("At th", 4.0, caught.value),
    ]
    assert [(q.text, q.at) for q in agenda.left()] == [("Late?", 100.0)]


def test_a_question_that_does_not_fit_is_left(engine_for: EngineFor) -> None:
    """The chunk that it lies in would fit, but not with its words; it is not lost without a word."""
    engine = engine_for("full", max_model_len=256, kv_bytes=1 << 22)
    words = "why? " * 60
    agenda = Agenda([Question(words, 3.5), Question("Next?", 3.6), Question(words)])
    with VideoSession(engine) as session, pytest.raises(FullError, match="the question"):
        list(batches(session, clips(40, frames=2), agenda, max_tokens=2))
    assert session.end == 3.0
    assert [(q.text, q.at) for q in agenda.left()] == [(words, 3.5), ("Next?", 3.6), (words, None)]
