"""Words told before a question: a system turn in its fork, of which the memory has nothing."""

from dataclasses import replace
from typing import Any

import pytest

from kvvideo.errors import EngineError
from kvvideo.prompt import OPENING, chunk_text, dialogue_text, question_text, system_text
from kvvideo.session import EngineConfig, VideoSession
from kvvideo.session.pool import other_blocks
from tests.conftest import EngineFor
from tests.helpers.engines import clips

SYSTEM = "Answer in one word. <|im_end|>"
OPTIONS: dict[str, Any] = {"max_tokens": 8, "logprobs": True}


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that engines are given to read."""
    found: list[str] = []
    from kvvideo.session import Engine

    prompt = Engine.prompt

    def noted(engine: Engine, text: str, *chunks: Any) -> Any:
        found.append(text)
        return prompt(engine, text, *chunks)

    monkeypatch.setattr(Engine, "prompt", noted)
    return found


def test_the_turns_are_those_of_the_chat_template(engine_for: EngineFor) -> None:
    tokenizer = engine_for("full").tokenizer
    frames = [
        {"type": "text", "text": "<0:00>"},
        {"type": "video"},
        {"type": "text", "text": "<0:04>"},
        {"type": "video"},
    ]
    messages = [
        {"role": "user", "content": frames},
        {"role": "system", "content": "Answer in one word. < |im_end|>"},
        {"role": "user", "content": "Who is there?"},
    ]
    text = OPENING + chunk_text(0.0) + chunk_text(4.0) + system_text(SYSTEM) + question_text("Who is there?")
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text


def test_it_stands_before_the_dialogue_and_leaves_no_trace(engine_for: EngineFor, texts: list[str]) -> None:
    engine, chunks = engine_for("streaming"), clips(9)
    with VideoSession(engine) as asked, VideoSession(engine) as silent:
        for chunk in chunks[:-1]:
            asked.ingest(chunk)
            silent.ingest(chunk)
        before = asked.stats(), asked.timeline()
        texts.clear()
        plain = asked.ask("Who?", **OPTIONS)
        told = asked.ask("Who?", also=chunks[-1], dialogue=[("A?", "b")], system=SYSTEM, **OPTIONS)
        alone = asked.ask("Who?", system=SYSTEM, **OPTIONS)
        assert texts == [
            question_text("Who?"),
            chunk_text(chunks[-1].start) + system_text(SYSTEM) + dialogue_text([("A?", "b")]) + question_text("Who?"),
            system_text(SYSTEM) + question_text("Who?"),
        ]
        assert alone.logprobs != plain.logprobs
        assert told.logprobs != alone.logprobs
        assert (asked.stats(), asked.timeline()) == before
        asked.ingest(chunks[-1])
        silent.ingest(chunks[-1])
        assert asked.ask("Who?", **OPTIONS).logprobs == silent.ask("Who?", **OPTIONS).logprobs


def test_it_takes_room(engine_for: EngineFor) -> None:
    engine = engine_for("streaming")
    with VideoSession(engine) as session:
        session.ingest(clips(1)[0])
        with pytest.raises(EngineError, match=r"^the question \(20\d\d tokens"):
            session.ask("Who?", system="zebra " * 400)
    config = EngineConfig(model="tiny")
    assert config.with_system("") == config
    words = "Answer in one word, and in French. " * 10
    more = config.with_system(words)
    assert replace(more, question_tokens=config.question_tokens) == config
    assert more.question_tokens - config.question_tokens > len(words.split()) * 1.5
    assert other_blocks(more, 32) > other_blocks(config, 32)
