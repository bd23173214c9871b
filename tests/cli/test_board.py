"""The board of ``kvvideo batch``: how far each video is, and the whole batch, by seconds of video."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest

from kvvideo.batch.jobs import Asking, Job
from kvvideo.batch.lengths import Lengths
from kvvideo.batch.run import Counts
from kvvideo.batch.streams import Answered, Ended, Event, Moved
from kvvideo.batch.tasks import Task, Want
from kvvideo.cli import board, line, render, screen
from kvvideo.cli.board import Board
from kvvideo.cli.everywhere import Everywhere, Way
from kvvideo.cli.screen import standard_streams
from kvvideo.compression.config import CacheConfig
from kvvideo.runs.agenda import Question
from kvvideo.types import CacheStats, Progress
from kvvideo.video import Source
from tests.helpers import SAMPLES
from tests.helpers.outputs import RECORD
from tests.helpers.windows import Window

STATS = CacheStats(seen=2181, live=1157, evicted=1024, blocks=37, compactions=1, bytes=3_800_000)


def task(name: str, start: float | None = None, end: float | None = None, path: str = "none.mp4") -> Task:
    """A video with two questions."""
    asked = [Question("What?", 3000.0), Question("Which?")]
    job = Job(name, path, tuple(Asking(question) for question in asked))
    wants = {question: [Want(job, index)] for index, question in enumerate(asked)}
    return Task(Source(path, start=start, end=end), name, CacheConfig(), name, wants)


def moved(task: Task, at: float, end: float | None, start: float = 0.0) -> Moved:
    return Moved(task, Progress(position=at, end=end, rate=None, cache=STATS, max_tokens=4096), start)


LONG, PART = task("the first of several jobs of one film"), task("part", 3600.0, 3780.4)
SHORT = task("clip")


def events(now: list[float]) -> list[Event]:
    """Return what happens within ten seconds: one video of 10 min is done, 8 min of 3 h are, and 80 s of 180 s."""
    made: list[Event] = []

    def happen(at: float, *some: Event) -> None:
        made.extend(some)
        times.extend([at] * len(some))

    times: list[float] = now
    happen(0.0, moved(LONG, 0.0, 10_800.0), moved(PART, 3600.0, 3780.4, 3600.0), moved(SHORT, 0.0, 600.0))
    happen(8.0, Answered(SHORT, [], None), Ended(SHORT, None, [], end=600.0, frames=1200), moved(LONG, 480.0, 10_800.0))
    happen(10.0, moved(PART, 3680.0, 3780.4, 3600.0))
    return made


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Board]:
    """Return a board that has seen all of this."""
    clock = [0.0]
    still = SimpleNamespace(monotonic=lambda: clock[0])
    for module in (board, line, render):
        monkeypatch.setattr(module, "time", still)
    monkeypatch.setattr(board, "_DRAWN_SECONDS", 0.0)
    monkeypatch.setattr(Lengths, "look", lambda _: None)

    def shown() -> Board:
        times: list[float] = []
        made = Board(Counts(questions=6, tasks=3, ended=1), 2, [LONG, PART, SHORT])
        for event, at in zip(events(times), times, strict=True):
            clock[0] = at
            made.show(event)
        return made

    return shown


def test_each_video_and_the_whole_have_a_bar_percent_and_time_left(play: Callable[[], Board]) -> None:
    shown = {}
    for columns in (*range(1, 30), 40, 59, 60, 80, 140):
        window = Window(columns, rows=20)
        with window.standing_for(), standard_streams(), play():
            shown[columns] = window.now()
        window.close()
        assert window.lines() == []
        assert max(map(len, shown[columns])) < max(columns, 2)
    assert shown[80] == [
        "job                   strategy  answers  at",
        "the first of severa…  distinct  0/2      8:00 / 3:00:00           4%  2:52 left",
        "part                  distinct  0/2      1:01:20 / 1:03:00 ━╸    44%  0:13 left",
        "19:20 / 3:13:00 ━━                    10%  1:30 left  2/6 questions  1/3 videos",
    ]
    assert shown[40] == [
        "job         at",
        "the first…  8:00          4%  2:52 left",
        "part        1:01:20  44%  0:13 left",
        "19:20 / 3:13:00 ╸        10%  1:30 left",
    ]
    assert shown[140][2].endswith(" 44%  0:13 left  1157/4096 tokens")


def test_elsewhere_a_line_a_minute_is_about_the_whole(
    play: Callable[[], Board], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(screen, "_PLAIN_SECONDS", 0.01)
    with play():
        until, said = time.monotonic() + 10, ""
        while not said.endswith("\n"):
            assert time.monotonic() < until
            time.sleep(0.02)
            said = capsys.readouterr().err
    assert said.splitlines()[-1] == "kvvideo: 19:20 / 3:13:00  10%  1:30 left  2/6 questions  1/3 videos"


def test_programs_get_the_same(play: Callable[[], Board], capsys: pytest.CaptureFixture[str]) -> None:
    with Everywhere(progress=Way.jsonl).in_force():
        play()
    *_, last = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    RECORD.validate(last)
    film, part = last.pop("videos")
    assert last == {
        "type": "progress",
        "schema": 1,
        "seconds": 10.0,
        "doing": "answering",
        "done": 2,
        "of": 6,
        "start": 0.0,
        "position": 1160.0,
        "end": 11580.4,
        "share": 0.1002,
        "left_seconds": 89.8,
    }
    assert film["jobs"] == ["the first of several jobs of one film"]
    assert part == {
        "jobs": ["part"],
        "strategy": "distinct",
        "start": 3600.0,
        "position": 3680.0,
        "end": 3780.4,
        "share": 0.4435,
        "left_seconds": 12.6,
        "live": 1157,
        "max_tokens": 4096,
        "done": 0,
        "of": 2,
    }


def test_lengths_are_those_of_what_is_read_and_a_mean_where_they_are_not_known() -> None:
    found = Lengths([LONG, PART, SHORT])

    def sums() -> tuple[float | None, float, float]:
        return found.total, found.done, found.ingested

    assert sums() == (None, 0.0, 0.0)
    found.note(moved(LONG, 4.0, None))
    assert sums() == (None, 4.0, 4.0)
    # What an earlier run has left is done, and not ingested now.
    found.note(moved(PART, 3680.0, 3700.0, 3640.0))
    assert sums() == (300.0, 84.0, 44.0)
    # The last frame may stand after the end; at its end a video has the length that there was.
    found.note(moved(PART, 3701.0, 3700.0, 3640.0))
    assert found.done == 104.0
    found.note(Ended(PART, None, [], start=3640.0, end=3702.0))
    found.note(Ended(LONG, None, [], end=50.0))
    found.note(Ended(SHORT, None, []))
    assert sums() == (152.0, 152.0, 112.0)


def test_videos_that_were_not_opened_yet_are_looked_at() -> None:
    one, two = (task(name, path=str(SAMPLES / f"{name}.mp4")) for name in ("letters-1m", "letters-2m"))
    part = replace(two, settings="part", source=replace(two.source, start=30.0, end=50.0))
    found = Lengths([one, two, part, task("none")])
    found.look()
    found.look()
    until = time.monotonic() + 60
    while None in found._lengths.values():
        assert time.monotonic() < until
        time.sleep(0.05)
    found.close()
    assert (found.total, found.done) == (200.0, 0.0)
