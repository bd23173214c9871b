"""``kvvideo runs``: what interrupted runs left is listed with the command that goes on, and cleared unless in use."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvvideo.runs.journal import Run, key
from kvvideo.session.memory import Memory
from kvvideo.storage.checkpoints import Checkpoints
from kvvideo.storage.workspace import Workspace
from tests.conftest import EngineFor
from tests.helpers import SAMPLES, commands, engines
from tests.outputs.test_outputs import answer

Kvvideo = Callable[..., commands.Done]
COMMAND = ["analyze", "films/a film.mp4", "-q", "What?"]
HOLDS = """
import sys, time
from pathlib import Path
from kvvideo.session.memory import Memory
from kvvideo.storage.checkpoints import Checkpoints
from kvvideo.storage.workspace import Workspace
with Workspace(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of interrupted runs."""
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state" / "runs"


@pytest.fixture
def kvvideo(state: Path, capfd: pytest.CaptureFixture[str]) -> Kvvideo:
    """Runs a command that finds these."""
    return lambda *words: commands.run(capfd, *words)


def left(state: Path, name: str, days: float = 0.0, command: list[str] | None = None, size: int = 0) -> Path:
    """Return the directory of a run that was interrupted so many days ago."""
    directory = state / key(name=name)
    notes = {"video": f"{name}.mp4", "command": command, "folder": os.getcwd()} if command else None
    with Run(directory, pytest.fail, notes=notes) as run:
        run.append([answer(5.0, video=f"{name}.mp4")])
        run.append([answer(65.5, video=f"{name}.mp4")])
    (directory / "000000080000.safetensors").write_bytes(bytes(size))
    then = time.time() - days * 86400
    for path in (*directory.iterdir(), directory):
        os.utime(path, (then, then))
    return directory


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Have another process use it."""
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(directory)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield
        finally:
            process.kill()


def test_runs_are_listed_with_the_command_that_goes_on(state: Path, kvvideo: Kvvideo) -> None:
    assert kvvideo("runs").stderr == f"kvvideo: no interrupted runs are kept in '{state}'\n"
    old, new = left(state, "old", days=3), left(state, "new", command=COMMAND, size=2_000_000)
    done = kvvideo("runs")
    first, about, going_on, second, *rest = done.stdout.splitlines()
    assert first == f"{new.name[:8]}  new.mp4"
    assert about.startswith("  distinct; got to 1:20, 2 answers; 2.0 MB; 20")
    assert shlex.split(going_on) == ["kvvideo", "analyze", "--resume", *COMMAND[1:]]
    # An earlier version did not note what it was.
    assert second == f"{old.name[:8]}  old.mp4"
    assert rest[-1] == "  the same command with --resume goes on from there"
    assert done.stderr == f"kvvideo: 2 runs, 2.0 MB, in '{state}'\n"


def test_a_name_that_looks_like_an_option_stays_one(state: Path, kvvideo: Kvvideo) -> None:
    left(state, "one", command=["analyze", "-q", "What?", "--", "-odd.mp4"])
    line = kvvideo("runs").stdout.splitlines()[2]
    assert shlex.split(line) == ["kvvideo", "analyze", "--resume", "-q", "What?", "--", "-odd.mp4"]


def test_a_run_of_another_folder_is_gone_on_with_there(
    state: Path, kvvideo: Kvvideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(state, "one", command=[*COMMAND, "--resume"])
    (tmp_path / "else where").mkdir()
    monkeypatch.chdir(tmp_path / "else where")
    line = kvvideo("runs").stdout.splitlines()[2]
    assert shlex.split(line) == ["cd", str(tmp_path), "&&", "kvvideo", *COMMAND, "--resume"]


def test_the_record_has_all_of_it(state: Path, kvvideo: Kvvideo, tmp_path: Path) -> None:
    path = left(state, "one", days=1, command=COMMAND)
    record = json.loads(kvvideo("runs", "--json").stdout)
    (run,) = record.pop("runs")
    assert record == {"type": "runs", "schema": 1, "directory": str(state), "bytes": run["bytes"]}
    assert run.pop("bytes") == sum(file.stat().st_size for file in path.iterdir())
    assert run.pop("modified") == pytest.approx(time.time() - 86400, abs=60)
    assert run == {
        "name": path.name[:8],
        "path": str(path),
        "video": "one.mp4",
        "strategies": ["distinct"],
        "answers": 2,
        "end": 80.0,
        "running": False,
        "command": COMMAND,
        "folder": str(tmp_path),
    }


def test_what_is_named_or_old_is_cleared_and_nothing_else(state: Path, kvvideo: Kvvideo) -> None:
    runs = {name: left(state, name, days) for name, days in (("a", 1.0), ("b", 5.0), ("c", 8.0), ("d", 30.0))}

    def there() -> list[str]:
        return [name for name, path in runs.items() if path.exists()]

    assert kvvideo("runs", "clear", "--older", "7d", "--yes").stderr.startswith("kvvideo: removed 2 runs, ")
    assert there() == ["a", "b"]
    assert kvvideo("runs", "clear", "--older", "1w", "--yes").stderr == "kvvideo: there is nothing to remove\n"
    assert kvvideo("runs", "clear", runs["b"].name[:12], "-y").stderr.startswith("kvvideo: removed 1 run, ")
    assert there() == ["a"]
    assert kvvideo("runs", "clear", "--older", "12h", "--yes").returncode == 0
    assert there() == []
    assert kvvideo("runs", "clear", "--all", "--yes").stderr == "kvvideo: there is nothing to remove\n"


def test_a_run_that_is_going_on_stays(state: Path, kvvideo: Kvvideo) -> None:
    busy, other = left(state, "busy", days=9), left(state, "other", days=9)
    with held(busy):
        assert "; running now\n" in kvvideo("runs").stdout
        for words in ([busy.name], ["--older", "7d"], ["--all"]):
            done = kvvideo("runs", "clear", *words, "--yes")
            assert done.returncode == (words == [busy.name])
            assert f"kvvideo: {busy.name[:8]} is running now, so it stays\n" in done.stderr
        assert (busy / "answers.jsonl").exists()
        assert not other.exists()
    assert kvvideo("runs", "clear", busy.name, "--yes").returncode == 0
    assert not busy.exists()


def test_one_that_began_after_the_question_stays(
    state: Path, kvvideo: Kvvideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = left(state, "one"), left(state, "other")
    with Workspace(run):
        monkeypatch.setattr("kvvideo.runs.interrupted.is_held", lambda _: False)
        done = kvvideo("runs", "clear", "--all", "--yes")
    assert done.returncode == 1
    assert f"kvvideo: {run.name[:8]} is running now, so it stays\n" in done.stderr
    assert [run.exists(), other.exists()] == [True, False]


@pytest.mark.parametrize(("typed", "stays"), [("y", False), ("n", True), ("", True)])
def test_a_person_is_asked_first(
    typed: str, stays: bool, state: Path, kvvideo: Kvvideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = left(state, "one")
    monkeypatch.setattr("sys.stdin", Answering(typed))
    done = kvvideo("runs", "clear", "--all")
    assert "Remove 1 run, " in done.stderr
    assert (done.returncode, run.exists()) == (int(stays), stays)


class Answering:
    """A terminal at which somebody types one line."""

    def __init__(self, line: str) -> None:
        self._lines = [f"{line}\n"]

    def isatty(self) -> bool:
        return True

    def readline(self, _: int = -1) -> str:
        return self._lines.pop(0) if self._lines else ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "say which: names as 'kvvideo runs' lists them, --older 7d, or --all"),
        (["a", "--all"], "say which"),
        (["--all"], "nobody can be asked here if 1 run, 1.0 kB, may go; add --yes"),
        (["nothing"], "'nothing': there is no such run; 'kvvideo runs' lists them"),
        (["--older", "soon"], "older: 'soon' is no time such as 7d, 2w or 12h"),
    ],
)
def test_what_is_not_clear_removes_nothing(words: list[str], says: str, state: Path, kvvideo: Kvvideo) -> None:
    """Nor does what nobody can be asked about."""
    run = left(state, "one")
    done = kvvideo("runs", "clear", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"kvvideo: {says}")
    assert run.exists()


def test_a_beginning_that_several_have_is_no_name(state: Path, kvvideo: Kvvideo) -> None:
    for number in range(17):
        left(state, str(number))
    names = sorted(path.name for path in state.iterdir())
    twice = next(name[0] for name, other in pairwise(names) if name[0] == other[0])
    done = kvvideo("runs", "clear", twice, "--yes")
    assert "runs whose names begin so" in done.stderr
    assert len([*state.iterdir()]) == 17


def test_what_others_put_there_is_left_alone(state: Path, kvvideo: Kvvideo) -> None:
    run = left(state, "one")
    (run / "notes.txt").touch()
    (state / "file").touch()
    assert kvvideo("runs", "clear", "--all", "--yes").returncode == 0
    assert [path.name for path in run.iterdir()] == ["notes.txt"]
    assert (state / "file").exists()


def test_much_that_is_kept_is_told_of(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvvideo.runs import interrupted

    left(state, "one", size=3000)
    assert interrupted.much() == ""
    monkeypatch.setattr(interrupted, "MUCH", 3000)
    assert interrupted.much() == "; 1 interrupted run takes up 4.0 kB; 'kvvideo runs' lists and clears them"


def test_a_run_whose_session_was_full_goes_on_with_more_room(
    state: Path, kvvideo: Kvvideo, engine_for: EngineFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the end that it would have had with that from the beginning; what was asked early is asked again."""
    made = {256: engine_for("full", max_model_len=256, kv_bytes=1 << 22), 2048: engine_for("full")}
    monkeypatch.setattr("kvvideo.session.Engine", lambda config: made[config.max_model_len])
    for engine in made.values():
        monkeypatch.setattr(engine, "close", lambda: None)
    # As of a video that does not say how long it is.
    monkeypatch.setattr("kvvideo.session.prediction.check_room", lambda *_: None)
    asked = ("-q", "@0:05 Which letter?", "-q", "@0:30 What now?", "-q", "What was last?", "--max-answer-tokens", "4")
    more = ("-m", "tiny", "-s", "full", "--max-tokens", "512", "--to", "0:40", "--chunk", "8", "--recall", "0")
    run = ("analyze", SAMPLES / "letters-1m.mp4", *more, *asked, "-f", "jsonl")
    ended = kvvideo(*run, "--max-model-len", "256", "-o", "a.jsonl")
    assert ended.returncode == 5
    assert "kvvideo: the same command with --resume and a larger --max-model-len goes on from there" in ended.stderr
    assert "not asked: What now?" in ended.stderr
    early = commands.records(Path("a.jsonl").read_text())
    assert [one.get("question") for one in early] == ["Which letter?", "What was last?", None]
    full_at = early[1]["asked_at"]
    listed = json.loads(kvvideo("runs", "--json").stdout)["runs"]
    assert [(one["end"], one["answers"]) for one in listed] == [(full_at, 1)]
    resumed = kvvideo(*run, "--max-model-len", "2048", "-o", "a.jsonl", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert kvvideo(*run, "--max-model-len", "2048", "-o", "b.jsonl").returncode == 0
    one, other = (commands.untimed(commands.records(Path(name).read_text())) for name in ("a.jsonl", "b.jsonl"))
    assert one == other
    assert [record.get("asked_at") for record in one] == [5.0, 30.0, 40.0, None]
    assert not [*state.iterdir()]


@pytest.mark.usefixtures("one_engine")
def test_a_disk_without_room_for_checkpoints_is_known_before(
    state: Path, kvvideo: Kvvideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run needs none of them, so it is done all the same, and leaves nothing."""
    more = ("-m", "tiny", "--max-tokens", "512", "--to", "0:24", "--recall", "0", "--dtype", engines.DTYPE)
    run = (
        "analyze",
        SAMPLES / "letters-1m.mp4",
        *more,
        "-q",
        "What now?",
        "--max-answer-tokens",
        "4",
        "--checkpoint-every",
        "8s",
    )
    (predicted,) = commands.records(kvvideo(*run, "--dry-run", "-f", "jsonl").stdout)
    needed = 2 * predicted["checkpoint_bytes"]
    sizes: list[int] = []
    added = Checkpoints.add

    def add(self: Checkpoints, memory: Memory) -> None:
        added(self, memory)
        sizes.append(sum(tensor.nbytes for tensor in memory.tensors.values()))

    monkeypatch.setattr(Checkpoints, "add", add)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    assert "kept" not in kvvideo(*run).stderr
    assert len(sizes) > 1
    # But for what is no tensor of a token.
    assert max(sizes) == pytest.approx(predicted["checkpoint_bytes"], rel=0.05)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    says = rf"kept to resume from: two checkpoints take up to .* are free in '{state}'; name another folder"
    dry = kvvideo(*run, "--dry-run")
    assert re.search(f"^kvvideo: nothing would be {says}", dry.stderr)
    assert re.search(r"^ disk +up to .* meanwhile, for --resume$", dry.stdout, re.MULTILINE)
    sizes.clear()
    done = kvvideo(*run)
    assert (done.returncode, sizes) == (0, [])
    assert re.search(f"^kvvideo: nothing is {says}", done.stderr, re.MULTILINE)
    assert not [*state.iterdir()]
