"""Models that are not on this machine: with a network, without one, and with one that does not answer."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.helpers import SAMPLES
from tests.helpers.commands import kvvideo
from tests.helpers.hub import Hub

SOME = "some/model"
VIDEO = SAMPLES / "letters-1m.mp4"
ASK = ("analyze", VIDEO, "--to", 4, "--max-tokens", 512, "-f", "jsonl", "-q", "Now?")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that models are downloaded to."""
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def line(done: "subprocess.CompletedProcess[str]") -> str:
    """The only line that was said; nothing was done."""
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ASK,
        (*ASK, "--dry-run"),
        ("ingest", VIDEO),
        ("chat", VIDEO),
        ("serve", SOME),
        ("batch", "jobs.jsonl"),
        ("bench", "compaction", "--cycles", 1),
    ],
    ids=lambda arguments: f"{arguments[0]}{'-dry' * ('--dry-run' in arguments)}",
)
def test_without_a_network_one_line_says_what_to_do(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        (tmp_path / "jobs.jsonl").write_text(f'{{"id": "a", "video": "{VIDEO}", "questions": [{{"q": "Now?"}}]}}\n')
        done = kvvideo(*arguments, *(() if arguments[0] == "serve" else ("--model", SOME)))
    assert line(done) == (
        f"kvvideo: 'some/model' is not on this machine ({home / 'hub'}; HF_HOME names another folder), and "
        f"{url} cannot be reached; run 'hf download some/model' where there is a network, "
        "name its directory with --model, or try --model tiny, which needs no download"
    )


@pytest.mark.slow
def test_a_hub_that_never_answers_is_tried_once(hub: Hub) -> None:
    hub.silent = True
    assert f"{hub.url} cannot be reached; run 'hf download some/model'" in line(kvvideo(*ASK, "--model", SOME))
    assert len([path for _, path, _ in hub.asked if SOME in path]) == 1


def test_nothing_is_asked_where_nothing_may_be(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = line(kvvideo(*ASK, "--model", SOME))
    assert "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE keeps it from being downloaded; unset that, name its dir" in said
    assert not hub.asked


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        ((401, "RepoNotFound"), "no model of that name at {url}, or it is private ('hf auth login' lets you in)"),
        ((404, "RepoNotFound"), "there is no directory 'some/model', and no model of that name at {url}"),
        ((403, "GatedRepo"), "accept them at {url}/some/model and log in ('hf auth login')"),
        ((403, ""), "{url} refuses 'some/model' to you (403)"),
        ((503, ""), "{url} does not answer as it should (503); run 'hf download some/model' where"),
    ],
)
def test_what_the_hub_refuses_is_said(hub: Hub, refusal: tuple[int, str], says: str) -> None:
    hub.refusals[SOME] = refusal
    assert says.format(url=hub.url) in line(kvvideo(*ASK, "--model", SOME))


@pytest.mark.parametrize("name", ["./nothere", "/nowhere/at/all", "~/models/nothing", "one/two/three"])
def test_what_looks_like_a_path_is_one(hub: Hub, name: str) -> None:
    said = line(kvvideo(*ASK, "--model", name))
    assert said == f"kvvideo: there is no directory {name!r}; name a model's directory or its hub name with --model"
    assert not hub.asked
    assert "'some..thing' is neither a directory nor the name" in line(kvvideo(*ASK, "--model", "some..thing"))


def test_types_that_there_are_not_are_refused_before_anything_is_looked_at(home: Path) -> None:
    said = line(kvvideo("analyze", "no-such-video.mp4", "-q", "Now?", "--model", "tiny", "--dtype", "int8"))
    assert said == "kvvideo: dtype: no 'int8'; choose one of auto, float32, bfloat16, float16"


@pytest.mark.slow
def test_a_download_can_be_interrupted_and_gone_on_with(home: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files come first; the weights go on from where they were, and then nobody is asked any more."""
    hub.stop_at = 11_000_000
    arguments = ["-m", "kvvideo", *map(str, ASK), "--model", SOME]
    terminal = pexpect.spawn(sys.executable, arguments, encoding="utf-8", dimensions=(24, 100), timeout=120)
    terminal.expect(re.escape(f"downloading {SOME} (12"))
    terminal.expect("model.safetensors: +[0-9]+%")
    (part,) = (home / "hub").rglob("*.incomplete")
    until = time.monotonic() + 60
    while not part.stat().st_size and time.monotonic() < until:
        time.sleep(0.02)  # what is counted is written next
    terminal.kill(signal.SIGINT)
    terminal.expect("stopped; the same command goes on with the download")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130

    had = part.stat().st_size
    assert 0 < had <= 11_000_000  # in whole pieces
    hub.stop_at = None
    hub.asked.clear()
    done = kvvideo(*ASK, "--model", SOME)
    assert done.returncode == 0, done.stderr
    assert '"type":"answer"' in done.stdout.replace(" ", "")
    assert "downloading some/model" in done.stderr
    assert [ranged for method, _, ranged in hub.asked if method == "GET" and ranged] == [f"bytes={had}-"]
    assert not [*(home / "hub").rglob("*.incomplete")]
    weights = next((home / "hub").rglob("model.safetensors"))
    assert weights.read_bytes() == hub.files["model.safetensors"].read_bytes()

    hub.asked.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert kvvideo(*ASK, "--model", SOME, "--dry-run").returncode == 0
    # One that was downloaded but for its weights.
    os.unlink(weights)
    said = line(kvvideo(*ASK, "--model", SOME))
    assert "has no weights, and http://127.0.0.1:9 cannot be reached; run 'hf download some/model'" in said


@pytest.mark.slow
def test_a_prediction_downloads_no_weights(hub: Hub) -> None:
    done = kvvideo(*ASK, "--model", SOME, "--dry-run")
    assert done.returncode == 0, done.stderr
    files = {path.rpartition("/")[2] for method, path, _ in hub.asked if method == "GET"}
    assert "config.json" in files
    assert "model.safetensors" not in files


@pytest.mark.slow
@pytest.mark.parametrize("command", ["analyze", "ingest", "chat"])
def test_a_mistyped_video_is_found_before_a_model_is_looked_for(command: str, hub: Hub) -> None:
    done = kvvideo(command, "nothere.mp4", "--model", SOME, *(("-q", "Now?") if command == "analyze" else ()))
    assert (done.returncode, done.stderr.strip()) == (3, "kvvideo: there is no file 'nothere.mp4'; check the name")
    assert not any("safetensors" in path for _, path, _ in hub.asked)


@pytest.mark.parametrize("command", ["analyze", "ingest", "chat"])
def test_a_mistyped_video_is_said_rather_than_a_model_that_cannot_be_had(command: str, home: Path) -> None:
    done = kvvideo(command, "nothere.mp4", *(("-q", "Now?") if command == "analyze" else ()))
    assert (done.returncode, done.stderr.strip()) == (3, "kvvideo: there is no file 'nothere.mp4'; check the name")


@pytest.mark.slow
def test_a_bad_video_is_found_before_gigabytes_are_fetched(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    done = kvvideo("analyze", "bad.mp4", "-q", "Now?", "--model", SOME)
    assert done.returncode == 3
    assert not [path for method, path, _ in hub.asked if method == "GET" and path.endswith(".safetensors")]
