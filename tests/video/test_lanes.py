"""Decoding several groups of pictures at once changes nothing, whatever the file and the threads."""

import itertools
import os
import threading
import time as clock
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvvideo.errors import KvvideoError, VideoError
from kvvideo.types import Chunk
from kvvideo.video import pyav, read_chunks
from kvvideo.video.lanes import Done, Lanes, parts
from kvvideo.video.pyav import PyavDecoder
from kvvideo.video.sampling import CLOCK_SLACK, Grid, pick
from kvvideo.video.selection import Coded, Step
from tests.helpers.clips import CLIPS, clip, same


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(4))


def outcome(path: str, abreast: bool, *grid: Any) -> tuple[list[Chunk], str | None]:
    """Chunks, and the error that came after them."""
    chunks: list[Chunk] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PyavDecoder, "abreast", abreast)
        try:
            chunks.extend(read_chunks(path, *grid, min_pixels=1, max_pixels=24 * 784))
        except KvvideoError as error:
            return chunks, str(error)
    return chunks, None


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("grid", [(2, 4), (7.5, 4, 1.3, 8.1), (0.3, 20)], ids=str)
@pytest.mark.parametrize("name", CLIPS)
def test_the_same_as_one_after_the_other(name: str, grid: tuple[float, ...]) -> None:
    abreast, in_turn = (outcome(str(clip(name)), how, *grid) for how in (True, False))
    assert same(abreast[0], in_turn[0])
    assert abreast[1] == in_turn[1]


@pytest.mark.parametrize(("name", "whole"), [("plain.mp4", True), ("open_gop.mp4", False), ("hevc.mp4", False)])
def test_open_groups_are_not_cut(name: str, whole: bool) -> None:
    """Or pictures that are shown before the one with which decoding can begin, and need the group before, were lost."""
    decoder = PyavDecoder(str(clip(name)), lambda _: None)
    cut = list(parts(decoder._steps(Grid.of(30, 2, None, None))))
    assert len(cut) > 3
    assert all(part.begins for part in cut) == whole
    decoder.close()


@pytest.mark.parametrize(("cores", "most", "lanes"), [(1, 99, 1), (2, 99, 2), (8, 99, 6), (64, 99, 16), (64, 3, 3)])
@pytest.mark.parametrize(("name", "bytes_"), [("plain.mp4", 160 * 120 * 3 // 2), ("odd.mp4", 131 * 77 * 3)])
def test_lanes_leave_the_engine_a_core_and_fit_into_memory(
    name: str, bytes_: int, cores: int, most: int, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of 4:2:0 and of 4:4:4 take a byte and a half, and three, for a pixel."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores))
    monkeypatch.setattr(pyav, "LANES_BYTES", most * pyav.LANE_PICTURES * bytes_)
    with PyavDecoder(str(clip(name)), lambda _: None) as decoder:
        assert decoder._lanes() == lanes


class Sleepy:
    """A slot that takes its time; frames are their times."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.open = True
        self.inside = threading.Lock()

    def decode(self, step: Step[float], done: Done) -> list[tuple[float, float]]:
        assert self.inside.acquire(blocking=False), "two threads in one decoder"
        if step.coded.payload < 0:
            raise VideoError("broken")
        clock.sleep(step.coded.size / 1e6 if step.coded.size < 1e6 else 0)
        self.inside.release()
        return [] if step.coded.hidden else [(step.coded.time, step.coded.time)]

    def drain(self, done: Done) -> list[tuple[float, float]]:
        return []

    def picture(self, frame: float) -> Any:
        assert self.open
        return frame

    def close(self) -> None:
        self.open = False


@st.composite
def streams(draw: st.DrawFn) -> list[Step[float]]:
    """Steps in the order of display, with places to begin at, and some that take long."""
    times = sorted(set(draw(st.lists(st.integers(0, 400), min_size=1, max_size=60))))
    return [
        Step(
            Coded(0.0, t / 16, draw(st.sampled_from([0, 0, 0, 300])), restarts=draw(st.booleans())),
            whole=True,
            fresh=draw(st.integers(0, 9)) == 0,
        )
        for t in times
    ]


@given(steps=streams(), longest=st.integers(1, 9))
def test_parts_are_cut_where_a_decoder_can_begin(steps: list[Step[float]], longest: int) -> None:
    cut = list(parts(iter(steps), longest=longest))
    assert [step for part in cut for step in part.steps] == steps
    assert cut[0].begins
    assert cut[-1].ends
    for before, part in itertools.pairwise(cut):
        assert before.ends == part.begins == (part.steps[0].fresh or part.steps[0].coded.restarts)
    assert all(0 < len(part.steps) <= longest for part in cut)


def test_a_part_with_pictures_shown_before_it_goes_on_with_the_one_before() -> None:
    def step(time: float, restarts: bool = False) -> Step[float]:
        return Step(Coded(0.0, time, restarts=restarts), whole=True, fresh=False)

    cut = list(parts([step(0, True), step(1), step(4, True), step(3), step(8, True), step(9)]))
    assert [(part.begins, part.ends) for part in cut] == [(True, False), (False, True), (True, True)]


@given(
    steps=streams(), count=st.integers(1, 4), fps=st.sampled_from([0.3, 1.0, 2.0, 7.0, 30.0]), skip=st.integers(0, 3)
)
@settings(max_examples=60)
def test_what_is_shown_is_what_all_frames_would_show(
    steps: list[Step[float]], count: int, fps: float, skip: int
) -> None:
    """In order, though later parts may be ready first; and little else was made a picture of."""
    grid, end = Grid(fps, 2, skip=skip), steps[-1].coded.time + 1
    Sleepy.made = 0
    with Lanes(count, grid, Sleepy, lambda _: None) as lanes:
        done = [done for _, done in lanes.decoded(parts(iter(steps), longest=5))]
    shown = [each for one in done for each in one.shown]
    every = [(step.coded.time, step.coded.time) for step in steps]
    assert list(pick([*shown, (end, None)], grid)) == list(pick([*every, (end, None)], grid))
    assert shown == sorted(set(shown))
    wanted = {time for time, _ in pick([*every, (end, None)], grid)}
    lasts = {part.steps[-1].coded.time for part in parts(iter(steps), longest=5) if part.ends}
    for time, until in zip([t for t, _ in every], [*[t for t, _ in every[1:]], end], strict=True):
        if (time, time) in shown and time not in wanted | lasts | {every[0][0]}:
            assert grid.shows(time - CLOCK_SLACK, until + CLOCK_SLACK)
    assert Sleepy.made <= count


def test_an_error_comes_after_what_was_before_it() -> None:
    steps = [Step(Coded(-1.0 if i == 7 else 0.0, float(i), restarts=True), whole=True, fresh=False) for i in range(12)]
    with Lanes(3, Grid(1.0, 2), Sleepy, lambda _: None) as lanes:
        decoded = lanes.decoded(parts(iter(steps)))
        assert [next(decoded)[0].steps[0].coded.time for _ in range(7)] == list(range(7))
        with pytest.raises(VideoError, match="broken"):
            next(decoded)


def test_little_is_read_ahead_and_nothing_after_the_end() -> None:
    read = 0

    def endless() -> Iterator[Step[float]]:
        nonlocal read
        while True:
            read += 1
            yield Step(Coded(0.0, float(read), 300, restarts=True), whole=True, fresh=False)

    with Lanes(2, Grid(1.0, 2), Sleepy, lambda _: None) as lanes:
        for number, _ in enumerate(lanes.decoded(parts(endless()))):
            assert read < number + 12
            if number == 20:
                break
    before = read
    clock.sleep(0.05)
    assert read == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kvvideo-lane")]


@pytest.mark.parametrize(("packet", "picture"), [(20, 0), (0, 20)])
def test_large_packets_and_pictures_are_not_held_by_number(packet: int, picture: int) -> None:
    """Or sixteen lanes would take all that a decoder may."""
    read = 0

    def large() -> Iterator[Step[float]]:
        nonlocal read
        for read in range(60):
            yield Step(Coded(0.0, float(read), packet << 20, hidden=True), whole=True, fresh=False)

    with Lanes(8, Grid(1.0, 2), Sleepy, lambda _: None) as lanes:
        for number, (part, _) in enumerate(lanes.decoded(parts(large(), picture << 20))):
            assert len(part.steps) == 1
            assert read - number < 16


def test_it_is_told_how_far_a_long_part_is_and_not_of_one_that_hangs() -> None:
    """Whoever watches a decoder takes a word for life."""
    told: list[float] = []
    working = [Step(Coded(0.0, float(i), 40_000), whole=True, fresh=False) for i in range(20)]
    hanging = [Step(Coded(0.0, 100.0, 800_000, restarts=True), whole=True, fresh=False)]
    with Lanes(1, Grid(1.0, 2), Sleepy, told.append) as lanes:
        list(lanes.decoded(parts([*working, *hanging])))
    assert len([time for time in told if time < 100]) >= 2
    assert len([time for time in told if time == 100]) == 1
