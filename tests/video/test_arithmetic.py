"""Sizes, moments, chunks and plans: the arithmetic, against qwen-vl-utils and against brute force."""

import itertools
import math
from collections.abc import Iterator
from random import Random
from types import ModuleType

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvvideo.errors import ConfigError, VideoError
from kvvideo.video import MAX_PIXELS, MIN_PIXELS, VideoInfo, frame_size, plan, tokens
from kvvideo.video.bitstream import _READERS, Access
from kvvideo.video.geometry import FACTOR, displayed_size
from kvvideo.video.sampling import CLOCK_SLACK, Grid, assemble, pick
from kvvideo.video.selection import Coded, Step, select
from tests.helpers.clips import clip

settings.register_profile("video", deadline=None, max_examples=200)
settings.load_profile("video")


def test_sizes_are_those_of_qwen_vl_utils(qwen: ModuleType) -> None:
    assert (MIN_PIXELS, MAX_PIXELS) == (qwen.VIDEO_MIN_TOKEN_NUM * 784, qwen.VIDEO_MAX_TOKEN_NUM * 784)
    rng = np.random.default_rng(0)
    sizes = [*itertools.product((1, 14, 27, 28, 29, 42, 77, 131, 240, 1080, 2160), repeat=2)]
    sizes += [tuple(size) for size in rng.integers(1, 5000, (3000, 2)).tolist()]
    for height, width in sizes:
        for low, high in ((MIN_PIXELS, MAX_PIXELS), (784, 200 * 784), (4 * 784, 16384 * 784)):
            try:
                size = frame_size(height, width, low, high)
            except VideoError:
                if max(height, width) <= 200 * min(height, width):
                    assert 0 in qwen.smart_resize(height, width, FACTOR, low, high)
                else:
                    with pytest.raises(ValueError, match="aspect ratio"):
                        qwen.smart_resize(height, width, FACTOR, low, high)
            else:
                assert size == qwen.smart_resize(height, width, FACTOR, low, high)


sides = st.integers(28, 4320)


@given(sides, sides, st.integers(1, 300), st.integers(1, 20))
def test_a_size_has_nothing_left_to_resize(height: int, width: int, low: int, times: int) -> None:
    smallest, largest = low * 784, low * 784 * (times + 1)
    try:
        high, wide = frame_size(height, width, smallest, largest)
    except VideoError:
        assume(False)
    assert high % 28 == wide % 28 == 0
    assert high >= 28
    assert wide >= 28
    if smallest <= high * wide <= largest:
        assert frame_size(high, wide, smallest, largest) == (high, wide)
    assert tokens(high, wide, 8) == 4 * (high // 28) * (wide // 28)


@pytest.mark.parametrize(("height", "width"), [(1, 201), (201, 1), (0, 5), (5, 0)])
def test_impossible_shapes_are_refused(height: int, width: int) -> None:
    with pytest.raises(VideoError, match="long and thin"):
        frame_size(height, width)


@pytest.mark.parametrize(("low", "high"), [(0, 784), (1000, 784), (1, 783)])
def test_impossible_limits_are_refused(low: int, high: int) -> None:
    with pytest.raises(ConfigError, match="pixels"):
        frame_size(100, 100, low, high)


def test_pixels_that_are_not_square() -> None:
    assert displayed_size(576, 720, 64 / 45) == (576, 1024)
    assert displayed_size(10, 1, 0.01) == (10, 1)


grids = st.builds(
    lambda fps, pairs, start, length: Grid.of(fps, 2 * pairs / fps, start, None if length is None else start + length),
    st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.0, 29.97, 60.0]) | st.floats(0.05, 100),
    st.integers(1, 20),
    st.floats(0, 50),
    st.none() | st.floats(0.01, 60),
)


@given(grids)
def test_moments_lie_within_the_part_and_chunks_meet(grid: Grid) -> None:
    assert grid.per_chunk % 2 == 0
    if grid.count is not None and grid.end is not None:
        assert grid.count >= 1
        assert grid.time(grid.count - 1) < grid.end
        assert grid.time(grid.count) >= grid.end - 1e-4
    count = min(grid.count or 100, 100)
    frame = np.zeros((1, 1, 3), np.uint8)
    chunks = list(assemble(((grid.time(i), frame) for i in range(count)), grid))
    assert chunks[0].start == grid.start
    assert all(a.end == b.start for a, b in itertools.pairwise(chunks))
    assert all(len(chunk.frames) == len(chunk.times) == grid.per_chunk for chunk in chunks[:-1])
    assert len(chunks[-1].frames) % 2 == 0
    assert sum(len(chunk.frames) for chunk in chunks) == count + count % 2


@given(st.floats(0.01, 200), st.floats(0.01, 200))
def test_a_chunk_length_is_used_or_the_error_names_one_that_is(fps: float, seconds: float) -> None:
    try:
        grid = Grid.of(fps, seconds, None, None)
        assert abs(grid.per_chunk - fps * seconds) <= 0.01
    except ConfigError as error:
        named = str(error).split("chunks of ")[-1].split(" s,")[0].split(" or ")
        for text in named:
            assert Grid.of(fps, float(text), None, None).per_chunk % 2 == 0


@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=60),
    st.integers(0, 2000),
    st.integers(10, 2000),
    grids,
)
def test_each_moment_shows_the_last_frame_that_appeared(gaps: list[int], first: int, last: int, grid: Grid) -> None:
    times = [(first + t) / 1000 for t in itertools.accumulate([0, *gaps[:-1]])]
    end = times[-1] + last / 1000
    picked = list(pick([*((time, time) for time in times), (end, None)], grid))
    wanted = []
    index = 0
    while (moment := grid.time(index)) < min(end - CLOCK_SLACK, (grid.end or math.inf) - 1e-6):
        wanted.append(max((time for time in times if time <= moment + 1e-6), default=times[0]))
        index += 1
    assert [time for time, _ in picked] == wanted
    assert all(time == frame for time, frame in picked)


class Coder:
    """A decoder that knows which frames need which: it fails the test where a real one would fail."""

    def __init__(self, needs: dict[int, list[int]]) -> None:
        self.needs = needs
        self.known: set[int] = set()

    def feed(self, step: Step[int]) -> int | None:
        if step.fresh:
            self.known.clear()
        referred = any(step.coded.payload in refs for refs in self.needs.values())
        if not step.whole and not referred:
            return None
        assert all(ref in self.known for ref in self.needs[step.coded.payload])
        self.known.add(step.coded.payload)
        return step.coded.payload


def stream(shape: list[tuple[int, int, bool]]) -> tuple[list[int], dict[int, list[int]]]:
    """Groups of pictures: ``(anchors, b_frames, opened)`` each; gives storage order, and who needs whom.

    Frames are numbered as displayed. B-frames need the anchors on both sides and the one in the middle,
    and some are stored last first; in an opened group they come before the keyframe in display and need
    the last anchor of the group before.
    """
    order: list[int] = []
    needs: dict[int, list[int]] = {}
    number, anchor = 0, -1
    for anchors, b_frames, opened in shape:
        for i in range(anchors):
            b_count = b_frames if anchor >= 0 and (i > 0 or opened) else 0
            here = number + b_count
            order.append(here)
            needs[here] = [] if i == 0 else [anchor]
            between = list(range(number, here) if i % 2 else reversed(range(number, here)))
            middle = [between.pop(b_count // 2)] if b_count > 2 else []
            for b in middle + between:
                order.append(b)
                needs[b] = [anchor, here] + [m for m in middle if m != b]
            number, anchor = here + 1, here
    assert sorted(order) == list(range(number))
    return order, needs


groups = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 6), st.booleans()), min_size=1, max_size=8)


@given(groups, st.randoms(use_true_random=False), grids)
def test_what_is_selected_is_enough_and_in_order(
    shape: list[tuple[int, int, bool]], random: Random, grid: Grid
) -> None:
    count = sum(a * (b + 1) for a, b, _ in shape)
    times = list(itertools.accumulate(random.choice([0.01, 0.04, 0.1, 1.5]) for _ in range(count)))
    order, needs = stream(shape)
    coded = [Coded(n, times[n], 100, restarts=not needs[n]) for n in order]
    steps = list(select(iter(coded), grid))
    fed = [step.coded.payload for step in steps]
    assert fed == [n for n in order if n in set(fed)]
    coder = Coder(needs)
    shown = sorted(n for step in steps if (n := coder.feed(step)) is not None)
    moments = [grid.time(i) for i in range(min(grid.count or 500, 500)) if grid.time(i) < times[len(order) - 1]]
    for moment in moments:
        wanted = max((n for n in order if times[n] <= moment + 1e-6), default=0)
        assert max((n for n in shown if times[n] <= moment + 1e-6), default=shown[0]) == wanted


def test_little_is_selected_where_little_is_wanted() -> None:
    order, needs = stream([(20, 2, False)] * 10)
    coded = [Coded(n, n / 30, 100, restarts=not needs[n]) for n in order]
    steps = list(select(iter(coded), Grid.of(0.5, 4, 0.0, 19.0)))
    # One wanted frame in each of ten groups of 58: on average half a group, without its B-frames.
    assert len(steps) < len(order) / 2
    assert sum(step.whole for step in steps) < 40


def test_reading_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvvideo.video.selection.MAX_HELD", 1000)
    taken = 0

    def source() -> Iterator[Coded[int]]:
        nonlocal taken
        for n in range(5000):
            taken += 1
            yield Coded(n, n / 30, 100, restarts=n == 0)

    fed = 0
    for step in select(source(), Grid.of(0.01, 200, 0.0, None)):
        fed += 1
        assert taken - fed <= 30
        assert step.coded.payload == fed - 1
    assert fed == 5000


@pytest.mark.parametrize(
    ("duration", "end", "chunks", "frames"),
    [
        (10.0, None, 3, 20),
        (10.3, None, 3, 22),
        (10.3, 9.0, 3, 18),
        (0.04, None, 1, 2),
        (7200.0, 1e9, 1800, 14400),
    ],
)
def test_plans_count_chunks_and_tokens(duration: float, end: float | None, chunks: int, frames: int) -> None:
    info = VideoInfo("x.mp4", 1280, 720, duration, 30.0, "h264", "mp4")
    ahead = plan(info, end=end)
    assert (ahead.chunks, ahead.frames) == (chunks, frames)
    assert (ahead.height, ahead.width) == frame_size(720, 1280)
    assert ahead.frame_tokens == tokens(ahead.height, ahead.width, 2)
    assert ahead.tokens == frames // 2 * ahead.frame_tokens


def test_plans_say_what_they_cannot_know() -> None:
    ahead = plan(VideoInfo("x.mkv", 1280, 720, None, 30.0, "h264", "matroska"))
    assert (ahead.chunks, ahead.frames, ahead.tokens, ahead.seconds) == (None, None, None, None)
    ahead = plan(VideoInfo("x.mkv", 1280, 720, None, 30.0, "h264", "matroska"), start=2.0, end=12.0)
    assert (ahead.chunks, ahead.frames, ahead.seconds) == (3, 20, 10.0)
    assert plan(VideoInfo("x.mp4", 1280, 720, 10.0, 30.0, "h264", "mp4"), start=20.0).chunks == 0


def nal(kind: int, *payload: int) -> bytes:
    return bytes([kind, *payload])


@pytest.mark.parametrize(
    ("units", "restarts"),
    [
        ([nal(9, 16), nal(0x65, 1, 2)], True),  # IDR
        ([nal(0x41, 1, 2)], False),  # a plain slice
        ([nal(6, 6, 1, 0x80), nal(0x41, 1)], True),  # recovery point, at once
        ([nal(6, 6, 1, 0x40), nal(0x41, 1)], False),  # recovery point, later
        ([nal(6, 5, 3, 0, 0, 3, 9, 6, 1, 0x80), nal(0x41, 1)], True),  # after an escaped payload of 3 bytes
        ([nal(6, 255), nal(0x41, 1)], False),  # cut off
        ([], False),
    ],
)
def test_where_h264_can_restart(units: list[bytes], restarts: bool) -> None:
    start_codes = b"".join(b"\0\0\0\1" + unit for unit in units)
    prefixed = b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)
    assert Access("h264", None).read(start_codes) is restarts
    assert Access("h264", b"\1dddd"[:4] + b"\xff").read(prefixed) is restarts


@given(st.binary(max_size=200), st.sampled_from([None, b"", b"\1\0\0\0\xff", b"\1\0\0\0\xfc"]))
def test_any_bytes_can_be_asked(packet: bytes, extradata: bytes | None) -> None:
    for codec in (*_READERS, "gif"):
        Access(codec, extradata).read(packet)
        Access(codec, packet).read(packet, extradata)
    assert not Access("gif", extradata).read(packet)


def test_clips_are_there() -> None:
    """The helper makes what it says; the other tests rely on it."""
    assert clip("plain.mp4").stat().st_size > 1000
