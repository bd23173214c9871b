"""Batches that are interrupted: after the reruns every question has the one record that an undisturbed batch has."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import pytest

from tests.batch.test_batch import lines, untimed
from tests.helpers.commands import command
from tests.helpers.killed_batches import WORDS, make_jobs

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KVVIDEO_TEST_BATCH_KILLS", "50"))


# Each kill lets a batch begin again: minutes in all, and more where other tests run beside it.
@pytest.mark.timeout(1500)
def test_batches_killed_at_random_moments_lose_nothing_and_ask_nothing_twice():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.helpers.killed_batches", "--kills", str(KILLS)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    report = json.loads(result.stdout)
    assert report["kills"] == KILLS
    assert report["batches"] >= 2
    # They were hit all along: before anything was answered, and close to the end.
    assert min(report["answered_at_kill"]) <= 2
    assert max(report["answered_at_kill"]) >= 12


def test_the_whole_command_killed_goes_on(tmp_path: Path):
    """As a person would: the process that loads the model too, killed once it has answered something."""
    jobs, results = make_jobs(tmp_path, clips=2), tmp_path / "results"
    words = command("batch", str(jobs), "-o", str(results), *WORDS)
    killed = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    written = results / "results.jsonl"
    while not (written.exists() and written.stat().st_size):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    before = lines(written)
    ended = subprocess.run([*words, "--json"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "questions are done already" in ended.stderr
    after = lines(written)
    assert after[: len(before)] == before
    assert len({(r["id"], r["index"]) for r in after}) == len(after) == 8
    summary = json.loads(ended.stdout)
    assert (summary["answered"], summary["failed"], summary["left"]) == (8, 1, 0)
    undisturbed = subprocess.run([*words, "-o", str(tmp_path / "whole")], check=False)
    assert undisturbed.returncode == 1
    assert untimed(after) == untimed(lines(tmp_path / "whole" / "results.jsonl"))


def test_a_person_watches_and_presses_ctrl_c(tmp_path: Path):
    """On a real terminal: where each video is, how full its cache is, what is answered; then the chunk is finished."""
    jobs, results = make_jobs(tmp_path, clips=2, seconds=120.0), tmp_path / "results"
    words = command("batch", str(jobs), "-o", str(results), *WORDS)
    terminal = pexpect.spawn(words[0], words[1:], encoding="utf-8", timeout=240, dimensions=(40, 160))
    terminal.expect(r"job 0 +distinct +[1-4]/4 [^\n]*?0:\d\d[^\n]*? / 2:00[^\n]*?\d%[^\n]*?\d+/192 tokens")
    terminal.expect(r"\d/9 questions +\d/3 videos")
    terminal.sendintr()
    terminal.expect("finishing this chunk; press Ctrl-C again to stop at once")
    terminal.expect("the same command goes on from there")
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 130
    before = lines(results / "results.jsonl")
    assert 0 < len(before) < 8
    assert [*results.glob(".kvvideo/all/*/*.safetensors")]

    ended = subprocess.run([*words, "--json"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    summary = json.loads(ended.stdout)
    assert (summary["answered"], summary["failed"], summary["left"]) == (8, 1, 0)
    # It went on from its checkpoints.
    assert summary["now"]["video_seconds"] < 240.0
    assert lines(results / "results.jsonl")[: len(before)] == before
    assert not [*results.glob(".kvvideo/all/*/")]
