"""A video as a value: written down, opened again, and gone on with where it was left, to the last bit."""

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvvideo.errors import ConfigError, VideoError
from kvvideo.video import Live, Source, VideoReader, frame_at, read_chunks
from kvvideo.video.decoder import open_decoder
from kvvideo.video.sampling import Grid
from tests.helpers.clips import CLIPS, H264, Clip, clip, drain, made, read, same, shown

SMALL = {"min_pixels": 1, "max_pixels": 24 * 784}
SKIPPED = [
    *("plain.mp4", "long_gop.mp4", "open_gop.mp4", "intra_refresh.mp4", "irregular.mp4", "irregular.mkv"),
    *("hevc.mp4", "hevc.ts", "late_start.ts", "mpeg2.ts", "vp9.webm", "spaced.avi", "bare.h264", "pre_roll.mp4"),
]


@pytest.mark.parametrize(
    ("fps", "seconds", "start"), [(2.0, 1.0, None), (3.0, 2.0, 0.1), (7.5, 0.8, None), (7.5, 0.8, 1 / 3)]
)
@pytest.mark.parametrize("name", SKIPPED)
def test_what_is_left_is_what_it_would_have_been(name: str, fps: float, seconds: float, start: float | None) -> None:
    path = str(clip(name))
    grid = Grid.of(fps, seconds, start, None)
    whole = list(read_chunks(path, fps, seconds, start, **SMALL))  # type: ignore[arg-type]
    for skip in {1, 2, len(whole) // 2, len(whole) - 1}:
        if skip <= 0:
            continue
        left = Grid.of(fps, seconds, start, None, skip)
        assert left.time(0) == grid.time(skip * grid.per_chunk)
        with open_decoder("pyav", path) as decoder:
            assert same(decoder.chunks(left, **SMALL), whole[skip:])  # type: ignore[arg-type]


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("start", [None, 0.7])
def test_a_reader_goes_on_where_another_stopped(decoder: str, start: float | None) -> None:
    source = Source(str(clip("plain.mp4")), 7.5, 0.8, start, 9.1, decoder=decoder, **SMALL)  # type: ignore[arg-type]
    with source.open() as reader:
        whole = list(reader)
    for skip in (1, 5, len(whole) - 1):
        with source.open(skip_chunks=skip) as reader:
            assert reader.position == whole[skip].start
            assert same(reader, whole[skip:])
            assert reader.position == whole[-1].end


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
@pytest.mark.parametrize("skip", [10, 11, 1000])
def test_nothing_may_be_left(decoder: str, skip: int) -> None:
    with VideoReader(clip("plain.mp4"), chunk_seconds=1, decoder=decoder, skip_chunks=skip) as reader:
        assert list(reader) == []
        assert reader.position == skip


def test_damage_is_told_again(tmp_path: Path) -> None:
    path = tmp_path / "cut.mkv"
    data = clip("plain.mkv").read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    chunks, error = drain(VideoReader(path, chunk_seconds=1))
    assert error is not None
    for skip in (2, len(chunks), len(chunks) + 3):
        rest, again = drain(VideoReader(path, chunk_seconds=1, skip_chunks=skip))
        assert same(rest, chunks[skip:])
        assert str(again) == str(error)


def test_chunks_cannot_be_skipped_backwards() -> None:
    with pytest.raises(ConfigError, match="-1 chunks"):
        VideoReader("no matter", skip_chunks=-1)


def test_a_grid_counts_what_is_to_come() -> None:
    whole, left = Grid.of(3, 2, 0.5, 9.4), Grid.of(3, 2, 0.5, 9.4, 2)
    assert (whole.count, left.count) == (27, 15)
    assert [left.time(i) for i in range(15)] == [whole.time(i) for i in range(12, 27)]
    assert Grid.of(3, 2, 0.5, 9.4, 9).count == 0


SOURCES = [
    Source("a.mp4"),
    Source("ü\udcff.mp4", 3.0, 2.0, 1.5, 7.0, 784, 1568, "decord"),
    Source("rtsp://host/x", live=Live()),
    Source("a.ts", live=Live(5.0, "drop", True)),
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.path.encode("ascii", "replace").decode())
def test_a_source_can_be_written_down(source: Source) -> None:
    assert Source.from_dict(json.loads(json.dumps(source.as_dict()))) == source


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "does not describe"),
        ([], "does not describe"),
        ({"path": 3}, "path of a video source must be a text"),
        ({"fps": "2"}, "must be a number"),
        ({"fps": True}, "must be a number"),
        ({"fps": 0}, "above 0"),
        ({"fps": float("nan")}, "must be a number"),
        ({"start": -1}, "begin at 0"),
        ({"end": [1]}, "number or nothing"),
        ({"max_pixels": 1.5}, "whole number"),
        ({"max_pixels": 5}, "not possible"),
        ({"decoder": "vlc"}, "pyav or nvdec or decord"),
        ({"colour": "red"}, "has no 'colour'"),
        ({"live": 3}, "settings of a live source"),
        ({"live": {"retry_seconds": "1"}}, "retry_seconds of a live source must be a number"),
        ({"live": {"when_behind": "run"}}, "lag or drop"),
        ({"live": {"when_behind": 1}}, "must be a text"),
        ({"live": {"follow": 1}}, "true or false"),
        ({"live": {"speed": 1}}, "has no 'speed'"),
    ],
)
def test_nonsense_is_no_source(change: Any, words: str) -> None:
    data = {**Source("a.mp4").as_dict(), **change} if isinstance(change, dict) else change
    with pytest.raises(ConfigError, match=words) as caught:
        Source.from_dict(data)
    assert "\n" not in str(caught.value)


def test_a_source_needs_a_path() -> None:
    with pytest.raises(ConfigError, match="needs a path"):
        Source.from_dict({"fps": 2.0})


def test_what_can_be_replayed(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    source = Source(str(path))
    assert (source.replayable, source.fingerprint()) == (False, None)
    path.write_bytes(clip("odd.mp4").read_bytes())
    assert source.replayable
    assert source.fingerprint() is not None
    assert Source(str(path), live=Live()).replayable
    assert not Source(str(path), live=Live(follow=True)).replayable
    os.mkfifo(tmp_path / "pipe")
    for other in (str(tmp_path / "pipe"), str(tmp_path), "-", "0", "http://127.0.0.1:9/a.mp4", "a\0b"):
        assert not Source(other).replayable
        assert Source(other).fingerprint() is None


@pytest.mark.parametrize("name", ["plain.mp4", "irregular.mkv", "hevc.ts", "odd.mp4", "bare.h264"])
def test_the_picture_at_a_time(name: str) -> None:
    frames, end = shown(clip(name))
    width, height = CLIPS[name].size
    for at in (0.0, end / 3, frames[len(frames) // 2][0], end - 0.02):
        time, number = [(t, n) for t, n in frames if t <= at + 1e-6][-1]
        appeared, picture = frame_at(clip(name), at)
        assert picture.shape == (height, width, 3)
        assert picture.dtype == np.uint8
        assert read(picture) == number
        assert appeared == pytest.approx(time, abs=2e-6)


@pytest.mark.slow
def test_the_picture_is_that_of_the_chunk() -> None:
    for chunk in read_chunks(str(clip("irregular.mp4")), 3, 2):
        for time, frame in [*zip(chunk.times, chunk.frames, strict=True)][::5]:
            appeared, picture = frame_at(clip("irregular.mp4"), time)
            assert (appeared, read(picture)) == (time, read(frame))


def test_the_picture_is_upright_and_has_square_pixels() -> None:
    turned = Clip(
        "still.mp4", 20, options=H264, rotation=(90.0, False, False), stored=lambda image: np.rot90(image, -1)
    )
    assert frame_at(made(turned), 0.5)[1].shape == (120, 160, 3)
    wide = Clip("wide.mp4", 20, options=H264, pixel_ratio=Fraction(3, 2))
    assert frame_at(made(wide), 0.5)[1].shape == (120, 240, 3)


def test_the_picture_by_decord() -> None:
    appeared, picture = frame_at(clip("plain.mp4"), 5.01, decoder="decord")
    assert (read(picture), picture.shape) == (150, (120, 160, 3))
    assert appeared == pytest.approx(5.0)


def test_there_is_no_picture_after_the_end() -> None:
    with pytest.raises(ConfigError, match="from 0:10 on"):
        frame_at(clip("plain.mp4"), 10.0)
    with pytest.raises(ConfigError, match="begin at 0"):
        frame_at(clip("plain.mp4"), -1.0)
    with pytest.raises(VideoError, match="no file"):
        frame_at("missing.mp4", 1.0)
