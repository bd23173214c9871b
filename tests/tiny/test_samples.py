"""Samples as files, and the bundled model on the bundled ones, through decoder and vLLM: it knows its worlds."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from kvvideo.compression.config import CacheConfig
from kvvideo.runs.agenda import Agenda, Question
from kvvideo.runs.streaming import analyze
from kvvideo.session import Engine, EngineConfig, VideoSession
from kvvideo.session.prediction import frame_pixels
from kvvideo.times import format_time, parse_time
from kvvideo.tiny import film, samples, scenery
from kvvideo.video import VideoReader, subtitles
from tests.helpers import SAMPLES
from tests.helpers.commands import command, kvvideo

JOBS = [json.loads(line) for line in (SAMPLES / "jobs.jsonl").read_text().splitlines()]
FILM = next(job for job in JOBS if job["id"] == "film-2m")
SEED = 23
"""Seed of the bundled film."""


def answers(
    engine: Engine, job: dict[str, Any], config: EngineConfig, wish: str = subtitles.AUTO
) -> tuple[list[str], list[str]]:
    """Return the model's answer to each question of ``job`` and the right one, in the order of asking."""
    video = str(SAMPLES / job["video"])
    asked = [Question(q["q"], None if q["t"] is None else parse_time(q["t"])) for q in job["questions"]]
    wanted = sorted(job["questions"], key=lambda q: float("inf") if q["t"] is None else parse_time(q["t"]))
    low, high = frame_pixels(config)
    with (
        VideoReader(video, min_pixels=low, max_pixels=high, subtitles=subtitles.find(video, wish)) as chunks,
        VideoSession(engine) as session,
    ):
        said = [one.answer.text for one in analyze(session, chunks, Agenda(asked), max_tokens=8)]
    return said, [q["answer"] for q in wanted]


@pytest.fixture(scope="module")
def full() -> Iterator[tuple[Engine, EngineConfig]]:
    config = EngineConfig(model="tiny", cache=CacheConfig(strategy="full"))
    engine = Engine(config)
    yield engine, config
    engine.close()


def test_with_the_full_cache_every_answer_is_right(full: tuple[Engine, EngineConfig]) -> None:
    engine, config = full
    pairs = [pair for job in JOBS for pair in zip(*answers(engine, job, config), strict=True)]
    assert len(pairs) == 48
    wrong = [(said, wanted) for said, wanted in pairs if said != wanted]
    assert len(wrong) <= 1, wrong  # 0.993 and better was measured on drawn slots


@pytest.mark.slow
def test_the_film_is_known_far_and_wide(full: tuple[Engine, EngineConfig]) -> None:
    """Asked 20 questions of each kind, at many moments.

    Few of them ask for a count of three and more, of which the model gets one in three right.
    """
    engine, config = full
    asked = samples.ask(np.random.default_rng(5), samples.draw_script(SEED, 30), 240)
    questions = [{"t": None if one.t is None else str(one.t), "q": one.q, "answer": one.answer} for one in asked]
    pairs = [*zip(*answers(engine, {**FILM, "questions": questions}, config), strict=True)]
    wrong = [(said, wanted) for said, wanted in pairs if said != wanted]
    assert len(pairs) == 240
    assert len(wrong) <= 7, wrong  # 1 was measured, and 3 of 720 with the films of seeds 21 and 22: 0.97 at least


@pytest.mark.slow
def test_what_is_said_in_the_film_is_known_by_its_subtitles(full: tuple[Engine, EngineConfig]) -> None:
    engine, config = full
    script = samples.draw_script(SEED, 30)
    words = {line.letter: line.word for line in script.lines.values() if line.letter}
    asked = [
        {"t": None, "q": f"What was said about the letter {c}?", "answer": words.get(c, "nothing")} for c in "QNETWZ"
    ]
    job = {**FILM, "questions": asked}
    said, wanted = answers(engine, job, config)
    assert said == wanted
    assert wanted == ["famous", "mine", "old", "old", "nothing", "nothing"]
    assert answers(engine, job, config, subtitles.OFF)[0] == ["nothing"] * 6


@pytest.mark.slow
def test_it_is_what_the_question_before_was_about(full: tuple[Engine, EngineConfig]) -> None:
    """A dialogue of two turns; without the first, nobody could know what "it" is."""
    engine, config = full
    low, high = frame_pixels(config)
    moment, rng = samples.moment_at(samples.draw_script(SEED, 30), None), np.random.default_rng(1)
    right, alone = [], []
    with (
        VideoReader(SAMPLES / FILM["video"], min_pixels=low, max_pixels=high) as chunks,
        VideoSession(engine) as session,
    ):
        for chunk in chunks:
            session.ingest(chunk)
        guess = session.ask("What colour was it the first time?", max_tokens=8).text
        for kind in film.KINDS:
            for letter in moment.seen if kind in ("count", "when first", "when last", "side", "place") else ():
                before = film.ask(rng, moment, kind, letter)
                assert before is not None
                turn, colour = (before.q, before.answer), moment.seen[letter][0].colour
                said = session.ask("What colour was it the first time?", dialogue=[turn], max_tokens=8).text
                right.append(said == colour)
                alone.append(guess == colour)
    assert len(right) == 30
    assert sum(right) >= 28  # 30 was measured
    assert sum(alone) <= 15


def test_what_is_evicted_is_said_to_be_gone() -> None:
    """With a fifth of the stream in memory, wrong answers say so instead of making something up."""
    config = EngineConfig(model="tiny", cache=CacheConfig(strategy="streaming", max_tokens=1024))
    engine = Engine(config)
    said, wanted = answers(engine, JOBS[2], config)
    engine.close()
    wrong = [s for s, w in zip(said, wanted, strict=True) if s != w]
    assert wrong
    assert wrong.count("not seen") >= len(wrong) - 1
    assert said[:3] == wanted[:3]


def make(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return kvvideo("samples", "make", *arguments, cwd=directory)


def test_equal_seeds_are_equal_films_that_are_as_their_script_says(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        asked = samples.make_film(tmp_path / folder / "a.mp4", 2, 0.5, tmp_path / folder / "jobs.jsonl", fps=2)
    files = ["a.mp4", "a.srt", "jobs.jsonl"]
    assert sorted(os.listdir(tmp_path / "one")) == files
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    script = samples.draw_script(2, 8)
    spoken = subtitles.find(str(tmp_path / "one" / "a.mp4"))
    assert spoken is not None
    assert spoken.cues == tuple((slot * 4.0, script.lines[slot].text) for slot in sorted(script.lines))
    assert any(line.letter for line in script.lines.values())
    job = json.loads((tmp_path / "one" / "jobs.jsonl").read_text())
    assert (job["id"], job["video"]) == ("a", "a.mp4")
    wanted = [{"t": None if a.t is None else format_time(a.t), "q": a.q, "answer": a.answer} for a in asked]
    assert job["questions"] == wanted
    drawn = scenery.Film(2, 8, script=script)
    with av.open(str(tmp_path / "one" / "a.mp4")) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert len(frames) == 64
    for at, picture in frames[::5]:
        assert np.abs(picture.astype(int) - drawn.frame(at)).mean() < 12


def test_the_bundled_film_is_that_of_its_seed() -> None:
    script = samples.draw_script(SEED, 30)
    assert (SAMPLES / "film-2m.srt").read_text() == samples.srt(script)
    asked = samples.ask(np.random.default_rng([SEED, 1]), script, samples.QUESTIONS)
    assert [(q["q"], q["answer"]) for q in FILM["questions"]] == [(a.q, a.answer) for a in asked]


@pytest.mark.parametrize("slots", [1, 2, 15, 30])
def test_questions_about_a_film_are_of_all_kinds_and_about_what_shows_up_to_then(slots: int) -> None:
    for seed in range(40):
        script = samples.draw_script(seed, slots)
        asked = samples.ask(np.random.default_rng(seed), script, 12)
        assert [one.t is None for one in asked] == [False] * 6 + [True] * 6
        assert slots == 1 or {one.kind for one in asked} == {*film.KINDS}
        for one in asked:
            # The frame at the very moment is the last that is seen.
            at = slots * 4 - 0.5 if one.t is None else one.t
            assert 0 <= at < slots * 4
            if one.kind == "shown now":
                shows = sorted((v.side, v.letter) for v in script.visits if v.start <= at < v.end)
                assert one.answer == (" ".join(letter for _, letter in shows) or "none")
            if one.kind == "place now":
                assert one.answer == script.places[int(at // 4)]


@pytest.mark.parametrize("there", ["movie.mp4", "movie.srt"])
def test_a_file_that_is_there_is_not_replaced_unasked(tmp_path: Path, there: str) -> None:
    """Nor are lines left beside another clip than theirs."""
    (tmp_path / there).write_bytes(b"precious")
    words = ("movie.mp4", "--minutes", "0.1", "--truth", "jobs.jsonl")
    done = make(tmp_path, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"kvvideo: {there!r} exists; add --force to replace it, or choose another name\n"
    assert (tmp_path / there).read_bytes() == b"precious"
    assert os.listdir(tmp_path) == [there]
    done = make(tmp_path, *words, "--force")
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(
        r"kvvideo: wrote movie\.mp4: [0-9.]+ kB\nkvvideo: wrote movie\.srt: what is said in it\n"
        r"kvvideo: appended a line of 12 questions to jobs\.jsonl\n",
        done.stderr,
    )
    assert sorted(os.listdir(tmp_path)) == ["jobs.jsonl", "movie.mp4", "movie.srt"]
    assert b"precious" not in (tmp_path / there).read_bytes()
    done = make(tmp_path, *words, "--force", "--world", "letters")
    assert done.stderr.count("wrote") == 1
    assert sorted(os.listdir(tmp_path)) == ["jobs.jsonl", "movie.mp4"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [".", "nowhere/a.mp4", "a.unheard"])
def test_where_nothing_can_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    done = make(tmp_path, name, "--minutes", "0.1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_what_was_interrupted_is_not_there(tmp_path: Path) -> None:
    """Nor is what was there before gone."""
    for name in ("old.mp4", "old.srt"):
        (tmp_path / name).write_bytes(b"old")
    words = command("samples", "make", "old.mp4", "--minutes", "60", "--force")
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 60
        while len(os.listdir(tmp_path)) < 3 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert sorted(os.listdir(tmp_path)) == ["old.mp4", "old.srt"]
    assert all((tmp_path / name).read_bytes() == b"old" for name in os.listdir(tmp_path))
