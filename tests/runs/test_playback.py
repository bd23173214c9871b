"""A playback stands at any moment exactly as a stream that began anew and stopped there."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, EngineError, VideoError
from kvvideo.runs.playback import Playback
from kvvideo.session import Answer, Engine, VideoSession
from kvvideo.storage.checkpoints import Checkpoints
from kvvideo.storage.file import MemoryFile, write
from kvvideo.types import Chunk
from kvvideo.video import VideoInfo
from tests.conftest import EngineFor
from tests.helpers.engines import BUDGET, MAX_TOKENS, SINK, clips

SECONDS = 4.0  # of a chunk
OPTIONS = {"max_tokens": 8, "logprobs": True}


class FakeReader(Iterator[Chunk]):
    """Chunks from memory, as a VideoReader gives them."""

    live = None

    def __init__(self, chunks: list[Chunk], breaks_at: int) -> None:
        self.chunks, self.breaks_at, self.closed = chunks, breaks_at, False
        self.info = VideoInfo("fake", 56, 56, None, None, "raw", "fake")

    def __next__(self) -> Chunk:
        assert not self.closed
        if self.breaks_at == 0:
            raise VideoError("the video is damaged")
        self.breaks_at -= 1
        if not self.chunks:
            raise StopIteration
        return self.chunks.pop(0)

    @property
    def ready(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeSource:
    """A video of noise that counts how often it is opened."""

    count: int = 14
    replayable: bool = True
    breaks_at: int = -1
    start: float | None = None
    end: float | None = None
    readers: list[FakeReader] = field(default_factory=list)

    def open(self, skip_chunks: int = 0) -> FakeReader:
        assert self.replayable or not self.readers, "frames that are gone were asked for again"
        self.readers.append(FakeReader(clips(self.count)[skip_chunks:], self.breaks_at))
        return self.readers[-1]

    def as_dict(self) -> dict[str, Any]:
        return {"path": "fake"}

    def fingerprint(self) -> str:
        return "fake"


def fresh(engine: Engine, time: float, looking: bool = True) -> tuple[Answer, Any, list[Any]]:
    """What a stream says and holds that stopped at ``time``; unless ``looking``, without the frame on screen then."""
    with VideoSession(engine) as session:
        also = None
        for chunk in clips(14):
            if chunk.end > time:
                also = chunk.until(time) if looking else None
                break
            session.ingest(chunk)
        return session.ask("What is it?", also=also, **OPTIONS), session.stats(), session.timeline()


def now(playback: Playback) -> tuple[Answer, Any, list[Any]]:
    (*_, answer) = playback.stream("What is it?", **OPTIONS)
    return answer, playback.session.stats(), playback.session.timeline()


def same(one: tuple[Answer, Any, list[Any]], other: tuple[Answer, Any, list[Any]]) -> None:
    assert (one[0].token_ids, one[0].logprobs) == (other[0].token_ids, other[0].logprobs)
    assert one[1:] == other[1:]


Open = Callable[..., Playback]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Open]:
    """Opens playbacks that keep a checkpoint every three chunks, and closes them."""
    opened = []

    def get(engine: Engine, source: Any = None, **options: Any) -> Playback:
        if "checkpoints" not in options:
            options["checkpoints"] = Checkpoints(tmp_path / str(len(opened)))
            opened.append(options["checkpoints"])
        playback = Playback(engine, source or FakeSource(), every=3 * SECONDS, **options)
        opened.append(playback)
        return playback

    yield get
    for one in reversed(opened):
        one.close()


def run(playback: Playback, chunks: int) -> None:
    for _ in range(chunks):
        playback.step()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["streaming", "heavy", "expected-attention"])
def test_every_moment_is_that_of_a_fresh_stream(engine_for: EngineFor, play: Open, strategy: str):
    """Back and forth in any order, to chunk boundaries and into chunks, by going and by visiting."""
    engine, choice = engine_for(strategy), random.Random(strategy)
    playback = play(engine)
    for _ in range(12):
        time = choice.choice([choice.randrange(4, 56, 4), choice.randrange(9, 111) / 2])
        if choice.random() < 0.4:
            run(playback, choice.randrange(4))
        before = now(playback) if playback.session.chunks else None
        if choice.random() < 0.5:
            with playback.visit(time) as arrival:
                assert (arrival.at, arrival.exact) == (time, True)
                assert arrival.chunks <= 2 or arrival.since is None or arrival.since % (3 * SECONDS)
                same(now(playback), fresh(engine, time))
            if before is not None:
                same(now(playback), before)
        else:
            arrival = playback.go(time)
            assert (arrival.at, arrival.exact) == (time, True)
            same(now(playback), fresh(engine, time))
    playback.go(1000.0)
    assert playback.ended
    assert playback.at == 56.0
    same(now(playback), fresh(engine, 56.0))


def test_a_visit_that_fails_or_is_stopped_returns(engine_for: EngineFor, play: Open):
    engine = engine_for("streaming")
    playback = play(engine, checkpoints=None)
    run(playback, 9)
    before, reader = now(playback), playback.opened

    class Stop(Exception):
        pass

    def stop() -> None:
        if playback.session.chunks == 2:
            raise Stop

    with pytest.raises(Stop), playback.visit(30.0, on_chunk=stop):
        pass
    same(now(playback), before)
    assert playback.opened is reader
    run(playback, 1)
    same(now(playback), fresh(engine, 40.0, looking=False))


def test_without_frames_it_stands_at_what_was_saved_and_says_so(engine_for: EngineFor, play: Open, tmp_path: Path):
    engine = engine_for("streaming")
    playback = play(engine, FakeSource(replayable=False))
    run(playback, 8)
    before = now(playback)
    with playback.visit(21.0) as arrival:
        assert (arrival.at, arrival.since, arrival.chunks, arrival.exact) == (12.0, 12.0, 0, False)
        same(now(playback), fresh(engine, 12.0, looking=False))
    same(now(playback), before)
    with playback.visit(99.0) as arrival:
        assert (arrival.at, arrival.exact) == (32.0, False)
    with pytest.raises(ConfigError, match="no memory of that moment or an earlier one, and its frames are gone"):
        playback.go(3.0)
    same(now(playback), before)
    run(playback, 6)
    assert not playback.ended
    same(now(playback), fresh(engine, 56.0))
    path = tmp_path / "fake.kvv"
    write(path, playback.save(), playback.memories.checkpoints)
    playback.close()
    with MemoryFile(path) as saved:
        loaded = play(engine, None, saved=saved, memory=saved.memory())
        loaded.source, loaded.ended = None, True
        same(now(loaded), fresh(engine, 56.0))
        assert loaded.step() is None
        with loaded.visit(30.0) as arrival:
            assert (arrival.at, arrival.exact) == (24.0, False)
            same(now(loaded), fresh(engine, 24.0, looking=False))
        same(now(loaded), fresh(engine, 56.0))


def test_a_saved_stream_goes_on_with_its_video(engine_for: EngineFor, play: Open, tmp_path: Path):
    engine, path = engine_for("heavy"), tmp_path / "fake.kvv"
    first = play(engine)
    run(first, 7)
    write(path, first.save(), first.memories.checkpoints)
    first.close()
    with MemoryFile(path) as saved:
        second = play(engine, saved=saved, memory=saved.memory())
        assert second.at == 28.0
        with second.visit(13.0) as arrival:
            assert arrival.since == 12.0
            same(now(second), fresh(engine, 13.0))
        run(second, 20)
        assert second.ended
        same(now(second), fresh(engine, 56.0))


def test_what_is_before_the_beginning_is_not_to_be_seen(engine_for: EngineFor, play: Open):
    """Of a video that is looked at from somewhere on; it goes on from where it stood."""
    engine = engine_for("streaming")
    playback = play(engine, FakeSource(start=8.0))
    run(playback, 3)
    before = now(playback)
    with pytest.raises(ConfigError, match=r"nothing before 0:08 is looked at"):
        playback.go(7.9)
    with pytest.raises(ConfigError, match=r"nothing before 0:08 is looked at"), playback.visit(0.0):
        pass
    same(now(playback), before)


def test_a_checkpoint_that_is_damaged_does_not_keep_the_rest_from_being_written(
    engine_for: EngineFor, play: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    engine, path = engine_for("streaming"), tmp_path / "fake.kvv"
    first = play(engine)
    run(first, 7)
    first.write(path)
    first.close()
    with MemoryFile(path) as saved:
        info = saved._archive.getinfo("checkpoints/000000012000.safetensors")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 2000 + info.file_size // 2] ^= 1
    path.write_bytes(data)
    with MemoryFile(path) as saved:
        second = play(engine, saved=saved, memory=saved.memory())
        second.write(tmp_path / "again.kvv")
        assert "a checkpoint is left out: " in caplog.text
        with MemoryFile(tmp_path / "again.kvv") as again:
            assert (saved.times, again.times) == ([12.0, 24.0, 28.0], [24.0, 28.0])


def test_a_damaged_video_leaves_what_was_read(engine_for: EngineFor, play: Open):
    engine = engine_for("streaming")
    playback = play(engine, FakeSource(breaks_at=5))
    run(playback, 5)
    with pytest.raises(VideoError):
        playback.step()
    assert playback.ended
    assert playback.step() is None
    same(now(playback), fresh(engine, 20.0, looking=False))


def test_a_remembered_dialogue_comes_with_its_moment(engine_for: EngineFor, play: Open):
    """It is there after its moment however that is reached, not before, and not once it is undone."""
    engine, turns = engine_for("streaming"), [("What is it?", "A thing."), ("Is it?", "It is.")]
    playback = play(engine)
    with pytest.raises(EngineError, match="nothing was ingested"):
        playback.remember(turns)
    run(playback, 6)
    playback.remember(turns[:1])
    playback.remember(turns[1:])
    with VideoSession(engine) as expected:
        for chunk in clips(6):
            expected.ingest(chunk)
        expected.remember(turns[:1])
        expected.remember(turns[1:])
        at_24 = expected.ask("What is it?", **OPTIONS), expected.stats(), expected.timeline()
        for chunk in clips(14)[6:11]:
            expected.ingest(chunk)
        at_44 = expected.ask("What is it?", **OPTIONS), expected.stats(), expected.timeline()
    same(now(playback), at_24)
    run(playback, 5)
    same(now(playback), at_44)
    with playback.visit(24.0):
        playback.also = None
        same(now(playback), at_24)
    with playback.visit(9.0):
        same(now(playback), fresh(engine, 9.0))
        playback.go(23.0)
        same(now(playback), fresh(engine, 23.0))
        playback.go(44.0)
        playback.also = None
        same(now(playback), at_44)
        playback.go(2.0)
    same(now(playback), at_44)
    assert playback.memories.checkpoints is not None
    playback.memories.checkpoints.clear()
    with playback.visit(44.0 + 4.0), playback.visit(44.0):
        playback.also = None
        same(now(playback), at_44)
    playback.undo()
    playback.undo()
    same(now(playback), fresh(engine, 44.0))
    with pytest.raises(ConfigError, match="nothing was remembered or switched"):
        playback.undo()
    playback.remember(turns)
    playback.go(20.0)
    playback.go(44.0)
    same(now(playback), fresh(engine, 44.0))


def bounded(strategy: str, **options: Any) -> CacheConfig:
    return CacheConfig(strategy, **{"max_tokens": MAX_TOKENS, "budget": BUDGET, "sink": SINK, **options})


def test_strategies_are_switched_on_the_way(engine_for: EngineFor, play: Open):
    engine = engine_for("full", spare_rows=3)
    engine.use(bounded("streaming"))
    playback = play(engine)
    run(playback, 6)
    before = now(playback)
    playback.switch(bounded("window"))
    assert now(playback)[1:] == before[1:]
    run(playback, 7)
    live = playback.session._live_positions()
    assert (live == live[:1, :1]).all()
    assert live.min() > 100, "the sinks are gone: the window moves on"
    switched = now(playback)
    with playback.visit(20.0):
        assert engine.config.cache.strategy == "streaming"
        same(now(playback), fresh(engine, 20.0))
    assert engine.config.cache.strategy == "window"
    same(now(playback), switched)
    assert playback.memories.checkpoints is not None
    playback.memories.checkpoints.clear()
    with playback.visit(54.0), playback.visit(52.0):
        playback.also = None
        same(now(playback), switched)
    for wrong, says in [
        (bounded("full"), "has no bound"),
        (bounded("streaming", budget=96), "start anew"),
        (bounded("streaming", positions="contiguous"), "positions"),
    ]:
        with pytest.raises(ConfigError, match=says):
            playback.switch(wrong)
        same(now(playback), switched)
    playback.switch(bounded("h2o"))
    assert now(playback)[1].live == switched[1].live
    playback.undo()
    playback.also = None
    same(now(playback), switched)
    with playback.anew(bounded("distinct")) as arrival:
        assert (arrival.at, arrival.chunks) == (52.0, 13)
        same(now(playback), fresh(engine, 52.0))
    same(now(playback), switched)
    playback.restart(bounded("distinct", max_tokens=96, budget=64))
    same(now(playback), fresh(engine, 52.0))
    playback.close()
    engine.use(bounded("full"))


def test_a_strategy_without_a_cache_is_refused(engine_for: EngineFor, play: Open):
    engine = engine_for("full", spare_rows=3)
    engine.use(bounded("streaming"))
    playback = play(engine)
    run(playback, 3)
    before = now(playback)
    for change in (playback.switch, playback.restart, lambda cache: playback.anew(cache).__enter__()):
        with pytest.raises(ConfigError, match="keeps no cache"):
            change(bounded("summary"))
    same(now(playback), before)
    playback.close()
    engine.use(bounded("recent"))
    with pytest.raises(ConfigError, match="keeps no cache"):
        Playback(engine, None)
    engine.use(bounded("full"))
