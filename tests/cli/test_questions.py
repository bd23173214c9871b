"""Questions of a file, what the model is told before each, and only changes: through ``analyze`` and ``ask``."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from kvvideo.cli.settings import NAME
from kvvideo.runs import analyze, journal
from kvvideo.runs.agenda import Question, Task
from kvvideo.runs.changes import only_changes
from kvvideo.runs.recall import OFF
from kvvideo.session import EngineConfig
from kvvideo.video import Source
from tests.helpers import SAMPLES
from tests.helpers.commands import records, run, untimed

CLIP = SAMPLES / "letters-1m.mp4"
PLAIN = ("-m", "tiny", "--max-tokens", "512", "--max-answer-tokens", "4", "--recall", "0", "-f", "jsonl")
SYSTEM = "What was said? Say what was said about it."
SHORT = (*PLAIN, "--to", "0:12", "--fps", "1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(tmp_path / "state"))


@pytest.mark.usefixtures("one_engine")
def test_what_a_file_asks_is_asked_as_what_is_typed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    Path("more.txt").write_text('# two\n@0:04 Now?\n{"question": "Then?"}\n')
    done = run(capfd, "analyze", CLIP, *SHORT, "-q", "First?", "--questions", "more.txt", "--system", f" {SYSTEM} ")
    assert done.returncode == 0, done.stderr
    *found, last = records(done.stdout)
    assert [(one["asked_at"], one["question"]) for one in found] == [(4.0, "Now?"), (12.0, "First?"), (12.0, "Then?")]
    assert {one["system"] for one in found} == {SYSTEM}
    assert last["answers"] == 3
    typed = run(capfd, "analyze", CLIP, *SHORT, "-q", "First?", "-q", "@0:04 Now?", "-q", "Then?")
    plain = [one for one in records(typed.stdout) if one["type"] == "answer"]
    assert all("system" not in one for one in plain)
    # It decides what is said, and nothing of what is held.
    assert [one["answer"] for one in plain] != [one["answer"] for one in found]
    assert [(one["held"], one["cache"]) for one in plain] == [(one["held"], one["cache"]) for one in found]
    kept = run(capfd, "ingest", CLIP, "-m", "tiny", "--max-tokens", "512", "--to", "0:12", "--fps", "1", "-o", "it.kvv")
    assert kept.returncode == 0, kept.stderr
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"First?\nThen?\n")))
    asked = run(
        capfd, "ask", "it.kvv", "--questions", "-", "--system", SYSTEM, "--recall", "0", *PLAIN[4:6], *PLAIN[-2:]
    )
    assert asked.returncode == 0, asked.stderr
    said = [(one["question"], one["answer"], one["system"]) for one in records(asked.stdout)[:-1]]
    assert said == [(one["question"], one["answer"], one["system"]) for one in found[1:]]


@pytest.mark.usefixtures("one_engine")
def test_only_changes_are_given_and_written(capfd: pytest.CaptureFixture[str]) -> None:
    words = ("analyze", CLIP, *PLAIN, "--fps", "1", "--every", "4s", "-q", "Which letter is on screen now?")
    every = untimed(records(run(capfd, *words).stdout))
    left = list(only_changes(every, [Question("Which letter is on screen now?")]))
    assert 1 < len(left) < len(every), "or nothing was shown by this"
    assert left[-1]["answers"] == len(left) - 1
    assert untimed(records(run(capfd, *words, "--only-changes").stdout)) == left
    run(capfd, *words, "--only-changes", "-f", "json", "-o", "{stem}.{ext}")
    assert untimed(json.loads(Path("letters-1m.json").read_text())) == left


def test_what_cannot_be_asked_is_said_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    for words, says in (
        (("-", "--questions", "-"), "questions: the video comes from stdin already"),
        ((CLIP, "--questions", "nothere"), "questions: 'nothere' cannot be read"),
        ((CLIP, "-q", "What?", "--only-changes"), "only-changes: nothing is asked again and again"),
    ):
        done = run(capfd, "analyze", *words, "-m", "tiny")
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr


def test_how_many_questions_a_benchmark_asks_is_no_file(capfd: pytest.CaptureFixture[str]) -> None:
    """A file of settings may set that for all, as it always could."""
    Path(NAME).write_text("questions = 5\n")
    assert "add -q" in run(capfd, "analyze", CLIP, "-m", "tiny").stderr
    shown = json.loads(run(capfd, "config", "show", "--json").stdout)["settings"]
    assert {one["command"]: one["value"] for one in shown if one["option"] == "questions"} == {"bench ask": 5}
    Path(NAME).write_text('[analyze]\nquestions = "more.txt"\n')
    assert "command line only" in run(capfd, "analyze", CLIP, "-m", "tiny").stderr


def test_a_run_is_resumed_by_what_the_model_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[dict[str, Any]] = []

    def key(**settings: Any) -> str:
        found.append(settings)
        return "key"

    monkeypatch.setattr(journal, "key", key)
    for system in ("", "Be brief."):
        asking = analyze.Asking([Question("A?", 1.0, system=system)], task=Task("caption", 10.0, system=system))
        config = EngineConfig(model="tiny")
        with analyze.kept(Source(str(CLIP)), config, [config.cache], asking, OFF, 60.0, False, print):
            pass
    assert (found[0]["questions"], found[0]["task"]) == ([["A?", 1.0]], ["caption", 10.0]), "as it always was"
    assert (found[1]["questions"], found[1]["task"]) == ([["A?", 1.0, "Be brief."]], ["caption", 10.0, "Be brief."])
