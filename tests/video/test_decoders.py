"""The right frames, in the right shape, from every kind of clip: against decoding everything."""

import gc
import logging
import os
import threading
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from kvvideo.doctor.machine import gpu_is_there
from kvvideo.errors import ConfigError, VideoError
from kvvideo.video import DECODERS, MAX_PIXELS, MIN_PIXELS, frame_size, plan, read_chunks
from kvvideo.video.decoder import open_decoder
from kvvideo.video.sampling import Grid
from tests.helpers.clips import CLIPS, DIRECTORY, H264, Clip, Image, clip, copy, draw, expected, made, numbers, shown
from tests.helpers.commands import run

HERE = [name for name in DECODERS if name != "nvdec" or gpu_is_there()]
DECORD_FIT = ["plain.mp4", "long_gop.mp4", "no_b_frames.mp4", "irregular.mp4", "odd.mp4", "audio.mp4"]
DECORD_UNFIT = ["hevc.mp4", "late_start.ts", "spaced.avi", "live.mkv", "pre_roll.mp4", "bare.h264"]


def check(name: str, fps: float, seconds: float, start: float = 0.0, end: float | None = None, **kw: str) -> None:
    path = clip(name)
    times = {number: time for time, number in shown(path)[0]}
    wanted = expected(path, fps, start, end)
    small = {"min_pixels": 1, "max_pixels": 24 * 784}
    chunks = list(read_chunks(str(path), fps, seconds, start, end, **small, **kw))  # type: ignore[arg-type]
    padded = wanted + wanted[-1:] * (len(wanted) % 2)
    assert numbers(chunks) == padded
    assert [t for chunk in chunks for t in chunk.times] == pytest.approx([times[n] for n in padded], abs=2e-6)


@pytest.mark.parametrize(
    ("fps", "seconds"),
    [(2, 4), pytest.param(0.2, 10, marks=pytest.mark.slow), pytest.param(7.5, 4, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("name", CLIPS)
def test_every_grid_shows_the_frames_a_player_shows(name: str, fps: float, seconds: float) -> None:
    check(name, fps, seconds)


@pytest.mark.parametrize(("start", "end"), [(3.3, 99.0), (0.25, 2.2), (1.999, 4.001), (2.0, 2.1)])
@pytest.mark.parametrize("name", [n for n, c in CLIPS.items() if c.frames > 100])
def test_a_part_is_read_in_source_time(name: str, start: float, end: float | None) -> None:
    if start < shown(clip(name))[1]:
        check(name, 2, 4, start, end)
        check(name, 0.5, 4, start, end)


@pytest.mark.parametrize("seed", range(8))
def test_random_settings(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [n for n, c in CLIPS.items() if c.frames > 100]
    for _ in range(6):
        fps, pairs = float(rng.choice([0.1, 0.7, 1, 2, 3, 4.7, 29.97, 60])), int(rng.integers(1, 9))
        start = float(rng.uniform(0, 4.9))
        end = start + float(rng.uniform(0.1, 8)) if rng.random() < 0.5 else None
        check(str(rng.choice(names)), fps, 2 * pairs / fps, start, end)


@pytest.mark.parametrize("name", DECORD_FIT)
def test_decord_shows_the_same(name: str) -> None:
    check(name, 2, 4, decoder="decord")
    check(name, 5, 2, 1.3, 3.1, decoder="decord")


@pytest.mark.parametrize("name", DECORD_UNFIT)
def test_decord_refuses_what_it_gets_wrong(name: str) -> None:
    with pytest.raises(VideoError, match="default decoder, pyav"):
        list(read_chunks(str(clip(name)), decoder="decord"))


def test_decord_must_be_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    with pytest.raises(ConfigError, match="pip install"):
        list(read_chunks(str(clip("plain.mp4")), decoder="decord"))
    fake = type("Decord2", (), {"__version__": "3.4.0"})
    monkeypatch.setitem(__import__("sys").modules, "decord", fake)
    with pytest.raises(ConfigError, match="decord2"):
        list(read_chunks(str(clip("plain.mp4")), decoder="decord"))


def test_decord_need_not_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is an extra; who asks for it is told how to get it, and all else works."""
    (tmp_path / "decord.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    clip_ = clip("plain.mp4")
    done = run(capfd, "analyze", clip_, "--model", "tiny", "--dry-run", "--decoder", "decord")
    assert done.returncode == 2
    assert done.stderr.startswith("kvvideo: decord is not installed: pip install ")
    assert done.stderr.count("\n") == 1
    assert run(capfd, "analyze", clip_, "--model", "tiny", "--dry-run").returncode == 0


@pytest.mark.parametrize("decoder", HERE)
def test_chunks_are_whole_and_even(decoder: str) -> None:
    chunks = list(read_chunks(str(clip("plain.mp4")), 3, 2, 0.5, 9.4, decoder=decoder))
    assert [(c.start, c.end) for c in chunks] == [(0.5, 2.5), (2.5, 4.5), (4.5, 6.5), (6.5, 8.5), (8.5, 9.4)]
    assert [len(c.frames) for c in chunks] == [6, 6, 6, 6, 4]
    assert chunks[-1].times[-2] == chunks[-1].times[-1]  # three moments, and one shown again
    for chunk in chunks:
        assert chunk.fps == 3
        assert chunk.frames.dtype == np.uint8
        assert chunk.frames.shape[1:] == (*frame_size(120, 160), 3)
        assert len(chunk.times) == len(chunk.frames)
        assert list(chunk.times) == sorted(chunk.times)


@pytest.mark.parametrize("decoder", HERE)
def test_sizes_are_what_was_asked_for(decoder: str) -> None:
    pixels = 200 * 28 * 28
    (chunk,) = read_chunks(str(clip("odd.mp4")), 2, 4, min_pixels=pixels, max_pixels=2 * pixels, decoder=decoder)
    assert chunk.frames.shape[1:3] == frame_size(77, 131, pixels, 2 * pixels)


ROTATIONS = {
    (90.0, False, False): lambda image: np.rot90(image, -1),
    (180.0, False, False): lambda image: np.rot90(image, 2),
    (270.0, False, False): lambda image: np.rot90(image, 1),
    (0.0, True, False): lambda image: image[:, ::-1],
    (0.0, False, True): lambda image: image[::-1],
    (90.0, True, False): lambda image: np.rot90(image[:, ::-1], -1),
}


@pytest.mark.parametrize("rotation", ROTATIONS, ids=str)
def test_pictures_stand_upright(rotation: tuple[float, bool, bool]) -> None:
    path = made(Clip(f"turned{rotation}.mp4", 30, options=H264, rotation=rotation, stored=ROTATIONS[rotation]))
    with open_decoder("pyav", str(path)) as decoder:
        assert (decoder.info.width, decoder.info.height) == (160, 120)
        chunks = list(decoder.chunks(Grid.of(5, 2, 0, None), MIN_PIXELS, MAX_PIXELS))
    assert numbers(chunks)[:5] == [0, 6, 12, 18, 24]
    assert chunks[0].frames.shape[1:3] == frame_size(120, 160)


def test_decord_turns_pictures_too() -> None:
    rotation = (90.0, False, False)
    path = made(Clip("decord_turned.mp4", 30, options=H264, rotation=rotation, stored=ROTATIONS[rotation]))
    assert numbers(list(read_chunks(str(path), 5, 2, decoder="decord")))[:5] == [0, 6, 12, 18, 24]


def test_wide_pixels_are_shown_wide() -> None:
    path = made(Clip("anamorphic.mkv", 30, options=H264, pixel_ratio=Fraction(2)))
    (chunk,) = read_chunks(str(path), 2, 4)
    assert chunk.frames.shape[1:3] == frame_size(120, 320)
    assert numbers([chunk])[:2] == [0, 15]


def test_resizing_averages_and_keeps_colours() -> None:
    def stripes(image: Image) -> Image:
        image = np.zeros_like(image)
        image[:, ::2] = 255  # far finer than the result: any pixels skipped would show
        image[:50] = (200, 40, 90)
        return image

    path = made(Clip("stripes.mp4", 2, size=(1568, 784), options={"qp": "1"}, stored=stripes))
    (chunk,) = read_chunks(str(path), 30, 2, max_pixels=128 * 784)
    assert chunk.frames.shape[1:3] == frame_size(784, 1568, max_pixels=128 * 784)
    inside = chunk.frames[0, :, 4:-4].astype(int)
    assert np.abs(inside[30:-4] - 127).max() < 12
    assert np.abs(inside[2:10] - (200, 40, 90)).max() < 12


def test_cover_art_is_no_video() -> None:
    path = DIRECTORY / "song.mp4"
    with av.open(str(path), "w") as out:
        sound = out.add_stream("aac", rate=8000, layout="mono")
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 160, 120, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(draw(1, 160, 120), format="rgb24")))
        out.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    with pytest.raises(VideoError, match="only audio"):
        list(read_chunks(str(path)))


def test_without_times_frames_are_spaced_evenly_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kvvideo.video"):
        list(read_chunks(str(clip("bare.h264"))))
    assert "no display times" in caplog.text


@pytest.mark.parametrize("name", ["plain.mkv", "late_start.ts"])
@pytest.mark.parametrize("start", [0.0, 4.2])
def test_a_pipe_is_read_as_it_comes(name: str, start: float, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(clip(name).read_bytes()))
    writer.start()
    chunks = list(read_chunks(str(pipe), 2, 4, start))
    writer.join()
    wanted = expected(clip(name), 2, start)
    assert numbers(chunks)[: len(wanted)] == wanted


def test_the_time_of_a_matroska_recording_that_began_late(tmp_path: Path) -> None:
    path = made(Clip("late.mkv", options=H264, first=30 * 600))
    wanted = expected(path, 2)
    chunks = list(read_chunks(str(path)))
    assert numbers(chunks) == wanted
    assert chunks[0].times[0] == 0
    with open_decoder("pyav", str(path)) as decoder:
        assert decoder.info.duration == pytest.approx(10, abs=0.01)


def test_only_what_is_needed_is_decoded() -> None:
    """At one frame in 10 s, a long group of pictures is not decoded beyond its last wanted frame."""
    with open_decoder("pyav", str(clip("long_gop.mp4"))) as decoder:
        fed = list(decoder._steps(Grid.of(0.1, 20, 0.0, 15.0)))  # type: ignore[attr-defined]
        assert [step.coded.time for step in fed if step.fresh] == [pytest.approx(250 / 30, abs=1e-3)]
        assert len(fed) < 70  # of 600: one frame of the first group, and the second up to 10 s
    with open_decoder("pyav", str(clip("intra_refresh.mp4"))) as decoder:
        # Its later "keyframes" are not complete: decoding cannot begin there.
        fed = list(decoder._steps(Grid.of(0.2, 10, 0.0, None)))  # type: ignore[attr-defined]
        assert not any(step.fresh for step in fed[1:])


def test_frames_are_freed_as_they_are_used() -> None:
    """Without waiting for the garbage collector, which rarely comes: each may be 12 MB."""
    with open_decoder("pyav", str(clip("plain.mp4"))) as decoder:
        gc.collect()
        gc.disable()
        try:
            list(decoder.chunks(Grid.of(10, 2, 0.0, None), 1, 10**5))
            assert sum(type(thing) is av.VideoFrame for thing in gc.get_objects()) < 8
        finally:
            gc.enable()


@pytest.mark.parametrize("name", ["late_start.ts", "mpeg2.ts", "hevc.ts"])
def test_a_recording_that_begins_between_keyframes(name: str, tmp_path: Path) -> None:
    """Frames that cannot be decoded are not shown, and the first good one stands for them."""
    packets = clip(name).read_bytes()
    path = tmp_path / name
    tables = packets[: 188 * 3]  # PAT, PMT and SDT, without which there is no stream
    path.write_bytes(tables + packets[len(packets) // 8 // 188 * 188 :])
    seen = numbers(read_chunks(str(path), 2, 4))
    assert len(seen) >= 14
    assert seen[4:] == sorted(seen[4:], key=lambda n: n or 0)
    assert [b - a for a, b in pairwise(seen[4:-1])] == [15] * (len(seen) - 6)


@pytest.mark.parametrize("name", CLIPS)
def test_the_plan_is_what_comes(name: str) -> None:
    with open_decoder("pyav", str(clip(name))) as decoder:
        info = decoder.info
        made_of = list(decoder.chunks(Grid.of(3, 2, 0.01, None), 1, 10**5))
    ahead = plan(info, 3, 2, 0.01, min_pixels=1, max_pixels=10**5)
    assert (ahead.height, ahead.width) == made_of[0].frames.shape[1:3]
    if info.duration is None or name == "longer_audio.mkv":  # Matroska tells only when the last stream ends
        return
    assert ahead.chunks == len(made_of)
    assert ahead.frames == sum(len(chunk.frames) for chunk in made_of)
    assert ahead.tokens == sum(c.frames[0].size // 3 // 784 * len(c.frames) // 2 for c in made_of)


def test_copied_clips_with_the_index_in_front_are_the_same(tmp_path: Path) -> None:
    path = copy(clip("plain.mp4"), tmp_path / "front.mp4", movflags="faststart")
    assert numbers(list(read_chunks(str(path)))) == expected(clip("plain.mp4"), 2)
