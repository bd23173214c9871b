"""Words of strangers - times, questions, names, templates, settings - are taken or refused in one line, never more."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvvideo.errors import ConfigError, VideoError
from kvvideo.outputs import jsons
from kvvideo.outputs.paths import FIELDS, output_path
from kvvideo.runs.agenda import SHORTEST_EVERY, Agenda, Question
from kvvideo.sizes import parse_size
from kvvideo.times import LATEST, format_time, parse_time
from kvvideo.video import Source, VideoInfo, is_live, plan
from kvvideo.video.address import PROTOCOLS, Address, unknown_scheme

T = TypeVar("T")
anything = st.text(st.characters(), max_size=30)
digits = st.text("0123456789:.s@- ٣¼é", max_size=20) | st.from_regex(r"\A(\d+:){0,3}\d+(\.\d+)?s?\Z")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | anything | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3),
    max_leaves=5,
)

SETTINGS = [name for name in Source("x").as_dict() if name != "path"]
pieces = st.sampled_from(["{stem}", "{", "}", "{ext}", "/", "..", "{stem!r}", "{0}", "{stem.x}", "a", "\0"])


def taken(parse: Callable[[], T], *errors: type[Exception]) -> T | None:
    """Return what comes of it; None if it was refused in one line, with nothing in it that a terminal obeys."""
    try:
        return parse()
    except (ConfigError, *errors) as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 1500
    return None


@given(anything | digits)
@example("9" * 400)
@example("9" * 5000 + ":00:00")
@example("0:" * 1000)
def test_a_time_is_one_or_refused(text: str) -> None:
    time = taken(lambda: parse_time(text))
    if time is not None:
        assert 0 <= time < LATEST
        assert abs(parse_time(format_time(time)) - time) <= 0.0006


@given(st.floats(0, LATEST - 1))
def test_any_time_can_be_printed_and_read(time: float) -> None:
    assert parse_time(format_time(time)) == pytest.approx(time, abs=0.0006)


@given(anything | st.tuples(digits, anything).map(" ".join).map("@{}".format))
@example("@" + "9" * 400 + " why?")
def test_a_question_is_one_or_refused(text: str) -> None:
    question = taken(lambda: Question.parse(text))
    if question is not None:
        assert question.text == question.text.strip() != ""
        assert question.at is None or 0 <= question.at < LATEST
        assert text.strip().startswith("@") == (question.at is not None)


@given(st.lists(st.tuples(anything, st.none() | st.floats(0, 1e4))), st.none() | st.floats(), st.floats(0, 1e4))
def test_an_agenda_asks_or_refuses(questions: list[tuple[str, float | None]], every: float | None, end: float) -> None:
    def ask() -> tuple[int, int]:
        agenda = Agenda([Question(text, at) for text, at in questions], every, 0.0, end)
        if every is not None and end / every > 1e5:
            assert every >= SHORTEST_EVERY
            return 0, 0
        return len(agenda.at_end(end)), len(agenda.left())

    counts = taken(ask)
    if counts is not None and every is None:
        assert counts == (len(questions), 0)


def test_what_is_repeated_without_end_is_refused() -> None:
    for every in (5e-324, 1e-9, math.nan, -1.0):
        with pytest.raises(ConfigError, match=r"at least 0\.01"):
            Agenda([Question("q")], every=every)


@given(anything | digits)
@example("9" * 400 + "GB")
@example("1e400GB")
def test_a_size_is_one_or_refused(text: str) -> None:
    size = taken(lambda: parse_size(text))
    assert size is None or size >= 0


schemes = st.sampled_from([*PROTOCOLS, *(name.upper() for name in PROTOCOLS)])
secrets = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/"), min_size=8, max_size=12)


@given(schemes, st.text("abc", max_size=3), secrets)
@example("rtsp", "me", "pass@word")
@example("rtsp", "me", "pass:word")
def test_a_password_is_never_shown(scheme: str, user: str, secret: str) -> None:
    name = Address.of(f"{scheme}://{user}:{secret}@host:1/x.mp4").name
    assert name == f"{scheme}://{user}:***@host:1/x.mp4"


@given(anything | st.tuples(schemes, anything).map("://".join))
def test_a_name_is_an_address(text: str) -> None:
    address = Address.of(text)
    assert is_live(text) == (address.kind != "file")
    assert address.kind != "url" or address.scheme in PROTOCOLS
    assert address.path == text
    assert unknown_scheme(text) is None or address.kind == "file"


@given(JSON | st.fixed_dictionaries({"path": anything}, optional=dict.fromkeys(SETTINGS, JSON)))
@example({"path": "x", "fps": 10**400})
@settings(max_examples=300)
def test_a_source_is_one_or_refused(data: object) -> None:
    source = taken(lambda: Source.from_dict(data))
    if source is not None:
        assert Source.from_dict(source.as_dict()) == source


@given(
    st.floats(1e-9, 1e300) | st.none(),
    st.floats(0.1, 60),
    st.integers(1, 10),
    st.none() | st.floats(0, 1e12),
    st.integers(1, 10**9),
    st.integers(1, 10**9),
)
def test_a_plan_of_what_cannot_be_is_a_few_numbers(
    duration: float | None, fps: float, pairs: int, end: float | None, width: int, height: int
) -> None:
    info = VideoInfo("x", width, height, duration, 30.0, "h264", "mp4")
    planned = taken(lambda: plan(info, fps, 2 * pairs / fps, None, end), VideoError)
    if planned is not None and planned.frames is not None:
        assert planned.chunks is not None
        assert planned.frames <= planned.chunks * 2 * pairs
        json.dumps(planned.frames)


@given(anything | st.lists(pieces).map("".join), anything)
@settings(max_examples=300)
def test_a_template_is_a_file_below_or_refused(template: str, stem: str) -> None:
    """However it is written: what a stranger may choose, the stem, leads nowhere else."""
    home = Path("/nowhere/results")
    path = taken(lambda: output_path(template, stem=stem, strategy="window", ext="json", directory=home))
    if path is None:
        return
    assert path.name not in ("", ".", "..")
    plain = output_path(template, stem="stem", strategy="window", ext="json", directory=home)
    assert path.parent == plain.parent or any("{" + field + "}" in template for field in FIELDS)
    assert len(path.parts) == len(plain.parts)


@given(JSON)
def test_any_record_can_be_shown_and_read_back(value: Any) -> None:
    text = jsons.dumps(value)
    text.encode()
    assert all(c.isprintable() or c == "\N{NO-BREAK SPACE}" or ord(c) > 0x9F for c in text)
    assert json.dumps(json.loads(text)) == json.dumps(value)
