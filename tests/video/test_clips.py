"""Clips show what the video showed: packets as they are where that can be, pictures encoded anew where not."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from kvvideo.errors import ConfigError, VideoError
from kvvideo.video.clips import cut
from tests.helpers.clips import Clip, clip, read, shown

COPIED = (
    "plain.mp4",
    "open_gop.mp4",
    "plain.mkv",
    "late_start.ts",
    "hevc.mp4",
    "hevc.ts",
    "mpeg4.mp4",
    "av1.mp4",
    "fragments.mp4",
)
"""Clips whose packets mp4 takes."""

ENCODED = ("mpeg2.ts", "motion_jpeg.mp4", "spaced.avi", "mpeg4.avi", "bare.h264")
"""Clips of other codecs, or without times."""

START, END = 2.5, 3.7
"""A stretch that begins and ends between two keyframes of nearly all of them."""


def pictures(path: Path) -> list[tuple[float, int | None]]:
    """The numbers that players show, with their times."""
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        return [
            (round(float(frame.pts * stream.time_base), 3), read(frame.to_ndarray(format="rgb24")))
            for frame in container.decode(stream)
        ]


def packets(path: Path, kind: str = "video") -> list[bytes]:
    """The data of all packets of one kind of stream."""
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        return [bytes(packet) for packet in container.demux(stream) if packet.size]


def wanted(path: Path, start: float, end: float) -> list[int]:
    """The numbers shown from ``start`` to ``end``; the first may have been there before."""
    frames, _ = shown(path)
    return [number for time, number in frames if start - 1 / 30 + 1e-3 < time < end - 1e-3]


@pytest.mark.parametrize("name", COPIED)
def test_packets_are_copied_and_what_leads_to_the_first_frame_is_hidden(name: str, tmp_path: Path) -> None:
    source, target = clip(name), tmp_path / "cut.mp4"
    cut(source, START, END, target)
    found = pictures(target)
    numbers = [number for _, number in found]
    expected = wanted(source, START, END)
    # A few frames that others need may follow.
    assert numbers[: len(expected)] == expected
    assert len(numbers) - len(expected) <= 3
    assert found[0][0] == 0
    assert len(packets(target)) >= len(found) + 10  # those that are hidden
    # Transport streams mark units by start codes, and mp4 by their lengths.
    if source.suffix != ".ts":
        assert {*packets(target)} <= {*packets(source)}


@pytest.mark.parametrize("name", ENCODED)
def test_what_mp4_does_not_take_is_encoded_anew(name: str, tmp_path: Path) -> None:
    source, target = clip(name), tmp_path / "cut.mp4"
    cut(source, START, END, target)
    times, numbers = zip(*pictures(target), strict=True)
    around = wanted(source, START - 1 / 30, END)
    assert numbers[0] in around[:2]
    assert [*numbers] == [*range(numbers[0], around[-1] + 1)]
    assert times[0] == 0
    assert len(packets(target)) == len(numbers)


def test_a_group_too_long_to_be_hidden_is_encoded_anew(tmp_path: Path) -> None:
    """Its only keyframe is half a minute and more before the stretch."""
    source = tmp_path / "slow.mp4"
    Clip(
        "slow.mp4",
        frames=100,
        rate=2,
        options={"preset": "veryfast", "g": "999", "sc_threshold": "0", "x264-params": "log-level=none"},
    ).write(source)
    cut(source, 20.0, 24.0, tmp_path / "near.mp4")
    cut(source, 40.0, 44.0, tmp_path / "far.mp4")
    assert [number for _, number in pictures(tmp_path / "near.mp4")][:8] == [*range(40, 48)]
    assert [number for _, number in pictures(tmp_path / "far.mp4")] == [*range(80, 88)]
    assert len(packets(tmp_path / "near.mp4")) > 40
    assert len(packets(tmp_path / "far.mp4")) == 8


def test_a_frame_that_stands_for_long_is_where_the_clip_begins(tmp_path: Path) -> None:
    """The frame shown at the beginning appeared long before; without it the clip would begin black."""
    source = tmp_path / "slow.mp4"
    Clip("slow.mp4", frames=10, rate=1, options={"preset": "veryfast", "x264-params": "log-level=none"}).write(source)
    cut(source, 3.5, 6.5, tmp_path / "cut.mp4")
    assert [number for _, number in pictures(tmp_path / "cut.mp4")][:4] == [3, 4, 5, 6]


def test_sound_comes_with_the_pictures(tmp_path: Path) -> None:
    for name in ("audio.mp4", "longer_audio.mkv"):
        cut(clip(name), START, END, tmp_path / name)
        assert {*packets(tmp_path / name, "audio")} <= {*packets(clip(name), "audio")}
        with av.open(str(tmp_path / name)) as container:
            sound: Any = container.streams.audio[0]
            heard = sum(frame.samples for frame in container.decode(sound)) / sound.rate
        assert heard == pytest.approx(END - START, abs=0.3)


def test_pictures_encoded_anew_are_upright_and_of_their_size(tmp_path: Path) -> None:
    source = tmp_path / "turned.mov"
    Clip("turned.mov", frames=60, codec="mjpeg", rotation=(90.0, False, False), options={"strict": "unofficial"}).write(
        source
    )
    cut(source, 0.0, 1.0, tmp_path / "cut.mp4")
    with av.open(str(tmp_path / "cut.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height) == (120, 160)
        turned = [read(np.rot90(frame.to_ndarray(format="rgb24"), by)) for by in (1, 3)]
    assert 0 in turned


def test_what_cannot_be_cut_is_refused_in_one_line(tmp_path: Path) -> None:
    target = tmp_path / "cut.mp4"
    with pytest.raises(ConfigError, match="nothing from 0:03 to 0:03 to cut out"):
        cut(clip("plain.mp4"), 3.0, 3.0, target)
    with pytest.raises(ConfigError, match="'rtsp://camera/' is no file: clips can be cut out of files only"):
        cut("rtsp://camera/", 0.0, 1.0, target)
    with pytest.raises(VideoError, match="there is no file"):
        cut(tmp_path / "missing.mp4", 0.0, 1.0, target)
    with pytest.raises(VideoError, match="shows nothing to write a clip of"):
        cut(clip("plain.mp4"), 300.0, 304.0, target)
    with pytest.raises(VideoError, match="cannot be written: No such file or directory"):
        cut(clip("plain.mp4"), 0.0, 1.0, tmp_path / "none" / "cut.mp4")
    assert not target.exists()
