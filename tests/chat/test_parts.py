"""The parts of ``kvvideo chat`` that need no model: what is typed, drawn, told again and exported."""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from kvvideo import compression
from kvvideo.chat import commands, looking
from kvvideo.chat.commands import COMMANDS, SETTINGS, Parsed, WatchOrder
from kvvideo.chat.dialogue import KINDS, Dialogue, Said
from kvvideo.chat.hints import little_held, times_in
from kvvideo.chat.panel import Status, column_shares, panel, prompt_line, timeline_bar, to_ansi
from kvvideo.errors import ConfigError
from kvvideo.prompt import dialogue_text
from kvvideo.session import Span
from kvvideo.storage.scratch import scratch
from kvvideo.types import CacheStats, Hit

LEVELS = " ▁▂▃▄▅▆▇█"


@st.composite
def timelines(draw: st.DrawFn, shares: st.SearchStrategy[float] | None = None) -> list[Span]:
    """Stretches of uneven length in order, some with gaps before them."""
    shares = st.floats(0, 1) if shares is None else shares
    spans, at = [], 0.0
    for _ in range(draw(st.integers(0, 30))):
        start = at + draw(st.sampled_from([0.0, 0.0, 0.3, 7.0]))
        at = start + draw(st.floats(0.1, 60))
        spans.append(Span(start, at, draw(shares)))
    return spans


def last(spans: list[Span]) -> float:
    return spans[-1].end if spans else 10.0


# The timeline ------------------------------------------------------------------------------------


@given(timelines(), st.integers(1, 120), st.floats(0.5, 2), st.floats(-10, 4000))
def test_bar_is_exactly_as_wide_as_asked(spans: list[Span], width: int, longer: float, at: float) -> None:
    end = last(spans) * longer
    bar = timeline_bar(spans, end, width)
    assert len(bar.plain) == bar.cell_len == width
    assert set(bar.plain) <= {*LEVELS, "·"}
    first, second = timeline_bar(spans, end, width, at).plain.split("\n")
    assert first == bar.plain
    assert len(second) == width
    assert second.strip() == "▲"
    assert second.index("▲") == min(max(math.floor(at / end * width), 0), width - 1)


@given(timelines(), st.integers(1, 120))
def test_columns_hold_in_sum_what_the_spans_hold(spans: list[Span], width: int) -> None:
    end = last(spans)
    column = end / width
    held = 0.0
    for index, share in enumerate(column_shares(spans, end, width)):
        here = [max(0.0, min(span.end, (index + 1) * column) - max(span.start, index * column)) for span in spans]
        if share is None:
            assert sum(here) < column * 1e-5 * (len(spans) + 1)
        else:
            assert share <= max(span.share for span in spans) + 1e-9
            held += share * sum(here)
    expected = sum((span.end - span.start) * span.share for span in spans)
    assert held == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(timelines(), st.integers(1, 80), st.data())
def test_holding_more_never_draws_less(spans: list[Span], width: int, data: st.DataObject) -> None:
    more = [replace(span, share=data.draw(st.floats(span.share, 1))) for span in spans]
    end = last(spans)
    for low, high in zip(timeline_bar(spans, end, width).plain, timeline_bar(more, end, width).plain, strict=True):
        assert (low == "·") == (high == "·")
        if low != "·":
            assert LEVELS.index(low) <= LEVELS.index(high)


@given(timelines(st.just(1.0)), st.integers(1, 120))
def test_all_held_is_full(spans: list[Span], width: int) -> None:
    assert set(timeline_bar(spans, last(spans), width).plain) <= {"█", "·"}


@given(timelines(st.just(0.0)), st.integers(1, 120))
def test_nothing_held_is_empty(spans: list[Span], width: int) -> None:
    assert set(timeline_bar(spans, last(spans), width).plain) <= {" ", "·"}


@given(timelines(st.sampled_from([1e-9, 0.01, 0.5])), st.integers(1, 120))
def test_anything_held_is_drawn(spans: list[Span], width: int) -> None:
    assert " " not in timeline_bar(spans, last(spans), width).plain


def test_a_bar_of_known_shares() -> None:
    eighths = [Span(10.0 * i, 10.0 * (i + 1), i / 8) for i in range(9)]
    assert timeline_bar(eighths, 90, 9).plain == LEVELS
    # A gap says nothing about what is held beside it; what is still to come is not seen.
    assert timeline_bar([Span(0, 2, 1.0), Span(8, 10, 0.5)], 20, 4).plain == "█▄··"
    # Uneven spans weigh as long as they last: 9 s of nothing and 1 s of all.
    assert timeline_bar([Span(0, 9, 0.0), Span(9, 10, 1.0)], 10, 1).plain == "▁"
    assert timeline_bar([Span(0, 9, 0.0), Span(9, 10, 1.0)], 10, 10).plain == " " * 9 + "█"
    assert timeline_bar([], 0, 3).plain == "···"
    assert timeline_bar([], 10, 0).plain == ""
    # Stretches beyond the end, and a remembered dialogue that lasts no time, draw nothing.
    assert timeline_bar([Span(0, 10, 1.0), Span(5, 5, 0.0), Span(10, 99, 0.0)], 10, 2).plain == "██"


def test_more_is_brighter() -> None:
    bar = timeline_bar([Span(i, i + 1, i / 8) for i in range(9)], 9, 9)
    styles = [str(span.style) for span in bar.spans if span.style]
    assert len(set(styles)) == 8


# The panel ---------------------------------------------------------------------------------------

STATUS = Status(
    position=724.4,
    end=2700.0,
    state="playing",
    speed="2x",
    rate=61.2,
    realtime=1.98,
    cache=CacheStats(12034, 1812, 10222, 114, 3, 12_345_678),
    budget=2048,
    max_tokens=4096,
    strategy="distinct",
    blocks_free=400,
    blocks_total=512,
    timeline=tuple(Span(4.0 * i, 4.0 * i + 4, i / 181) for i in range(181)),
)


def plain(ansi: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", ansi)


@pytest.mark.parametrize(
    "status",
    [
        STATUS,
        replace(STATUS, position=36_000, end=36_001.5, cache=CacheStats(10**9, 10**7, 10**9, 10**6, 10**5, 10**13)),
        replace(STATUS, end=None, budget=None, max_tokens=None, timeline=(), state="waiting", message="wait " * 50),
        replace(STATUS, behind=3.24, dropped=12, layer=3, message="one\ntwo\x1b[2J", strategy="a-very-long-name" * 5),
        replace(STATUS, position=0, end=0, cache=CacheStats(0, 0, 0, 0, 0, 0), strategy="", timeline=(), state="ended"),
    ],
)
@pytest.mark.parametrize("width", [40, 41, 57, 80, 200])
def test_the_panel_fits(status: Status, width: int) -> None:
    lines = plain(to_ansi(panel(status, width), width)).split("\n")
    assert {Text(line).cell_len for line in lines} == {width}
    assert all(line[0] in "╭│╰" and line[-1] in "╮│╯" for line in lines)
    assert len(lines) == len(plain(to_ansi(panel(status, width), width + 50)).split("\n"))  # nothing was wrapped
    assert "\x1b[2J" not in to_ansi(panel(status, width), width)


def test_the_panel_tells_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    shown = plain(to_ansi(panel(STATUS, 100), 100))
    for words in (
        "distinct",
        "12:04 / 45:00",
        "▶ playing 2x",
        "1812/4096 tokens",
        "44%",
        "budget 2048",
        "seen 12034",
        "evicted 10222",
        "3 compactions",
        "6.6x smaller",
        "12.3 MB",
        "114 blocks, 400 of 512 free",
        "61 frames/s",
        "2.0x real time",
        "22:30",
        "▲",
    ):
        assert words in shown
    assert "behind" not in shown
    live = replace(STATUS, behind=3.24, dropped=12.0, layer=3, message="the camera\x1b[2J came\nback")
    shown = plain(to_ansi(panel(live, 100), 100))
    for words in (
        "3.2 s behind",
        "12.0 s dropped",
        "timeline of layer 3",
        "the camera\N{REPLACEMENT CHARACTER}[2J came",
    ):
        assert words in shown
    assert "\x1b[" in to_ansi(panel(STATUS, 100), 100)


def test_the_prompt_is_one_line() -> None:
    assert prompt_line(STATUS) == "12:04/45:00 ▶ 2x · 1812/4096 · 61 fr/s"
    live = replace(STATUS, end=None, max_tokens=None, state="paused", behind=2.7)
    assert prompt_line(live) == "12:04 ‖ · 1812 · 61 fr/s · 3 s behind"
    assert prompt_line(replace(live, behind=0.0, dropped=8.0)) == "12:04 ‖ · 1812 · 61 fr/s · 8 s dropped"


def test_the_prompt_is_as_short_as_it_has_to_be() -> None:
    shown = {prompt_line(STATUS, width): width for width in range(60, -1, -1)}
    assert shown == {
        "12:04/45:00 ▶ 2x · 1812/4096 · 61 fr/s": 38,
        "12:04/45:00 ▶ 2x · 1812/4096": 28,
        "12:04/45:00 ▶ 2x": 16,
        "12:04 ▶ 2x": 10,
        "12:04": 5,
        "": 0,
    }


# The dialogue ------------------------------------------------------------------------------------

words = st.text(st.sampled_from("ab é中\n\r\x00\x1b\u2028<>-{}1: ") | st.characters(), max_size=60)
exchanges = st.lists(
    st.builds(Said, st.sampled_from([0.0, 1.0, 1.0004, 1.5, 8.0, 3600.0]) | st.floats(0, 400_000), words, words),
    max_size=12,
)


def dialogue(said: list[Said]) -> Dialogue:
    whole = Dialogue()
    for one in said:
        whole.add(one)
    return whole


def harmless(line: str) -> bool:
    """Return True if it is one line in which nothing controls a terminal, hides, or turns what is around it.

    Stricter than that would take joiners and marks of direction out, which many words need.
    """
    turning = {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
    hidden = {"\ufeff", "\ufff9", "\ufffa", "\ufffb", *map(chr, range(0xFDD0, 0xFDF0))}
    return not any(
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in turning | hidden or ord(c) & 0xFFFE == 0xFFFE
        for c in line
    )


def cues(text: str) -> list[tuple[int, int, str]]:
    """Start and end in milliseconds and text of each subtitle, read as strictly as can be."""
    if not text:
        return []
    assert text.endswith("\n\n")
    read = []
    for number, block in enumerate(text[:-2].split("\n\n"), 1):
        first, times, *lines = block.split("\n")
        assert first == str(number)
        assert len(lines) >= 1
        assert all(line.strip() and harmless(line) and "-->" not in line for line in lines)
        match = re.fullmatch(r"(\d{2,}):([0-5]\d):([0-5]\d),(\d{3}) --> (\d{2,}):([0-5]\d):([0-5]\d),(\d{3})", times)
        assert match is not None
        h, m, s, f, h2, m2, s2, f2 = map(int, match.groups())
        read.append((((h * 60 + m) * 60 + s) * 1000 + f, ((h2 * 60 + m2) * 60 + s2) * 1000 + f2, "\n".join(lines)))
    return read


@given(exchanges)
def test_subtitles_are_valid_and_never_overlap(said: list[Said]) -> None:
    read = cues(dialogue(said).export("srt", "title"))
    assert len(read) == len(said)
    ordered = sorted(said, key=lambda one: round(one.at * 1000))
    free = 0
    for (start, end, _), one in zip(read, ordered, strict=True):
        assert start >= max(free, round(one.at * 1000))
        assert 1000 <= end - start <= 7000
        free = end
    if read:
        assert read[0][0] == round(ordered[0].at * 1000)


def test_subtitles_of_known_moments() -> None:
    said = [
        Said(480, "What --> is {this}?", "A <b>cat</b>.\n\nIt sits on the wall."),
        Said(60, "Who?", "Anna"),
        Said(60, "Where?", ""),
        Said(64, "Now?", "x" * 500),
        Said(64.5, "And now?", "y"),
    ]
    read = cues(dialogue(said).export("srt", "title"))
    assert read[:2] == [(60_000, 62_000, "Who?\nAnna"), (62_000, 64_000, "Where?\n(no answer)")]
    # Half a second is too short to read; the next one waits.
    assert [(start, end) for start, end, _ in read[2:4]] == [(64_000, 65_000), (65_000, 68_000)]
    assert read[4] == (480_000, 483_600, "What --› is (this)?\nA ‹b›cat‹/b›. It sits on the wall.")


def test_words_keep_their_joiners() -> None:
    said = dialogue([Said(8, "چه می\u200cبینی؟", "\N{WOMAN}\u200d\N{PERSONAL COMPUTER}\u202e!")])
    for kind in ("md", "srt"):
        text = said.export(kind, "title")
        assert "می\u200cبینی" in text
        assert "\N{WOMAN}\u200d\N{PERSONAL COMPUTER}" in text
        assert "\u202e" not in text


def test_latest_turns_that_fit_are_told_again() -> None:
    said = [Said(float(i), f"q{i}", f"a{i}") for i in range(5)]
    whole = dialogue(said)
    cost = len(dialogue_text([("q0", "a0")]))
    assert whole.turns(cost * 2) == [("q3", "a3"), ("q4", "a4")]
    assert whole.turns(cost * 2 - 1) == [("q4", "a4")]
    assert whole.turns(0) == []
    assert whole.turns(3, lambda text: 1) == [(f"q{i}", f"a{i}") for i in (2, 3, 4)]
    assert len(whole.turns(10**6)) == 5
    # What became part of the stream is not told twice, and takes no room; what only says the same is told.
    whole.said.append(replace(whole.said[4]))
    assert whole.turns(3, lambda text: 1, whole.said[4:5]) == [("q2", "a2"), ("q3", "a3"), ("q4", "a4")]


def test_what_a_stream_has_is_known_by_its_words() -> None:
    whole = dialogue([Said(1, "a", "b"), Said(2, "a", "b"), Said(3, "c", "d")])
    assert [whole.recall(("a", "b"), 8.0), whole.recall(("a", "b"), 9.0), whole.recall(("a", "b"), 9.0)] == [0, 1, 3]
    assert [(said.at, said.remembered) for said in whole.said] == [(1, True), (2, True), (3, False), (9.0, True)]
    whole.forget(whole.said[1:2])
    assert [said.remembered for said in whole.said] == [True, False, False, True]


def test_what_was_said_can_be_taken_back() -> None:
    whole = dialogue([Said(1, "a", "b"), Said(2, "c", "d")])
    assert whole.undo().question == "c"
    assert [one.question for one in whole.said] == ["a"]
    whole.undo()
    with pytest.raises(ConfigError, match="nothing was said"):
        whole.undo()


@given(exchanges)
def test_exports_hold_all_that_was_said(said: list[Said]) -> None:
    whole = dialogue(said)
    records = json.loads(whole.export("json", "title"))
    assert [(record["question"], record["answer"]) for record in records] == [(s.question, s.answer) for s in said]
    assert all(record["type"] == "answer" and record["schema"] == 1 for record in records)
    lines = whole.export("md", "A\nfilm").split("\n")
    assert lines[0] == "# A film"
    assert sum(line.startswith("## ") for line in lines) == len(said)
    assert all(harmless(line) and (not line or line[:2] in ("# ", "##", "> ", ">")) for line in lines)


def test_exports_hold_what_was_looked_at_again_but_subtitles_do_not() -> None:
    whole = dialogue([Said(8, "What?", "This", looked_at=(Hit(0.0, 4.0, 0.5), Hit(4.0, 6.5, 0.12345)))])
    assert whole.export("md", "f.mp4") == "# f.mp4\n\n## 0:08 What?\n\n> This\n\n(looked again at 0:00–0:06.5)\n"
    (record,) = json.loads(whole.export("json", "f.mp4"))
    assert record["looked_at"] == [
        {"start": 0.0, "end": 4.0, "score": 0.5},
        {"start": 4.0, "end": 6.5, "score": 0.1235},
    ]
    without = dialogue([Said(8, "What?", "This")])
    assert "looked_at" not in json.loads(without.export("json", "f.mp4"))[0]
    assert whole.export("srt", "f.mp4") == without.export("srt", "f.mp4")


def test_markdown_and_unknown_kinds() -> None:
    whole = dialogue([Said(480, "What?", "# One\ntwo"), Said(3723.5, "And?", "")])
    assert whole.export("md", "f.mp4") == (
        "# f.mp4\n\n## 8:00 What?\n\n> # One\n> two\n\n## 1:02:03.5 And?\n\n> (no answer)\n"
    )
    with pytest.raises(ConfigError, match="md, json, srt"):
        whole.export("pdf", "")
    assert Dialogue().export("srt", "") == ""
    assert json.loads(Dialogue().export("json", "")) == []


# Hints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("What happened at 8:00?", [480]),
        ("from 1:02:03 to 1:02:03.5.", [3723, 3723.5]),
        ("<0:30>, then 8:05: a dog; 8:05 again", [30, 485]),
        ("在8:00的时候", [480]),
        ("between 8:00-8:30", [480, 510]),
        ("at 90 s", [90]),
        ("At about 2 minutes, at 1.5 min and at 5 minutes and 7 seconds", [120, 90, 307]),
        ("the 90-second mark, the 2 minute mark", [90, 120]),
        ("in minute 8. minute 9:30", [480, 570]),
        ("a 16:9 picture, a 16:10 aspect ratio, 2:1", []),
        ("it lasts 90 seconds, 5 a minute, 6 per minute 7", []),
        ("at 8:00 pm, 8:30am, 9:15 a.m.", []),
        ("8:60 8:000 8:0 1:99:00 1:2:03 12:30:45:10 3.8:00 x8:00", []),
        ("at 2 m distance, at 5 men", []),
        ("", []),
    ],
)
def test_times_that_are_mentioned(text: str, times: list[float]) -> None:
    assert times_in(text) == times


@given(st.text(st.sampled_from("0123456789:. atsminute-") | st.characters()))
def test_any_text_may_mention_times(text: str) -> None:
    assert all(math.isfinite(time) and time >= 0 for time in times_in(text))


def test_hints_on_what_is_hardly_held() -> None:
    spans = [Span(0, 470, 0.5), Span(470, 490, 0.03), Span(490, 500, 0.0), Span(500, 510, 0.004), Span(510, 600, 1.0)]
    hint = "only 3 % of 8:00 is still held; '/at 8:00 …' asks with all that was seen by then"
    assert little_held(["What was at 8:00?", "A cat."], spans, 600) == hint
    assert little_held(["When?", "At 0:30, then 8:00 and 8:15."], spans, 600) == hint
    assert str(little_held(["8:15"], spans, 600)).startswith("nothing of 8:15")
    assert str(little_held(["8:25"], spans, 600)).startswith("less than 1 % of 8:25")
    assert little_held(["8:00"], spans, 600, threshold=0.03) is None
    # Half of the seconds around it are held well.
    assert little_held(["8:30"], spans, 600) is None
    for text in ("no time", "1:00", "10:01", "59:00"):
        assert little_held([text], spans, 600) is None
    assert little_held(["8:00"], spans, 400) is None
    assert little_held(["8:00"], [], 600) is None
    assert little_held(["0:30"], [Span(0, 10, 0.0), Span(50, 60, 0.0)], 60) is None  # a gap: never seen


# Commands ----------------------------------------------------------------------------------------


def test_questions_and_commands() -> None:
    assert commands.parse("What is shown?") is None
    assert commands.parse("") is None
    assert commands.parse("  //what is /this? ") is None
    assert commands.question_in("  //what is /this? ") == "/what is /this?"
    assert commands.question_in(" What? ") == "What?"
    assert commands.parse(" /at  8:00  what? ") == Parsed("at", "8:00  what?")
    assert commands.parse("/AT\t8:00 what?") == Parsed("at", "8:00 what?")
    assert commands.parse("/pl max") == Parsed("play", "max")
    assert commands.parse("/stra h2o") == Parsed("strategy", "h2o")
    for command in COMMANDS:
        assert commands.parse(f"/{command.name}") == Parsed(command.name, "")
    assert commands.find("at").usage == "/at TIME question"


def test_the_list_of_commands_fits_a_terminal() -> None:
    shown: list[str] = []
    looking.show_help(cast(Any, SimpleNamespace(screen=SimpleNamespace(say=shown.append))), "")
    assert len(shown) == len(COMMANDS) + 1
    assert max(map(len, shown)) < 80


@pytest.mark.parametrize("line", ["/exit", "/quit", "/q", "/Quit", "exit", " QUIT ", "/bye", "/by"])
def test_the_ways_out(line: str) -> None:
    assert commands.parse(line) == Parsed("bye", "")
    assert "Ctrl-D" in commands.find("exit").help


def test_words_that_only_begin_like_a_way_out_are_asked() -> None:
    assert commands.parse("exit where?") is None
    assert commands.parse("bye") is None
    assert commands.parse("/e md") == Parsed("export", "md")
    with pytest.raises(ConfigError, match="takes nothing else"):
        commands.parse("/exit now")


def test_short_for_a_frame_of_a_moment_or_for_finding_words() -> None:
    assert commands.parse("/f") == Parsed("frame", "")
    assert commands.parse("/f 0:30") == Parsed("frame", "0:30")
    assert commands.parse("/F 5m") == Parsed("frame", "5m")
    assert commands.parse("/f the letter K") == Parsed("find", "the letter K")
    assert commands.parse("/fi 0:30") == Parsed("find", "0:30")


def test_each_command_is_done_by_a_function_of_its_own() -> None:
    from kvvideo.chat.chat import HANDLERS

    assert [*HANDLERS] == [command.name for command in COMMANDS]
    assert len({*HANDLERS.values()}) == len(COMMANDS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/plya", "did you mean /play?"),
        ("/st", "/step, /stats or /strategy"),
        ("/", "no command '/'"),
        ("/ play", "/help lists"),
        ("/home/video.mp4 is what?", "begins with a slash"),
        ("/pause now", "takes nothing else"),
    ],
)
def test_mistyped_commands_are_explained(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        commands.parse(line)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


typed = st.text(st.sampled_from("/abcdeilmoprstuvwxy 0123456789:.-\t\"'") | st.characters(), max_size=30)
PARSERS = (
    commands.parse,
    commands.parse_speed,
    commands.parse_count,
    commands.parse_moment,
    commands.split_at,
    commands.parse_layer,
    commands.parse_dash,
    commands.parse_watch,
    commands.parse_compare,
    commands.parse_export,
    commands.parse_set,
)


@given(typed, st.sampled_from([f"/{command.name} " for command in COMMANDS] + ["", "/"]))
def test_parsing_fails_in_words_only(text: str, command: str) -> None:
    for parse in PARSERS:
        try:
            parse(command + text)
            parse(text)
        except ConfigError:
            pass
    for setting in SETTINGS:
        try:
            value = commands.parse_setting(setting.name, text)
        except ConfigError:
            continue
        assert type(value) is type(setting.default)
    commands.completions(command + text, ["h2o"], ["a file"])


def test_more_digits_than_can_be_read() -> None:
    for digits in ("9" * 400, "9" * 5000, "9" * 5000 + ":00:00"):
        for parse in (commands.parse_moment, commands.parse_speed, commands.parse_count):
            with pytest.raises(ConfigError):
                parse(digits)


def test_speeds() -> None:
    for text, speed in (("2x", 2), ("0.5x", 0.5), ("1", 1), (".25X", 0.25), (" max ", math.inf)):
        assert commands.parse_speed(text) == speed
        assert commands.parse_speed(commands.format_speed(speed)) == speed
    for text in ("", "0x", "-1x", "fast", "nan", "inf", "1e3", "x", "٢x"):
        with pytest.raises(ConfigError, match="not a speed"):
            commands.parse_speed(text)


def test_arguments() -> None:
    assert commands.split_at(" 8:00  what is it? ") == (480.0, "what is it?")
    assert commands.parse_count("") == 1
    assert commands.parse_count(" 12 ") == 12
    assert commands.parse_layer("") is None
    assert commands.parse_layer("layer 0") == 0
    assert commands.parse_dash("") == commands.parse_dash("on") == (True, None)
    assert commands.parse_dash("layer 2") == (True, 2)
    assert commands.parse_dash("off") == (False, None)
    assert commands.parse_export("srt") == ("srt", None)
    assert commands.parse_export("md my notes.md") == ("md", "my notes.md")
    assert commands.parse_watch("") == WatchOrder()
    assert commands.parse_watch("off") == WatchOrder(off=True)
    assert commands.parse_watch("off 2") == WatchOrder(off=True, number=2)
    assert commands.parse_watch('"who is there?"') == WatchOrder("who is there?")
    assert commands.parse_watch("off the road?") == WatchOrder("off the road?")
    assert commands.parse_watch('"off"') == WatchOrder("off")
    assert commands.parse_compare("h2o streaming") == (("h2o", "streaming"), None)
    assert commands.parse_compare("h2o,streaming full -- who -- when?") == (
        ("h2o", "streaming", "full"),
        "who -- when?",
    )


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (commands.split_at, "8:00"),
        (commands.split_at, "what happens?"),
        (commands.split_at, ""),
        (commands.parse_count, "0"),
        (commands.parse_count, "1.5"),
        (commands.parse_layer, "3"),
        (commands.parse_layer, "layer -1"),
        (commands.parse_dash, "away"),
        (commands.parse_dash, "layer two"),
        (commands.parse_export, ""),
        (commands.parse_export, "pdf"),
        (commands.parse_watch, '""'),
        (commands.parse_compare, "h2o"),
        (commands.parse_compare, "h2o h2o"),
        (commands.parse_compare, "h2o full -- "),
        (commands.parse_compare, "-- q"),
        (commands.parse_set, "temperature"),
        (commands.parse_set, "hints maybe"),
        (commands.parse_set, "heat 1"),
    ],
)
def test_arguments_that_cannot_be(parse: object, text: str) -> None:
    assert callable(parse)
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_settings() -> None:
    assert {setting.name: setting.default for setting in SETTINGS} == {
        "temperature": 0.0,
        "max-answer-tokens": 128,
        "watch-every": 10.0,
        "hints": True,
        "dialogue": True,
    }
    for setting in SETTINGS:
        shown = commands.format_setting(setting, setting.default)
        assert commands.parse_setting(setting.name, shown) == setting.default
    assert commands.parse_set("") is None
    assert commands.parse_set("watch-every  1:30") == ("watch-every", 90.0)
    assert commands.parse_set("hints OFF") == ("hints", False)
    with pytest.raises(ConfigError, match="did you mean temperature"):
        commands.parse_set("temprature 1")
    for name, value in (
        ("temperature", "-1"),
        ("temperature", "nan"),
        ("max-answer-tokens", "0"),
        ("watch-every", "0"),
    ):
        with pytest.raises(ConfigError, match=name):
            commands.parse_setting(name, value)


@pytest.mark.parametrize(
    ("line", "choices", "part"),
    [
        ("/st", ["/step", "/stats", "/strategy"], "/st"),
        ("/ST", ["/step", "/stats", "/strategy"], "/ST"),
        ("/strategy ", ["full", "h2o", "streaming"], ""),
        ("/stra s", ["streaming"], "s"),
        ("/strategy h2o s", [], "s"),
        ("/compare h2o ", ["full", "streaming"], ""),
        ("/compare h2o full -- s", [], "s"),
        ("/export ", list(KINDS), ""),
        ("/export md a", ["a.srt"], "a"),
        ("/set h", ["hints"], "h"),
        ("/set hints o", ["on", "off"], "o"),
        ("/set temperature ", [], ""),
        ("/load my mem", ["my memory.kv"], "my mem"),
        ("/help pl", ["play"], "pl"),
        ("/stats ", ["layer"], ""),
        ("/dash ", ["layer", "off"], ""),
        ("/ex", ["/export", "/exit"], "/ex"),
        ("/nothing ", [], ""),
        ("What ", [], "What "),
        ("//st", [], "//st"),
        ("", [], ""),
    ],
)
def test_completions(line: str, choices: list[str], part: str) -> None:
    assert commands.completions(line, ["full", "h2o", "streaming"], ["a.srt", "my memory.kv"]) == choices
    assert commands.completed_part(line) == part


@given(typed)
def test_completions_go_on_from_what_was_typed(text: str) -> None:
    for line in (text, f"/{text}", f"/export {text}", f"/set {text}"):
        part = commands.completed_part(line)
        assert line.endswith(part)
        for choice in commands.completions(line, compression.strategies(), ["a b"]):
            assert choice.lower().startswith(commands.completed_part(line.lstrip()).lower())


def test_a_place_on_the_disk_lasts_as_long_as_its_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remains of killed chats go when the next one begins; what living ones use, and what is not ours, stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = (
        "import time; from kvvideo.storage.scratch import scratch\n"
        "with scratch() as directory: print(directory, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    chats = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    try:
        places = [Path(chat.stdout.readline().strip()) for chat in chats if chat.stdout]
        (places[0] / "0").mkdir()
        (tmp_path / "kvvideo-scratch-of-others").mkdir()
        chats[0].kill()
        chats[0].wait()
        assert places[0].exists()
        with scratch() as mine:
            assert [*mine.iterdir()] == []
            assert not places[0].parent.exists()
            assert places[1].exists()
        assert not mine.parent.exists()
        assert (tmp_path / "kvvideo-scratch-of-others").exists()
    finally:
        for chat in chats:
            chat.kill()
            chat.communicate()


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from kvvideo.chat import commands, dialogue, hints, panel; "
        "print([name for name in ('torch', 'vllm', 'av', 'PIL', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
