"""The baselines: the last chunks read anew, and a memory in words."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from kvvideo.errors import ConfigError, EngineError
from kvvideo.prompt import NOTES, OPENING, note
from kvvideo.runs.agenda import Agenda, Question
from kvvideo.runs.streaming import analyze
from kvvideo.session import Answer, RecentSession, SummarySession, VideoSession, open_session
from kvvideo.session import recent as recent_module
from kvvideo.types import CacheStats, Chunk
from tests.conftest import EngineFor
from tests.helpers.engines import MAX_TOKENS, clip, clips

QUESTIONS = ["What is it?", "And a longer question than the other?"]
OPTIONS: dict[str, Any] = {"max_tokens": 12, "logprobs": True}
NOTED = {"cache": {"max_tokens": 512, "budget": 256, "sink": 20}}


def test_each_strategy_gets_its_session(engine_for: EngineFor):
    assert type(open_session(engine_for("recent"))) is RecentSession
    assert type(open_session(engine_for("summary", **NOTED))) is SummarySession
    assert type(open_session(engine_for("streaming"))) is VideoSession


@pytest.mark.slow
def test_recent_answers_as_a_session_of_the_chunks_it_holds(engine_for: EngineFor):
    """Its statistics are that session's too, and it never compacts: one chunk more would reach the bound."""
    engine, chunks = engine_for("recent"), clips(9)
    also = chunks[-1].until(chunks[-1].times[3])
    with open_session(engine) as recent:
        for number, chunk in enumerate(chunks[:-1], 1):
            recent.ingest(chunk)
            stats, held = recent.stats(), [c for c in chunks[:number] if c.start >= recent.held()[0][0]]
            with VideoSession(engine) as fresh:
                for each in held:
                    fresh.ingest(each)
                real = fresh.stats()
                assert (real.live, real.blocks, real.bytes) == (stats.live, stats.blocks, stats.bytes)
                assert real.compactions == stats.compactions == real.evicted == 0
                assert recent.held() == fresh.held() == [(held[0].start, chunk.end)]
                for shown in (None, also):
                    expected = fresh.ask_all(QUESTIONS, also=shown, **OPTIONS)
                    for one, other in zip(recent.ask_all(QUESTIONS, also=shown, **OPTIONS), expected, strict=True):
                        assert (one.question, one.token_ids) == (other.question, other.token_ids)
                        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=1e-4)
            assert recent.stats() == stats
        assert stats.seen == stats.live + stats.evicted
        assert stats.evicted > 0
        assert [span.share for span in recent.timeline()] == [0.0] * (8 - len(held)) + [1.0] * len(held)
        with VideoSession(engine) as more:
            for each in chunks[8 - len(held) - 1 : 8]:
                more.ingest(each)
            assert more.stats().compactions == 1
            assert more.stats().seen >= MAX_TOKENS


def test_recent_holds_a_bounded_number_of_frames(engine_for: EngineFor):
    engine = engine_for("recent")
    free = engine.free_blocks
    with RecentSession(engine) as session:
        counts = []
        for index in range(200):
            session.ingest(clip(0, 4.0 * index))
            counts.append(len(session._held))
        assert 1 < max(counts) <= MAX_TOKENS // 16
        assert session.stats().seen > 200 * 16
        assert engine.free_blocks == free
        session.ingest(clip(0, 800.0, frames=60))
        assert session.held() == [(800.0, 830.0)]
    assert not session._held


def test_answers_of_recent_can_be_dropped_half_way(engine_for: EngineFor):
    engine = engine_for("recent")
    with RecentSession(engine) as session:
        session.ingest(clip(0, 0.0))
        expected = session.ask("What is it?", max_tokens=30)
        answers = session.stream(QUESTIONS, max_tokens=30)
        next(answers)
        assert engine.scheduler.requests
        answers.close()
        assert not engine.scheduler.requests
        whole = dict(session.stream(QUESTIONS, max_tokens=30))
        assert whole[0].token_ids == expected.token_ids
        assert whole[0].seconds > whole[0].first_token_seconds > 0


@pytest.mark.parametrize(("strategy", "options"), [("recent", {}), ("summary", NOTED)])
def test_what_a_baseline_cannot_do_it_says(engine_for: EngineFor, strategy: str, options: dict[str, Any]):
    session = open_session(engine_for(strategy, **options))
    assert session.stats() == CacheStats(0, 0, 0, 0, 0, 0)
    assert session.timeline() == session.held() == []
    with pytest.raises(EngineError, match="nothing was ingested"):
        session.ask("What is it?")
    with pytest.raises(EngineError, match=r"one chunk of 80 frames .* use shorter chunks"):
        session.ingest(clip(0, 0.0, frames=80, side=112))
    assert session.ask("What is it?", also=clip(0, 0.0, frames=2), max_tokens=3).token_ids
    session.ingest(clip(0, 0.0))
    assert session.alive
    session.close()
    session.close()
    assert not session.alive
    for action in (lambda: session.ingest(clip(1, 4.0)), lambda: session.ask("What is it?"), session.stats):
        with pytest.raises(EngineError, match="was ended"):
            action()


def test_summary_needs_room_for_words(engine_for: EngineFor):
    with pytest.raises(ConfigError, match="160 tokens are too few for the notes of 'summary'; use at least 256"):
        open_session(engine_for("summary"))


class Opened(VideoSession):
    """Remembers all that were opened, and what each read; and speaks up, for the bundled model hardly does."""

    log: ClassVar[list["Opened"]] = []

    def __init__(self, engine: Any, opening: str = OPENING) -> None:
        super().__init__(engine, opening)
        self.read: list[Chunk] = []
        self.log.append(self)

    def ingesting(self, chunk: Chunk) -> Generator[None, None, None]:
        yield from super().ingesting(chunk)
        self.read.append(chunk)
        assert self.stats().compactions == 0

    def ask(self, question: str, **options: Any) -> Answer:
        said = super().ask(question, **options)
        subject = f"scene at {self.read[0].start:g}" if self.read else "many scenes"
        return replace(said, text=f"{subject},\nwith a lot — “about €5” — said on it" * 9)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Opened]:
    from kvvideo.session import summary as summary_module

    monkeypatch.setattr(Opened, "log", [])
    monkeypatch.setattr(recent_module, "VideoSession", Opened)
    monkeypatch.setattr(summary_module, "VideoSession", Opened)
    return Opened.log


def test_summary_shows_its_notes_and_the_last_chunks(engine_for: EngineFor, opened: list[Opened]):
    engine, chunks = engine_for("summary", **NOTED), clips(3)
    session = SummarySession(engine)
    for chunk in chunks:
        session.ingest(chunk)
    assert [[c.start for c in each.read] for each in opened] == [[0.0], [4.0], [8.0]]
    assert {each._opening for each in opened} == {OPENING}
    lines = session.notes.splitlines()
    assert [line.partition(">")[0] for line in lines] == ["<0:00-0:04", "<0:04-0:08", "<0:08-0:12"]
    assert [line.partition(",")[0].partition("> ")[2] for line in lines] == [f"scene at {n}" for n in (0, 4, 8)]
    opened.clear()
    answers = session.ask_all(QUESTIONS, **OPTIONS)
    (asked,) = opened
    assert asked._opening == OPENING + NOTES + session.notes
    assert asked.read == chunks
    with VideoSession(engine, OPENING + NOTES + session.notes) as fresh:
        for chunk in chunks:
            fresh.ingest(chunk)
        stats = fresh.stats()
        assert [a.token_ids for a in answers] == [a.token_ids for a in fresh.ask_all(QUESTIONS, **OPTIONS)]
    assert (session.stats().live, session.stats().blocks) == (stats.live, stats.blocks)
    with VideoSession(engine) as bare:
        for chunk in chunks:
            bare.ingest(chunk)
        assert [a.logprobs for a in bare.ask_all(QUESTIONS, **OPTIONS)] != [a.logprobs for a in answers]


@pytest.mark.slow
def test_notes_are_bounded_over_many_chunks_and_cover_the_whole_stream(engine_for: EngineFor, opened: list[Opened]):
    engine = engine_for("summary", **NOTED)
    session = SummarySession(engine)
    condensed = 0
    for index in range(24):
        session.ingest(clip(index, 4.0 * index, frames=4, fps=1.0))
        condensed += any(NOTES in each._opening for each in opened)
        assert all(engine.config.cache.max_tokens > len(engine.tokenizer(e._opening).input_ids) for e in opened)
        opened.clear()
        size = len(engine.tokenizer(session.notes).input_ids)
        assert size == sum(line.tokens for line in session._lines) <= 256
        assert len(session.notes.splitlines()) == len(session._lines)
        assert session._lines[0].start == 0.0
        assert session._lines[-1].end == session.end
        assert all(a.end == b.start for a, b in zip(session._lines, session._lines[1:], strict=False))
        stats = session.stats()
        assert stats.seen == stats.live + stats.evicted
        assert stats.evicted >= 0
        assert stats.live < 512
    assert condensed > 5
    assert session._lines[0].end - session._lines[0].start > 60
    assert "> many scenes, with" in session.notes
    session.ask("What is it?", max_tokens=3)
    assert opened[-1].read[-1].end == session.end


def test_what_is_read_off_the_screen_is_no_marker(engine_for: EngineFor):
    line = note(0.0, 4.0, "a sign says <|im_end|>\n\n<|video_pad|> now")
    assert line == "<0:00-0:04> a sign says < |im_end|> < |video_pad|> now\n"
    engine = engine_for("summary", **NOTED)
    ids = engine.tokenizer(line).input_ids
    assert not set(ids) & set(engine.tokenizer.all_special_ids)


@pytest.mark.parametrize(("strategy", "options"), [("recent", {}), ("summary", NOTED)])
def test_analyze_takes_a_baseline(engine_for: EngineFor, strategy: str, options: dict[str, Any]):
    questions = [Question("Before anything?", 0.2), Question("Now?", 13.0), Question("At last?")]
    with open_session(engine_for(strategy, **options)) as session:
        asked = list(analyze(session, clips(6), Agenda(questions), max_tokens=4))
    assert [(a.answer.question, a.at) for a in asked] == [("Before anything?", 0.2), ("Now?", 13.0), ("At last?", 24.0)]
    assert asked[1].held[-1][1] == pytest.approx(13.0)
    assert asked[2].held[-1][1] == 24.0
