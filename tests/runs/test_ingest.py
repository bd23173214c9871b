"""Frames in the file of an ingest: all that were streamed, whatever interrupted it."""

from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvvideo.errors import ConfigError, FullError
from kvvideo.runs import forecast as forecasts
from kvvideo.runs.forecast import Forecast, check_disk, forecast
from kvvideo.runs.ingest import Ingested, Part, ingest, is_made, part_of
from kvvideo.session import Engine
from kvvideo.storage import jpegs
from kvvideo.storage.file import MemoryFile
from kvvideo.video import Source, Subtitles, probe
from tests.conftest import EngineFor
from tests.helpers.clips import clip

LENGTH = 10


@pytest.fixture
def engine(engine_for: EngineFor) -> Engine:
    return engine_for("streaming")


def source() -> Source:
    return Source(str(clip("plain.mp4")), 2.0, 1.0, min_pixels=1, max_pixels=4 * 784)


def run(
    engine: Engine,
    output: Path,
    chunks: int | None = None,
    *,
    keep: bool = True,
    resume: bool = False,
    max_bytes: int | None = None,
) -> Ingested:
    """Ingest with a checkpoint every two chunks, stopped after so many."""
    asked = count()
    with Part(output, source(), engine.config.cache, keep_frames=keep, resume=resume) as part:
        stopped = (lambda: False) if chunks is None else (lambda: next(asked) >= chunks)
        return ingest(engine, source(), part, every=2.0, max_bytes=max_bytes, stopped=stopped)


def frames(path: Path) -> list[bytes]:
    """The chunks that are in the file, each as it is stored."""
    with MemoryFile(path) as file:
        found = file.frames()
        return [] if found is None else [data for _, data in found.whole(1e9)]


def streamed() -> list[bytes]:
    with source().open() as reader:
        return [jpegs.encode(chunk) for chunk in reader]


def test_all_frames_are_in_the_file_if_they_are_wanted(engine: Engine, tmp_path: Path) -> None:
    run(engine, tmp_path / "with.kvv")
    run(engine, tmp_path / "without.kvv", keep=False)
    assert len(streamed()) == LENGTH
    assert frames(tmp_path / "with.kvv") == streamed()
    assert frames(tmp_path / "without.kvv") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["with.kvv", "without.kvv"]


def test_thinning_of_checkpoints_loses_no_frames(engine: Engine, tmp_path: Path) -> None:
    assert run(engine, tmp_path / "x.kvv").checkpoints == 4
    assert run(engine, tmp_path / "thin.kvv", max_bytes=1).checkpoints == 0
    assert frames(tmp_path / "thin.kvv") == streamed()


def test_what_a_crash_lost_is_decoded_again(engine: Engine, tmp_path: Path) -> None:
    """Those written last before it, and an older one."""
    path = tmp_path / "x.kvv"
    run(engine, path, 7)
    part = part_of(path)
    assert len([*part.glob("*.mjpeg")]) == 7
    for start in (2, 5, 6):
        (part / f"{start * 1000:012d}.mjpeg").unlink()
    assert run(engine, path, resume=True).since == 7.0
    assert frames(path) == streamed()
    assert not part.exists()


def test_they_can_be_wanted_later_or_no_more(engine: Engine, tmp_path: Path) -> None:
    late, never = tmp_path / "late.kvv", tmp_path / "never.kvv"
    run(engine, late, 4, keep=False)
    run(engine, late, resume=True)
    assert frames(late) == streamed()
    run(engine, never, 4)
    run(engine, never, resume=True, keep=False)
    assert frames(never) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["late.kvv", "never.kvv"]


def test_what_cannot_be_read_again_is_written_with_its_frames(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Source, "replayable", False)
    assert run(engine, tmp_path / "x.kvv", 3).end == 3.0
    assert frames(tmp_path / "x.kvv") == streamed()[:3]


def test_a_file_without_frames_is_not_the_one_that_was_wanted(engine: Engine, tmp_path: Path) -> None:
    run(engine, tmp_path / "with.kvv")
    run(engine, tmp_path / "without.kvv", keep=False)
    made = {
        (name, keep): is_made(tmp_path / f"{name}.kvv", source(), engine.config, keep)
        for name in ("with", "without")
        for keep in (True, False)
    }
    assert made == {("with", True): True, ("with", False): True, ("without", True): False, ("without", False): True}


def test_a_file_with_other_words_is_not_the_one_that_was_wanted(engine: Engine, tmp_path: Path) -> None:
    said, moved, others = (
        replace(source(), subtitles=Subtitles(name, ((1.5, words),)))
        for name, words in (("a.srt", "Hello"), ("b/a.srt", "Hello"), ("a.srt", "Bye"))
    )
    for name, of in (("bare", source()), ("said", said)):
        with Part(tmp_path / f"{name}.kvv", of, engine.config.cache) as part:
            ingest(engine, of, part, every=0)
    made = {
        (name, number): is_made(tmp_path / f"{name}.kvv", of, engine.config)
        for name in ("bare", "said")
        for number, of in enumerate((source(), said, moved, others))
    }
    assert [key for key, same in made.items() if same] == [("bare", 0), ("said", 1), ("said", 2)]


@pytest.mark.parametrize("max_bytes", [1 << 40, 100_000, 1])
def test_what_is_written_is_known_before(engine: Engine, tmp_path: Path, max_bytes: int) -> None:
    """As many checkpoints as there is room for, and the size of the file but for its heads."""
    path, config = tmp_path / "x.kvv", engine.config
    done = run(engine, path, max_bytes=max_bytes, keep=False)
    wanted = forecast(config, source(), probe(source().path), 2.0, max_bytes, False)
    assert wanted is not None
    assert (wanted.checkpoints, wanted.frame_bytes) == (4, 0)
    assert abs(wanted.kept_checkpoints - done.checkpoints) <= (max_bytes == 100_000)
    assert done.bytes is not None
    heads = 8_000 * (1 + done.checkpoints)
    assert done.bytes - heads < wanted.file_bytes < done.bytes + wanted.checkpoint_bytes * (max_bytes < 1 << 40)


def test_nothing_is_foretold_of_what_has_no_length(engine: Engine) -> None:
    info = replace(probe(source().path), duration=None)
    assert forecast(engine.config, source(), info, 2.0, 1, True) is None


def test_a_full_disk_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free space must hold the file and its parts; parts that an interrupted run left count."""
    path, free = tmp_path / "x.kvv", [2_000_000]
    monkeypatch.setattr(forecasts.shutil, "disk_usage", lambda _: SimpleNamespace(free=free[0]))
    fits = Forecast(5, 5, 100, file_bytes=600_000, frame_bytes=400_000)
    check_disk(path, fits)
    free[0] -= 1
    says = r"takes about 2.0 MB of the disk .* 2.0 MB are free .* leave --keep-frames out"
    with pytest.raises(ConfigError, match=says):
        check_disk(path, fits)
    with pytest.raises(ConfigError) as caught:
        check_disk(path, replace(fits, file_bytes=1_000_000, frame_bytes=0))
    assert "keep-frames" not in str(caught.value)
    part_of(path).mkdir()
    (part_of(path) / "000000480000.safetensors").write_bytes(b"x")
    check_disk(path, fits)
    check_disk(tmp_path / "none" / "x.kvv", fits)


def test_what_is_remembered_is_written_if_a_session_is_full(engine_for: EngineFor, tmp_path: Path) -> None:
    """Nobody can go on with that: the same would happen again."""
    full, path = engine_for("full", max_model_len=256, kv_bytes=1 << 22), tmp_path / "x.kvv"
    video = replace(source(), fps=16.0, chunk_seconds=0.5)
    with Part(path, video, full.config.cache) as part:
        done = ingest(full, video, part, every=2.0)
    assert isinstance(done.error, FullError)
    assert 2 < done.chunks < 20
    with MemoryFile(path) as file:
        assert (file.memory().end, file.memory().chunks) == (done.end, done.chunks)
    assert not part_of(path).exists()
