"""Damaged, hostile and absurd videos: each ends in frames or in one clear error, in bounded time and memory."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvvideo.errors import ConfigError, VideoError
from kvvideo.video import Live, VideoReader, awake, frame_at, plan, probe
from kvvideo.video.process import WorkerProcess
from kvvideo.video.worker import MEMORY_BYTES
from tests.helpers import damage
from tests.helpers.clips import H264, MS, Clip, clip, drain, expected, made, numbers
from tests.helpers.commands import run

ANALYZE = ("analyze", "--model", "tiny", "--max-tokens", 512, "--max-answer-tokens", 4, "-f", "jsonl")
SMALL: dict[str, Any] = {"min_pixels": 1, "max_pixels": 4 * 784}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_damaged_video_ends_in_frames_or_one_clear_error() -> None:
    """Over 300 of them, read as every command does; the script itself says what counts as a fault."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.damaged", "--json"], capture_output=True, text=True, check=False
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [outcome for outcome in outcomes if outcome["fault"]] == []
    assert done.returncode == 0, done.stderr
    assert len(outcomes) >= 300
    for kind in damage.KINDS:
        of_kind = [outcome for outcome in outcomes if outcome["kind"] == kind]
        assert len(of_kind) >= 10
        assert any(outcome["error"] for outcome in of_kind) or kind.startswith("MPEG-TS"), kind
    assert max(outcome["peak"] for outcome in outcomes) < MEMORY_BYTES // 2
    read = sum(outcome["frames"] > 0 for outcome in outcomes)
    assert len(outcomes) // 3 < read < len(outcomes)


def test_the_script_finds_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hang, a crash, and an exception nobody thought of."""
    from tests.helpers import damaged

    path = tmp_path / "x.mp4"
    path.write_bytes(clip("plain.mp4").read_bytes())
    assert damaged.examine(damage.Damaged("sound", path)).fault == ""
    start = WorkerProcess.ask

    def with_signal(number: signal.Signals) -> Callable[..., None]:
        def ask(worker: WorkerProcess, request: dict[str, object]) -> None:
            os.kill(worker.pid, number)
            start(worker, request)

        return ask

    with monkeypatch.context() as patch:
        patch.setattr(damaged, "STALL_SECONDS", 0.5)
        patch.setattr(awake, "is_stopped", lambda _: False)  # else it is waited for
        patch.setattr(WorkerProcess, "ask", with_signal(signal.SIGSTOP))
        assert "it hung" in damaged.examine(damage.Damaged("hangs", path)).fault
    monkeypatch.setattr(WorkerProcess, "ask", with_signal(signal.SIGSEGV))
    assert "it crashed" in damaged.examine(damage.Damaged("crashes", path)).fault
    monkeypatch.setattr(WorkerProcess, "ask", lambda worker, request: start(worker, {**request, "grid": {}}))
    assert "nobody thought of" in damaged.examine(damage.Damaged("fails", path)).fault


def test_one_seed_makes_one_corpus(tmp_path: Path) -> None:
    def made_of(kind: str, seed: int) -> dict[str, bytes]:
        return dict(damage.KINDS[kind](damage._random(kind, seed)))

    for kind in ("bit flips", "holes", "MPEG-TS packets lost, doubled, in disorder"):
        assert made_of(kind, 1) == made_of(kind, 1) != made_of(kind, 2)


# The same through the command line -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("one_engine")
def test_commands_answer_or_say_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One of each kind of damage that could be read, and two that could not."""
    readable = 0
    for kind, make in damage.KINDS.items():
        for name, data in [*make(damage._random(kind, 0))][3::97][:2]:
            path = tmp_path / f"{len(kind)}-{name}"
            path.write_bytes(data)
            done = run(capfd, *ANALYZE, path, "-q", "Now?")
            code, said = done.returncode, done.stderr
            records = [json.loads(line) for line in done.stdout.splitlines()]
            assert "Traceback" not in said
            assert code in (0, 3), (name, said)
            lines = [line for line in said.splitlines() if line.startswith("kvvideo: ")]
            if not records:
                assert code == 3
                assert len(said.splitlines()) == 1
                assert str(path) in lines[0]
                continue
            *answers, last = records
            assert last["status"] == ("complete" if code == 0 else "error")
            assert len(answers) == (last["frames"] > 0)
            assert (code == 3) == (last["error"] is not None)
            if code == 3:
                assert lines[-1] == f"kvvideo: {last['error']}"
            readable += bool(answers)
            path.unlink()
    assert readable >= 5


# What was found, one by one --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4"])
@pytest.mark.parametrize("kind", ["hls", "concat"])
def test_a_list_does_not_lead_to_other_files(kind: str, name: str, tmp_path: Path) -> None:
    """Neither to a video beside it, nor to what would keep it waiting."""
    (tmp_path / "other.ts").write_bytes(clip("late_start.ts").read_bytes())
    os.mkfifo(tmp_path / "waits.ts")
    for target in ("other.ts", "waits.ts", str(tmp_path / "other.ts"), f"file:{tmp_path}/other.ts"):
        lists = {
            "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n",
            "concat": f"ffconcat version 1.0\nfile '{target}'\n",
        }
        (tmp_path / name).write_text(lists[kind])
        with pytest.raises(VideoError, match=r"list of other files|not a video"):
            VideoReader(tmp_path / name, stall_seconds=5.0)


def test_pictures_too_large_to_decode_are_named(tmp_path: Path) -> None:
    path = tmp_path / "large.mp4"
    path.write_bytes(damage._h264_of(65536, 2048))
    with pytest.raises(VideoError, match=r"pictures of 65536x2040 pixels, and up to 67 million"):
        VideoReader(path)
    path.write_bytes(damage._h264_of(8192, 4096))
    assert (probe(path).width, probe(path).height) == (8192, 4088)


def test_a_still_picture_may_not_be_larger_either() -> None:
    wide = made(Clip("very_wide.mkv", 2, size=(1600, 1200), options=H264, pixel_ratio=Fraction(100)))
    with pytest.raises(VideoError, match=r"pictures of 160000x1200 pixels"):
        frame_at(wide, 0.0)


def test_memory_has_an_end() -> None:
    """A chunk of 26 GB: what a decoder allocates fails, and the reason is said."""
    reader = VideoReader(clip("slow.mkv"), fps=100, chunk_seconds=150, min_pixels=10**6, max_pixels=10**6)
    with reader, pytest.raises(VideoError, match="more memory than the 4 GiB") as caught:
        next(reader)
    assert "slow.mkv" in str(caught.value)


def test_a_decoder_is_bounded_and_leaves_no_core() -> None:
    with VideoReader(made(Clip("bounded.mp4", 600, 10, options=H264))) as reader:
        limits = Path(f"/proc/{reader.pid}/limits").read_text()
    assert re.search(rf"Max data size +{MEMORY_BYTES} +{MEMORY_BYTES} ", limits)
    assert re.search(r"Max core file size +0 +0 ", limits)


def at_times(name: str, *times: float) -> Path:
    return made(Clip(name, len(times), times=times, clock=MS, options={**H264, "bf": "0"}))


@pytest.mark.parametrize("after", [3, 40])
def test_a_clock_that_leaps_goes_on(after: int, caplog: pytest.LogCaptureFixture) -> None:
    times = [i / 2 for i in range(20)]
    path = at_times(f"leap{after}.flv", *times, *(9000 + i / 2 for i in range(after)), 9000 + after / 2)
    with VideoReader(path, fps=10, chunk_seconds=1) as reader:
        chunks, error = drain(reader)
    assert error is None
    assert sorted({*numbers(chunks)}) == list(range(21 + after))
    assert all(time < 12 + after / 2 for chunk in chunks for time in chunk.times)
    assert "goes ahead by 2:29:5" in caplog.text


def test_damaged_times_among_good_ones_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "times.flv"
    path.write_bytes(damage._flv_times(np.random.default_rng(3), 2**24 - 1, "some"))
    with VideoReader(path, chunk_seconds=1, **SMALL) as reader:
        chunks, error = drain(reader)
    assert error is None
    assert 6 <= len(chunks) * 2 <= 8
    assert all(time < 3 for chunk in chunks for time in chunk.times)
    assert "frames show faults" in caplog.text


def test_an_hour_without_a_frame_is_no_leap_where_the_file_says_how_long_it_is() -> None:
    path = at_times("sparse.mp4", 0.0, 1.0, 4000.0, 9000.0, 16000.0, 16001.0)
    with VideoReader(path, fps=1 / 1000, chunk_seconds=2000) as reader:
        assert numbers(reader) == [0, 1, 1, 1] + [2] * 5 + [3] * 7 + [4, 4]


def test_frames_may_be_hours_apart_where_few_are_wanted() -> None:
    path = at_times("rare.mkv", *(1800.0 * i for i in range(12)))
    with VideoReader(path, fps=1 / 7200, chunk_seconds=14400) as reader:
        assert numbers(reader) == [0, 4, 8, 8]


def test_a_last_frame_does_not_last_for_centuries(tmp_path: Path) -> None:
    path = tmp_path / "centuries.mp4"
    path.write_bytes(dict(damage.frame_bombs(np.random.default_rng(0)))["centuries.mp4"])
    with VideoReader(path, **SMALL) as reader:
        assert reader.info.duration is None
        assert plan(reader.info).frames is None
        assert sum(len(chunk.frames) for chunk in reader) <= 4


def test_many_packets_of_one_moment_take_bounded_memory(tmp_path: Path) -> None:
    """200,000 frames, all shown at once, in a file of 800 kB."""
    from tests.helpers.damaged import examine_all

    path = tmp_path / "at_once.mp4"
    path.write_bytes(dict(damage.frame_bombs(np.random.default_rng(0)))["at_once.mp4"])
    (outcome,) = examine_all([damage.Damaged("", path)])
    assert (outcome.frames, outcome.fault) == (2, "")


def test_times_of_frames_that_are_cut_out_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "late.mp4"
    path.write_bytes(damage._with(damage._STBL + "ctts", 12, 10**6))
    with VideoReader(path, **SMALL) as reader:
        (chunk,) = reader
    assert chunk.times == pytest.approx([0, 0.466667, 1, 1.466667, 2, 2.466667])


def test_nothing_to_show_from_the_beginning_is_the_videos_fault() -> None:
    times = [5000.0 * i for i in range(1, 6)]  # the sound begins at 0
    path = made(Clip("apart.flv", len(times), times=times, clock=MS, options={**H264, "bf": "0"}, audio=1.0))
    with VideoReader(path, **SMALL) as reader, pytest.raises(VideoError, match="no frame that can be shown"):
        next(reader)


@pytest.mark.parametrize("start", [1e11, 1e300])
def test_impossible_starts_are_refused(start: float) -> None:
    with pytest.raises(ConfigError, match="cannot be read from"):
        VideoReader(clip("plain.mp4"), start=start)
    with VideoReader(clip("plain.mp4"), start=9e10) as reader, pytest.raises(ConfigError, match="start earlier"):
        next(reader)


@pytest.mark.parametrize("name", ["plain.mkv", "late_start.ts", "fragments.mp4"])
def test_what_grows_is_bounded_too(name: str, tmp_path: Path) -> None:
    """Live sources have the same limits, and the same frames."""
    path = tmp_path / name
    path.write_bytes(clip(name).read_bytes())
    with VideoReader(path, live=Live(retry_seconds=0.3, follow=True)) as reader:
        assert numbers(reader)[:20] == expected(clip(name), 2)[:20]
    path.write_bytes(damage._png(9000, 9000))
    with pytest.raises(VideoError):
        VideoReader(path, live=Live(retry_seconds=0.3, follow=True))
