"""``--dry-run`` says what a person asks before a night's run; what cannot end well is refused, with and without it."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kvvideo.session
from kvvideo.bench import shapes
from kvvideo.runs import forecast
from kvvideo.session import Engine, open_engine
from kvvideo.tiny import samples
from kvvideo.video import VideoInfo
from tests.helpers.commands import Done, records, run
from tests.helpers.outputs import RECORD

FILM = VideoInfo("film.mp4", 1920, 1080, 7200.0, 25.0, "h264", "mov")
TINY = ("--model", "tiny", "--max-tokens", 512)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dry") / "clip.mp4"
    samples.make(path, seed=5, minutes=1)
    return path


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def film(monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """Two hours that nobody decodes, and a model of true size that nobody loads."""
    monkeypatch.setattr("kvvideo.video.probe", lambda path, *_, **__: replace(FILM, path=path))
    return "film.mp4", "-m", shapes.directory("3b")


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise SystemExit("the model was loaded")

    monkeypatch.setattr(kvvideo.session, "Engine", load)


def rows(done: Done) -> dict[str, str]:
    """Return the rows of a prediction by their names, each in one line; no line may be longer than a terminal's."""
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        assert len(line) <= 80
        assert line == line.rstrip()
        name = line[:12].strip() or [*found][-1]
        found[name] = f"{found.get(name, '')} {line[12:].strip()}".strip()
    return found


def test_what_a_film_takes(film: tuple[object, ...], capfd: pytest.CaptureFixture[str]) -> None:
    found = rows(run(capfd, "analyze", *film, "--dry-run", "--max-tokens", 4096))
    assert "--to 1:00" in found["time"]
    assert "the source has 1920x1080" in found["frames"]
    assert "letters below 39 pixels in the source cannot be read" in found["text"]
    assert "--frame-tokens 320" in found["text"]
    assert found["remembers"].startswith("0.47 % of it at most, 4096 of 87")
    assert "0.23 % after each of" in found["remembers"]
    assert "(--recall)" in found["remembers"]
    assert "weights 7.5 GB" in found.get("GPU", found.get("memory", ""))
    found = rows(run(capfd, "analyze", *film, "--dry-run", "--recall", 0, "--frame-tokens", 320))
    assert "the rest is gone" in found["remembers"]
    assert found["text"] == "299 tokens a pair of frames: letters of 24 pixels in the source can be read"


def test_how_large_the_file_of_a_film_is(film: tuple[object, ...], capfd: pytest.CaptureFixture[str]) -> None:
    """After thinning: not as large as all its checkpoints together."""
    words = ("ingest", *film, "--dry-run", "--max-tokens", 16384, "--keep-frames")
    (predicted,), found = records(run(capfd, *words, "--json").stdout), rows(run(capfd, *words))
    RECORD.validate(predicted)
    assert predicted["checkpoints"] == 119
    assert predicted["checkpoints"] * predicted["checkpoint_bytes"] > 40e9
    assert 10 < predicted["kept_checkpoints"] < 40
    assert 10e9 < predicted["file_bytes"] < 10e9 + predicted["checkpoint_bytes"]
    assert f"{predicted['kept_checkpoints']} of 119 checkpoints" in found["file"]
    assert found["disk"].endswith("until the file is complete")


@pytest.mark.usefixtures("one_engine")
def test_how_long_it_takes_is_known_from_the_last_run(clip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Either command's pace is used; not for other frames."""
    words, asked = (*TINY, clip), ("--every", "20s", "-q", "Now?", "--max-answer-tokens", 2, "--recall", 0)
    assert run(capfd, "analyze", *words, "--to", "0:40", *asked, "-f", "jsonl").returncode == 0
    (predicted,) = records(run(capfd, "analyze", *words, *asked, "--dry-run", "-f", "jsonl").stdout)
    RECORD.validate(predicted)
    pace = predicted["pace"]
    assert (pace["chunks"], predicted["chunks"], predicted["answers"]) == (9, 15, 3)
    expected = pace["load_seconds"] + 15 * pace["chunk_seconds"] + 3 * pace["answer_seconds"]
    assert predicted["run_seconds"] == pytest.approx(expected, abs=0.06)
    found = rows(run(capfd, "analyze", *words, *asked, "--dry-run"))
    assert found["time"].startswith("about 0:")
    assert "15 chunks at" in found["time"]
    assert "3 answers at" in found["time"]
    assert "not known" in rows(run(capfd, "analyze", *words, "--frame-tokens", 8, "--dry-run"))["time"]
    assert run(capfd, "ingest", *words, "--to", "0:32", "-o", "x.kvv").returncode == 0
    (predicted,) = records(run(capfd, "ingest", *words, "--dry-run", "--json").stdout)
    assert (predicted["pace"]["chunks"], predicted["pace"]["answer_seconds"]) == (7, None)


@pytest.mark.usefixtures("one_engine")
def test_loading_is_no_part_of_what_the_first_strategy_took(
    clip: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(*arguments: Any) -> Engine:
        time.sleep(0.2)
        return open_engine(*arguments)

    monkeypatch.setattr("kvvideo.runs.analyze.open_engine", slowly)
    words = ("--compare", "distinct,window", "-q", "Now?", "--max-answer-tokens", 2, "--recall", 0, "--to", "0:12")
    done = run(capfd, "analyze", *TINY, clip, *words)
    first, second = (line for line in done.stderr.splitlines() if "0:12 of video" in line)
    assert first.startswith("distinct: 1 answer, 0:12 of video")
    assert " s of loading; cache" in first
    assert "loading" not in second
    found = records(run(capfd, "analyze", *TINY, clip, *words, "-f", "jsonl").stdout)
    took = [record.get("load_seconds") for record in found if record["type"] == "done"]
    assert took[0] > 0
    assert took[1] is None


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    "words",
    [
        ("analyze", "-q", "Now?", "-s", "full"),
        ("analyze", "-q", "Now?", "--compare", "distinct,full"),
        ("ingest", "-s", "full"),
    ],
)
def test_what_cannot_be_held_is_refused_before_the_model_is_loaded(
    clip: Path, words: tuple[str, ...], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command, *more = words
    for dry in ((), ("--dry-run",)):
        done = run(capfd, command, *TINY, "--max-model-len", 640, clip, *more, *dry)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert "'full' forgets nothing, and the " in line
        assert "max_model_len=640 has room for; add --to 0:" in line
        assert not any(tmp_path.glob("*.kvv*"))
        until = line.partition("--to ")[2].partition(",")[0]
    assert run(capfd, command, *TINY, "--max-model-len", 640, clip, *more, "--to", until, "--dry-run").returncode == 0


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_disk_that_is_too_small_is_known_before(
    clip: Path, more: tuple[str, ...], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    done = run(capfd, "ingest", *TINY, clip, "-o", "x.kvv", *more)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "'x.kvv' takes about" in line
    assert "1.0 kB are free there" in line
    assert not [*Path().glob("x.kvv*")]
