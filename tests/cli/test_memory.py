"""Memories and checkpoints through the real command line: what was killed goes on, and says what it would have said."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kvvideo.session.engine import model_path
from kvvideo.session.memory import Memory
from kvvideo.storage.checkpoints import Checkpoints
from kvvideo.storage.file import MemoryFile
from kvvideo.tiny import samples
from tests.helpers.clips import truncated
from tests.helpers.commands import check_refused, command, kvvideo, records, untimed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_looking_again")]

MODEL = ("--model", "tiny", "--max-tokens", "512")
ASKED = ("--max-answer-tokens", "8", "-f", "jsonl")
INGEST, ANALYZE = ("ingest", *MODEL, "--json"), ("analyze", *MODEL, *ASKED)

KILLS = int(os.environ.get("KVVIDEO_TEST_KILLS", "2"))
"""Number of times that runs are killed, while they write and at any time; each costs two starts of an engine."""

DEADLY = """
import os, signal, sys
left = int(sys.argv.pop(1))
def deadly(name):
    real = getattr(os, name)
    def call(*arguments, **options):
        global left
        left -= sys._getframe(1).f_globals["__name__"].startswith("kvvideo.")
        if left == 0:
            if name == "write":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(os, name, call)
for name in ("write", "fsync", "replace"):
    deadly(name)
from kvvideo.cli import main
main()
"""
"""kvvideo, killed at that write, sync or rename of its own; a write is cut in half."""

Completed = subprocess.CompletedProcess[str]
Run = Callable[..., Completed]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of interrupted runs."""
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state" / "runs"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    samples.make(folder / "minute.mp4", seed=77, minutes=1.0, density=0.5)
    samples.make(folder / "long.mp4", seed=3, minutes=6.0, fps=2)
    return folder


def ran(*arguments: str | Path, cwd: Path | None = None) -> Completed:
    result = kvvideo(*arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result


def killed_at(operation: int, *arguments: str | Path) -> Completed:
    """Killed in the middle of its ``operation``-th write, sync or rename; or done, if it has fewer."""
    words = [sys.executable, "-c", DEADLY, str(operation), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


def killed_after(seconds: float, begun: Callable[[], bool], *arguments: str | Path) -> Completed:
    """Killed so long after ``begun``, wherever it is then; or done."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not begun():
        time.sleep(0.01)
    time.sleep(seconds)
    process.kill()
    output, errors = process.communicate(timeout=120)
    return Completed(process.args, process.returncode, output, errors)


def killers(chance: random.Random, reached: Callable[[], float]) -> tuple[Run, Run]:
    """Two ways to kill at random: while it writes something, and at any time after its next checkpoint."""

    def writing(*arguments: str | Path) -> Completed:
        return killed_at(chance.randint(2, 12), *arguments)

    def running(*arguments: str | Path) -> Completed:
        before = reached()
        return killed_after(chance.random() * 0.4, lambda: reached() > before, *arguments)

    return writing, running


def memories(path: Path) -> list[Memory]:
    with MemoryFile(path) as file:
        return [file.before(time) for time in file.times]


def same(one: Memory, other: Memory) -> bool:
    assert one.tensors.keys() == other.tensors.keys()
    assert one.source == other.source
    facts = ("fingerprint", "cache", "position", "live", "evicted", "compactions", "chunks", "frames", "end")
    return all(getattr(one, name) == getattr(other, name) for name in facts) and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


QUESTIONS = (
    "-q",
    "@0:47 What colour is the letter on screen now?",
    "-q",
    "Which letter is on screen now?",
    "-q",
    "@0:22.3 Which letter is on screen now?",
    "-q",
    "@0:22.3 When did the letter A appear?",
    "-q",
    "@0:01 Which letter is on screen now?",
    "-q",
    "@1:00 When did the letter B appear?",
)


@pytest.fixture(scope="module")
def ingested(clips: Path) -> tuple[Path, dict[str, Any]]:
    """The memory of the short clip, with checkpoints every 10 s or so, and its record."""
    result = ran(*INGEST, "minute.mp4", "-o", "minute.kvv", "--checkpoint-every", "10s", cwd=clips)
    assert result.stderr.startswith("minute.kvv: ")
    assert len(result.stderr.splitlines()) == 1
    (record,) = records(result.stdout)
    return clips / "minute.kvv", record


def test_what_was_ingested_is_asked_as_if_it_was_analyzed(
    clips: Path, ingested: tuple[Path, dict[str, Any]], state: Path
):
    """At moments before, between and after checkpoints, and inside chunks; the video is found where it was."""
    path, record = ingested
    asked = records(ran("ask", path.name, *ASKED, *QUESTIONS, "--recall", "2", cwd=clips).stdout)
    analyzed = records(ran(*ANALYZE, "minute.mp4", *QUESTIONS, "--recall", "2", cwd=clips).stdout)
    assert untimed(asked) == untimed(analyzed)
    assert any("looked_at" in answer for answer in asked)
    assert [a["asked_at"] for a in asked[:-1]] == [a["answered_at"] for a in asked[:-1]] == [1, 22.3, 22.3, 47, 60, 60]
    assert not state.exists() or not any(state.iterdir())

    done = analyzed[-1]
    assert (record["type"], record["status"], record["error"]) == ("ingest", "complete", None)
    assert {k: record[k] for k in ("chunks", "frames", "end", "cache")} == {
        k: done[k] for k in ("chunks", "frames", "end", "cache")
    }
    assert not path.with_name("minute.kvv.part").exists()
    with MemoryFile(path) as file:
        assert file.times == [12.0, 20.0, 32.0, 40.0, 52.0, 60.0]
    assert record["checkpoints"] == 5
    assert record["bytes"] == path.stat().st_size


def test_what_is_asked_of_a_memory_goes_to_files(ingested: tuple[Path, dict[str, Any]], tmp_path: Path):
    """Called as the memory is, with frames of the video where it was; once more only if forced."""
    path, record = ingested
    arguments = ("ask", path, "--max-answer-tokens", "8", *QUESTIONS, "-f", "jsonl,html")
    result = ran(*arguments, cwd=tmp_path)
    names = [f"minute.{record['strategy']}.{ending}" for ending in ("jsonl", "html")]
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    assert result.stderr.splitlines()[-1] == f"kvvideo: wrote {', '.join(names)}"
    *answers, done = records((tmp_path / names[0]).read_text())
    assert (len(answers), done["status"]) == (6, "complete")
    lines = result.stdout.splitlines()
    assert [line.strip() for line in lines[1::2]] == [answer["answer"] or "(no answer)" for answer in answers]
    assert (tmp_path / names[1]).read_text().count("<img src=") == 4
    check_refused(tmp_path, (arguments, f"'{names[0]}' is there already"))


def test_a_file_is_as_large_as_predicted(clips: Path, ingested: tuple[Path, dict[str, Any]]):
    path, record = ingested
    (predicted,) = records(ran(*INGEST, clips / "minute.mp4", "--dry-run", "--checkpoint-every", "10s").stdout)
    assert predicted["tokens"] == record["cache"]["seen"]
    assert predicted["checkpoints"] == record["checkpoints"]
    each = predicted["checkpoint_bytes"] / predicted["peak_tokens"]
    tokens = sum(memory.live for memory in memories(path))
    assert record["bytes"] == pytest.approx(tokens * each, rel=0.05)
    assert record["bytes"] < predicted["file_bytes"] * 1.05


def test_without_the_video_the_checkpoint_answers(ingested: tuple[Path, dict[str, Any]], tmp_path: Path):
    """Somewhere else, with the model in another place; another file under the video's name is not taken for it."""
    path, _ = ingested
    shutil.copy(path, tmp_path / "moved.kvv")
    (tmp_path / "minute.mp4").write_bytes(b"another")
    shutil.copytree(model_path("tiny"), tmp_path / "model")
    result = ran(
        "ask",
        "moved.kvv",
        "--model",
        "model",
        *ASKED,
        "-q",
        "@0:36 Which?",
        "-q",
        "@0:52 Which?",
        "-q",
        "A?",
        cwd=tmp_path,
    )
    *answers, done = records(result.stdout)
    assert [(a["asked_at"], a["answered_at"]) for a in answers] == [(36, 32), (52, 52), (60, 60)]
    assert (done["status"], done["answers"]) == ("complete", 3)
    notes = result.stderr.splitlines()
    assert len(notes) == 2
    assert "'minute.mp4' is not the video that the memory was made of" in notes[0]
    assert notes[1] == "kvvideo: '@0:36 Which?' is answered from 0:32, as the video is not at hand"


def of_newer(path: Path, to: Path) -> None:
    """The memory file at ``path`` as a later kvvideo might write it."""
    import zipfile

    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b'"version": 1', b'"version": 3') if name == "manifest.json" else data)


def test_what_cannot_be_asked_is_one_line(clips: Path, ingested: tuple[Path, dict[str, Any]], tmp_path: Path):
    path, _ = ingested
    of_newer(path, tmp_path / "newer.kvv")
    (tmp_path / "cut.kvv").write_bytes(path.read_bytes()[:-1000])
    (tmp_path / "text.kvv").write_text("hello")
    shutil.copy(path, tmp_path / "alone.kvv")
    shutil.copytree(model_path("tiny"), tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "kvvideo_frame_tokens": 8}))
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        ((tmp_path / "missing.kvv", "-q", "A?"), "make it with 'kvvideo ingest'"),
        ((tmp_path / "text.kvv", "-q", "A?"), "not a kvvideo memory"),
        ((clips / "minute.mp4", "-q", "A?"), "not a kvvideo memory"),
        ((tmp_path / "cut.kvv", "-q", "A?"), "cut short or damaged"),
        ((tmp_path / "newer.kvv", "-q", "A?"), "written by a newer kvvideo"),
        ((path, "-q", "A?", "--model", tmp_path / "other"), "was made with another model"),
        ((path, "-q", "A?", "--video", tmp_path / "nowhere.mp4"), "no file"),
        ((path, "-q", "@1:01 A?"), "outside of what is read, 0:00 to 1:00"),
        ((tmp_path / "alone.kvv", "-q", "@0:11 A?"), "'@0:11 A?' is before the first checkpoint, 0:12"),
        ((path, "--seed", "1"), "nothing to ask"),
    ]
    check_refused(tmp_path, *((("ask", *words), says) for words, says in cases))


def test_killed_ingests_make_the_same_memory(clips: Path, tmp_path: Path):
    """Killed at random moments, in the middle of writing among them, and gone on with each time."""
    chance, part = random.Random(6), tmp_path / "killed.kvv.part"
    words: tuple[str | Path, ...] = (*INGEST, clips / "long.mp4", "--checkpoint-every", "20s")
    ran(*words, "-o", tmp_path / "whole.kvv")
    words, resumed = (*words, "-o", tmp_path / "killed.kvv", "--resume"), []
    for kill in killers(chance, lambda: latest(part)) * KILLS:
        result = kill(*words)
        if result.returncode == 0:
            break
        assert result.returncode == -signal.SIGKILL, result.stderr
        resumed.append(latest(part))
    assert len(resumed) >= 3
    assert resumed == sorted(resumed)
    assert resumed[-1] > 0
    result = ran(*words) if result.returncode else result
    (record,) = records(result.stdout)
    assert record["resumed_from"] == resumed[-1]
    assert not part.exists()
    assert not list(tmp_path.glob(".kvvideo-*"))
    whole, killed = memories(tmp_path / "whole.kvv"), memories(tmp_path / "killed.kvv")
    assert len(whole) == len(killed) == 18
    for one, other in zip(whole, killed, strict=True):
        assert same(one, other)
    result = ran(*words)
    assert result.stderr == f"kvvideo: {str(tmp_path / 'killed.kvv')!r} is complete already\n"


def frames(path: Path) -> dict[int, bytes]:
    """The chunks whose frames are in a memory file, by their starts in milliseconds."""
    with MemoryFile(path) as file:
        found = file.frames()
        return {} if found is None else dict(found.whole(1e9))


def test_killed_ingests_have_all_frames(clips: Path, tmp_path: Path) -> None:
    """Killed at random moments and gone on with; they take about what was said before."""
    chance, part = random.Random(8), tmp_path / "killed.kvv.part"

    def later_than(before: float) -> Callable[[], bool]:
        return lambda: latest(part) > before

    words: tuple[str | Path, ...] = (*INGEST, clips / "minute.mp4", "--checkpoint-every", "8s", "--keep-frames")
    (predicted,) = records(ran(*words, "--dry-run").stdout)
    ran(*words, "-o", tmp_path / "whole.kvv")
    whole = frames(tmp_path / "whole.kvv")
    assert [*whole] == [*range(0, 60_000, 4000)]
    assert predicted["frame_bytes"] / 4 < sum(map(len, whole.values())) < predicted["frame_bytes"]
    words, resumed = (*words, "-o", tmp_path / "killed.kvv", "--resume"), list[float]()
    for _ in range(KILLS):
        result = killed_after(chance.random() * 0.1, later_than(latest(part)), *words)
        resumed += [latest(part)] * (result.returncode != 0)
    assert resumed[0] > 0
    if result.returncode:
        ran(*words)
    assert frames(tmp_path / "killed.kvv") == whole
    assert not part.exists()
    assert "is complete already" in ran(*words).stderr


def latest(directory: Path) -> float:
    """End of the latest checkpoint there."""
    return max((int(path.stem) / 1000 for path in directory.glob("*.safetensors")), default=0.0)


def interrupted(*arguments: str | Path, once: Callable[[], bool]) -> Completed:
    """Ctrl-C pressed, once there is reason to."""
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not once():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    return Completed(process.args, process.returncode, output, errors)


def test_ctrl_c_leaves_an_ingest_that_goes_on_and_nothing_else_does(clips: Path, tmp_path: Path):
    """Other settings, another video, a second run at the same time: each is one line. Disk use stays bounded."""
    output = tmp_path / "out.kvv"
    part = tmp_path / "out.kvv.part"
    words: tuple[str | Path, ...] = (
        *INGEST,
        clips / "long.mp4",
        "-o",
        output,
        "--checkpoint-every",
        "4s",
        "--max-disk",
        "8MB",
    )
    result = interrupted(*words, once=lambda: latest(part) >= 60)
    (record,) = records(result.stdout)
    end = latest(part)
    assert (record["status"], record["bytes"], record["end"]) == ("interrupted", None, end)
    assert "with --resume goes on from 1:" in result.stderr
    assert sum(path.stat().st_size for path in part.glob("*.safetensors")) < 10e6

    cases: list[tuple[tuple[str | Path, ...], str]] = [
        ((), "is of an interrupted run: add --resume to go on from 1:"),
        (("--resume", "--restart"), "either gone on with or thrown away"),
        (("--resume", "--fps", "1"), "other settings: fps was 2.0 and is 1.0. Use those, or add --restart"),
        (("--resume", "-s", "window"), "strategy was 'distinct' and is 'window'"),
        (("--resume", "-s", "recent"), "keeps no cache that could be written down"),
        (("--resume", "--max-disk", "much"), "'much' is not a size"),
        (("--resume", "-o", clips), "is a folder"),
        (("--resume", "-o", clips / "no" / "x.kvv"), "there is no folder"),
        (("--resume", "-o", clips / "minute.mp4"), "is not a kvvideo memory, so it is not replaced"),
    ]
    others = [
        ((*INGEST, clips / "minute.mp4", "-o", output, "--resume"), "the video has changed since"),
        ((*INGEST, clips / "none.mp4", "-o", output, "--resume"), "is not a file"),
    ]
    check_refused(tmp_path, *(((*words, *more), says) for more, says in cases), *others)
    with Checkpoints(part) as store:
        assert len(store.times) < 10
    assert latest(part) == end

    (record,) = records(ran(*words, "--resume").stdout)
    assert (record["status"], record["resumed_from"], record["end"]) == ("complete", end, 360.0)
    assert record["bytes"] < 12e6
    assert not part.exists()
    with MemoryFile(output) as file:
        assert max(b - a for a, b in zip([0.0, *file.times], file.times, strict=False)) < 360
        assert 4 < len(file.times) < 10
    check_refused(tmp_path, (words, "exists; add --force to replace it"))


def test_a_damaged_video_is_remembered_up_to_the_damage(clips: Path, tmp_path: Path):
    cut = truncated(clips / "minute.mp4", tmp_path)
    result = kvvideo(*INGEST, cut, "-o", tmp_path / "cut.kvv")
    assert result.returncode == 3
    (record,) = records(result.stdout)
    assert record["status"] == "error"
    assert record["error"] in result.stderr
    (memory,) = memories(tmp_path / "cut.kvv")
    assert 12 < memory.end == record["end"] < 50
    assert not (tmp_path / "cut.kvv.part").exists()
    *_, done = records(ran("ask", tmp_path / "cut.kvv", *ASKED, "-q", "@0:09 Which?", "-q", "Which?").stdout)
    assert (done["answers"], done["end"]) == (2, record["end"])


ALL = ("--every", "15s", "-q", "Which letter is on screen now?", "-q", "@2:01.3 When did the letter A appear?")


def test_killed_analyses_say_the_same(clips: Path, state: Path):
    """Whatever was printed before a kill is printed again as it was, not asked again; the rest is what it would be."""
    chance = random.Random(8)
    words: tuple[str | Path, ...] = (*ANALYZE, clips / "long.mp4", *ALL, "--checkpoint-every", "20s")
    whole = records(ran(*words).stdout)
    assert not any(state.iterdir())
    words, kills, printed = (*words, "--resume"), 0, ""
    for kill in killers(chance, lambda: latest_run(state)) * KILLS:
        result = kill(*words)
        kills += result.returncode == -signal.SIGKILL
        if result.returncode == 0:
            break
        lines = result.stdout[: result.stdout.rfind("\n") + 1]
        assert lines.startswith(printed) or printed.startswith(lines)
        printed = max(printed, lines, key=len)
        assert untimed(records(lines)) == untimed(whole[: lines.count("\n")])
    assert kills >= 3
    assert printed
    result = ran(*words) if result.returncode else result
    assert result.stdout.startswith(printed)
    assert untimed(records(result.stdout)) == untimed(whole)
    assert result.stderr == ""
    assert not any(state.iterdir())


def latest_run(state: Path) -> float:
    return max((latest(path) for path in state.glob("*")), default=0.0)


def test_ctrl_c_leaves_an_analysis_that_goes_on(clips: Path, state: Path):
    """As text. While one goes on, the same command at the same time does without and leaves its state alone."""
    words: tuple[str | Path, ...] = (
        "analyze",
        *MODEL,
        clips / "long.mp4",
        "--every",
        "1:30",
        "-q",
        "When did A appear?",
    )
    result = interrupted(*words, once=lambda: any(state.glob("*/answers.jsonl")))
    assert "the same command with --resume goes on" in result.stderr
    assert latest_run(state) > 0
    (directory,) = state.iterdir()
    with open(directory / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        beside = ran(*words, "--resume")
    assert "the same run is going on elsewhere; this one keeps nothing to resume from" in beside.stderr
    assert beside.stdout.startswith(result.stdout)
    resumed = ran(*words, "--resume")
    assert resumed.stdout == beside.stdout
    assert [line for line in resumed.stdout.splitlines() if line[0] == "["] == [
        f"[{at}] When did A appear?" for at in ("1:30", "3:00", "4:30", "6:00")
    ]
    assert not any(state.iterdir())


def test_a_comparison_goes_on_with_the_strategy_it_was_killed_in(clips: Path, state: Path):
    words: tuple[str | Path, ...] = (
        *ANALYZE,
        clips / "minute.mp4",
        "--compare",
        "streaming,recent",
        "--every",
        "10s",
        "-q",
        "Which letter is it?",
        "--checkpoint-every",
        "8s",
    )
    whole = records(ran(*words).stdout)
    killed = killed_at(64, *words)
    assert killed.returncode == -signal.SIGKILL
    assert [record["type"] for record in records(killed.stdout)].count("done") == 1
    resumed = ran(*words, "--resume")
    assert resumed.stdout.startswith(killed.stdout)
    assert untimed(records(resumed.stdout)) == untimed(whole)
    assert not any(state.iterdir())


def test_what_cannot_be_resumed_says_so(clips: Path, state: Path):
    video = clips / "minute.mp4"
    asked: tuple[str | Path, ...] = (*ANALYZE, "-q", "A?")
    check_refused(
        clips,
        ((*asked, video, "--resume", "--checkpoint-every", "0"), "nothing is kept that could be gone on from"),
        ((*asked, video, "--checkpoint-every", "often"), "checkpoint-every: 'often' is not a time"),
        ((*asked, "missing.mp4", "--resume"), "'missing.mp4' is not a file, so it cannot be read again"),
    )
    assert not state.exists()


def test_bench_checkpoint_reports() -> None:
    report = json.loads(ran("bench", "checkpoint", "-n", "2", "--max-tokens", "512", "--json").stdout)
    assert report["bytes"] == pytest.approx(report["predicted_bytes"], rel=0.05)
    assert 256 <= report["tokens"] < report["max_tokens"] == 512
    assert report["ms_per_minute"]["mean"] > report["gathering_ms"]["mean"] > 0
    assert report["writing_ms"]["mean"] > 0
