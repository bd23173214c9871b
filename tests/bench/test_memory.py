"""``bench memory`` counts right, and the default strategy remembers what it says it does."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kvvideo.bench import memory
from kvvideo.bench.clips import HELD, Clip
from kvvideo.compression.config import CacheConfig
from kvvideo.session import EngineConfig
from kvvideo.tiny import world
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
    ],
)
def test_what_counts_as_right(said: str, answer: str, right: bool):
    assert memory.is_right(said, answer) is right


def test_intervals():
    assert memory.interval(0, 0) == (0.0, 1.0)
    low, high = memory.interval(50, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
    low, high = memory.interval(100, 100)
    assert high == pytest.approx(1.0)
    assert low == pytest.approx(0.963, abs=1e-3)


def test_questions_are_about_what_was_shown():
    clip = Clip(5, 20, (84, 140))
    drawn = world.Clip(5, 20, density=0.6)
    assert len(clip) == 20
    assert clip.chunk(3).frames.shape == (8, 84, 140, 3)
    by_letter = {slot.letter: slot for slot in drawn.slots if slot.letter}
    for now, probes in memory.probes_of(clip).items():
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
    last = [p for p in memory.probes_of(clip)[20] if not p.real_time]
    assert len(last) == 2 * sum(slot.letter is not None for slot in drawn.slots[:-1])


def test_a_chunk_is_drawn_again_as_it_was():
    clip = Clip(5, 600, (84, 140))
    chunk = clip.chunk(3)
    for number in range(4, 4 + HELD):
        clip.chunk(number)
    first, second = clip.chunks([(12.0, 16.0), (2396.0, 2400.0)])
    assert first is not None
    assert second is not None
    assert first is not chunk
    assert (first.frames == chunk.frames).all()
    assert (second.start, second.end, second.times[-1]) == (2396.0, 2400.0, 2399.5)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    config = EngineConfig(model="tiny", cache=CacheConfig())
    return memory.run(config, ["distinct", "streaming", "h2o", "recent", "summary"], [0.04, 0.1], minutes=5, clips=1)


def cell(report: dict[str, Any], strategy: str, share: float) -> dict[str, Any]:
    (found,) = [c for c in report["cells"] if (c["strategy"], c["share"]) == (strategy, share)]
    return found  # type: ignore[no-any-return]


@pytest.mark.slow
def test_the_default_remembers_nine_tenths_of_the_past_in_a_tenth_of_the_memory(report: dict[str, Any]):
    full, default = cell(report, "full", 1.0), cell(report, CacheConfig.strategy, 0.1)
    assert full["backward"] > 0.95
    assert default["of_full"] >= 0.9
    assert default["real_time"] == full["real_time"] > 0.95
    for other in ("streaming", "h2o", "recent"):
        assert default["backward"] - cell(report, other, 0.1)["backward"] > 0.3
    assert default["peak_bytes"] < 0.12 * full["peak_bytes"]


@pytest.mark.slow
def test_a_report_adds_up(report: dict[str, Any]):
    for one in report["cells"]:
        assert sum(one["asked"]) == sum(report["cells"][0]["asked"]) > 50
        assert all(right <= asked for right, asked in zip(one["right"], one["asked"], strict=True))
        assert one["backward"] == pytest.approx(sum(one["right"]) / sum(one["asked"]), abs=1e-4)
        assert one["backward_interval"][0] <= one["backward"] <= one["backward_interval"][1]
        assert one["max_tokens"] <= math.ceil(one["share"] * report["stream_tokens"] / 32 + 1) * 32
    # Notes need 256 tokens, and the smaller share is fewer.
    assert [(s["strategy"], s["share"]) for s in report["skipped"]] == [("summary", 0.04)]
    assert "256" in report["skipped"][0]["reason"]


@pytest.mark.slow
def test_plots_and_table_of_a_report(report: dict[str, Any], tmp_path: Path):
    source = tmp_path / "report.json"
    source.write_text(json.dumps(report))
    shown = kvvideo("bench", "memory", "--from", str(source), "--plots", str(tmp_path / "plots"))
    assert shown.returncode == 0, shown.stderr
    assert "distinct" in shown.stdout
    assert "summary at 4% was left out" in shown.stderr
    for name in ("memory-budget.svg", "memory-age.svg"):
        drawn = (tmp_path / "plots" / name).read_text()
        assert drawn.startswith("<?xml")
        assert "distinct" in drawn
        assert "streaming" in drawn


@pytest.mark.slow
def test_the_command_line(tmp_path: Path):
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
        (["-s", "distinkt"], "distinkt"),
        (["--from", "nothing.json"], "nothing.json"),
        (["--positions", "relative"], "positions"),
    ],
)
def test_wrong_usage(arguments: list[str], expected: str):
    shown = kvvideo("bench", "memory", *arguments)
    assert shown.returncode == 2
    assert expected in shown.stderr
    assert "Traceback" not in shown.stderr
