"""Faults around a run - disks, models, memory, names - are one line and the right exit code; what was done stays."""

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, EngineError, OutOfMemoryError
from kvvideo.session import Engine, EngineConfig, VideoSession
from kvvideo.session.engine import _start_error, model_path
from kvvideo.session.model_config import model_config, text_config
from kvvideo.tiny import samples
from tests.conftest import EngineFor
from tests.helpers.commands import Done, run

HOSTILE = "a\x1b[2J\x1b]0;owned\x07\n\u202egpj\u009b31m[b].mp4"
"""A name that clears a terminal, names its window, turns text around, and is broken markup."""


TINY = ("--model", "tiny", "--max-tokens", 512, "--max-answer-tokens", 4)


def one_line(done: Done, code: int, *words: str) -> None:
    """Check that a command ended so, and said why in one line."""
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("kvvideo: ")
    assert all(word in line for word in words), line
    assert line.isprintable()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "short.mp4"
    samples.make(path, seed=5, minutes=0.5)
    return path


# Models ----------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Path]:
    """A copy of the bundled model, to be damaged."""
    copy = tmp_path / "model"
    shutil.copytree(model_path("tiny"), copy)
    yield copy
    for cached in (model_config, text_config):
        cached.cache_clear()


def remove(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def cut(name: str, share: float = 0.5) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        data = (model / name).read_bytes()
        (model / name).write_bytes(data[: int(len(data) * share)])

    return damage


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda model: (model / name).write_bytes(data) and None


def change(name: str, **values: Any) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        path = model / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, **values}))

    return damage


INDEX = "model.safetensors.index.json"
DAMAGED: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "gone": (shutil.rmtree, ("there is no directory",)),
    "empty": (lambda model: [path.unlink() for path in model.iterdir()] and None, ("config.json",)),
    "no config": (remove("config.json"), ("config.json",)),
    "no JSON": (write("config.json", b"hello"), ("config.json", "JSON")),
    "no text": (write("config.json", b"\xff\xfe\0\1"), ("config.json", "JSON")),
    "a list": (write("config.json", b"[1]"), ("config.json", "JSON")),
    "nested": (write("config.json", b"[" * 100_000), ("model",)),
    "another model": (change("config.json", model_type="llama"), ("llama", "qwen2_5_vl")),
    "another class": (change("config.json", architectures=["LlamaForCausalLM"]), ("LlamaForCausalLM", "qwen2_5_vl")),
    "unknown model": (change("config.json", model_type="nobodys"), ("nobodys",)),
    "no weights": (remove("model.safetensors"), ("has no weights",)),
    "cut weights": (cut("model.safetensors"), ("model.safetensors", "is cut short", "bytes are missing")),
    "cut head": (cut("model.safetensors", 0.0001), ("model.safetensors", "is cut short")),
    "empty weights": (write("model.safetensors", b""), ("model.safetensors", "is cut short")),
    "noise": (write("model.safetensors", b"\xff" * 1000), ("model.safetensors", "no safetensors file")),
    "wrong head": (write("model.safetensors", b"\x0a\0\0\0\0\0\0\0" + b'{"a": "b"}'), ("is damaged",)),
    "missing shard": (change(INDEX, weight_map={"a": "model-2.safetensors"}), ("model-2.safetensors", "index")),
    "wrong index": (change(INDEX, weight_map=[1]), (INDEX, "lists no weights")),
    "no tokenizer": (remove("tokenizer.json"), ("has no tokenizer",)),
    "cut tokenizer": (cut("tokenizer.json"), ("tokenizer.json", "is damaged")),
    "no processor": (remove("preprocessor_config.json"), ("has no preprocessor_config.json",)),
    "cut processor": (cut("preprocessor_config.json"), ("preprocessor_config.json", "is damaged")),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_model_is_named(damage: str, model: Path) -> None:
    """Before anything of it is loaded."""
    do, words = DAMAGED[damage]
    do(model)
    with pytest.raises(ConfigError) as caught:
        Engine(EngineConfig(model=str(model), cache=CacheConfig(max_tokens=512), max_model_len=1024))
    assert str(caught.value).isprintable()
    assert str(model) in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("damage", ["no JSON", "another model", "cut weights"])
def test_a_damaged_model_is_one_line_and_code_2(
    damage: str, model: Path, video: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    do, words = DAMAGED[damage]
    do(model)
    done = run(capfd, "analyze", "--model", model, "--max-tokens", 512, video, "-q", "Now?")
    one_line(done, 2, *words)
    assert done.stdout == ""


def planted(model: Path) -> Path:
    """Code in a model's folder, named by all of its configurations; returns the file it would write."""
    ran = model.parent / "ran"
    names = [
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoProcessor",
        "AutoImageProcessor",
        "AutoVideoProcessor",
        "AutoModelForImageTextToText",
        "AutoModelForVision2Seq",
    ]
    code = dict.fromkeys(names, "planted.Planted") | {"AutoTokenizer": ["planted.Planted", "planted.Planted"]}
    (model / "planted.py").write_text(f"open({str(ran)!r}, 'w').write('x')\nclass Planted: ...\n")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "video_preprocessor_config.json"):
        change(name, auto_map=code)(model)
    return ran


def test_no_code_of_a_model_runs(model: Path, video: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It answers without, where it can; nobody is asked, either."""
    ran = planted(model)
    done = run(capfd, "analyze", "--model", model, *TINY[2:], "-f", "jsonl", video, "-q", "Now?")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["type"] for line in done.stdout.splitlines()] == ["answer", "done"]
    assert not ran.exists()
    change("config.json", model_type="planted", architectures=["Planted"])(model)
    model_config.cache_clear()
    for arguments in (("analyze", video, "-q", "Now?"), ("analyze", video, "--dry-run"), ("ingest", video)):
        done = run(capfd, *arguments, "--model", model, "--max-tokens", 512)
        one_line(done, 2, "cannot load model", "custom code")
        assert "y/N" not in done.stdout
    assert not ran.exists()


# Memory ----------------------------------------------------------------------------------------------


def test_failed_allocations_are_out_of_memory() -> None:
    """Errors as torch, Python and the system really raise them."""
    import torch

    config = EngineConfig(model="tiny")
    raised: list[Exception] = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()]
    for allocate in (lambda: torch.empty(2**60, dtype=torch.uint8), lambda: bytearray(2**60), _mapped):
        with pytest.raises((RuntimeError, MemoryError, OSError)) as caught:
            allocate()
        raised.append(caught.value)
    for error in raised:
        found = _start_error(error, config)
        assert isinstance(found, OutOfMemoryError), error
        assert "\n" not in str(found)
    assert isinstance(_start_error(RuntimeError("shapes differ"), config), EngineError)


def _mapped() -> None:
    import mmap

    mmap.mmap(-1, 2**62)


def test_memory_that_ends_while_a_video_streams_is_said(engine_for: EngineFor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real allocation that fails in the middle of a step; the answers before are there, and the engine goes on."""
    import torch

    from tests.helpers.engines import clip

    engine = engine_for("streaming")
    step, calls = engine.llm.step, []

    def failing() -> Any:
        calls.append(1)
        if len(calls) > 6:
            torch.empty(2**60, dtype=torch.uint8)
        return step()

    def ingest(session: VideoSession) -> None:
        for i in range(1, 20):
            session.ingest(clip(i, 4.0 * i))

    session = VideoSession(engine)
    session.ingest(clip(0, 0.0))
    assert session.ask("What is it?", max_tokens=2).text is not None
    monkeypatch.setattr(engine.llm, "step", failing)
    with pytest.raises(OutOfMemoryError, match="out of memory while computing"):
        ingest(session)
    monkeypatch.undo()
    session.close()
    with VideoSession(engine) as other:
        other.ingest(clip(0, 0.0))
        assert other.ask("What is it?", max_tokens=2).token_ids


# Disks -----------------------------------------------------------------------------------------------


FULL = ("No space left on device", "File too large")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 96 KiB; where none may be mounted, files may not become larger than that."""
    mount = tmp_path / "disk"
    mount.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if not libc.mount(b"tmpfs", os.fsencode(mount), b"tmpfs", 0, b"size=96k"):
        yield mount
        libc.umount2(os.fsencode(mount), 2)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (96 << 10, hard))
    yield mount
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("one_engine")
def test_a_full_disk_costs_the_memory_only(
    small_disk: Path, video: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No checkpoint can be written: it is said once, and the answers are there."""
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(small_disk))
    # Others fill it once it was looked at.
    monkeypatch.setattr("kvvideo.runs.journal.shortage", lambda *_: "")
    done = run(
        capfd,
        "analyze",
        *TINY,
        "--checkpoint-every",
        8,
        "-f",
        "jsonl",
        video,
        "-q",
        "@0:06 Now?",
        "-q",
        "@0:20 Now?",
        "-q",
        "Now?",
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record.get("asked_at") for record in records] == [6.0, 20.0, 32.0, None]
    assert records[-1]["status"] == "complete"
    (line,) = done.stderr.splitlines()
    assert "nothing more is kept to resume from" in line
    assert any(why in line for why in FULL)


@pytest.mark.usefixtures("one_engine")
def test_a_full_disk_is_where_an_ingest_ends(
    small_disk: Path, video: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was there stays, also where others have filled the disk since the run began."""
    monkeypatch.setattr("kvvideo.runs.forecast.check_disk", lambda *_: None)
    output = small_disk / "x.kvv"
    output.write_bytes(b"PK\3\4 another")
    done = run(capfd, "ingest", *TINY[:4], "--checkpoint-every", 0, video, "-o", output, "--force")
    assert done.returncode == 2, done.stderr
    assert any(why in done.stderr for why in FULL)
    assert all(line.startswith("kvvideo: ") for line in done.stderr.splitlines())
    assert output.read_bytes() == b"PK\3\4 another"


def test_places_that_cannot_be_written_to(video: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Found before anything is loaded."""
    (tmp_path / "file").touch()
    for place in (tmp_path / "none" / "x.kvv", tmp_path / "file" / "x.kvv", tmp_path):
        one_line(run(capfd, "ingest", "--model", "tiny", video, "-o", place), 2, str(tmp_path))


@pytest.mark.usefixtures("one_engine")
def test_a_state_directory_that_cannot_be_is_said_once(
    video: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVVIDEO_STATE_DIR", "/dev/null/x")
    done = run(capfd, "analyze", *TINY, "-f", "jsonl", video, "-q", "Now?")
    one_line(done, 0, "nothing more is kept to resume from", "Not a directory")
    assert [json.loads(line)["type"] for line in done.stdout.splitlines()] == ["answer", "done"]


@pytest.mark.parametrize("to", ["| true", "> /dev/full"])
def test_output_that_goes_nowhere_is_no_traceback(to: str) -> None:
    code = "from kvvideo.cli import main; main()"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$0" -c "$1" strategies {to}', sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
    )
    wanted = () if to == "| true" else ("kvvideo: standard output cannot be written: No space left on device",)
    assert tuple(done.stderr.splitlines()) == wanted
    assert done.returncode in ((0, 1) if to == "| true" else (2,))


@pytest.mark.usefixtures("one_engine")
def test_an_output_that_fails_leaves_the_answers_for_later(
    video: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that could not be printed are in the journal: nothing is asked again."""
    arguments = ("analyze", *TINY, "-f", "jsonl", video, "-q", "@0:06 Now?", "-q", "Now?")
    whole = [json.loads(line) for line in run(capfd, *arguments).stdout.splitlines()]
    with monkeypatch.context() as patch, open("/dev/full", "w") as full:
        patch.setattr(sys, "stdout", full)
        done = run(capfd, *arguments)
    assert done.returncode == 2
    assert "kvvideo: standard output cannot be written: No space left on device" in done.stderr
    assert "--resume goes on from there" in done.stderr
    again = [json.loads(line) for line in run(capfd, *arguments, "--resume").stdout.splitlines()]
    assert [(r["type"], r.get("answer")) for r in again] == [(r["type"], r.get("answer")) for r in whole]
    assert again[0]["seconds"] != whole[0]["seconds"]


# Names -----------------------------------------------------------------------------------------------


def harmless(text: str) -> None:
    """Nothing in ``text`` drives a terminal or turns it around."""
    assert all(c.isprintable() or c == "\n" for c in text), text.encode("unicode_escape")


@pytest.mark.usefixtures("one_engine")
def test_hostile_names_and_questions_drive_no_terminal(
    tmp_path: Path, video: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is said of them, and all that is shown: to stdout and stderr, with and without a video behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path(HOSTILE).write_bytes(video.read_bytes())
    Path("bad").mkdir()
    Path("bad", HOSTILE).write_bytes(b"\0" * 100)
    Path(f"{HOSTILE}.kvv").write_bytes(b"PK\3\4 no memory")
    question = f"{HOSTILE}[/b] What?"
    for arguments in (
        ("analyze", f"bad/{HOSTILE}", "-q", question),
        ("analyze", f"missing{HOSTILE}", "-q", question),
        ("analyze", HOSTILE, "-q", f"@20 {question}", "--from", "25"),
        ("analyze", HOSTILE, "-q", "x", "--every", HOSTILE),
        ("analyze", HOSTILE, "-q", "x", "--decoder", HOSTILE),
        ("analyze", HOSTILE, "-q", "x", "--strategy", HOSTILE),
        ("analyze", HOSTILE, "-q", "x", "--fps", HOSTILE),
        ("analyze", HOSTILE, "-q", "x", HOSTILE),
        ("analyze", HOSTILE, f"--{HOSTILE}"),
        ("analyze", HOSTILE, "--dry-run"),
        ("ingest", HOSTILE, "-o", f"{HOSTILE}/x.kvv"),
        ("ask", f"{HOSTILE}.kvv", "-q", "x"),
        ("ask", f"missing{HOSTILE}", "-q", question),
        (HOSTILE,),
    ):
        done = run(capfd, *arguments, *(TINY[:2] if arguments[0] in ("analyze", "ingest") else ()))
        assert done.returncode in ((0,) if "--dry-run" in arguments else (2, 3)), (arguments, done.stderr)
        harmless(done.stdout + done.stderr)
    done = run(capfd, "analyze", HOSTILE, "-q", "x", "--model", HOSTILE)
    assert done.returncode == 2
    harmless(done.stdout + done.stderr)
    for form in ("text", "jsonl"):
        done = run(capfd, "analyze", HOSTILE, *TINY, "-f", form, "-q", question, "-q", f"@0:50 {question}")
        assert (done.returncode, "is after the end" in done.stderr) == (2, True), done.stderr
        harmless(done.stdout + done.stderr)
        done = run(capfd, "analyze", HOSTILE, *TINY, "-f", form, "-q", question)
        assert done.returncode == 0, done.stderr
        harmless(done.stdout + done.stderr)
    answer, last = (json.loads(line) for line in done.stdout.splitlines())
    assert (answer["video"], answer["question"], last["type"]) == (HOSTILE, question, "done")


@pytest.mark.usefixtures("one_engine")
def test_a_name_that_is_no_text_can_be_written_down(
    tmp_path: Path, video: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Journal and records hold it, and give it back."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.mp4"))
    path.write_bytes(video.read_bytes())
    done = run(capfd, "analyze", path, *TINY, "-f", "jsonl", "-q", "Now?")
    assert done.returncode == 0, done.stderr
    assert {json.loads(line)["video"] for line in done.stdout.splitlines()} == {str(path)}


def test_nothing_is_run_by_a_shell() -> None:
    import ast

    import kvvideo as package

    for path in Path(package.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("os.system", "os.popen", "eval", "exec", "pickle.load", "pickle.loads"), path
                assert not any(k.arg == "shell" for k in node.keywords), path
