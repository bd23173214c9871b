"""Inputs that are not good videos: one clear line each, after whatever could be decoded."""

import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from kvvideo.errors import ConfigError, VideoError
from kvvideo.video import VideoReader, probe, read_chunks
from tests.helpers.clips import H264, Clip, clip, copy, drain, expected, made, numbers


def front() -> Path:
    """A clip whose index comes first, so that part of it can be read."""
    path = clip("plain.mp4").with_name("front.mp4")
    return path if path.exists() else copy(clip("plain.mp4"), path, movflags="faststart")


def noise(size: int) -> bytes:
    return np.random.default_rng(1).bytes(size)


def cut(path: Path, share: float) -> bytes:
    """The beginning of a file, with a share of what comes after an index in front, if there is one."""
    data = path.read_bytes()
    begin = max(0, data.find(b"mdat"))
    return data[: begin + int((len(data) - begin) * share)]


def sound(path: Path) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def picture(path: Path) -> None:
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as out:
        stream = out.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        out.mux(stream.encode(None))


def undecodable(path: Path) -> None:
    """An intact container around frames that are none."""
    data = bytearray(front().read_bytes())
    at = data.index(b"mdat") + 4
    data[at:] = noise(len(data) - at)
    path.write_bytes(data)


HOPELESS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.mp4": (lambda path: None, "no file"),
    "directory.mp4": (Path.mkdir, "directory"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "empty"),
    "text.mp4": (lambda path: path.write_text("not a video\n" * 100), "not a video"),
    "notes.txt": (lambda path: path.write_text("dear diary\n" * 1000), "not a video"),
    "list.m3u8": (
        lambda path: path.write_text("#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a.ts\n"),
        "not a video",
    ),
    "noise.mp4": (lambda path: path.write_bytes(noise(10000)), "not a video"),
    "zeros.mp4": (lambda path: path.write_bytes(bytes(10000)), "not a video"),
    "no_index.mp4": (lambda path: path.write_bytes(clip("plain.mp4").read_bytes()[:9000]), "not a video"),
    "stub.mkv": (lambda path: path.write_bytes(cut(clip("plain.mkv"), 0.003)), "not a video"),
    "sound.m4a": (sound, "only audio"),
    "picture.png": (picture, "image"),
    "undecodable.mp4": (undecodable, "no frame"),
}


@pytest.mark.parametrize("name", HOPELESS)
def test_no_video_gives_one_line(name: str, tmp_path: Path) -> None:
    make, words = HOPELESS[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(VideoError, match=words) as caught:
        VideoReader(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    with pytest.raises(VideoError, match=words):
        probe(path)
    with pytest.raises(VideoError, match=words):
        list(read_chunks(str(path), decoder="decord"))


@pytest.mark.parametrize("name", ["ftp://127.0.0.1:9/a.mp4", "file:///etc/passwd", "concat://a.ts", "pipe://0"])
def test_other_urls_are_not_fetched(name: str) -> None:
    with pytest.raises(VideoError, match=r"one of rtsp, .*https$"):
        VideoReader(name)
    with pytest.raises(VideoError, match="no file"):
        VideoReader(name.replace("//", ""))


def test_another_decoder_than_that_of_streams_fetches_nothing() -> None:
    with pytest.raises(VideoError, match="no file"):
        list(read_chunks("http://127.0.0.1:9/a.mp4"))


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(VideoError) as caught:
        VideoReader(tmp_path / "a\x1b[31m\nb.mp4")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["12:30 file.mp4", "http:a.mp4", "%d.mp4", "a b'c\".mp4", "-x.mp4", "ü☃.mp4"])
def test_any_name_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(clip("odd.mp4").read_bytes())
    assert probe(name).width == 131


def test_a_name_that_is_not_text_works(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff.mp4"
    Path(os.fsdecode(path)).write_bytes(clip("odd.mp4").read_bytes())
    assert probe(os.fsdecode(path)).width == 131


def damaged(path: Path) -> tuple[list[int | None], str]:
    """Return what a reader gives of a damaged file: the numbers it shows, and the error at the end."""
    with VideoReader(path) as reader:
        chunks, error = drain(reader)
    assert error is not None
    assert all(len(chunk.frames) % 2 == 0 for chunk in chunks)
    return numbers(chunks), str(error)


def same_up_to_the_end(seen: list[int | None], wanted: list[int]) -> bool:
    """All but the last second must be right: damage reaches back as far as frames are reordered."""
    return seen[:-3] == wanted[: len(seen) - 3]


@pytest.mark.parametrize("name", ["plain.mp4", "plain.mkv", "hevc.mp4", "audio.mp4"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_file_cut_short_gives_what_it_holds_first(name: str, share: float, tmp_path: Path) -> None:
    whole = tmp_path / f"whole{Path(name).suffix}"
    copy(clip(name), whole, **({"movflags": "faststart"} if name.endswith("mp4") else {}))
    path = tmp_path / name
    path.write_bytes(cut(whole, share))
    seen, error = damaged(path)
    wanted = expected(clip(name), 2)
    assert len(wanted) * share * 0.5 < len(seen) < len(wanted)
    assert same_up_to_the_end(seen, wanted)
    assert "stopped at 0:0" in error
    assert "of 0:10" in error


def test_zeros_in_place_of_what_was_never_downloaded(tmp_path: Path) -> None:
    data = cut(front(), 0.6)
    path = tmp_path / "half.mp4"
    path.write_bytes(data + bytes(front().stat().st_size - len(data)))
    seen, error = damaged(path)
    wanted = expected(clip("plain.mp4"), 2)
    assert len(wanted) * 0.3 < len(seen) < len(wanted)
    assert same_up_to_the_end(seen, wanted)
    assert "damaged" in error


def test_damage_in_the_middle_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = bytearray(front().read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = noise(2000)
    path = tmp_path / "middle.mp4"
    path.write_bytes(data)
    wanted = expected(clip("plain.mp4"), 2)
    with VideoReader(path) as reader:
        seen = numbers(reader)
    assert len(seen) == len(wanted)
    wrong = [i for i, (a, b) in enumerate(zip(seen, wanted, strict=True)) if a != b]
    assert 0 < len(wrong) <= 6
    assert "is damaged" in caplog.text


def test_a_long_stretch_without_frames_ends_it(tmp_path: Path) -> None:
    path = made(Clip("minutes.mp4", 900, 10, options=H264, container={"movflags": "faststart"}))
    data = bytearray(path.read_bytes())
    data[len(data) // 3 :] = noise(len(data) - len(data) // 3)
    path = tmp_path / "minutes.mp4"
    path.write_bytes(data)
    seen, error = damaged(path)
    assert 20 < len(seen) < 90
    assert "damaged" in error


@pytest.mark.parametrize("start", [0.0, 3.5, 13.5])
def test_joined_recordings_go_on(start: float, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As they do where they come through a pipe."""
    path = tmp_path / "joined.ts"
    path.write_bytes(clip("late_start.ts").read_bytes() * 2)
    with VideoReader(path, start=start) as reader:
        chunks, error = drain(reader)
    assert error is None
    once = expected(clip("late_start.ts"), 2)
    both = [*once, *once][round(2 * start) :]
    assert numbers(chunks) == both + both[-1:] * (len(both) % 2)
    assert "goes back by 0:10 at 0:10, as in joined recordings; time goes on from there" in caplog.text


def test_decord_sends_damaged_files_to_the_default_decoder(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(cut(front(), 0.6))
    with pytest.raises(VideoError, match="the default decoder"):
        list(read_chunks(str(path), decoder="decord"))


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_nothing_after_the_end(decoder: str) -> None:
    with pytest.raises(ConfigError, match="which lasts 0:10"):
        list(read_chunks(str(clip("plain.mp4")), start=10.0, decoder=decoder))
    reader = VideoReader(clip("plain.mp4"), start=1000.0, decoder=decoder)
    with reader, pytest.raises(ConfigError, match="from 16:40 on"):
        next(reader)


def test_thin_pictures_are_refused() -> None:
    path = made(Clip("thin.mkv", 2, size=(6000, 16), codec="ffv1"))
    with VideoReader(path) as reader, pytest.raises(VideoError, match="long and thin"):
        next(reader)
