"""Asking a saved memory, whatever happened to its stream on the way."""

from pathlib import Path
from typing import Any

import pytest

from kvvideo.runs import origin
from kvvideo.runs.agenda import Question
from kvvideo.runs.ask import agenda_of, answers
from kvvideo.runs.playback import Playback
from kvvideo.session import Engine, EngineConfig
from kvvideo.session.memory import Memory
from kvvideo.storage.checkpoints import Checkpoints
from kvvideo.storage.file import MemoryFile
from tests.conftest import EngineFor
from tests.runs.test_playback import FakeSource, bounded

MOMENTS = (5.0, 17.3, 26.0, 41.0, 49.0, 56.0)
OPTIONS = {"max_tokens": 8, "logprobs": True}


def saved(engine: Engine, folder: Path) -> Path:
    """A memory of 14 chunks, with a dialogue remembered after six and another strategy after ten."""
    with Checkpoints(folder) as checkpoints:
        source: Any = FakeSource()
        playback = Playback(engine, source, checkpoints=checkpoints, every=12.0)
        for chunk in range(14):
            playback.step()
            if chunk == 5:
                playback.remember([("What is it?", "A thing.")])
            if chunk == 9:
                playback.switch(bounded("h2o"))
        playback.write(folder / "memory.kvv")
        playback.close()
    return folder / "memory.kvv"


def test_what_happened_on_the_way_has_happened_for_later_questions_only(engine_for: EngineFor, tmp_path: Path):
    """Each moment answers as one visited alone does, with the video and without."""
    engine = engine_for("full", spare_rows=3)
    engine.use(bounded("streaming"))
    path = saved(engine, tmp_path)
    questions = [Question("What is it?", at) for at in reversed(MOMENTS)] + [Question("And now?")]
    for source in (FakeSource(), None):
        with MemoryFile(path) as file:
            last = file.memory()
            asked = questions if source is not None else [q for q in questions if q.at is None or q.at > file.times[0]]
            agenda, opened = agenda_of(last, asked), dict[str, Any](saved=file, memory=last)
            playback = Playback(engine, source, **opened)  # type: ignore[arg-type]
            found = [one for batch in answers(playback, agenda, asked, **OPTIONS) for one in batch]
            playback.close()
            assert agenda.left() == []
            assert [one.at for one in found] == [*sorted(q.at for q in asked if q.at is not None), 56.0]
            for one in found:
                playback = Playback(engine, source, **opened)  # type: ignore[arg-type]
                if one.at < 56.0:
                    playback.go(one.at)
                assert one.answered_at == (None if source is not None or one.at == 56.0 else playback.at)
                (*_, alone) = playback.stream(one.answer.question, **OPTIONS)
                assert alone.token_ids == one.answer.token_ids
                assert alone.logprobs == pytest.approx(one.answer.logprobs, abs=1e-4)
                assert playback.session.stats() == one.cache
                playback.close()
    engine.use(bounded("full"))


def test_the_engine_has_room_for_every_strategy_on_the_way(engine_for: EngineFor, tmp_path: Path):
    engine = engine_for("full", spare_rows=3)
    engine.use(bounded("h2o"))
    with MemoryFile(saved(engine, tmp_path)) as file:
        memory: Memory = file.memory()
    engine.use(bounded("full"))
    config = origin.engine_for(memory, EngineConfig(seed=7), model="elsewhere")
    assert (config.model, config.dtype, config.seed) == ("elsewhere", "float32", 7)
    assert config.cache == memory.cache == bounded("h2o")
    stream = {**memory.source, "first": bounded("expected-attention").as_dict()}
    streaming = Memory(**{**vars(memory), "cache": bounded("streaming"), "source": stream})
    assert origin.engine_for(streaming, EngineConfig()).spare_rows > 0
