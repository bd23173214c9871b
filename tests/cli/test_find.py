"""``kvvideo find`` through the command line: what it prints, writes and refuses."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

import kvvideo.session
from kvvideo.outputs import find
from kvvideo.outputs.schema.__main__ import FOLDER
from kvvideo.storage.file import MemoryFile, write
from kvvideo.tiny import samples, world
from tests.helpers import ROOT
from tests.helpers.commands import Done, records, run
from tests.helpers.outputs import check_page

SCHEMA = Draft202012Validator(json.loads((FOLDER / "find.schema.json").read_text(encoding="utf-8")))
TINY = ("--model", "tiny", "--max-tokens", "512")

HIT: dict[str, Any] = {
    "type": "hit",
    "schema": 1,
    "rank": 1,
    "video": "=a <b>.mp4",
    "memory": None,
    "words": "the <i>letter</i> \x1b[31mK",
    "start": 12.0,
    "end": 16.0,
    "score": 0.912,
    "share": 0.5,
    "clip": None,
    "frame": "f/01.jpg",
    "model": "tiny",
    "strategy": "distinct",
}
DONE: dict[str, Any] = {
    "type": "done",
    "schema": 1,
    "status": "complete",
    "error": None,
    "words": HIT["words"],
    "hits": 1,
    "searched": [{"video": HIT["video"], "memory": None, "start": 0.0, "end": 60.0}],
    "seconds": 1.5,
}


# Formats -----------------------------------------------------------------------------------------


def test_rows_are_the_fields_of_a_record_and_no_formulas() -> None:
    assert find.row(DONE) == ""
    assert {*find.COLUMNS} == HIT.keys() - {"type", "schema"}
    (row,) = csv.reader(io.StringIO(find.row(HIT)))
    found = dict(zip(find.COLUMNS, row, strict=True))
    assert (found["rank"], found["score"], found["clip"], found["frame"]) == ("1", "0.912", "", "f/01.jpg")
    assert found["video"] == "'=a <b>.mp4"


def test_the_page_has_every_moment_with_its_picture_and_nothing_active() -> None:
    page = find.render([HIT, {**HIT, "rank": 2, "start": 20.0, "end": 28.0}, DONE], {1: b"jpeg"})
    check_page(page)
    assert page.count("<article") == 2
    assert page.count("<img src=") == 1
    assert "0:12–0:16" in page
    assert "0:20–0:28" in page
    assert "score 0.91" in page
    assert "&lt;i&gt;letter&lt;/i&gt;" in page
    assert "\x1b" not in page
    check_page(find.render([{**DONE, "hits": 0, "searched": [], "status": "interrupted"}]))
    assert "did not come to its end" in find.render([HIT])


def test_the_schema_asks_for_each_field_of_both_records() -> None:
    for record in (HIT, DONE):
        SCHEMA.validate(record)
        for name in record:
            assert not SCHEMA.is_valid({key: value for key, value in record.items() if key != name}), name
    assert not SCHEMA.is_valid(HIT | {"score": 1.2})
    page = (ROOT / "docs/records.md").read_text()
    assert all(f"`{name}`" in page for name in HIT.keys() | DONE.keys() | DONE["searched"][0].keys())


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ((None, None), ("text", None)),
        (("csv", None), ("csv", None)),
        (("html", None), ("html", Path("found.html"))),
        (("html", "-"), ("html", None)),
        ((None, "-"), ("text", None)),
        ((None, "a.jsonl"), ("jsonl", Path("a.jsonl"))),
        (("csv", "a.txt"), ("csv", Path("a.txt"))),
    ],
)
def test_the_format_and_the_file_follow_from_what_is_said(given: Any, chosen: Any) -> None:
    assert find.choose(*given) == chosen


# The command -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two clips, which show other letters."""
    path = tmp_path_factory.mktemp("films")
    for name, seed in (("one", 77), ("two", 78)):
        samples.make(path / f"{name}.mp4", seed=seed, minutes=1.0, density=0.4)
    return path


def letters(seed: int) -> dict[str, float]:
    return {slot.letter: slot.start for slot in world.Clip(seed, 15, density=0.4).slots if slot.letter}


ONLY_IN_TWO = next(letter for letter in letters(78) if letter not in letters(77))


@pytest.fixture
def here(folder: Path, one_engine: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, with memories of both, as the current one; commands use an engine that runs already."""
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def memories(here: Path, capfd: pytest.CaptureFixture[str]) -> list[str]:
    for name in ("one", "two"):
        if not (here / f"{name}.kvv").exists():
            done = run(capfd, "find", f"{name}.mp4", "the letter K", *TINY, "--save", f"{name}.kvv")
            assert done.returncode == 0, done.stderr
    return ["one.kvv", "two.kvv"]


def checked(done: Done) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    found = records(done.stdout)
    for record in found:
        SCHEMA.validate(record)
    return found


def test_a_video_is_ingested_and_its_memory_finds_the_same(
    here: Path, memories: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    letter, at = next(iter(letters(77).items()))
    of_video = checked(run(capfd, "find", "one.mp4", f"the letter {letter}", *TINY, "-f", "jsonl"))
    of_memory = checked(run(capfd, "find", "one.kvv", f"the letter {letter}", "-f", "jsonl"))
    assert [hit["rank"] for hit in of_video[:-1]] == [1, 2, 3, 4, 5]
    assert of_video[0]["start"] <= at < of_video[0]["end"]
    assert of_video[0]["memory"] is None
    assert of_memory[0]["memory"] == "one.kvv"
    times = [[(hit["start"], hit["end"], hit["score"]) for hit in found[:-1]] for found in (of_video, of_memory)]
    assert times[0] == times[1]


def test_one_ranking_over_several_memories(memories: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    done = run(capfd, "find", *memories, f"the letter {ONLY_IN_TWO}", "-n", "2", "-o", "found.csv")
    assert done.returncode == 0, done.stderr
    head, first, second = done.stdout.splitlines()
    assert head.split() == ["moment", "score", "found", "in"]
    assert first.split()[0] == "1"
    assert first.split()[-1] == "two.kvv"
    assert second.split()[0] == "2"
    assert "2:00 of video searched in" in done.stderr
    assert "wrote found.csv" in done.stderr
    first_row, second_row = csv.DictReader(io.StringIO(Path("found.csv").read_text()))
    assert first_row["memory"] == "two.kvv"
    assert float(first_row["score"]) >= float(second_row["score"])


def test_clips_and_frames_are_cut_out_and_a_page_shows_them(
    memories: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cut = ("--clips", tmp_path / "clips", "--frames", tmp_path / "frames")
    command = ("find", "one.kvv", "the letter K", "-n", "2", *cut, "-o", tmp_path / "found.html")
    done = run(capfd, *command)
    assert done.returncode == 0, done.stderr
    assert len([*(tmp_path / "clips").glob("0[12]-one-*.mp4")]) == len([*(tmp_path / "frames").glob("*.jpg")]) == 2
    page = (tmp_path / "found.html").read_text()
    check_page(page)
    assert page.count("<img src=") == 2
    assert str(tmp_path / "clips") in page
    again = run(capfd, *command[:-2])
    assert again.returncode == 2
    assert "is there already" in again.stderr
    assert len(again.stdout.splitlines()) == 3  # what was found is said all the same
    assert run(capfd, *command, "--force").returncode == 0


def test_what_a_search_would_take_is_said_without_it(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = run(capfd, "find", "one.mp4", "the letter K", *TINY, "--dry-run", "-f", "jsonl")
    (predicted,) = records(done.stdout)
    assert (predicted["type"], predicted["chunks"]) == ("prediction", 15)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("one.mp4", " "), 2, "there is nothing to find"),
        (("one.mp4",), 2, "Missing argument"),
        (("missing.mp4", "the letter K", *TINY), 3, "there is no file 'missing.mp4'"),
        (("missing.kvv", "the letter K"), 2, "there is no 'missing.kvv'; make it with 'kvvideo ingest'"),
        (
            ("one.mp4", "the", "letter", "K", *TINY),
            2,
            "there is no file 'the'; several words are one with quotes around",
        ),
        (("one.kvv", "K", "--fps", "1"), 2, "--fps: 'one.kvv' is a memory, which stays as it was made"),
        (("one.kvv", "K", "--save", "a.kvv"), 2, "--save: it is for the memory of one video"),
        (("one.mp4", "K", "--video", "two.mp4"), 2, "--video: it is for the video of one memory"),
        (("one.kvv", "K", "-f", "srt"), 2, "format: no 'srt'; choose one of text, jsonl, csv, html"),
        (("one.kvv", "K", "-o", "a.srt"), 2, "'a.srt' goes with one of the formats jsonl, csv, html"),
        (("one.kvv", "K", "-o", "one.mp4", "-f", "csv"), 2, "'one.mp4' is there already"),
        (("one.mp4", "K", *TINY, "-s", "summary"), 2, "'summary' keeps no cache to find words in"),
        (("alone.kvv", "K", "--clips", "c"), 2, "clips: the video of 'alone.kvv' is not at hand"),
        (("old.kvv", "K"), 2, "'old.kvv' was made by an older version"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_before_the_model_is_loaded(
    words: tuple[str, ...],
    code: int,
    says: str,
    here: Path,
    memories: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if not (here / "old.kvv").exists():
        with MemoryFile("one.kvv") as file:
            memory = file.memory()
        bare = {name: tensor for name, tensor in memory.tensors.items() if not name.startswith("index")}
        write(here / "old.kvv", kvvideo.Memory(**{**vars(memory), "tensors": bare}))
        write(here / "alone.kvv", kvvideo.Memory(**{**vars(memory), "source": {}}))
    monkeypatch.delattr(kvvideo.session, "Engine")
    done = run(capfd, "find", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in " ".join(done.stderr.split())
    if "Missing" not in says:
        assert len(done.stderr.splitlines()) == 1
