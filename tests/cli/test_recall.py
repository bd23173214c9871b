"""Looking again through the command line: ``analyze``, ``ask`` and ``chat`` answer what the cache has forgotten."""

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest

from kvvideo.session.memory import INDEX
from kvvideo.storage.file import MemoryFile, write
from tests.conftest import EngineFor
from tests.helpers.commands import Done, command, kvvideo, records, run, untimed
from tests.helpers.looking import ASKED, CLIP, COLOUR, QUESTION, SHOWN, SMALL, STRATEGY, Watched, as_asked, sees

Record = dict[str, Any]

FIRST = f"@1:30 {QUESTION}"
NOWHERE = "neither the video nor its frames are at hand, so no question looks again"


@pytest.fixture(autouse=True)
def watched(engine_for: EngineFor, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Whatever a command does, no request is preempted and questions stay within their room."""
    watched = as_asked(monkeypatch)
    yield watched
    assert (watched.preemptions, watched.over) == (0, 0)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of temporary files, with nothing in it."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def answers(done: Done, *, plain: bool = False) -> list[Record]:
    """Return the answers of a command that went well; ``plain`` leaves out what recall adds to records."""
    assert done.returncode == 0, done.stderr
    found = [record for record in untimed(records(done.stdout)) if record["type"] == "answer"]
    if plain:
        for record in found:
            record.pop("looked_at", None)
            record["cache"].pop("index_bytes", None)
    return found


def said(found: list[Record]) -> list[tuple[Any, ...]]:
    return [(record["asked_at"], record["answer"], record.get("looked_at")) for record in found]


def told(done: Done) -> list[str]:
    """Return the lines on stderr that are ours."""
    return [line for line in done.stderr.splitlines() if line.startswith("kvvideo: ")]


def analyzed(capfd: pytest.CaptureFixture[str], *words: object, video: object = CLIP) -> Done:
    chosen = () if "--compare" in words else STRATEGY
    return run(capfd, "analyze", video, *SMALL, *chosen, *ASKED, *words)


# analyze -----------------------------------------------------------------------------------------


def test_what_was_forgotten_is_answered(capfd: pytest.CaptureFixture[str]) -> None:
    """With --recall 4, and by default; not with --recall 0, whose records are as they always were."""
    questions = ("-q", FIRST, "-q", QUESTION)
    again = answers(analyzed(capfd, "--recall", 4, *questions))
    assert [(record["asked_at"], record["answer"]) for record in again] == [(90.0, COLOUR), (120.0, COLOUR)]
    assert all(map(sees, again))
    assert all(len(record["looked_at"]) == 4 for record in again)
    assert all(record["cache"]["index_bytes"] > 0 for record in again)
    # What is held begins after it.
    assert all(not any(start < SHOWN[1] and end > SHOWN[0] for start, end in record["held"]) for record in again)
    assert answers(analyzed(capfd, *questions)) == again
    done = analyzed(capfd, "--recall", 0, *questions)
    assert "looked_at" not in done.stdout
    assert "index_bytes" not in done.stdout
    without = answers(done)
    assert COLOUR not in [record["answer"] for record in without]
    # The stream is the same, down to what is held.
    facts = ("asked_at", "held", "cache")
    plain = answers(analyzed(capfd, "--recall", 4, *questions), plain=True)
    assert [[one[name] for name in facts] for one in plain] == [[one[name] for name in facts] for one in without]


def test_what_the_model_is_told_changes_nothing_that_is_found(capfd: pytest.CaptureFixture[str]) -> None:
    """A long text changes nothing either, for its room is counted: see ``watched``."""
    words = "Answer in one word, as a child would. " * 20
    (plain,) = answers(analyzed(capfd, "-q", QUESTION))
    (told,) = answers(analyzed(capfd, "-q", QUESTION, "--system", words))
    assert told["system"] == words.strip()
    assert [(hit["start"], hit["end"]) for hit in told["looked_at"]] == [
        (hit["start"], hit["end"]) for hit in plain["looked_at"]
    ]
    assert (told["held"], told["cache"]) == (plain["held"], plain["cache"])
    assert "system" not in plain


def test_every_strategy_looks_that_has_an_index(capfd: pytest.CaptureFixture[str]) -> None:
    """``recent`` has none, and answers as it does alone."""
    compared = ("--compare", "streaming,h2o,recent", "-q", QUESTION)
    found = {record["strategy"]: record for record in answers(analyzed(capfd, "--recall", 4, *compared))}
    assert list(found) == ["streaming", "h2o", "recent"]
    assert [found[name]["answer"] for name in ("streaming", "h2o")] == [COLOUR] * 2
    assert sees(found["streaming"])
    assert sees(found["h2o"])
    without = {record["strategy"]: record for record in answers(analyzed(capfd, "--recall", 0, *compared))}
    assert found["recent"] == without["recent"]
    assert "looked_at" not in found["recent"]
    assert [without[name]["answer"] == COLOUR for name in ("streaming", "h2o")] == [False] * 2
    alone = answers(analyzed(capfd, "--recall", 4, "-q", QUESTION))
    assert said(alone) == said([found["streaming"]])


def test_captions_are_about_now(capfd: pytest.CaptureFixture[str]) -> None:
    """A question beside them looks again; they do not, and say what they say without."""
    words = ("--task", "caption", "--every", "20", "--to", "1:00", "-q", f"@0:58 {QUESTION}")
    found = answers(analyzed(capfd, "--recall", 4, *words))
    captions = [record for record in found if record["task"] == "caption"]
    assert len(captions) >= 3
    assert not any("looked_at" in record for record in captions)
    (question,) = [record for record in found if record["task"] is None]
    assert question["answer"] == COLOUR
    assert sees(question)
    without = answers(analyzed(capfd, "--recall", 0, *words))
    assert said(captions) == said([record for record in without if record["task"] == "caption"])


def test_frames_are_looked_at_closer(capfd: pytest.CaptureFixture[str], watched: Watched) -> None:
    """The pool has room for what is asked for, and other answers come of it: frames of another size are shown."""
    from kvvideo.video.again import FileAgain

    sizes = list[tuple[int, ...]]()
    decoded = FileAgain.chunks

    def chunks(self: FileAgain, stretches: Any) -> Any:
        found = decoded(self, stretches)
        sizes.extend(one.frames.shape[1:3] for one in found if one is not None)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileAgain, "chunks", chunks)
        seen = list[set[tuple[int, ...]]]()
        for words in ((), ("--recall-frame-tokens", 12)):
            sizes.clear()
            (found,) = answers(analyzed(capfd, "--recall", 2, *words, "--frame-tokens", 4, "-q", QUESTION))
            assert len(found["looked_at"]) == 2
            seen.append({*sizes})
    (usual,), (closer,) = seen
    assert closer[0] > usual[0]
    assert closer[1] > usual[1]
    first, second = watched.configs[-2:]
    assert second.again_tokens > first.again_tokens > 0


def test_a_file_that_goes_meanwhile_is_told_of_once(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From then on answers are those of the cache alone."""
    from kvvideo.video import again

    path = tmp_path / "clip.mp4"
    path.write_bytes(CLIP.read_bytes())
    questions = ("-q", FIRST, "-q", QUESTION)
    without = answers(analyzed(capfd, "--recall", 0, *questions, video=path))
    ingested = again.FileAgain.chunks

    def gone(self: again.FileAgain, stretches: Any) -> Any:
        path.unlink(missing_ok=True)
        return ingested(self, stretches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(again.FileAgain, "chunks", gone)
        found = answers(analyzed(capfd, "--recall", 4, *questions, video=path), plain=True)
    assert said(found) == said(without)
    assert [r.getMessage() for r in caplog.records if r.name == "kvvideo.video"] == [
        f"some frames are not looked at again: {str(path)!r} is gone"
    ]


# Kill and resume -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL after some answers, then --resume: the same records, what was looked at included."""
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(tmp_path / "state"))
    asked = [word for at in range(40, 121, 8) for word in ("-q", f"@{at // 60}:{at % 60:02} {QUESTION}")]
    words = ("analyze", CLIP, *SMALL, *STRATEGY, "--max-answer-tokens", "8", "--checkpoint-every", "8s", *asked)
    whole = kvvideo(*words, "-o", tmp_path / "whole.jsonl")
    assert whole.returncode == 0, whole.stderr
    path = tmp_path / "killed.jsonl"
    process = subprocess.Popen(
        command(*words, "-o", path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    while not [*(tmp_path / "state").glob("runs/*/answers.jsonl")] or _journaled(tmp_path) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    resumed = kvvideo(*words, "-o", path, "--resume", "--force")
    assert resumed.returncode == 0, resumed.stderr
    assert "no interrupted run" not in resumed.stderr
    found, wanted = (untimed(records((tmp_path / name).read_text())) for name in ("killed.jsonl", "whole.jsonl"))
    assert found == wanted
    assert len(found) == 12
    assert all(map(sees, found[:-1]))


def _journaled(folder: Path) -> int:
    """Return the answers that an interrupted run has written down."""
    (path,) = (folder / "state").glob("runs/*/answers.jsonl")
    return path.read_text().count('"looked_at"')


# A pipe -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transport(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clip as a transport stream, which can come through a pipe."""
    path = tmp_path_factory.mktemp("clips") / "clip.ts"
    with av.open(str(CLIP)) as source, av.open(str(path), "w", format="mpegts") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path


@contextmanager
def piped(video: Path, tmp_path: Path) -> Iterator[Path]:
    """A named pipe that ``video`` comes through, once."""
    pipe = tmp_path / "pipe"
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)

    def feed() -> None:
        with open(pipe, "wb") as target:
            target.write(video.read_bytes())

    feeder = threading.Thread(target=feed)
    feeder.start()
    yield pipe
    feeder.join(60)
    assert not feeder.is_alive()


def test_a_pipe_is_looked_at_again(
    capfd: pytest.CaptureFixture[str], transport: Path, temporary: Path, tmp_path: Path
) -> None:
    """From what is kept of it meanwhile, of which nothing is left; a question finds what it finds in the file."""
    questions = ("--recall", 4, "-q", FIRST, "-q", QUESTION)
    of_file = answers(analyzed(capfd, *questions, video=transport))
    with piped(transport, tmp_path) as pipe:
        done = analyzed(capfd, *questions, video=pipe)
    assert said(answers(done)) == said(of_file)
    assert [record["answer"] for record in of_file] == [COLOUR] * 2
    assert all(map(sees, of_file))
    assert told(done) == []
    assert [*temporary.iterdir()] == []


def test_a_ring_that_is_too_small_has_only_the_newest(
    capfd: pytest.CaptureFixture[str], transport: Path, temporary: Path, tmp_path: Path
) -> None:
    with piped(transport, tmp_path) as pipe:
        done = analyzed(capfd, "--keep-frames", "100kB", "--recall", 20, "-q", QUESTION, video=pipe)
    (found,) = answers(done)
    starts = [hit["start"] for hit in found["looked_at"]]
    assert starts
    assert min(starts) > SHOWN[1]
    assert [*temporary.iterdir()] == []


def test_a_pipe_that_is_not_kept_is_as_without_recall(
    capfd: pytest.CaptureFixture[str], transport: Path, temporary: Path, tmp_path: Path
) -> None:
    questions = ("-q", FIRST, "-q", QUESTION)
    with piped(transport, tmp_path) as pipe:
        without = analyzed(capfd, "--recall", 0, *questions, video=pipe)
    with piped(transport, tmp_path) as pipe:
        done = analyzed(capfd, "--keep-frames", 0, *questions, video=pipe)
    assert answers(done, plain=True) == answers(without)
    assert "looked_at" not in done.stdout
    assert told(done) == [
        f"kvvideo: {str(pipe)!r} can be read only once and its frames are not kept, so no question looks again"
    ]
    assert told(without) == []
    assert [*temporary.iterdir()] == []


# ask ----------------------------------------------------------------------------------------------


@pytest.fixture
def ingested(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Path:
    """A folder with the clip, its memory, and one that has its frames too."""
    (tmp_path / "clip.mp4").write_bytes(CLIP.read_bytes())
    for name, more in (("plain.kvv", ()), ("framed.kvv", ("--keep-frames",))):
        words = (*SMALL, *STRATEGY, "--checkpoint-every", "30s", "-o", tmp_path / name, *more)
        done = run(capfd, "ingest", tmp_path / "clip.mp4", *words)
        assert done.returncode == 0, done.stderr
    return tmp_path


def asked(capfd: pytest.CaptureFixture[str], memory: Path, *words: object) -> Done:
    return run(capfd, "ask", memory, *ASKED, *words)


def without_index(path: Path, old: Path) -> Path:
    """Write the memory of ``path`` to ``old`` as a version did that had no index."""
    with MemoryFile(path) as file:
        memory = file.memory()
        write(old, replace(memory, tensors={k: v for k, v in memory.tensors.items() if k not in INDEX}))
    return old


def test_a_memory_is_looked_at_again_in_its_video(capfd: pytest.CaptureFixture[str], ingested: Path) -> None:
    """It answers, and has looked at, what analyze does; without recall, too."""
    questions = ("-q", FIRST, "-q", QUESTION)
    for recall in (0, 4):
        wanted = said(answers(analyzed(capfd, "--recall", recall, *questions)))
        assert [answer == COLOUR for _, answer, _ in wanted] == [recall == 4] * 2
        for name in ("plain.kvv", "framed.kvv"):
            done = asked(capfd, ingested / name, "--recall", recall, *questions)
            assert said(answers(done)) == wanted
            assert told(done) == []


def test_a_memory_with_frames_needs_no_video(capfd: pytest.CaptureFixture[str], ingested: Path) -> None:
    """At the end it is as with the video; at a moment, as of the checkpoint before it."""
    wanted = answers(analyzed(capfd, "-q", QUESTION))
    (ingested / "clip.mp4").unlink()
    done = asked(capfd, ingested / "framed.kvv", "-q", f"@1:10 {QUESTION}", "-q", QUESTION)
    found = answers(done)
    assert [record["answered_at"] for record in found] == [60.0, 120.0]
    assert [record["answer"] for record in found] == [COLOUR] * 2
    assert said(found[1:]) == said(wanted)
    assert sees(found[0])
    assert max(hit["end"] for hit in found[0]["looked_at"]) <= 60.0
    assert NOWHERE not in done.stderr


def test_with_neither_one_line_says_so(capfd: pytest.CaptureFixture[str], ingested: Path) -> None:
    """Answers are those of the cache alone."""
    questions = ("-q", f"@1:10 {QUESTION}", "-q", QUESTION)
    (ingested / "clip.mp4").unlink()
    without = asked(capfd, ingested / "plain.kvv", "--recall", 0, *questions)
    done = asked(capfd, ingested / "plain.kvv", *questions)
    assert answers(done, plain=True) == answers(without, plain=True)
    assert "looked_at" not in done.stdout
    assert told(done).count(f"kvvideo: {NOWHERE}") == 1
    assert [line for line in told(done) if NOWHERE not in line] == told(without)


def test_a_memory_of_an_older_version_answers_as_before(capfd: pytest.CaptureFixture[str], ingested: Path) -> None:
    """It finds nothing; a moment before its end is shown anew from the beginning, and is looked back from."""
    old = without_index(ingested / "plain.kvv", ingested / "old.kvv")
    wanted = answers(analyzed(capfd, "--recall", 0, "-q", QUESTION))
    done = asked(capfd, old, "-q", QUESTION)
    assert said(answers(done)) == said(wanted)
    assert told(done) == [
        "kvvideo: the memory was made by an older version, so no question looks again at what it has seen"
    ]
    assert "index_bytes" not in done.stdout
    first, last = answers(asked(capfd, old, "-q", FIRST, "-q", QUESTION))
    assert said([first]) == said(answers(analyzed(capfd, "-q", FIRST)))
    assert said([last]) == said(wanted)


# chat ---------------------------------------------------------------------------------------------


def chatted(capfd: pytest.CaptureFixture[str], *words: object, lines: list[str]) -> Done:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return run(capfd, "chat", *words)


def turns(output: str) -> list[tuple[str, str, str | None]]:
    """Return moment, answer and line about what was looked at of each answer to ``QUESTION`` in a chat."""
    pattern = rf"^\[([\d:.]+)\] {re.escape(QUESTION)}\n  (.*)$(?:\n *(looked again .*))?"
    found = re.findall(pattern, output, re.MULTILINE)
    return [(moment, answer, again or None) for moment, answer, again in found]


def in_words(found: list[Record]) -> list[tuple[str, str, str | None]]:
    """Return the same of records."""
    from kvvideo.outputs import evidence
    from kvvideo.times import format_time

    shown = [[(hit["start"], hit["end"]) for hit in record.get("looked_at", [])] for record in found]
    return [
        (format_time(record["asked_at"]), record["answer"], evidence.words(stretches) or None)
        for record, stretches in zip(found, shown, strict=True)
    ]


@pytest.mark.parametrize("recall", [4, 0])
def test_a_chat_looks_wherever_it_stands(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recall: int
) -> None:
    """At its end, at earlier moments, after going back and on, and from what was saved: as analyze does."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(CLIP.read_bytes())
    moments = ["1:10", "1:30"]
    wanted = answers(
        analyzed(capfd, "--recall", recall, *(w for at in moments for w in ("-q", f"@{at} {QUESTION}")), "-q", QUESTION)
    )
    early, late, end = in_words(wanted)
    assert {answer == COLOUR for _, answer, _ in (early, late, end)} == {recall > 0}
    lines = [QUESTION, f"/at 1:30 {QUESTION}", "/seek 1:10", QUESTION, "/save here", "/seek 1:30", QUESTION]
    lines += ["/play", QUESTION, "/load here.kvv", QUESTION]
    words = (*SMALL, *STRATEGY, "--recall", recall, "--checkpoint-every", "20s")
    done = chatted(capfd, "clip.mp4", *words, lines=lines)
    assert done.returncode == 0, done.stderr
    assert turns(done.stdout) == [end, late, early, late, end, end]
    again = chatted(capfd, "here.kvv", "--recall", recall, "--paused", lines=[QUESTION, "/play", QUESTION])
    # A memory ends with a whole chunk.
    loaded, last = turns(again.stdout)
    assert loaded[:2] == ("1:08", early[1])
    assert ("0:12–0:16" in str(loaded[2])) == (recall > 0)
    assert last == end


def test_a_chat_about_a_memory_says_once_that_it_cannot_look(capfd: pytest.CaptureFixture[str], ingested: Path) -> None:
    """With frames in the file it can, without the video."""
    (ingested / "clip.mp4").unlink()
    wanted = in_words(answers(analyzed(capfd, "-q", QUESTION)))
    without = in_words(answers(analyzed(capfd, "--recall", 0, "-q", QUESTION)))
    framed = chatted(capfd, ingested / "framed.kvv", lines=[QUESTION])
    assert turns(framed.stdout) == wanted
    assert NOWHERE not in framed.stderr
    plain = chatted(capfd, ingested / "plain.kvv", lines=[QUESTION, QUESTION])
    assert turns(plain.stdout) == without * 2
    assert plain.stderr.count(NOWHERE) == 1
    assert NOWHERE not in chatted(capfd, ingested / "plain.kvv", "--recall", 0, lines=[QUESTION]).stderr


def test_a_chat_about_a_pipe_looks_at_what_it_keeps(
    capfd: pytest.CaptureFixture[str], transport: Path, temporary: Path, tmp_path: Path
) -> None:
    """Without room for frames one line says that it does not."""
    wanted = in_words(answers(analyzed(capfd, "-q", QUESTION, video=transport)))
    without = in_words(answers(analyzed(capfd, "--recall", 0, "-q", QUESTION, video=transport)))
    words = (*SMALL, *STRATEGY)
    for more, found, lines in ((), wanted, 0), (("--keep-frames", 0), without, 1), (("--recall", 0), without, 0):
        with piped(transport, tmp_path) as pipe:
            done = chatted(capfd, pipe, *words, *more, lines=[QUESTION])
        assert turns(done.stdout) == found
        assert done.stderr.count("so no question looks again") == lines
        assert [*temporary.iterdir()] == []
