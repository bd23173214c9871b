"""When which question is asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvvideo.agenda import Agenda, Question
from kvvideo.errors import ConfigError
from kvvideo.times import format_time, parse_time


def test_bytes_that_are_no_text_are_asked_as_such() -> None:
    """As Python gives them that were typed in another encoding; everything else stays what it is."""
    assert Question.parse("@1:00 caf\udce9 \N{PARTY POPPER}?") == Question(
        "caf\N{REPLACEMENT CHARACTER} \N{PARTY POPPER}?", 60.0
    )


@given(st.integers(0, 10**9))
def test_times_survive_printing(millis: int) -> None:
    assert parse_time(format_time(millis / 1000)) == pytest.approx(millis / 1000, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("2.5", 2.5), ("1:30", 90), ("0:05.25", 5.25), ("1:02:03", 3723), ("75:00", 4500)],
)
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "abc", "1:60", "1:60:00", "-5", "1:2:3:4", "1e3", "nan", "inf", "0:5:", "٣"])
def test_bad_times_are_named(text: str) -> None:
    with pytest.raises(ConfigError, match="not a time"):
        parse_time(text)


def test_questions_are_parsed() -> None:
    assert Question.parse("What?") == Question("What?", None)
    assert Question.parse(" @1:30  What now? ") == Question("What now?", 90.0)
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


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="outside of what is read, 0:30 to the end"):
        Agenda([Question("q", 10.0)], start=30.0)
    with pytest.raises(ConfigError, match="outside of what is read, 0:00 to 0:20"):
        Agenda([Question("q", 21.0)], end=20.0)
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
