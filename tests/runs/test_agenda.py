"""When which question is asked."""

import math
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvvideo.errors import ConfigError
from kvvideo.prompt import DESCRIBE, happened
from kvvideo.runs.agenda import REST, TASKS, Agenda, Question, Task
from kvvideo.runs.analyze import Asking
from kvvideo.runs.records import answer
from kvvideo.runs.streaming import analyze
from kvvideo.session import open_session
from kvvideo.times import format_time, parse_time
from tests.conftest import EngineFor
from tests.helpers.engines import clips


def test_bytes_that_are_no_text_are_asked_as_such() -> None:
    """As Python gives them that were typed in another encoding; everything else stays what it is."""
    assert Question.parse("@1:00 caf\udce9 \N{PARTY POPPER}?") == Question(
        "caf\N{REPLACEMENT CHARACTER} \N{PARTY POPPER}?", 60.0
    )


@pytest.mark.parametrize("text", ["@5m What?", "@ 5m What?", "@5:00 What?", " @300s  What? "])
def test_a_moment_may_stand_apart(text: str) -> None:
    assert Question.parse(text) == Question("What?", 300.0)


@given(st.integers(0, 10**9))
def test_times_survive_printing(millis: int) -> None:
    assert parse_time(format_time(millis / 1000)) == pytest.approx(millis / 1000, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("2.5", 2.5),
        ("1:30", 90),
        ("0:05.25", 5.25),
        ("1:02:03", 3723),
        ("75:00", 4500),
        ("100:00", 6000),
        ("2m", 120),
        ("1h", 3600),
        ("1h2m", 3720),
        ("1h2m3s", 3723),
        ("90m", 5400),
        ("1m0.5s", 60.5),
    ],
)
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abc",
        "1:60",
        "1:60:00",
        "-5",
        "1:2:3:4",
        "1e3",
        "nan",
        "inf",
        "0:5:",
        "٣",
        "s",
        "m",
        "1h60m",
        "2m60s",
        "1m2h",
        "1h2",
        "1 h",
    ],
)
def test_bad_times_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="not a time"):
        parse_time(text)


def test_questions_are_parsed() -> None:
    assert Question.parse("What?") == Question("What?", None)
    assert Question.parse(" @1:30  What now? ") == Question("What now?", 90.0)
    assert Question.parse("@ 0:30 what") == Question.parse("@\t0:30\nwhat") == Question("what", 30.0)
    assert Question.parse("@1h2m what  is it") == Question("what  is it", 3720.0)
    for empty in ("", "  ", "@10", "@1:30 "):
        with pytest.raises(ConfigError, match="asks nothing"):
            Question.parse(empty)
    with pytest.raises(ConfigError, match="not a time"):
        Question.parse("@soon what?")


def test_due_before_is_strict_and_each_comes_once() -> None:
    a, b, c, last = (Question(n, t) for n, t in (("a", 3.0), ("b", 4.0), ("c", 3.0), ("last", None)))
    agenda = Agenda([b, a, last, c])
    assert agenda.before(3.0) == []
    assert agenda.before(4.0) == [(3.0, [a, c])]
    assert agenda.before(8.0) == [(4.0, [b])]
    assert agenda.left() == [last]
    assert agenda.at_end(9.0) == [last]
    assert agenda.left() == []


def test_a_question_at_the_very_end_is_asked_there_and_a_later_one_is_left() -> None:
    at_end, later = Question("e", 10.0), Question("l", 10.5)
    agenda = Agenda([at_end, later])
    assert agenda.at_end(10.0) == [at_end]
    assert agenda.left() == [later]


def test_every_repeats_the_untimed_only() -> None:
    repeated, once = Question("r"), Question("o", 31.0)
    agenda = Agenda([repeated, once], every=30.0, start=10.0)
    assert agenda.before(75.0) == [(31.0, [once]), (40.0, [repeated]), (70.0, [repeated])]
    assert agenda.at_end(100.0) == [repeated]
    assert agenda.left() == []


def test_what_could_not_be_asked_is_on_the_agenda_again() -> None:
    """But what is asked again and again, or by a task, has its next time."""
    questions = [Question("a", 1.0), Question("b", 2.0), Question("c", 3.0), Question("d")]
    agenda = Agenda(questions, 2.0, task=Task("caption", 2.0))
    due = agenda.before(2.5)
    assert [[q.text for q in some] for _, some in due] == [["a"], ["b", DESCRIBE, "d"]]
    agenda.put_back([q for _, some in due for q in some])
    assert agenda.left() == questions[:3]
    agenda = Agenda(questions)
    agenda.put_back(agenda.at_end(5.0))
    assert agenda.left() == questions


def test_answers_are_counted_before() -> None:
    asking = Asking([Question("a", 1.0), Question("b"), Question("c", 70.0)], 10.0, Task("caption", 30.0, 0.0))
    assert asking.count(0.0, 60.0) == 1 + 6 + 2
    assert Asking([Question("b"), Question("a", 2.0)]).count(0.0, 60.0) == 2
    assert Asking(()).count(0.0, 60.0) == 0


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="outside of what is read, 0:30 to the end"):
        Agenda([Question("q", 10.0)], start=30.0)
    with pytest.raises(ConfigError, match="outside of what is read, 0:00 to 0:20"):
        Agenda([Question("q", 21.0)], end=20.0)
    for at in (math.nan, math.inf, -math.inf, 1e300):
        with pytest.raises(ConfigError, match=f"^at: {re.escape(str(at))} is not a moment of any video"):
            Agenda([Question("q", at)])
    with pytest.raises(ConfigError, match="every"):
        Agenda([Question("q")], every=0.0)
    with pytest.raises(ConfigError, match="no question without a time"):
        Agenda([Question("q", 3.0)], every=5.0)


@given(st.lists(st.floats(0, 100)), st.floats(1, 50), st.floats(0.5, 10))
def test_nothing_is_lost_or_asked_twice(times: list[float], every: float, chunk: float) -> None:
    timed = [Question(str(i), t) for i, t in enumerate(times)]
    agenda = Agenda([*timed, Question("r")], every=every)
    asked: list[tuple[float, Question]] = []
    end = 0.0
    while end < 100:
        end += chunk
        asked += [(at, q) for at, questions in agenda.before(end) for q in questions]
    asked += [(end, q) for q in agenda.at_end(end)]
    assert sorted(q.text for _, q in asked if q.text != "r") == sorted(q.text for q in timed)
    assert all(at == q.at for at, q in asked if q.at is not None and q.at < end)
    assert [at for at, _ in asked] == sorted(at for at, _ in asked)


@pytest.mark.parametrize("name", TASKS)
@given(st.floats(0.5, 40), st.floats(0, 20), st.floats(0.1, 100), st.floats(0.5, 10))
def test_a_task_covers_the_whole_video(name: str, every: float, start: float, length: float, chunk: float) -> None:
    """At each multiple, and at the end if a tenth of a period or more is left; however the chunks fall."""
    task, end = Task(name, every, start), start + length
    agenda, asked, at = Agenda([], every, start, None, task), [], start
    while (at := at + chunk) < end:
        asked += [(moment, q.text) for moment, due in agenda.before(at) for q in due]
    asked += [(moment, q.text) for moment, due in agenda.before(end) for q in due]
    asked += [(end, q.text) for q in agenda.at_end(end)]
    assert agenda.left() == []
    assert [text for _, text in asked] == [task.question(moment).text for moment, _ in asked]
    moments = [start, *(moment for moment, _ in asked)]
    assert moments == sorted(moments)
    assert all(after - before == pytest.approx(every) for before, after in pairwise(moments[:-1]))
    assert end - moments[-1] < REST * every * 1.001
    assert [task.since(moment) for moment in moments[1:]] == pytest.approx(moments[:-1])


def test_tasks_ask_beside_questions() -> None:
    timed, untimed = Question("t", 20.0), Question("u")
    task = Task("timeline", 20.0)
    agenda = Agenda([timed, untimed], None, 0.0, None, task)
    first, second = (
        f"Say in one or two sentences what happened from {a} to {b}." for a, b in (("0:00", "0:20"), ("0:20", "0:40"))
    )
    assert agenda.before(30.0) == [(20.0, [timed, Question(first, 20.0, "timeline", 0.0)])]
    assert [q.text for q in agenda.at_end(40.0)] == [second, "u"]
    repeated = Agenda([untimed], 20.0, 0.0, None, task)
    assert [(at, [q.text for q in due]) for at, due in repeated.before(30.0)] == [(20.0, [first, "u"])]
    with pytest.raises(ConfigError, match="task: no 'poem'; choose one of caption, timeline"):
        Task("poem", 10.0)
    with pytest.raises(ConfigError, match="every: 0 seconds is not possible"):
        Task("caption", 0.0)


def test_what_a_task_asks_reaches_the_model_at_its_moments(
    engine_for: EngineFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen where vLLM takes requests: between chunks, inside one after what was shown of it, and at the end."""
    engine, source = engine_for("streaming"), clips(4, seed=1)
    core, given = engine.llm.engine_core, list[str]()
    add = core.add_request

    def spy(request: Any) -> None:
        given.append(engine.tokenizer.decode(request.prompt_token_ids))
        add(request)

    monkeypatch.setattr(core, "add_request", spy)
    for task in (Task("timeline", 6.0), Task("caption", 6.0)):
        given.clear()
        with open_session(engine) as session:
            found = [*analyze(session, source, Agenda([], 6.0, 0.0, None, task), max_tokens=2)]
        moments = [0.0, 6.0, 12.0, 16.0]
        assert [one.at for one in found] == moments[1:]
        asked = [DESCRIBE if task.name == "caption" else happened(since, at) for since, at in pairwise(moments)]
        steps = [re.sub(r"<\|video_pad\|>", "", text) for text in given]
        seen = [(re.findall(r"<(\d:\d\d)>", text), question_of(text)) for text in steps]
        assert seen == [
            (["0:00"], None),
            (["0:04"], asked[0]),
            (["0:04"], None),
            (["0:08"], None),
            (["0:12"], asked[1]),
            (["0:12"], None),
            ([], asked[2]),
        ]
        pads = [text.count("<|video_pad|>") for text in given]
        # The frame of the moment itself too, and pairs of frames only: 6 of 8, and 2.
        assert (pads[1] * 4, pads[4] * 4) == (pads[2] * 3, pads[2])
        for one, since in zip(found, moments, strict=False):
            record = answer(one, video="v", model="m", strategy="s", schedule=None)
            assert record["task"] == task.name
            assert record["since"] == (since if task.name == "timeline" else None)


def question_of(text: str) -> str | None:
    """What is asked in a prompt, if it ends in the model's turn to speak."""
    asked = re.search(r"\n([^\n]*)<\|im_end\|>\n<\|im_start\|>assistant\n$", text)
    return asked and asked[1]
