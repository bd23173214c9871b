"""Frames of an earlier stretch of a file: those that the stream had, to the last bit, or none."""

import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from kvvideo.types import Chunk
from kvvideo.video import Source, VideoReader
from kvvideo.video.again import AT_ONCE, FileAgain, spread
from tests.helpers.clips import clip, same, truncated
from tests.helpers.streams import described
from tests.helpers.streams import write as write_stream

SMALL: dict[str, Any] = {"min_pixels": 1, "max_pixels": 24 * 784}
EDITED = {stream.name: stream for stream in described(1, 18) if stream.kind == "edits"}
CLIPS = ["plain.mp4", "open_gop.mp4", "irregular.mkv", "late_start.ts", "hevc.mp4", "pre_roll.mp4", *EDITED]
SETTINGS = [(29.97, 0.4004, 0.1, None), (7.5, 0.8, 1 / 3, 3.1)]


def path_of(name: str, folder: Path) -> str:
    if name not in EDITED:
        return str(clip(name))
    path = folder / f"x.{EDITED[name].suffix}"
    write_stream(EDITED[name], path)
    return str(path)


def streamed(source: Source) -> list[Chunk]:
    with source.open() as reader:
        return list(reader)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert all(line.isprintable() for line in said)
    return said


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", CLIPS)
def test_a_chunk_of_the_stream_is_that_very_chunk(
    name: str, settings: tuple[float, float, float | None, float | None], tmp_path: Path
) -> None:
    """The first, one in the middle and the last two, of which the very last is short."""
    source = Source(path_of(name, tmp_path), *settings, **SMALL)
    whole = streamed(source)
    picked = [whole[number] for number in sorted({0, len(whole) // 2, max(0, len(whole) - 2), len(whole) - 1})]
    found = FileAgain(source).chunks([(chunk.start, chunk.end) for chunk in picked])
    assert same([chunk for chunk in found if chunk is not None], picked)


def test_another_decoder_gives_its_own_chunks() -> None:
    source = Source(str(clip("plain.mp4")), 3.0, 2.0, 0.7, decoder="decord", **SMALL)
    whole, again = streamed(source), FileAgain(source)
    for wanted in (whole[0], whole[-1]):
        found = again.chunk(wanted.start, wanted.end)
        assert found is not None
        assert same([found], [wanted])


def test_several_chunks_are_spread_over_one() -> None:
    source = Source(str(clip("plain.mp4")), 4.0, 1.0, 0.25, **SMALL)
    whole, again = streamed(source), FileAgain(source)
    two, four = again.chunk(1.25, 3.25), again.chunk(3.25, 7.25)
    assert two is not None
    assert four is not None
    assert (two.start, two.end, two.fps) == (1.25, 3.25, 2.0)
    assert (four.start, four.end, four.fps) == (3.25, 7.25, 1.0)
    for found, chunks in ((two, whole[1:3]), (four, whole[3:7])):
        step = len(chunks)
        assert np.array_equal(found.frames, np.concatenate([chunk.frames for chunk in chunks])[::step])
        assert found.times == tuple([time for chunk in chunks for time in chunk.times][::step])


def test_a_short_last_chunk_counts_by_its_frames() -> None:
    def chunk(start: float, count: int) -> Chunk:
        frames = np.full((count, 28, 28, 3), int(start), np.uint8)
        return Chunk(frames, tuple(start + n / 2 for n in range(count)), start, start + count / 2, 2.0)

    found = spread([chunk(0.0, 8), chunk(4.0, 8), chunk(8.0, 4)])
    assert found is not None
    assert found.times == (0.0, 1.0, 2.5, 3.5, 5.0, 6.0, 7.5, 8.5)
    assert (found.start, found.end, found.fps) == (0.0, 10.0, 0.8)
    assert found.frames[:, 0, 0, 0].tolist() == [0, 0, 0, 0, 4, 4, 4, 8]


def test_a_part_of_a_chunk_gives_that_chunk_and_nothing_is_there_after_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source(str(clip("plain.mp4")), 2.0, 4.0, **SMALL)
    first, middle, *_ = streamed(source)
    again = FileAgain(source)
    for stretch in ((4.0, 8.0), (4.2, 7.0), (5.0, 5.0), (4.0001, 8.0001), (3.9999, 7.9999)):
        found = again.chunk(*stretch)
        assert found is not None
        assert same([found], [middle])
    assert again.chunk(12.0, 16.0) is None
    assert again.chunks([]) == []
    before = again.chunk(-3.0, 1.0)
    assert before is not None
    assert same([before], [first])
    assert warnings(caplog) == []


def test_stretches_are_decoded_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(AT_ONCE, timeout=60)
    begin = Source.open

    def opened(self: Source, **options: Any) -> VideoReader:
        reader = begin(self, **options)
        together.wait()
        return reader

    source = Source(str(clip("plain.mp4")), 2.0, 1.0, **SMALL)
    whole, again = streamed(source), FileAgain(source)
    monkeypatch.setattr(Source, "open", opened)
    wanted = [whole[number] for number in (7, 0, 3, 5)]
    found = again.chunks([(chunk.start, chunk.end) for chunk in wanted])
    assert same([chunk for chunk in found if chunk is not None], wanted)


def test_what_was_decoded_is_kept_for_the_next_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until others need its room; the one that was wanted last stays longest."""
    source = Source(str(clip("plain.mp4")), 2.0, 1.0, **SMALL)
    whole, again = streamed(source), FileAgain(source)
    spans, opened, begin = [(chunk.start, chunk.end) for chunk in whole], list[int](), Source.open

    def counted(self: Source, **options: Any) -> VideoReader:
        opened.append(options["skip_chunks"])
        return begin(self, **options)

    monkeypatch.setattr(Source, "open", counted)
    monkeypatch.setattr("kvvideo.video.again.KEPT_BYTES", 2 * whole[0].frames.nbytes)
    for wanted, decoded in (([0], [0]), ([0], []), ([1, 0], [1]), ([2], [2]), ([0], []), ([1], [1]), ([0, 1], [])):
        opened.clear()
        found = again.chunks([spans[number] for number in wanted])
        assert same([chunk for chunk in found if chunk is not None], [whole[number] for number in wanted])
        assert opened == decoded


def test_it_can_look_closer() -> None:
    source = Source(str(clip("plain.mp4")), 2.0, 4.0, min_pixels=4 * 784, max_pixels=8 * 784)
    seen = streamed(source)[1]
    closer, coarser = FileAgain(source, 20 * 784), FileAgain(source, 2 * 784)
    for again, shape in ((closer, (8, 84, 140, 3)), (coarser, (8, 28, 28, 3))):
        found = again.chunk(4.0, 8.0)
        assert found is not None
        assert seen.frames.shape == (8, 56, 84, 3)
        assert found.frames.shape == shape
        assert (found.times, found.start, found.end, found.fps) == (seen.times, seen.start, seen.end, seen.fps)


def changed(path: Path) -> None:
    path.write_bytes(clip("hevc.mp4").read_bytes())


def unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("happen", "why"), [(os.remove, "is gone"), (changed, "has changed since it was streamed"), (unreadable, "is gone")]
)
def test_a_file_that_is_another_gives_nothing_and_says_so_once(
    happen: Any, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.mp4"
    shutil.copy(clip("plain.mp4"), path)
    again = FileAgain(Source(str(path), **SMALL))
    assert again.chunk(0.0, 4.0) is not None
    happen(path)
    assert again.chunk(0.0, 4.0) is None
    assert again.chunks([(0.0, 4.0), (4.0, 8.0)]) == [None, None]
    assert warnings(caplog) == [f"some frames are not looked at again: {str(path)!r} {why}"]


def test_a_file_that_was_only_touched_is_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.mp4"
    shutil.copy(clip("plain.mp4"), path)
    again = FileAgain(Source(str(path), **SMALL))
    shutil.copy(clip("plain.mp4"), tmp_path / "y.mp4")
    os.replace(tmp_path / "y.mp4", path)
    assert again.chunk(0.0, 4.0) is not None
    assert warnings(caplog) == []


def test_damaged_stretches_give_nothing_and_say_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Frames before the damage are there; of what comes after nobody hears more than one line."""
    source = Source(str(truncated(clip("plain.mp4"), tmp_path)), 2.0, 1.0, **SMALL)
    reader, whole = source.open(), list[Chunk]()
    with reader, pytest.raises(Exception, match="cut short"):
        whole.extend(reader)
    again = FileAgain(source)
    caplog.clear()
    last = whole[-1]
    found = again.chunk(last.start, last.end)
    assert found is not None
    assert same([found], [last])
    assert warnings(caplog) == []
    assert again.chunks([(8.0, 9.0), (9.0, 10.0), (8.0, 10.0)]) == [None] * 3
    (line,) = warnings(caplog)
    assert "cut short" in line


def test_what_was_said_of_the_stream_is_not_said_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(clip("plain.mp4").read_bytes())
    with av.open(str(clip("plain.mp4"))) as container:
        places = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    for at, size in places[len(places) // 4 : len(places) // 3]:
        data[at + 4 : at + size] = bytes(size - 4)
    path = tmp_path / "x.mp4"
    path.write_bytes(data)
    source = Source(str(path), 2.0, 1.0, **SMALL)
    with source.open() as reader:
        *_, last = reader
    (line,) = warnings(caplog)
    assert "is damaged" in line
    again = FileAgain(source)
    caplog.clear()
    # Decoding begins before the damage.
    found = again.chunk(0.0, last.end)
    assert found is not None
    assert found.end == last.end
    assert warnings(caplog) == []
