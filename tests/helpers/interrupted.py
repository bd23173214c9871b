"""Every command interrupted at random moments, and what was wrong with how it ended.

``python -m tests.helpers.interrupted --times 100`` starts each command on a bundled sample, sends it Ctrl-C, two
of them, SIGTERM or SIGHUP at a random moment, and looks at what comes of it. A fault is a traceback, another exit
code than that of the signal, no end within a minute, or a process or a temporary directory of ours that is left; with
one the exit code is 1. ``--seed`` draws other moments.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.helpers import SAMPLES

CLIP, SHORT = str(SAMPLES / "letters-2m.mp4"), str(SAMPLES / "letters-1m.mp4")
MODEL = ("--model", "tiny", "--max-tokens", "512")
COMMANDS = {
    "analyze": ("analyze", CLIP, *MODEL, "-q", "@0:30 What now?", "-q", "And then?"),
    "analyze --resume": ("analyze", CLIP, *MODEL, "--resume", "-f", "jsonl", "-q", "@0:30 What now?"),
    "ingest --resume": ("ingest", CLIP, *MODEL, "--resume", "-o", "a.kvv", "--checkpoint-every", "5s"),
    "batch": ("batch", "jobs.jsonl", *MODEL, "-o", "results"),
    "chat": ("chat", SHORT, *MODEL),
    "samples": ("samples", "make", "a.mp4", "--minutes", "4"),
    "doctor": ("doctor",),
    "bench": ("bench", "compaction", "--max-tokens", "512", "-s", "distinct"),
}
SIGNALS = {
    "Ctrl-C": ((signal.SIGINT,), {130}),
    "Ctrl-C twice": ((signal.SIGINT, signal.SIGINT), {130}),
    "SIGTERM": ((signal.SIGTERM,), {-signal.SIGTERM, 128 + signal.SIGTERM}),
    "SIGHUP": ((signal.SIGHUP,), {-signal.SIGHUP, 128 + signal.SIGHUP}),
}
PROGRAM = "import os; from kvvideo.__main__ import main; os.write({}, b'.'); main()"
"""It says when it begins: before, Ctrl-C is Python's own."""


def interrupt(directory: Path, command: str, sent: str, delay: float, pause: float) -> tuple[str, list[str]]:
    """Return how ``command`` ends after ``sent`` at ``delay`` s, in a word, and what was wrong with it."""
    numbers, codes = SIGNALS[sent]
    begun, say = os.pipe()
    temporary = tempfile.mkdtemp(dir=directory)
    environment = {**os.environ, "KVVIDEO_STATE_DIR": str(directory / "state"), "TMPDIR": temporary}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(say), *COMMANDS[command]],
        cwd=directory,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=[say],
        start_new_session=True,
    )
    os.close(say)
    os.read(begun, 1)
    os.close(begun)
    try:
        process.wait(delay)
        word, codes = "ended before", {0}
    except subprocess.TimeoutExpired:
        word = "interrupted"
        for number in numbers:
            if process.poll() is None:
                os.killpg(process.pid, number)
            time.sleep(pause)
    wrong = []
    try:
        output, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        wrong.append("no end")
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    code = process.returncode
    if code == 0:
        word = "ended before"
    elif code not in codes:
        wrong.append(f"exit code {code}")
    if "Traceback" in output:
        wrong.append("traceback")
    _, left = psutil.wait_procs([one for one in psutil.process_iter() if _leader(one.pid) == process.pid], timeout=10)
    wrong += [f"left behind: {one}" for one in left if _runs(one)]
    # What the system ended leaves that to the next chat.
    if code >= 0 and (files := [*Path(temporary).glob("kvvideo-*")]):
        wrong.append(f"left behind: {files}")
    return word, [f"{command}, {sent} at {delay:.2f} s: {one}\n{output[-2000:]}" for one in wrong]


def _runs(process: psutil.Process) -> bool:
    try:
        # Whoever inherits a process that has ended may be slow to take note of it.
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _leader(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw, seen, faults = random.Random(asked.seed), Counter[tuple[str, str]](), list[str]()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        questions = [{"t": "0:20", "q": "What now?"}, {"q": "And then?"}]
        jobs = [{"id": path, "video": path, "questions": questions} for path in (SHORT, CLIP)]
        (directory / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
        for turn in range(asked.times):
            command, sent = [*COMMANDS][turn % len(COMMANDS)], draw.choice([*SIGNALS])
            delay = draw.choice([draw.uniform(0, 1.5), draw.uniform(1.5, 15)])
            word, wrong = interrupt(directory, command, sent, delay, draw.choice([0.02, 0.3, 1]))
            seen[command, word] += 1
            faults += wrong
    print("| command | interrupted | ended before |\n| --- | ---: | ---: |")
    for command in COMMANDS:
        print(f"| `{command}` | {seen[command, 'interrupted']} | {seen[command, 'ended before']} |")
    print(f"{len(faults)} faults")
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
