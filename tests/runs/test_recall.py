"""Looking again from Python, and the settings of it."""

import os
import tempfile
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest

import kvvideo
from kvvideo.errors import ConfigError
from kvvideo.runs.recall import MOST, OFF, Looking, of_memory
from kvvideo.session import EngineConfig
from kvvideo.session.memory import INDEX, Memory
from kvvideo.video import Source
from tests.conftest import EngineFor
from tests.helpers.looking import CLIP, COLOUR, QUESTION, SHOWN, Watched, as_asked
from tests.storage.test_memory_file import memory

SETTINGS: dict[str, Any] = {
    "model": "tiny",
    "strategy": "streaming",
    "max_tokens": 192,
    "sink": 16,
    "max_answer_tokens": 8,
}


@pytest.fixture
def watched(engine_for: EngineFor, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return as_asked(monkeypatch)


def stretches(asked: kvvideo.Asked) -> list[tuple[float, float]]:
    return [(hit.start, hit.end) for hit in asked.answer.looked_at]


def test_python_looks_again(watched: Watched) -> None:
    """By default, and not with ``recall=0``; an engine that need not look has no index, and no room for it."""
    (again,) = kvvideo.analyze(CLIP, QUESTION, recall=4, **SETTINGS)
    assert again.text == COLOUR
    assert SHOWN in stretches(again)
    assert len(stretches(again)) == 4
    assert again.cache.index_bytes > 0
    (usual,) = kvvideo.analyze(CLIP, QUESTION, **SETTINGS)
    assert (usual.answer.token_ids, stretches(usual)) == (again.answer.token_ids, stretches(again))
    (without,) = kvvideo.analyze(CLIP, QUESTION, recall=0, **SETTINGS)
    assert without.text != COLOUR
    assert (stretches(without), without.cache) == ([], replace(again.cache, index_bytes=0))
    assert [(config.index, config.again_tokens > 0) for config in watched.configs] == [(True,) * 2] * 2 + [(False,) * 2]
    assert (watched.preemptions, watched.over) == (0, 0)
    assert watched.most > 0


@pytest.mark.parametrize("count", [-1, MOST + 1])
def test_counts_that_cannot_be_are_refused_before_anything_is_loaded(watched: Watched, count: int) -> None:
    with pytest.raises(ConfigError, match=rf"recall: {count} is not 0 to {MOST} stretches"):
        kvvideo.analyze(CLIP, QUESTION, recall=count, **SETTINGS)
    assert watched.configs == []


def test_python_looks_at_a_pipe_from_what_is_kept(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of it when the generator is closed, even in the middle."""
    temporary, pipe, written = tmp_path / "temporary", tmp_path / "pipe", tmp_path / "clip.ts"
    temporary.mkdir()
    os.mkfifo(pipe)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with av.open(str(CLIP)) as source, av.open(str(written), "w", format="mpegts") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)

    def feed() -> None:
        with suppress(BrokenPipeError):
            pipe.write_bytes(written.read_bytes())

    feeder = threading.Thread(target=feed)
    feeder.start()
    answers = kvvideo.analyze(pipe, [f"@1:30 {QUESTION}", QUESTION], **SETTINGS)
    first = next(answers)
    assert [*temporary.rglob("*.mjpeg")]
    answers.close()
    feeder.join(60)
    assert not feeder.is_alive()
    assert first.text == COLOUR
    assert SHOWN in stretches(first)
    assert [*temporary.iterdir()] == []


def test_room_is_for_all_that_one_question_is_shown() -> None:
    """So many chunks of frames, at their own size or closer; without recall nothing changes."""
    config = EngineConfig(model="tiny")
    sizes: dict[str, Any] = {"fps": 2.0, "chunk_seconds": 4.0, "max_pixels": 10 * 28**2}
    assert Looking(1).room_in(config, **sizes) == replace(config, again_tokens=4 * 10 + 32)
    assert Looking(4).room_in(config, **sizes) == replace(config, again_tokens=4 * (4 * 10 + 32))
    closer = Looking(4, frame_tokens=30).room_in(config, **sizes)
    assert closer.again_tokens == 4 * (4 * 30 + 32)
    assert OFF.room_in(config, **sizes) == replace(config, index=False)


def test_a_memory_that_does_not_say_how_it_looked_changes_nothing() -> None:
    config = EngineConfig(model="tiny")
    known: dict[str, Any] = {"fps": 2.0, "chunk_seconds": 4.0, "max_pixels": 10 * 28**2}
    memory = Memory("tiny", "", config.cache, "", 0, 0, 0, 0, 0, 0, 0.0, {}, known)
    assert Looking(4).room_for(config, memory) == Looking(4).room_in(config, **known)
    for missing in known:
        source = {name: value for name, value in known.items() if name != missing}
        assert Looking(4).room_for(config, replace(memory, source=source)) == config


def test_frames_of_a_memory_are_those_of_its_video_or_its_own(tmp_path: Path) -> None:
    """One line where there are neither; none where nothing is to be looked at."""
    said: list[str] = []
    frames: Any = object()
    source = Source(str(CLIP), max_pixels=10 * 28**2, min_pixels=28**2)
    of_file = of_memory(memory(), Looking(3), source, frames, said.append)
    assert of_file is not None
    assert (of_file.count, of_file.frames is frames) == (3, False)
    filed = of_memory(memory(), Looking(3), None, frames, said.append)
    assert filed is not None
    assert (filed.count, filed.frames) == (3, frames)
    assert of_memory(memory(), OFF, None, None, said.append) is None
    assert of_memory(memory(), OFF, source, frames, said.append) is None
    assert said == []
    assert of_memory(memory(), Looking(3), None, None, said.append) is None
    assert said == ["neither the video nor its frames are at hand, so no question looks again"]


@pytest.mark.parametrize("count", [0, 4])
def test_one_line_says_that_an_old_memory_has_nothing_to_find_chunks_by(count: int) -> None:
    new, said = memory(), list[str]()
    old = replace(new, tensors={name: tensor for name, tensor in new.tensors.items() if name not in INDEX})
    for some in (old, replace(old, chunks=0), new):
        of_memory(some, Looking(count), None, None, said.append)
    missing = "neither the video nor its frames are at hand, so no question looks again"
    older = "the memory was made by an older version, so no question looks again at what it has seen"
    assert said == ([older, missing, missing] if count else [])
