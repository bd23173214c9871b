"""Batches that are killed with SIGKILL at random moments, again and again, and what is on the disk afterwards.

``OMP_NUM_THREADS=1 python -m tests.helpers.killed_batches --kills 50`` prints a report as JSON. One engine is loaded,
with one thread; every batch is a fork of the process that has it, and goes through the real command line, so that fifty
kills hit what a batch does and not fifty times the loading of a model.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]

WORDS = (
    "--model",
    "tiny",
    "--dtype",
    "float32",
    "--max-tokens",
    "192",
    "--sink",
    "16",
    "--max-answer-tokens",
    "8",
    "--at-once",
    "3",
    "--checkpoint-every",
    "8s",
)


@dataclass
class Report:
    """What was seen.

    Attributes:
        kills: processes that were killed.
        batches: that were killed until they came to their end, each compared with an undisturbed one.
        answered_at_kill: records that were on the disk at each kill.
        differences: in words; there must be none.
    """

    kills: int = 0
    batches: int = 0
    answered_at_kill: list[int] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def make_jobs(directory: Path, clips: int = 4, seconds: float = 24.0) -> Path:
    """A job file of ``clips`` synthetic clips with four questions each, and of one video that is none."""
    from kvvideo.tiny import samples

    now = "Which letter is on screen now?"
    lines = []
    for seed in range(clips):
        samples.make(directory / f"{seed}.mp4", seed=seed, minutes=seconds / 60, density=0.5)
        asked = [{"t": at, "q": now} for at in (6.0 + seed, seconds / 2 + seed, seconds - 3)]
        asked.append({"q": "When did the letter A appear?"})
        lines.append({"id": f"job {seed}", "video": f"{seed}.mp4", "questions": asked})
    (directory / "none.mp4").write_bytes(b"no video" * 1000)
    lines.append({"id": "none", "video": "none.mp4", "questions": [{"q": now}]})
    path = directory / "jobs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(kills: int, seed: int, jobs: Path, results: Path) -> Report:
    """Kill batches until ``kills`` were, and compare each that came to its end with an undisturbed one."""
    _load_engine()
    report, chance = Report(), random.Random(seed)
    began = time.monotonic()
    undisturbed = _Batch(jobs, results / "undisturbed")
    code = undisturbed.wait()
    length = time.monotonic() - began
    wanted = undisturbed.records()
    if code != 1 or len(wanted) < 5:
        raise SystemExit(f"the undisturbed batch ended with {code} and {len(wanted)} records: {undisturbed.said()}")
    while report.kills < kills:
        directory = results / f"batch-{report.batches}"
        _until_done(report, kills, chance, length, jobs, directory)
        found = _Batch.records_in(directory)
        if found != wanted:
            lost = [key for key in wanted if key not in found]
            report.differences.append(f"{directory.name}: {len(found)} records of {len(wanted)}; not there: {lost}")
            changed = [key for key in found if found[key] != wanted.get(key)]
            report.differences += [f"{key}: {wanted.get(key)} became {found[key]}" for key in changed]
        report.batches += 1
    return report


def _until_done(report: Report, kills: int, chance: random.Random, length: float, jobs: Path, directory: Path) -> None:
    """Kill and start again until a batch comes to its end by itself."""
    while True:
        before = _written(directory)
        batch = _Batch(jobs, directory)
        if report.kills < kills and not batch.ends_within(chance.random() * length):
            batch.kill()
            report.kills += 1
            now = _written(directory)
            report.answered_at_kill.append(sum(data.count(b"\n") for data in now.values()))
            for name, data in before.items():
                whole = data[: data.rfind(b"\n") + 1]
                if not now[name].startswith(whole):
                    report.differences.append(f"{name} lost what was in it: {whole[:200]!r}")
            continue
        code = batch.wait()
        if code != 1 or "Traceback" in batch.said():
            report.differences.append(f"it ended with {code}: {batch.said()}")
        return


def _written(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.jsonl")}


class _Batch:
    """``kvvideo batch`` in a fork of this process."""

    def __init__(self, jobs: Path, directory: Path) -> None:
        self._directory, self._log = directory, directory.with_name(directory.name + ".log")
        self._code: int | None = None
        self._pid = os.fork()
        if self._pid == 0:
            os._exit(_child(["batch", str(jobs), "-o", str(directory), *WORDS], self._log))

    def ends_within(self, seconds: float) -> bool:
        """Whether it ends by itself; waits as long as that at most."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
                return True
            time.sleep(0.002)
        return False

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def wait(self) -> int:
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._code

    def said(self) -> str:
        return self._log.read_text()

    def records(self) -> dict[str, Record]:
        return self.records_in(self._directory)

    @staticmethod
    def records_in(directory: Path) -> dict[str, Record]:
        """What is there, but for how long it took; a question that is there twice is there under two names."""
        found: dict[str, Record] = {}
        for name in ("results.jsonl", "failed.jsonl"):
            path = directory / name
            for line in path.read_text().splitlines() if path.exists() else ():
                record = json.loads(line)
                key = f"{record['id']} {record['t']} {record['question']}"
                while key in found:
                    key += " again"
                found[key] = {k: v for k, v in record.items() if k not in ("seconds", "first_token_seconds")}
        return found


def _child(arguments: Sequence[str], log: Path) -> int:
    """The command line, with its output in ``log``; returns its exit code."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["kvvideo", *arguments]
    from kvvideo.cli import main

    try:
        main()
    except SystemExit as ended:
        sys.stdout.flush()
        return ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        return 70
    return 0


def _load_engine() -> None:
    """The engine that all forks use."""
    from kvvideo.batch import run as batch_run
    from kvvideo.compression.config import CacheConfig
    from kvvideo.session import EngineConfig

    cache = CacheConfig(max_tokens=192, sink=16)
    config = EngineConfig(model="tiny", dtype="float32", cache=cache, sessions=3, max_model_len=4096)
    engine = batch_run.open_engine(config, [cache])
    # The threads of its process groups are not in the forks, so nobody there may end them.
    engine.close = lambda: None  # type: ignore[method-assign]
    batch_run.open_engine = lambda _, caches: engine  # type: ignore[assignment]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jobs = make_jobs(Path(folder))
        report = run(options.kills, options.seed, jobs, Path(folder))
    print(json.dumps(report.__dict__, indent=2))
    raise SystemExit(bool(report.differences))


if __name__ == "__main__":
    main()
