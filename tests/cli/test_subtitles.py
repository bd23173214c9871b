"""``--subtitles`` on the command line: what is taken, what is said of it, and that all commands use it alike."""

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kvvideo
from kvvideo.storage.file import MemoryFile
from kvvideo.tiny import samples
from kvvideo.video.subtitles import read
from tests.cli.test_memory import killed_after, memories, same
from tests.conftest import EngineFor
from tests.helpers.commands import Done, check_refused, records, run, untimed
from tests.helpers.commands import kvvideo as alone
from tests.helpers.looking import Watched, as_asked
from tests.helpers.outputs import RECORD
from tests.helpers.subtitles import srt

CUES = [(1.0, 3.0, "Hello, it begins"), (9.5, 12.0, "Now something else"), (27.5, 29.0, "Nearly over"), (40.0, 41, "!")]
MODEL = ("--model", "tiny", "--max-tokens", "256", "--sink", "16", "--strategy", "streaming")
ASKED = ("--max-answer-tokens", "8", "-f", "jsonl", "-q", "@0:11 What was said?", "-q", "When did the letter A appear?")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with half a minute of letters twice, once with subtitles beside it."""
    folder = tmp_path_factory.mktemp("films")
    samples.make(folder / "bare.mp4", seed=5, minutes=32 / 60, density=0.5)
    shutil.copy(folder / "bare.mp4", folder / "film.mp4")
    (folder / "film.en.srt").write_text(srt(CUES))
    (folder / "other.vtt").write_text("WEBVTT\n\n00:02.000 --> 00:03.000\nOther words\n")
    (folder / "broken.srt").write_text("no subtitles")
    return folder


@pytest.fixture
def watched(films: Path, engine_for: EngineFor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Watched]:
    """Engines of the very settings that commands ask for; no request is preempted, and questions keep to their room."""
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(films)
    watched = as_asked(monkeypatch)
    yield watched
    assert (watched.preemptions, watched.over) == (0, 0)


def analyzed(capfd: pytest.CaptureFixture[str], *words: object, video: str = "film.mp4") -> Done:
    done = run(capfd, "analyze", video, *MODEL, *ASKED, *words)
    assert done.returncode == 0, done.stderr
    for record in records(done.stdout):
        RECORD.validate(record)
    return done


def told(done: Done) -> list[str]:
    return [line for line in done.stderr.splitlines() if "ubtitles" in line]


def answers(done: Done) -> list[dict[str, Any]]:
    """Records without what differs by name or time."""
    return [{k: v for k, v in r.items() if k not in ("video", "subtitles")} for r in untimed(records(done.stdout))]


@pytest.mark.usefixtures("watched")
def test_auto_takes_what_is_beside_the_video_and_says_so_once(capfd: pytest.CaptureFixture[str]) -> None:
    auto, off = analyzed(capfd), analyzed(capfd, "--subtitles", "off")
    named = analyzed(capfd, "--subtitles", "film.en.srt", video="bare.mp4")
    bare = analyzed(capfd, video="bare.mp4")
    assert told(auto) == ["kvvideo: subtitles of 'film.mp4': 'film.en.srt'"]
    assert told(off) == told(bare) == told(named) == []
    assert records(auto.stdout)[-1]["subtitles"] == records(named.stdout)[-1]["subtitles"] == "film.en.srt"
    assert answers(auto) == answers(named)
    # Without them a record is what it was before there were any.
    assert answers(off) == answers(bare)
    assert all("subtitles" not in record for record in records(off.stdout) + records(bare.stdout))
    (heard, *_, ended), (silent, *_, unspoken) = answers(auto), answers(off)
    assert heard["cache"]["seen"] > silent["cache"]["seen"]
    assert ended["cache"]["seen"] > unspoken["cache"]["seen"]


@pytest.mark.usefixtures("watched")
def test_a_dry_run_says_which_words_and_how_many_tokens(capfd: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "tiny", "--dry-run", "--max-tokens", "256")
    (found,) = json.loads(run(capfd, "analyze", "film.mp4", *words, "-f", "json").stdout)
    RECORD.validate(found)
    (bare,) = json.loads(run(capfd, "analyze", "bare.mp4", *words, "-f", "json").stdout)
    assert found["subtitles"] == "film.en.srt"
    assert found["words_tokens"] == found["tokens"] - bare["tokens"] > 0
    assert not {"subtitles", "words_tokens"} & bare.keys()
    assert found["tokens"] == records(analyzed(capfd).stdout)[-1]["cache"]["seen"]
    shown = run(capfd, "ingest", "film.mp4", *words).stdout
    assert re.search(rf"^ words +{found['words_tokens']} tokens of film\.en\.srt$", shown, re.MULTILINE)
    assert " words " not in run(capfd, "ingest", "bare.mp4", *words).stdout


def test_files_that_cannot_be_read_are_refused_in_one_line(films: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for wish, why in (
        ("none.srt", "there is no file 'none.srt'; check the name"),
        ("broken.srt", "holds no subtitles"),
    ):
        for command in ("analyze", "ingest", "chat"):
            question = ("-q", "What?") if command == "analyze" else ()
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(films)
                done = run(capfd, command, "film.mp4", "--model", "tiny", *question, "--subtitles", wish)
            (line,) = done.stderr.splitlines()
            assert (done.returncode, why in line) == (3, True), line


@pytest.mark.usefixtures("watched")
def test_answers_are_no_subtitles(films: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A file beside the video that a run writes is not read by that run, and never replaces what is read."""
    for _ in range(2):
        done = run(capfd, "analyze", "bare.mp4", *MODEL, *ASKED[:2], "-q", "What?", "-o", "bare.srt", "--force")
        assert done.returncode == 0, done.stderr
        assert told(done) == []
    (films / "bare.srt").unlink()
    before = (films / "film.en.srt").read_text()
    words = ("-q", "What?", "--subtitles", "film.en.srt", "-o", "film.en.srt", "--force")
    done = run(capfd, "analyze", "film.mp4", *MODEL, *words)
    assert (done.returncode, "the run reads it" in done.stderr) == (2, True)
    assert (films / "film.en.srt").read_text() == before


@pytest.mark.usefixtures("watched")
def test_a_memory_keeps_the_words(films: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It answers and looks again as the run did, whatever became of the file that they were read from."""
    shutil.copytree(films, tmp_path / "films")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "films")
        whole = analyzed(capfd)
        words = (*MODEL, "--json", "--checkpoint-every", "8s", "--keep-frames")
        done = run(capfd, "ingest", "film.mp4", *words)
        (record,) = records(done.stdout)
        RECORD.validate(record)
        assert record["subtitles"] == "film.en.srt"
        (tmp_path / "films" / "film.en.srt").unlink()
        asked = run(capfd, "ask", "film.kvv", *ASKED)
        assert asked.returncode == 0, asked.stderr
        assert answers(asked) == answers(whole)
        assert any("looked_at" in record for record in answers(asked))
        assert records(asked.stdout)[-1]["subtitles"] == "film.en.srt"
        # Without the video there are the frames that were kept, with their words.
        shutil.move("film.mp4", tmp_path / "gone.mp4")
        kept = run(capfd, "ask", "film.kvv", *ASKED[:-4], *ASKED[-2:])
        assert kept.returncode == 0, kept.stderr
        assert answers(kept)[0]["looked_at"] == answers(whole)[1]["looked_at"]
        with MemoryFile(Path("film.kvv")) as file:
            frames = file.frames()
            assert frames is not None
            assert [chunk.words for chunk in frames.chunks([(0.0, 4.0), (8.0, 12.0)]) if chunk] == [
                "Hello, it begins",
                "Now something else",
            ]


@pytest.mark.usefixtures("watched")
def test_words_in_a_search_and_in_batches(films: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = run(capfd, "find", "film.mp4", "the letter A", *MODEL, "-f", "jsonl", "--save", tmp_path / "a.kvv")
    assert found.returncode == 0, found.stderr
    assert told(found) == ["kvvideo: subtitles of 'film.mp4': 'film.en.srt'"]
    with MemoryFile(tmp_path / "a.kvv") as file:
        assert file.memory().source["subtitles"] == read("film.en.srt").as_dict()
    question = {"questions": [{"q": "When did the letter A appear?"}]}
    jobs = [
        {"id": "auto", "video": str(films / "film.mp4")},
        {"id": "off", "video": str(films / "film.mp4"), "subtitles": "off"},
        {"id": "file", "video": str(films / "bare.mp4"), "subtitles": "film.en.srt"},
        {"id": "bare", "video": str(films / "bare.mp4")},
    ]
    path = films / "jobs.jsonl"
    path.write_text("".join(json.dumps(job | question) + "\n" for job in jobs))
    checked = run(capfd, "batch", path, "--model", "tiny", "--check", "--json")
    assert checked.returncode == 0, checked.stderr
    by_job = {record["jobs"][0]: record for record in records(checked.stdout) if record["type"] == "check"}
    for record in by_job.values():
        RECORD.validate(record)
    assert {name: Path(record.get("subtitles", "-")).name for name, record in by_job.items()} == {
        "auto": "film.en.srt",
        "off": "-",
        "file": "film.en.srt",
        "bare": "-",
    }
    assert by_job["auto"]["tokens"] == by_job["file"]["tokens"] > by_job["off"]["tokens"] == by_job["bare"]["tokens"]
    checked = run(capfd, "batch", path, "--model", "tiny", "--check", "--json", "--subtitles", "off")
    assert sum("subtitles" in record for record in records(checked.stdout)) == 1


def test_what_a_batch_cannot_have(films: Path, tmp_path: Path) -> None:
    job = {"id": "a", "video": str(films / "film.mp4"), "questions": [{"q": "What?"}]}
    for name, wish in (("one", "none.srt"), ("two", 3)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(job | {"subtitles": wish}))
    (tmp_path / "fine.jsonl").write_text(json.dumps(job))
    batch = ("--model", "tiny", "--check")
    check_refused(
        tmp_path,
        (("batch", "one.jsonl", *batch), "one.jsonl:1: there is no file"),
        (("batch", "two.jsonl", *batch), "subtitles: 3 must be a non-empty string"),
        (("batch", "fine.jsonl", *batch, "--subtitles", "a.srt"), "a file is of one video"),
    )


@pytest.mark.usefixtures("watched")
def test_python_takes_them_too(films: Path) -> None:
    settings: dict[str, Any] = {"model": "tiny", "strategy": "full", "max_answer_tokens": 4, "recall": 0}

    def seen(video: object, **more: Any) -> int:
        (answer,) = kvvideo.analyze(video, "What?", **settings, **more)  # type: ignore[arg-type]
        return answer.cache.seen

    source = kvvideo.Source("film.mp4", max_pixels=16 * 784, min_pixels=4 * 784)
    bare = seen("film.mp4", subtitles="off")
    assert seen("film.mp4") == seen("bare.mp4", subtitles=Path("film.en.srt")) > bare
    assert seen(source) == bare
    assert seen(source, subtitles="auto") == seen(source.with_subtitles("auto")) == seen("film.mp4")
    with pytest.raises(kvvideo.VideoError, match="there is no file"):
        list(kvvideo.analyze("film.mp4", "What?", subtitles="none.srt", **settings))


@pytest.mark.slow
def test_what_was_killed_goes_on_with_the_same_words(films: Path, tmp_path: Path) -> None:
    """An ingest and its checkpoints, killed three times; and it says so if the words are others by then."""
    whole, killed = tmp_path / "whole.kvv", tmp_path / "killed.kvv"
    words = ("ingest", *MODEL, "--checkpoint-every", "4s", films / "film.mp4", "-o")
    assert alone(*words, whole).returncode == 0
    part, chance = killed.with_name("killed.kvv.part"), random.Random(5)

    def written() -> int:
        return len([*part.glob("*.safetensors")])

    def more_than(before: int) -> Callable[[], bool]:
        return lambda: written() > before

    for _ in range(3):
        resume = ("--resume",) if written() else ()
        killed_after(chance.random() * 0.05, more_than(written()), *words, killed, *resume)
    assert written() > 0, "it was complete before it was killed"
    other = alone(*words, killed, "--resume", "--subtitles", "off")
    assert (other.returncode, "subtitles was 'film.en.srt" in other.stderr) == (2, True), other.stderr
    assert alone(*words, killed, "--resume").returncode == 0
    assert all(same(one, two) for one, two in zip(memories(whole), memories(killed), strict=True))
