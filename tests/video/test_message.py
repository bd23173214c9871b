"""Messages in the form of qwen-vl-utils: what their fields mean, and its own frames beside ours."""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvvideo.errors import ConfigError
from kvvideo.types import Chunk
from kvvideo.video import MAX_PIXELS, MIN_PIXELS, Source
from kvvideo.video.message import source_of
from tests.helpers.clips import CLIPS, H264, Clip, clip, expected, made, numbers, read, shown


def test_fields_are_those_of_a_source() -> None:
    message = {"type": "video", "video": "a.mp4", "fps": 1, "max_pixels": 360 * 420, "min_pixels": 4 * 784}
    message |= {"video_start": 2, "video_end": 5.5, "nframes": None}
    source = source_of(message)
    assert source == Source("a.mp4", 1.0, 4.0, 2.0, 5.5, 4 * 784, 360 * 420)
    assert isinstance(source.fps, float)
    assert source_of({"video": "a.mp4"}) == Source("a.mp4")
    assert source_of({"video": Path("a.mp4")}) == Source("a.mp4")


@pytest.mark.parametrize(
    ("video", "path"),
    [
        ("file:///films/a%20b.mp4", "/films/a b.mp4"),
        ("https://example.org/a%20b.mp4", "https://example.org/a%20b.mp4"),
        ("rtsp://example.org/door", "rtsp://example.org/door"),
    ],
)
def test_a_video_is_a_path_or_a_url(video: str, path: str) -> None:
    assert source_of({"video": video}).path == path


def test_a_chat_holds_the_video() -> None:
    element = {"type": "video", "video": "a.mp4", "fps": 4.0}
    user = {"role": "user", "content": [element, {"type": "text", "text": "Who came in?"}, {"text": "And then?"}]}
    chat = [{"role": "system", "content": "You watch."}, user]
    assert source_of(user) == source_of(chat) == source_of(element) == Source("a.mp4", 4.0)


@pytest.mark.parametrize("fps", [0.1, 0.3, 1, 1.3, 2, 5, 7.5, 24000 / 1001, 29.97, 60, 1000])
def test_any_rate_gives_chunks_of_pairs(fps: float) -> None:
    source = source_of({"video": "a.mp4", "fps": fps})
    per_chunk = source.fps * source.chunk_seconds
    assert per_chunk == pytest.approx(2 * round(per_chunk / 2))
    assert abs(source.chunk_seconds - 4) <= 1 / fps or per_chunk == pytest.approx(2)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"nframes": 16}, "nframes of a message cannot be honoured; use fps"),
        ({"min_frames": 4}, "min_frames .* use fps"),
        ({"max_frames": 768}, "max_frames .* use fps with video_end"),
        ({"total_pixels": 20480 * 784}, "total_pixels .* use max_pixels"),
        ({"resized_height": 280, "resized_width": 280}, "resized_height .* use max_pixels"),
        ({"sample_fps": 2.0}, "no 'sample_fps'; it has type, video, fps, video_start, video_end, min_pixels, max_p"),
        ({"fps": "2"}, "fps of a message must be a number, not '2'"),
        ({"fps": True}, "fps of a message must be a number"),
        ({"fps": 0}, "fps of a message must be above 0 and at most 1000, not 0"),
        ({"fps": float("nan")}, "fps of a message must be a number"),
        ({"max_pixels": 1e5}, "max_pixels of a message must be a whole number"),
        ({"min_pixels": 10**400}, "min_pixels of a message must be a whole number"),
        ({"max_pixels": 783}, "max_pixels at least 784"),
        ({"max_pixels": 100 * 784}, "min_pixels must be from 1 to max_pixels"),
        ({"video_start": -1}, "times begin at 0"),
        ({"video_start": 5, "video_end": 4}, "end must be after the start"),
        ({"type": "image"}, "type of a message must be 'video', not 'image'"),
        ({"video": ["a.png", "b.png"]}, "video of a message must be a path or a URL, not "),
        ({"video": None}, "video of a message must be a path or a URL, not None"),
        ({"content": None}, "content of a message must be text or a list of elements, not None"),
        ({"content": [{"type": "text", "text": "?"}]}, "must hold one video, not 0"),
        ({"content": [{"video": "a.mp4"}, {"image": "b.png"}]}, "must hold one video, not 2"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused(message: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        source_of({"type": "video", "video": "a.mp4", **message})


def test_frames_are_no_larger_than_qwen_vl_utils_allows(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kvvideo.video"):
        assert source_of({"video": "a.mp4", "max_pixels": MAX_PIXELS}).max_pixels == MAX_PIXELS
        assert not caplog.text
        assert source_of({"video": "a.mp4", "max_pixels": 2 * MAX_PIXELS}).max_pixels == MAX_PIXELS
    assert "is above what qwen-vl-utils allows: 602112" in caplog.text


# Beside process_vision_info ------------------------------------------------------------------------------


def theirs(qwen: ModuleType, message: dict[str, Any]) -> tuple[npt.NDArray[np.float32], list[int], float]:
    """Its frames ``[n, height, width, 3]``, the number that each shows, and the rate that it tells the model."""
    _, videos, more = qwen.process_vision_info([{"role": "user", "content": [message]}], return_video_kwargs=True)
    frames = videos[0].permute(0, 2, 3, 1).numpy()
    shown = [read(np.ascontiguousarray(frame.clip(0, 255).astype(np.uint8))) for frame in frames]
    return frames, [number for number in shown if number is not None], more["fps"][0]


def ours(message: dict[str, Any]) -> tuple[npt.NDArray[np.uint8], list[int | None], list[Chunk]]:
    """Our frames, the number that each shows, and the chunks."""
    with source_of(message).open() as reader:
        chunks = list(reader)
    return np.concatenate([chunk.frames for chunk in chunks]), numbers(chunks), chunks


LARGE = Clip("message.mp4", 30, size=(1280, 720), options=H264)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_pixels": 360 * 420},
        {"min_pixels": 300 * 784},
        {"min_pixels": 800 * 784},
        {"max_pixels": 10**7},
        {"min_pixels": 4 * 784, "max_pixels": 64 * 784},
    ],
    ids=str,
)
@pytest.mark.parametrize("wanted", [CLIPS["odd.mp4"], CLIPS["plain.mp4"], LARGE], ids=lambda wanted: wanted.name)
def test_sizes_are_its_sizes(qwen: ModuleType, wanted: Clip, fields: dict[str, int]) -> None:
    message = {"type": "video", "video": str(made(wanted)), "fps": 4.0, **fields}
    assert ours(message)[0].shape == theirs(qwen, message)[0].shape


@pytest.mark.parametrize(
    "part", [{"video_end": 2.99}, {"video_start": 2.0, "video_end": 3.99}, {"video_start": 7.0}], ids=str
)
def test_where_every_frame_is_taken_they_are_its_frames(qwen: ModuleType, part: dict[str, float]) -> None:
    message = {"type": "video", "video": str(clip("plain.mp4")), "fps": 30.0, **part}
    (frames, these, _), (others, those, _) = ours(message), theirs(qwen, message)
    assert these == those
    assert len(these) >= 60
    # Two scalers, both bicubic: they differ along the edges of what is drawn.
    assert np.abs(frames - others).mean() < 2


def off(seen: Sequence[int | None], path: Path, fps: float, start: float = 0.0) -> list[float]:
    """Seconds by which each frame appeared before (-) or after the moment that it is said to be of."""
    times = {number: time for time, number in shown(path)[0]}
    return [times[number or 0] - (start + i / fps) for i, number in enumerate(seen)]


@pytest.mark.parametrize("name", ["plain.mp4", "long_gop.mp4"])
@pytest.mark.parametrize("fps", [1.0, 2.0, 5.0])
def test_elsewhere_ours_are_those_of_the_moments(qwen: ModuleType, name: str, fps: float) -> None:
    """As many as it takes, at the rate that it tells; but its last is the last of the video, a step too late."""
    path = clip(name)
    message = {"type": "video", "video": str(path), "fps": fps}
    (_, these, _), (_, those, rate) = ours(message), theirs(qwen, message)
    assert these == expected(path, fps)
    assert (len(these), fps) == (len(those), rate)
    assert all(-1 / 30 < each < 1e-6 for each in off(these, path, fps))
    assert off(those, path, fps)[-1] == pytest.approx(1 / fps - 1 / 30, abs=1e-3)


def test_of_variable_rate_its_frames_are_of_other_moments(qwen: ModuleType) -> None:
    path = clip("irregular.mp4")
    message = {"type": "video", "video": str(path), "fps": 2.0}
    (_, these, chunks), (_, those, _) = ours(message), theirs(qwen, message)
    assert these[: len(expected(path, 2.0))] == expected(path, 2.0)
    assert all(time <= chunk.start + i / 2 + 1e-6 for chunk in chunks for i, time in enumerate(chunk.times))
    assert max(abs(each) for each in off(those, path, 2.0)) > 2


def test_its_part_has_the_frame_at_the_end_too(qwen: ModuleType) -> None:
    message = {"type": "video", "video": str(clip("plain.mp4")), "fps": 2.0, "video_start": 2.0, "video_end": 4.0}
    (_, these, _), (_, those, _) = ours(message), theirs(qwen, message)
    assert these == [60, 75, 90, 105]
    assert (those[0], those[-1]) == (60, 120)


def test_of_an_odd_number_none_is_lost(qwen: ModuleType) -> None:
    message = {"type": "video", "video": str(clip("plain.mp4")), "fps": 0.5}
    (_, these, _), (_, those, _) = ours(message), theirs(qwen, message)
    assert these == [0, 60, 120, 180, 240, 240]
    assert len(those) == 4


def test_a_long_video_keeps_its_rate(qwen: ModuleType) -> None:
    """It takes 768 frames of an hour at most, and ours is a plan of all."""
    assert qwen.smart_nframes({"fps": 2.0}, total_frames=30 * 3600, video_fps=30.0) == 768
    assert (source_of({"video": "hour.mp4"}).fps, qwen.FPS) == (2.0, 2.0)
    assert (MIN_PIXELS, MAX_PIXELS) == (qwen.VIDEO_MIN_TOKEN_NUM * 784, qwen.VIDEO_MAX_TOKEN_NUM * 784)
