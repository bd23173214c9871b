"""Questions from files, and those answers to them that say something new."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from kvvideo.errors import ConfigError
from kvvideo.runs.agenda import Question
from kvvideo.runs.changes import only_changes
from kvvideo.runs.questions import read_questions

LINES = """\ufeff# The kitchen

@10:30 What just happened?\r
  @ 5m Who is there?
Who was in the kitchen?
{"question": " Who came in? ", "at": "1h2m"}
{"question": "And then?", "at": 90.5}
{"question": "At the end?", "at": null}
{"t": "1:30", "q": "As in a job?"}
#@1:00 Not this one?
"""
READ = [
    Question("What just happened?", 630.0),
    Question("Who is there?", 300.0),
    Question("Who was in the kitchen?"),
    Question("Who came in?", 3720.0),
    Question("And then?", 90.5),
    Question("At the end?"),
    Question("As in a job?", 90.0),
]


def test_a_file_is_read_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "questions.txt"
    path.write_bytes(LINES.encode())
    assert read_questions(str(path)) == READ
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES.encode())))
    assert read_questions("-") == READ


def test_bytes_that_are_no_text_are_asked_as_such(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_bytes(b"caf\xe9?\n")
    assert read_questions(str(path)) == [Question("caf\N{REPLACEMENT CHARACTER}?")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("@5x What?", "'5x' is not a time"),
        ("@1:00", "asks nothing"),
        ("{What?}", "it is not JSON"),
        ('{"at": "1:00"}', "there is no question"),
        ('{"question": " "}', "there is no question"),
        ('{"question": 3}', "there is no question"),
        ('{"question": "What?", "when": 3}', "'when' is not known; allowed are 'question' and 'at'"),
        ('{"question": "What?", "at": "5x"}', "'5x' is not a time"),
        ('{"question": "What?", "at": -1}', "-1 is not a number of seconds"),
        ('{"question": "What?", "at": true}', "True is not a number of seconds"),
        ('{"question": "What?", "at": NaN}', "nan is not a number of seconds"),
        ('{"question": "What?", "at": [1]}', "is not a number of seconds"),
    ],
)
def test_a_line_that_cannot_be_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "questions.txt"
    path.write_text(f"# one\n{line}\n")
    with pytest.raises(ConfigError) as error:
        read_questions(str(path))
    assert str(error.value).startswith(f"questions: {path}:2: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_have_no_questions(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# none\n\n")
    for name, message in (("empty", "there are none in"), ("nothere", "cannot be read: No such"), (".", "cannot be")):
        with pytest.raises(ConfigError, match=f"questions: .*{message}"):
            read_questions(str(tmp_path / name))


# What is new -------------------------------------------------------------------------------------


def answer(at: float, question: str, said: str, **more: Any) -> dict[str, Any]:
    return {"type": "answer", "strategy": "h2o", "asked_at": at, "question": question, "answer": said, **more}


def test_only_answers_that_say_something_else_are_left() -> None:
    done = {"type": "done", "strategy": "h2o", "answers": 10, "seconds": 1.0}
    records = [
        answer(10.0, "Who?", "Ann"),
        answer(20.0, "Who?", "Bob"),
        answer(20.0, "Who?", "Ann."),  # asked at its moment besides
        answer(20.0, "Where?", "Here"),
        answer(30.0, "Who?", " ann "),
        answer(30.0, "Where?", "here!"),
        answer(40.0, "Who?", "Bob"),
        answer(40.0, "Where?", "there"),
        answer(50.0, "Who?", "Ann"),
        answer(60.0, "Who?", "Ann"),
        done,
        # Another strategy begins anew.
        answer(10.0, "Who?", "Ann", strategy="full"),
        {**done, "strategy": "full", "answers": 1},
    ]
    left = list(only_changes(records, [Question("Who?"), Question("Where?"), Question("Who?", 20.0)]))
    assert left == [
        *records[:2],
        *records[3:4],
        *records[6:9],
        {**done, "answers": 6},
        *records[11:],
    ]
    assert records[10]["answers"] == 10, "what a run is resumed from has it too"


def test_a_task_asks_in_other_words_each_time() -> None:
    records = [answer(30.0 * n, f"From {n}?", said, task="timeline") for n, said in enumerate("aab")]
    assert [record["asked_at"] for record in only_changes(records, [])] == [0.0, 60.0]
