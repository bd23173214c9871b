"""Whole files as vLLM's video loader gives them: the frames that ``analyze`` sees, with what processors ask of them."""

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from vllm import envs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

from kvvideo.plugin import loader
from kvvideo.plugin.register import register
from kvvideo.video import read_chunks
from tests.helpers.clips import CLIPS, Clip, clip, expected, made, read

register()


def load(data: bytes, **options: Any) -> tuple[Any, dict[str, Any]]:
    return VIDEO_LOADER_REGISTRY.load("kvvideo").load_bytes(data, **options)


def numbers(frames: Any) -> list[int | None]:
    return [read(frame) for frame in frames]


@pytest.mark.parametrize("name", sorted(CLIPS.keys() - {"spaced.avi", "mpeg4.avi", "bare.h264"}))
def test_the_frames_are_those_that_analyze_sees(name: str):
    path = clip(name)
    frames, about = load(path.read_bytes(), fps=2.0, num_frames=-1)
    seen = np.concatenate([chunk.frames for chunk in read_chunks(str(path), fps=2.0)])
    assert np.array_equal(frames, seen)
    shown = expected(path, 2.0)
    assert numbers(frames) == shown + shown[-1:] * (len(shown) % 2)
    # A pair of frames is a second: what M-RoPE's times are made of.
    assert len(about["frames_indices"]) / about["total_num_frames"] * about["fps"] == 2.0
    assert about["duration"] == len(frames) / 2.0


@pytest.mark.parametrize("name", ["spaced.avi", "mpeg4.avi", "bare.h264"])
def test_files_without_times(name: str):
    frames, _ = load(clip(name).read_bytes(), fps=2.0)
    assert np.array_equal(frames, np.concatenate([chunk.frames for chunk in read_chunks(str(clip(name)))]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain.mp4", "live.mkv"])
@pytest.mark.parametrize(
    ("options", "rate", "count"),
    [
        ({"num_frames": 5}, 0.5, 5),  # 10 s, with or without saying so
        ({"num_frames": 32, "fps": 1.0}, 1.0, 10),  # the 32 are vLLM's own
        ({"num_frames": 5, "fps": 2.0}, 0.5, 5),
        ({"num_frames": 50, "fps": 2.0}, 2.0, 20),
        ({"fps": 2.0, "max_duration": 5}, 1.0, 10),
        ({"fps": 2.0, "max_duration": 60, "frame_recovery": True, "backend": "opencv"}, 2.0, 20),
        ({}, 30.0, 300),
    ],
)
def test_how_many_frames(name: str, options: dict[str, Any], rate: float, count: int):
    path = clip(name)
    frames, about = load(path.read_bytes(), **options)
    assert about["fps"] == pytest.approx(rate, abs=0.01)
    shown = expected(path, about["fps"], end=10.0 if count < 300 else None)
    assert len(shown) == count
    assert numbers(frames) == shown + shown[-1:] * (count % 2)


def test_a_moving_gif(tmp_path: Path):
    path = made(Clip(str(tmp_path / "a.gif"), frames=20, rate=10, codec="gif", pixels="rgb8"))
    assert numbers(load(path.read_bytes(), fps=2.0)[0]) == [0, 5, 10, 15]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"fps": "fast"}, "fps must be a number, not 'fast'"),
        ({"fps": float("nan")}, "fps"),
        ({"num_frames": True}, "num_frames"),
        ({"max_pixels": None}, "max_pixels"),
        ({"fps": 1e6}, "at most 1000"),
        ({"fps": 1e-9}, "not possible"),
        ({"fps": 2.0, "max_pixels": 1}, "max_pixels at least"),
        ({"fps": 2.0, "min_pixels": 1e9, "max_pixels": 1e9}, "too many to hold"),
    ],
)
def test_what_a_request_may_not_ask(options: dict[str, Any], word: str):
    with pytest.raises(VLLMValidationError, match=re.escape(word)):
        load(clip("plain.mp4").read_bytes(), **options)


@pytest.mark.parametrize("name", ["plain.mp4", "live.mkv"])
def test_more_frames_than_may_be_held(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loader, "FRAMES_BYTES", 10 * 280 * 392 * 3)
    data = clip(name).read_bytes()
    assert len(load(data, fps=1.0)[0]) == 10
    with pytest.raises(VLLMValidationError, match=r"more than 10 frames at 2 a second.*num_frames"):
        load(data, fps=2.0)


def test_pictures_larger_than_the_server_takes(monkeypatch: pytest.MonkeyPatch):
    envs.disable_envs_cache()  # an engine that was started in this process settles them
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "1000")
    with pytest.raises(VLLMValidationError, match="160x120"):
        load(clip("plain.mp4").read_bytes(), fps=2.0)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither a file nor a process, whether it could be decoded or not."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = sorted(os.listdir("/proc/self/fd"))
    load(clip("plain.mp4").read_bytes(), num_frames=3)
    with pytest.raises(VLLMValidationError):
        load(b"no video")
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not list(tmp_path.iterdir())
    assert not [one for one in psutil.Process().children() if "kvvideo.video.worker" in " ".join(one.cmdline())]
