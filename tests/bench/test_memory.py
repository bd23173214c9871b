"""``bench memory`` counts right, and the default strategy remembers what it says it does."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kvvideo.bench import memory
from kvvideo.bench.clips import HELD, FilmClip, LettersClip, world_of
from kvvideo.bench.intervals import clustered, wilson
from kvvideo.bench.plots import draw
from kvvideo.bench.probes import EACH, UNSEEN, is_right, probes_of
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.session import EngineConfig
from kvvideo.times import parse_time
from kvvideo.tiny import film, world
from tests.helpers.commands import kvvideo


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("red", "red", True),
        ("The letter was red.", "red", True),
        ("Red", "red", True),
        ("red or blue", "red", False),
        ("reddish", "red", False),
        ("not seen", "red", False),
        ("0:40", "0:40", True),
        ("At 0:40.", "0:40", True),
        ("10:40", "0:40", False),
        ("0:40:12", "0:40", False),
        ("none", "none", True),
        ("K", "K", True),
        ("", "K", False),
        ("K M", "K", False),
        ("M and K.", "K M", True),
        ("K", "K M", False),
        ("A red letter K", "K", True),
        ("a", "A", False),
        ("the beach", "beach", True),
        ("beach or field", "beach", False),
        ("3", "3", True),
        ("13", "3", False),
    ],
)
def test_what_counts_as_right(said: str, answer: str, right: bool) -> None:
    assert is_right(said, answer) is right


def test_intervals() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(50, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
    low, high = wilson(100, 100)
    assert high == pytest.approx(1.0)
    assert low == pytest.approx(0.963, abs=1e-3)


def test_an_interval_is_wider_where_clips_differ() -> None:
    assert clustered([(10, 20)]) == wilson(10, 20)
    assert clustered([(10, 20)] * 5) == wilson(50, 100)
    # By hand: a standard error of sqrt(5 * 500 / 4) / 100 = 0.25, and t = 2.78 with four degrees of freedom.
    low, high = clustered([(20, 20), (20, 20), (10, 20), (0, 20), (0, 20)])
    assert (low, high) == (0.0, 1.0)
    low, high = clustered([(11, 20), (11, 20), (10, 20), (9, 20), (9, 20)])
    assert (low, high) == wilson(50, 100)
    low, high = clustered([(14, 20), (12, 20), (10, 20), (8, 20), (6, 20)])
    assert high - 0.5 == pytest.approx(0.5 - low) == pytest.approx(2.78 * (5 * 40 / 4) ** 0.5 / 100, abs=1e-3)


def test_questions_are_about_what_was_shown() -> None:
    clip = LettersClip(5, 20, (84, 140))
    drawn = world.Clip(5, 20, density=0.6)
    assert len(clip) == 20
    assert clip.chunk(3).frames.shape == (8, 84, 140, 3)
    by_letter = {slot.letter: slot for slot in drawn.slots if slot.letter}
    for now, probes in probes_of(clip).items():
        for probe in probes:
            if probe.real_time:
                slot = drawn.slots[now - 1]
                assert probe.answer in {slot.letter or world.NONE, slot.colour or world.NONE}
                continue
            (letter,) = [name for name in by_letter if f" {name}" in probe.question.removeprefix("W")]
            slot = by_letter[letter]
            assert slot.end < now * world.SLOT
            assert probe.age == now * world.SLOT - slot.end
            assert probe.answer in {slot.colour, f"{int(slot.start) // 60}:{int(slot.start) % 60:02d}"}
    last = [p for p in probes_of(clip)[20] if not p.real_time]
    assert len(last) == 2 * sum(slot.letter is not None for slot in drawn.slots[:-1])


def test_questions_about_a_film_are_of_every_kind() -> None:
    clip = FilmClip(6, 60, (84, 140))
    probes = [probe for some in probes_of(clip).values() for probe in some]
    assert {probe.kind for probe in probes} == {*film.KINDS, UNSEEN}
    for now, some in probes_of(clip).items():
        asked = [probe.question for probe in some if not probe.real_time]
        assert len(set(asked)) == len(asked)
        for kind in {*film.KINDS, UNSEEN}:
            assert sum(probe.kind == kind for probe in some) <= EACH
        for probe in some:
            assert probe.real_time == (probe.kind in film.NOW)
            assert (probe.age is None) == (probe.kind == UNSEEN)
            if probe.kind == "place at":
                clock = parse_time(probe.question.rstrip("?").split()[-1])
                assert probe.answer == clip.drawn.script.places[int(clock // world.SLOT)]
                assert clock < now * world.SLOT
    words = {number: clip.chunk(number).words for number in range(len(clip))}
    assert {number: text for number, text in words.items() if text} == {
        number: line.text for number, line in clip.drawn.script.lines.items()
    }


def test_a_world_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="'films'; take one of film, unseen, letters"):
        world_of("films")


def test_a_chunk_is_drawn_again_as_it_was() -> None:
    clip = LettersClip(5, 600, (84, 140))
    chunk = clip.chunk(3)
    for number in range(4, 4 + HELD):
        clip.chunk(number)
    first, second = clip.chunks([(12.0, 16.0), (2396.0, 2400.0)])
    assert first is not None
    assert second is not None
    assert first is not chunk
    assert (first.frames == chunk.frames).all()
    assert (second.start, second.end, second.times[-1]) == (2396.0, 2400.0, 2399.5)


NAMES = ["distinct", "streaming", "h2o", "recent", "uniform", "summary"]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    config = EngineConfig(model="tiny", cache=CacheConfig())
    return memory.run(config, NAMES, [0.04, 0.1], minutes=5, clips=1)


def cell(report: dict[str, Any], strategy: str, share: float) -> dict[str, Any]:
    (found,) = [c for c in report["cells"] if (c["strategy"], c["share"]) == (strategy, share)]
    return found  # type: ignore[no-any-return]


@pytest.mark.slow
def test_the_default_remembers_nine_tenths_of_the_past_in_a_tenth_of_the_memory(report: dict[str, Any]) -> None:
    full, default = cell(report, "full", 1.0), cell(report, CacheConfig.strategy, 0.1)
    assert full["backward"] > 0.95
    assert default["of_full"] >= 0.9
    assert default["real_time"] == full["real_time"] > 0.95
    for other, more in (("streaming", 0.3), ("h2o", 0.3), ("recent", 0.3), ("uniform", 0.15)):
        assert default["backward"] - cell(report, other, 0.1)["backward"] > more
    assert default["peak_bytes"] < 0.12 * full["peak_bytes"]


@pytest.mark.slow
def test_a_report_adds_up(report: dict[str, Any]) -> None:
    for one in report["cells"]:
        assert sum(one["asked"]) == sum(report["cells"][0]["asked"]) > 50
        assert all(right <= asked for right, asked in zip(one["right"], one["asked"], strict=True))
        assert one["backward"] == pytest.approx(sum(one["right"]) / sum(one["asked"]), abs=1e-4)
        assert sum(asked for _, asked in one["clips"]) == sum(one["asked"])
        kinds = [count for kind, count in one["kinds"].items() if kind not in film.NOW]
        assert [sum(count) for count in zip(*kinds, strict=True)] == [sum(one["right"]), sum(one["asked"])]
        assert one["backward_interval"][0] <= one["backward"] <= one["backward_interval"][1]
        assert one["max_tokens"] <= math.ceil(one["share"] * report["stream_tokens"] / 32 + 1) * 32
    # Notes need 256 tokens, and the smaller share is fewer.
    assert [(s["strategy"], s["share"]) for s in report["skipped"]] == [("summary", 0.04)]
    assert "256" in report["skipped"][0]["reason"]


@pytest.mark.slow
def test_plots_and_table_of_a_report(report: dict[str, Any], tmp_path: Path) -> None:
    source = tmp_path / "report.json"
    source.write_text(json.dumps(report))
    shown = kvvideo("bench", "memory", "--from", str(source), "--plots", str(tmp_path / "plots"))
    assert shown.returncode == 0, shown.stderr
    assert "distinct" in shown.stdout
    assert "summary at 4% was left out" in shown.stderr
    assert "colour first" in shown.stdout
    for name in ("memory-budget.svg", "memory-age.svg", "memory-kind.svg"):
        drawn = (tmp_path / "plots" / name).read_text()
        assert drawn.startswith("<?xml")
        assert "distinct" in drawn
        assert "streaming" in drawn


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    made = kvvideo(
        "bench",
        "memory",
        "-s",
        "distinct",
        "--shares",
        "0.3",
        "--minutes",
        "0.5",
        "--clips",
        "1",
        "--json",
    )
    assert made.returncode == 0, made.stderr
    assert [c["strategy"] for c in json.loads(made.stdout)["cells"]] == ["full", "distinct"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--shares", "0.1,2"], "shares"),
        (["--shares", "a"], "shares"),
        (["--recall", "1,-1"], "recall: '1,-1'"),
        (["-s", "distinkt"], "distinkt"),
        (["--from", "nothing.json"], "nothing.json"),
        (["--world", "films"], "world: no world is called 'films'"),
        (["--positions", "relative"], "positions"),
    ],
)
def test_wrong_usage(arguments: list[str], expected: str) -> None:
    shown = kvvideo("bench", "memory", *arguments)
    assert shown.returncode == 2
    assert expected in shown.stderr
    assert "Traceback" not in shown.stderr


def test_looking_again_is_drawn_apart(tmp_path: Path) -> None:
    def cell(recall: int, share: float, strategy: str = "distinct") -> dict[str, Any]:
        found = memory.Cell(strategy, share, 320, recall, right=[recall, *[0] * 6], asked=[4, *[0] * 6])
        found.kinds, found.clips = {"count": [recall, 4]}, [[recall, 4]]
        return memory.summary(found, found)

    bounded = [cell(recall, share) for recall in (0, 4) for share in (0.02, 0.1)]
    ages = [None if math.isinf(age) else age for age in memory.AGES]
    made = draw({"ages": ages, "cells": [cell(0, 1.0, "full"), *bounded]}, tmp_path)
    assert [path.name for path in made] == [
        "memory-budget.svg",
        "memory-age.svg",
        "memory-kind.svg",
        "memory-budget-recall-4.svg",
        "memory-age-recall-4.svg",
        "memory-kind-recall-4.svg",
    ]
    without, again = (made[number].read_text() for number in (0, 3))
    assert "distinct" in without
    assert without != again
