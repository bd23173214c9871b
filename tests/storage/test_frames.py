"""Frames that were kept: on the disk as soon as they are asked for, bounded, there after any crash, or one line."""

import errno
import io
import json
import logging
import os
import random
import tempfile
import threading
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kvvideo.errors import ConfigError
from kvvideo.storage import jpegs
from kvvideo.storage.file import MemoryFile, write
from kvvideo.storage.frames import KeptFrames, StoredFrames, file_name
from kvvideo.storage.workspace import Workspace
from kvvideo.types import Chunk
from tests.helpers.clips import same
from tests.storage.test_memory_file import archived, damaged, in_new_process, killed, members, memory, one_line

SIDE = 56


def chunk(number: int, start: float = 0.0, seconds: float = 4.0, frames: int = 8) -> Chunk:
    """A smooth picture that moves, of another colour in each chunk."""
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    pictures = [
        np.stack([(x + 9 * n) * 2 % 256, y * 3 % 256, np.full_like(x, number * 37 % 256)], axis=-1)
        for n in range(frames)
    ]
    begin = start + number * seconds
    times = tuple(begin + n * seconds / frames for n in range(frames))
    return Chunk(np.stack(pictures).astype(np.uint8), times, begin, begin + seconds, frames / seconds)


def through(some: Chunk) -> Chunk:
    """The chunk as it is found again: with what JPEG makes of its frames."""
    return jpegs.decode(jpegs.encode(some))


def found(frames: StoredFrames, some: Chunk) -> bool:
    again = frames.chunk(some.start, some.end)
    assert again is None or same([again], [through(some)])
    return again is not None


def ring(directory: Path, *numbers: int, max_bytes: int | None = None) -> KeptFrames:
    kept = KeptFrames(directory, max_bytes)
    for number in numbers:
        kept.add(chunk(number))
    return kept


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert all(line.isprintable() for line in said)
    return said


# One chunk as bytes


def test_a_chunk_comes_back_with_its_times_and_nearly_its_pixels() -> None:
    some = chunk(3, start=1 / 3, seconds=1.001, frames=6)
    again = through(some)
    assert (again.times, again.start, again.end, again.fps) == (some.times, some.start, some.end, some.fps)
    assert again.frames.dtype == np.uint8
    assert again.frames.shape == some.frames.shape
    error = np.mean((again.frames.astype(float) - some.frames) ** 2)
    assert 10 * np.log10(255**2 / error) > 35
    assert jpegs.encode(some) == jpegs.encode(some)
    jpegs.check(jpegs.encode(some))


def test_colours_are_kept_at_full_size() -> None:
    """Lines one pixel wide that differ in colour alone stay apart, as they do not where colours are halved."""
    lines = np.empty((2, SIDE, SIDE, 3), np.uint8)
    lines[:, :, ::2], lines[:, :, 1::2] = (200, 60, 60), (60, 60, 200)
    again = through(Chunk(lines, (0.0, 0.5), 0.0, 1.0, 2.0))
    assert (again.frames[:, :, ::2, 0].astype(int) - again.frames[:, :, 1::2, 0]).min() > 100


def test_other_programs_play_it() -> None:
    with av.open(io.BytesIO(jpegs.encode(chunk(0))), "r", format="mjpeg") as played:
        assert [frame.to_ndarray(format="rgb24").shape for frame in played.decode(video=0)] == [(SIDE, SIDE, 3)] * 8


DATA = jpegs.encode(chunk(1))


@given(data=st.binary(max_size=100) | damaged(DATA))
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_are_refused_or_the_same(data: bytes) -> None:
    try:
        again = jpegs.decode(data)
    except ValueError as error:
        one_line(error)
    else:
        assert same([again], [through(chunk(1))])


def edited(changes: dict[str, Any], pictures: bytes | None = None) -> bytes:
    """The bytes of a chunk after ``changes`` to its facts, with the CRC that fits."""
    length = int.from_bytes(DATA[-8:-4], "little")
    body, facts = DATA[: -8 - length], json.loads(DATA[-8 - length : -8])
    text = json.dumps({**facts, **changes}).encode()
    whole = (body if pictures is None else pictures) + text
    return whole + len(text).to_bytes(4, "little") + zlib.crc32(whole).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"times": [0.0] * 7}, "not as many"),
        ({"times": "x" * 8}, "not described"),
        ({"sizes": [1.0] * 8}, "not described"),
        ({"sizes": [], "times": []}, "not as many"),
        ({"sizes": [700] * 8}, "not as many"),
        ({"times": [0.0] * 7 + [-1.0]}, "times are none"),
        ({"start": None}, "times are none"),
        ({"end": 1e300}, "times are none"),
        ({"fps": 0}, "fps are none"),
        ({"fps": "2"}, "fps are none"),
        ({"height": -1}, "no size"),
        ({"width": 2.5}, "no size"),
        ({"width": 1 << 40}, "too large"),
        ({"height": 28}, "another size"),
    ],
)
def test_whatever_is_wrong_is_said(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        jpegs.decode(edited(change))
    assert same([jpegs.decode(edited({}))], [jpegs.decode(DATA)])


def test_other_pictures_are_refused() -> None:
    def pictures(kind: str, mode: str = "RGB") -> bytes:
        target = io.BytesIO()
        Image.new(mode, (SIDE, SIDE)).save(target, kind)
        return target.getvalue()

    for data, words in ((pictures("PNG"), "no JPEG"), (pictures("JPEG", "L"), "another size")):
        sizes = {"sizes": [len(data)] * 8}
        with pytest.raises(ValueError, match=words):
            jpegs.decode(edited(sizes, data * 8))


# The ring


def test_what_was_added_is_found_at_once_and_by_the_next(tmp_path: Path) -> None:
    kept = ring(tmp_path / "a" / "b", 0, 1, 2)
    assert found(kept, chunk(2))
    assert found(kept, chunk(0))
    assert kept.chunk(12.0, 16.0) is None
    kept.close(keep=True)
    again = KeptFrames(tmp_path / "a" / "b")
    assert all(found(again, chunk(number)) for number in range(3))
    assert again.size == sum(len(jpegs.encode(chunk(number))) for number in range(3))
    again.close()


def test_a_question_waits_for_the_chunk_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, opened, encode = threading.Event(), threading.Event(), jpegs.encode

    def held(some: Chunk) -> bytes:
        reached.set()
        assert opened.wait(60)
        return encode(some)

    monkeypatch.setattr(jpegs, "encode", held)
    kept, answers = KeptFrames(tmp_path), list[Chunk | None]()
    kept.add(chunk(0))
    assert reached.wait(60)
    asking = threading.Thread(target=lambda: answers.append(kept.chunk(0.0, 4.0)))
    asking.start()
    asking.join(0.05)
    assert asking.is_alive()
    opened.set()
    asking.join(60)
    (answer,) = answers
    assert answer is not None
    assert same([answer], [through(chunk(0))])
    kept.close()


def test_several_chunks_are_spread_over_one_and_gaps_left_out(tmp_path: Path) -> None:
    kept = ring(tmp_path, 0, 1, 3)
    both = kept.chunk(0.0, 8.0)
    assert both is not None
    assert (both.start, both.end, both.fps, len(both.frames)) == (0.0, 8.0, 1.0, 8)
    assert both.times == (*chunk(0).times[::2], *chunk(1).times[::2])
    assert kept.chunk(8.0, 12.0) is None
    assert kept.chunk(9.0, 11.0) is None
    part = kept.chunk(8.0, 16.0)
    assert part is not None
    assert same([part], [through(chunk(3))])
    part = kept.chunk(5.0, 6.0)
    assert part is not None
    assert same([part], [through(chunk(1))])
    kept.close()


def test_the_same_start_is_replaced(tmp_path: Path) -> None:
    kept = ring(tmp_path, 0)
    kept.add(replace(chunk(5), start=0.0, end=4.0, times=chunk(0).times))
    again = kept.chunk(0.0, 4.0)
    assert again is not None
    assert np.array_equal(again.frames, through(chunk(5)).frames)
    assert len(names(tmp_path)) == 1
    kept.close()


def test_it_never_takes_more_than_it_may_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance, sizes = random.Random(4), list[int]()
    room = 7 * len(DATA)
    replaced = os.replace

    def measured(*arguments: Any) -> None:
        replaced(*arguments)
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))

    monkeypatch.setattr(os, "replace", measured)
    kept = KeptFrames(tmp_path, room)
    for number in range(40):
        kept.add(chunk(number, frames=2 * chance.randint(1, 8)))
        keys = kept.keys()
        assert keys == [4000 * n for n in range(number - len(keys) + 1, number + 1)]
        assert kept.size <= room
    assert len(sizes) == 40
    assert max(sizes) <= room
    assert max(sizes) > room / 2
    held = kept.keys()
    kept.close(keep=True)
    less = KeptFrames(tmp_path, room // 3)
    assert less.keys() == held[-len(less.keys()) :]
    assert 0 < less.size <= room // 3
    less.close()


def test_a_chunk_that_is_too_large_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = ring(tmp_path, 0, 1, max_bytes=len(DATA) // 2)
    assert kept.chunk(0.0, 8.0) is None
    kept.close()
    (line,) = warnings(caplog)
    assert "may be kept; allow more" in line


def test_what_is_damaged_is_left_out_and_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ring(tmp_path, 0, 1, 2, 3).close(keep=True)
    (tmp_path / file_name(0)).write_bytes(DATA[: len(DATA) // 2])
    (tmp_path / file_name(4000)).write_bytes(b"")
    (tmp_path / ".kvvideo-0123456789abcdef.tmp").write_bytes(DATA)
    (tmp_path / "notes.txt").touch()
    kept = KeptFrames(tmp_path)
    assert names(tmp_path) == [*map(file_name, (0, 4000, 8000, 12000)), "notes.txt"]
    assert kept.chunk(0.0, 4.0) is None
    assert kept.chunk(4.0, 8.0) is None
    assert found(kept, chunk(2))
    (tmp_path / file_name(12000)).unlink()
    assert kept.chunk(12.0, 16.0) is None
    assert warnings(caplog) == ["the frames kept of 0:00 cannot be looked at again: the checksum is wrong"]
    kept.close()
    assert names(tmp_path) == ["notes.txt"]


def test_only_one_may_write(tmp_path: Path) -> None:
    kept = ring(tmp_path, 0)
    with pytest.raises(ConfigError, match="are kept by another kvvideo") as caught:
        KeptFrames(tmp_path)
    one_line(caught.value)
    kept.close(keep=True)
    kept.close()
    ring(tmp_path, 1).close()
    assert not tmp_path.exists()


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"frames cannot be kept in .*file.*; choose another folder") as caught:
            KeptFrames(path)
        one_line(caught.value)


def test_a_full_disk_costs_the_frames_of_then_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept = ring(tmp_path, 0)
    kept.settle()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        kept.add(chunk(1))
        kept.add(chunk(2))
        kept.settle()
    kept.add(chunk(3))
    assert kept.keys() == [0, 12000]
    (line,) = warnings(caplog)
    assert "some frames are not kept" in line
    assert "No space left" in line
    kept.close()


def test_a_run_takes_its_frames_away_with_the_rest(tmp_path: Path) -> None:
    """They lie in its directory: what is resumed has them, what begins anew or is complete has not."""
    with Workspace(tmp_path / "run") as space:
        space.begin({"run": 1})
        ring(space.path, 0, 1).close(keep=True)
    with Workspace(tmp_path / "run") as space:
        kept = KeptFrames(space.path)
        assert found(kept, chunk(1))
        kept.close(keep=True)
        space.begin({"run": 2})
        kept = ring(space.path, 2)
        assert kept.keys() == [8000]
        kept.close(keep=True)
        space.remove()
    assert names(tmp_path) == []


def kill_rings(folder: str) -> None:
    directory, room = Path(folder), 12 * len(DATA)

    def child(reached: int) -> None:
        kept = KeptFrames(directory, room)
        for number in range(reached + 1, 10**6):
            kept.add(chunk(number))

    def after() -> int:
        kept = KeptFrames(directory, room)
        keys = kept.keys()
        assert names(directory) == [file_name(key) for key in keys]
        assert all(found(kept, chunk(key // 4000)) for key in keys)
        assert keys == [*range(keys[0], keys[-1] + 1, 4000)] if keys else True
        kept.close(keep=True)
        return keys[-1] // 4000 if keys else 0

    killed(child, after, 15, seed=5)


@pytest.mark.slow
def test_a_killed_process_leaves_whole_chunks(tmp_path: Path) -> None:
    in_new_process("tests.storage.test_frames.kill_rings", tmp_path)


# In the file of a memory


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A memory of 8 seconds with their frames; more were kept."""
    kept = ring(tmp_path / "frames", 0, 1, 2)
    write(tmp_path / "x.kvv", memory(8.0), frames=kept)
    kept.close()
    return tmp_path / "x.kvv"


def test_a_file_gives_its_frames_without_the_video(saved: Path) -> None:
    with MemoryFile(saved) as file:
        frames = file.frames()
        assert frames is not None
        assert found(frames, chunk(0))
        assert found(frames, chunk(1))
        assert frames.chunk(8.0, 12.0) is None
        both = frames.chunk(0.0, 8.0)
        assert both is not None
        assert len(both.frames) == 8
        write(saved.with_name("again.kvv"), memory(8.0), frames=frames)
    assert saved.with_name("again.kvv").read_bytes() == saved.read_bytes()


def test_only_a_file_with_frames_needs_a_newer_kvvideo(saved: Path, tmp_path: Path) -> None:
    write(tmp_path / "plain.kvv", memory(8.0))
    ring(tmp_path / "other", 5).close(keep=True)
    later = KeptFrames(tmp_path / "other")
    write(tmp_path / "later.kvv", memory(8.0), frames=later)
    later.close()
    for name in ("plain.kvv", "later.kvv"):
        with MemoryFile(tmp_path / name) as file:
            assert file.frames() is None
        said = json.loads(members(tmp_path / name)["manifest.json"])
        assert said == {"format": "kvvideo memory", "version": 1, "checkpoints": []}
    found = members(saved)
    assert json.loads(found["manifest.json"]) == {
        "format": "kvvideo memory",
        "version": 2,
        "checkpoints": [],
        "frames": 2,
    }
    assert found["frames/000000004000.mjpeg"] == DATA


def test_frames_that_were_damaged_on_the_way_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = ring(tmp_path / "frames", 0, 1)
    kept.settle()
    (tmp_path / "frames" / file_name(4000)).write_bytes(DATA[:-1])
    write(tmp_path / "x.kvv", memory(8.0), frames=kept)
    kept.close()
    assert warnings(caplog) == ["the frames kept of 0:04 are left out: the checksum is wrong"]
    with MemoryFile(tmp_path / "x.kvv") as file:
        frames = file.frames()
        assert frames is not None
        assert frames.keys() == [0]


def test_damage_to_frames_is_one_line(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(saved.read_bytes())
    data[data.find(DATA) + 500] ^= 1
    saved.write_bytes(data)
    with MemoryFile(saved) as file:
        frames = file.frames()
        assert frames is not None
        assert found(frames, chunk(0))
        assert frames.chunk(4.0, 8.0) is None
        assert frames.chunk(0.0, 8.0) is None
        assert file.memory().end == 8.0
    assert frames.chunk(0.0, 4.0) is None
    (line,) = warnings(caplog)
    assert "is cut short or damaged; make it again with 'kvvideo ingest'" in line


def test_frames_that_are_missing_or_too_many_are_one_line(saved: Path) -> None:
    good, one = members(saved), "frames/000000004000.mjpeg"
    manifest = json.loads(good["manifest.json"])

    def said(content: dict[str, bytes], **changes: object) -> str:
        archived(saved, {**content, "manifest.json": json.dumps({**manifest, **changes}).encode()})
        with pytest.raises(ConfigError) as caught:
            MemoryFile(saved)
        return one_line(caught.value)

    assert "damaged" in said({name: data for name, data in good.items() if name != one})
    assert "damaged" in said({**good, "frames/000000008000.mjpeg": DATA})
    for count in (0, 3, -2, "2", None, [2], 2.5):
        assert "damaged" in said(good, frames=count)
    assert "it holds 'frames/4000.mjpeg'" in said({**good, "frames/4000.mjpeg": DATA})
    assert "it holds 'frames/../x'" in said({**good, "frames/../x": DATA})
    assert "(format 3, this one reads up to 2); update kvvideo" in said(good, version=3)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_files_give_frames_that_are_the_same_or_none(whole: bytes, data: st.DataObject) -> None:
    with tempfile.NamedTemporaryFile(suffix=".kvv") as stream:
        stream.write(data.draw(damaged(whole)))
        stream.flush()
        try:
            with MemoryFile(stream.name) as file:
                frames = file.frames()
                assert frames is not None
                for number in range(2):
                    found(frames, chunk(number))
        except ConfigError as error:
            one_line(error)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    kept = ring(folder / "frames", 0, 1)
    write(folder / "x.kvv", memory(8.0), frames=kept)
    kept.close()
    return (folder / "x.kvv").read_bytes()


def test_a_frame_is_not_taken_from_an_archive_that_is_compressed(saved: Path) -> None:
    archived(saved, members(saved), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ConfigError, match="it is compressed"):
        MemoryFile(saved)
