"""Outputs through the real command line: what a run says is in every file, however it ends and goes on."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kvvideo.outputs import FORMATS
from kvvideo.prompt import happened
from kvvideo.tiny import samples, world
from kvvideo.video import frame_at
from tests.helpers.commands import check_refused, command, records, untimed
from tests.helpers.outputs import RECORD, check_page, demuxed

pytestmark = pytest.mark.slow

ANALYZE = ("analyze", "--model", "tiny", "--max-tokens", "512", "--max-answer-tokens", "8")
EVERYTHING = ("-f", "jsonl,json", "-f", "csv", "-f", "srt,vtt,md,html")
ASKED = (
    "--task",
    "timeline",
    "--every",
    "20s",
    "-q",
    "@0:22 Which letter is on screen now?",
    "-q",
    "@0:47 What colour is the letter on screen now?",
)

FULL = """
import errno, os, sys
names, real = sys.argv.pop(1), os.write
def write(descriptor, data):
    if os.readlink(f"/proc/self/fd/{descriptor}").endswith(names):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return real(descriptor, data)
os.write = write
from kvvideo.cli import main
main()
"""
"""kvvideo, with no room for files whose names end like this."""

Completed = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of interrupted runs."""
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "runs"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "minute.mp4"
    samples.make(path, seed=77, minutes=1.0, density=0.5)
    return path


def run(folder: Path, *arguments: str, words: list[str] | None = None, out: Any = subprocess.PIPE) -> Completed:
    folder.mkdir(exist_ok=True)
    words = command() if words is None else words
    return subprocess.run(
        [*words, *arguments], stdout=out, stderr=subprocess.PIPE, text=True, timeout=300, check=False, cwd=folder
    )


@pytest.fixture(scope="module")
def undisturbed(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that a run with all formats wrote to, and its text."""
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run(folder, *ANALYZE, str(clip), *EVERYTHING, *ASKED)
    assert result.returncode == 0, result.stderr
    summary, wrote = result.stderr.splitlines()
    assert summary.startswith("5 answers, 1:00 of video")
    assert wrote == f"kvvideo: wrote {', '.join(names())}"
    assert sorted(os.listdir(folder)) == sorted(names())
    return folder, result.stdout


def names(stem: str = "minute.distinct") -> list[str]:
    return [f"{stem}.{format.extension}" for format in FORMATS.values()]


def in_file(folder: Path, ending: str, stem: str = "minute.distinct") -> str:
    return (folder / f"{stem}.{ending}").read_bytes().decode()


def test_a_run_says_the_same_in_every_format(undisturbed: tuple[Path, str]) -> None:
    folder, text = undisturbed
    *answers, done = records(in_file(folder, "jsonl"))
    for record in (*answers, done):
        RECORD.validate(record)
    assert [(a["asked_at"], a["task"], a["since"]) for a in answers] == [
        (20.0, "timeline", 0.0),
        (22.0, None, None),
        (40.0, "timeline", 20.0),
        (47.0, None, None),
        (60.0, "timeline", 40.0),
    ]
    assert [a["question"] for a in answers if a["task"]] == [happened(at - 20.0, at) for at in (20.0, 40.0, 60.0)]
    shown = world.Clip(77, 15, density=0.5).slots
    assert [answers[1]["answer"], answers[3]["answer"]] == [shown[5].letter or "none", shown[11].colour or "none"]

    assert json.loads(in_file(folder, "json")) == [*answers, done]
    said = [a["answer"] for a in answers]
    assert [row["answer"] for row in csv.DictReader(io.StringIO(in_file(folder, "csv"), newline=""))] == said
    lines = [
        f"[{at}] {a['answer']}"
        for at, a in zip(
            ("0:00 to 0:20", "0:20 to 0:40", "0:40 to 1:00"), (a for a in answers if a["task"]), strict=True
        )
    ]
    assert [line for line in text.splitlines() if " to " in line.split("]")[0]] == lines
    assert f"[0:22] {answers[1]['question']}\n  {said[1]}\n" in text
    for name, codec in (("srt", "subrip"), ("vtt", "webvtt")):
        found, times = demuxed(folder / f"minute.distinct.{name}")
        assert found == codec
        # What happened stands at its stretch, until another answer comes.
        assert times[:2] == [(0, 20_000), (20_000, 2000)]
        assert [start for start, _ in times[2:]] == [22_000, 40_000, 47_000]
    assert re.findall(r"^> (.*)", in_file(folder, "md"), re.MULTILINE) == said


def test_the_report_has_the_frames_and_what_the_cache_held(undisturbed: tuple[Path, str], clip: Path) -> None:
    folder, text = undisturbed
    page = check_page(in_file(folder, "html"))
    *answers, done = records(in_file(folder, "jsonl"))
    pictures = [b64decode((a["src"] or "").partition(",")[2]) for tag, a in page.tags if tag == "img"]
    moments = [20.0, 22.0, 40.0, 47.0, 59.5]
    again = [[(hit["start"] + hit["end"]) / 2 for hit in answer.get("looked_at", ())] for answer in answers]
    assert text.count("\n  looked again at ") == sum(map(bool, again)) > 0
    expected = [at for moment, middles in zip(moments, again, strict=True) for at in (moment, *middles)]
    for picture, at in zip(pictures, expected, strict=True):
        found = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), np.float32)
        shown = frame_at(clip, at)[1]
        others = [np.abs(found - frame_at(clip, other)[1]).mean() for other in moments if other != at]
        assert np.abs(found - shown).mean() < min(6, *others)
    # Of every chunk, those of one moment once.
    lines = [a["d"] or "" for tag, a in page.tags if tag == "path" and a["class"] == "line"]
    held = {4.0 * chunk: None for chunk in range(1, 16)} | {a["asked_at"]: a["cache"]["live"] for a in answers}
    assert [line.count(" ") for line in lines] == [2 * len(held) - 1] * 3
    (end,) = [a["d"] for tag, a in page.tags if tag == "path" and a["class"] == "line"][:1]
    assert end is not None
    x, y = map(float, end.split()[-2:])
    assert (x, y) == pytest.approx((1000, 100 - 100 * done["cache"]["live"] / 600), abs=0.01)


def untimed_files(folder: Path) -> dict[str, Any]:
    """Return what is in the files of a run, but for how long it took."""
    found: dict[str, Any] = {name: in_file(folder, name) for name in ("srt", "vtt")}
    found["jsonl"], found["json"] = (
        untimed(some) for some in (records(in_file(folder, "jsonl")), json.loads(in_file(folder, "json")))
    )
    rows = csv.DictReader(io.StringIO(in_file(folder, "csv"), newline=""))
    found["csv"] = untimed([*rows])
    took = r"(median|Took(?: \||</dt><dd>))[^<|\n]*"
    return found | {name: re.sub(took, r"\1", in_file(folder, name)) for name in ("md", "html")}


def test_a_killed_run_goes_on_to_the_same_files(
    undisturbed: tuple[Path, str], clip: Path, tmp_path: Path, state: Path
) -> None:
    """With a checkpoint since, so that what the cache held before that is known from the first part only."""
    arguments = (*ANALYZE, str(clip), *EVERYTHING, *ASKED, "--checkpoint-every", "8s", "--force")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "minute.distinct.html").write_text("of another run")
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[0:20 to 0:40]"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    found = records(in_file(folder, "jsonl"))
    assert [a["asked_at"] for a in found[:3]] == [20.0, 22.0, 40.0]
    assert in_file(folder, "csv").count("\r\n") >= 4
    assert in_file(folder, "html") == "of another run"
    assert list(state.glob("*/*.safetensors"))
    with (folder / "minute.distinct.jsonl").open("a") as stream:
        stream.write('{"type": "answ')

    result = run(folder, *arguments[:-1], "--resume")
    assert result.returncode == 0, result.stderr
    assert "no interrupted run" not in result.stderr
    assert records(in_file(folder, "jsonl"))[: len(found)] == found
    assert untimed_files(folder) == untimed_files(undisturbed[0])
    assert result.stdout == undisturbed[1]
    assert not any(state.iterdir())
    again = run(folder, *arguments[:-1])
    assert again.returncode == 2
    assert again.stderr.startswith("kvvideo: 'minute.distinct.jsonl' is there already; choose another name, or replace")


def test_what_cannot_be_written_is_written_when_there_is_room(clip: Path, tmp_path: Path, state: Path) -> None:
    """Neither another file nor stdout lacks anything, and then nothing is asked again: the engine does not start."""
    folder = tmp_path / "out"
    arguments = (*ANALYZE, str(clip), "--compare", "streaming,window", "-q", "@0:22 Now?", "-q", "Now?")
    files = ("-f", "csv,srt", "-o", "made/{stem}-{strategy}.{ext}")
    full = [sys.executable, "-c", FULL, "minute-streaming.csv"]
    result = run(folder, *arguments, *files, words=full)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("kvvideo: ")] == [
        "kvvideo: 'made/minute-streaming.csv' cannot be written: No space left on device",
        "kvvideo: wrote made/minute-streaming.srt, made/minute-window.csv, made/minute-window.srt",
        "kvvideo: the same command with --resume goes on from there",
    ]
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["[0:22]", "streaming", "window", "[1:00]", "streaming", "window"]
    assert (folder / "made" / "minute-streaming.csv").read_text() == ""

    with open("/dev/full", "w") as nowhere:
        result = run(folder, *arguments, *files, "--resume", out=nowhere)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr
    assert "kvvideo: standard output cannot be written: No space left on device\n" in result.stderr
    assert any(state.iterdir())
    for strategy in ("streaming", "window"):
        rows = [*csv.DictReader(io.StringIO(in_file(folder / "made", "csv", f"minute-{strategy}"), newline=""))]
        assert [(row["strategy"], row["asked_at"]) for row in rows] == [(strategy, "22.0"), (strategy, "60.0")]
    again = run(folder, *arguments, *files, "--resume")
    assert (again.returncode, again.stdout.splitlines()) == (0, lines)
    assert not any(state.iterdir())


def test_outputs_that_cannot_be_are_refused_before_anything_is_loaded(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "minute.full.md").touch()
    (tmp_path / clip.name).write_bytes(clip.read_bytes())
    analyze = ("analyze", "minute.mp4", "-m", "tiny", "-q", "Now?", "-s", "full")
    compare = (*analyze[:-2], "--compare", "window,h2o")
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        ((*analyze, "-f", "pdf"), "format: no 'pdf'; choose of text, jsonl"),
        ((*analyze, "-f", "srt,html", "-o", "-"), "'-' is standard output, which takes one format"),
        ((*analyze, "-f", "srt,md"), "'minute.full.md' is there already"),
        ((*analyze, "-f", "srt,md", "--dry-run"), "'minute.full.md' is there already"),
        ((*analyze, "-f", "srt,md", "-o", "x"), "two outputs would be the same file, 'x'; add {ext} to 'x'"),
        ((*compare, "-f", "srt", "-o", "{stem}.{ext}"), "the same file, 'minute.srt'; add {strategy}"),
        ((*analyze, "-f", "srt", "-o", "{video}.srt"), "no 'video' in '{video}.srt' can be filled in"),
        ((*analyze, "-f", "srt", "-o", "minute.mp4", "--force"), "the run reads it"),
        ((*analyze, "-o", "answers"), "does not end in a format"),
        ((*analyze, "-f", "srt", "-o", "minute.mp4/x"), "'minute.mp4/x' cannot be written: Not a directory"),
        ((*analyze, "--task", "poem"), "task: no 'poem'; choose one of caption, timeline"),
        ((*analyze, "--task", "caption", "--every", "0s"), "every: 0 seconds is not possible"),
    ]
    check_refused(tmp_path, *cases)
    assert sorted(os.listdir(tmp_path)) == ["minute.full.md", "minute.mp4"]


@pytest.mark.parametrize("name", ["json", "srt"])
def test_predictions_are_json_where_answers_are(name: str, clip: Path, tmp_path: Path) -> None:
    result = run(tmp_path, *ANALYZE, str(clip), "--dry-run", "-f", name, "--compare", "window,h2o")
    assert result.returncode == 0, result.stderr
    assert os.listdir(tmp_path) == []
    if name == "srt":
        assert len(re.findall(r"^ frames ", result.stdout, re.MULTILINE)) == 2
        return
    found = json.loads(result.stdout)
    assert [record["strategy"] for record in found] == ["window", "h2o"]
    for record in found:
        RECORD.validate(record)
