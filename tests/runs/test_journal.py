"""What a run keeps for ``--resume``: nothing is lost, nothing is there twice, and nothing of it can stop a run."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.runs.agenda import Agenda, Question
from kvvideo.runs.journal import Run, key, line, parse, state_directory
from kvvideo.runs.streaming import Asked, analyzing
from kvvideo.session import Answer, Span
from kvvideo.sizes import parse_size
from kvvideo.storage.workspace import Busy, Workspace
from kvvideo.types import Chunk
from tests.storage.test_memory_file import memory, same

CACHE = memory().cache
MODEL = memory().fingerprint


def answer(text: str, at: float = 0.0) -> dict[str, Any]:
    return {"type": "answer", "strategy": CACHE.strategy, "answer": text, "asked_at": at}


def session(end: float) -> Any:
    """Of a session: what a run looks at."""
    return SimpleNamespace(end=end, save=lambda: memory(end, seed=int(end)))


ENGINE: Any = SimpleNamespace(fingerprint=MODEL)


class Said(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def said() -> Said:
    return Said()


texts = st.text(max_size=12)
batches = st.lists(st.lists(texts.map(answer), min_size=1, max_size=3), max_size=5)


@given(batches, st.data())
def test_any_beginning_of_a_journal_is_that_of_its_batches(batches: list[list[dict[str, Any]]], data: st.DataObject):
    lines = [line(batch) for batch in batches]
    whole = b"".join(lines)
    cut = data.draw(st.integers(0, len(whole)))
    found, sound = parse(whole[:cut])
    assert found == batches[: len(found)]
    assert sound == sum(map(len, lines[: len(found)])) <= cut
    assert len(found) == len(batches) or cut < sum(map(len, lines[: len(found) + 1]))


@given(batches, st.data())
def test_a_damaged_journal_ends_before_the_damage(batches: list[list[dict[str, Any]]], data: st.DataObject):
    whole = b"".join(map(line, batches))
    at = data.draw(st.integers(0, len(whole)))
    found, sound = parse(whole[:at] + data.draw(st.binary(min_size=1, max_size=4)) + whole[at:])
    before = whole[:at].count(b"\n")
    assert found[:before] == batches[:before]
    assert sound >= len(b"".join(map(line, batches[:before])))


@pytest.mark.parametrize("bad", [b"\n", b"[", b"{}\n", b"[1]\n", b"[{}]\n", b"\xff\n", b"[" * 100_000 + b"\n"])
def test_what_is_no_batch_ends_a_journal(bad: bytes):
    good = line([answer("a")])
    assert parse(good + bad + good) == ([[answer("a")]], len(good))


def test_a_run_is_gone_on_with(tmp_path: Path, said: Said):
    """Killed while it wrote the third line: two batches and the latest checkpoint are there."""
    place = tmp_path / "runs" / "x"
    agenda = [Question("a", 1.0), Question("b", 5.0), Question("c", 9.0)]
    with Run(place, said) as run:
        run.check_model(ENGINE)
        assert not place.exists()
        assert not run.resumable
        assert not run.due(59.0, 0.0)
        assert run.due(60.0, 0.0)
        run.append([answer("a", 1.0)])
        run.checkpoint(session(4.0))
        assert not run.due(60.0, 0.0)
        run.append([answer("b", 5.0)])
        run.checkpoint(session(8.0))
        run.append([answer("c", 9.0)])
        assert run.resumable
    journal = place / "answers.jsonl"
    assert parse(journal.read_bytes())[0] == [[answer("a", 1.0)], [answer("b", 5.0)], [answer("c", 9.0)]]
    os.truncate(journal, journal.stat().st_size - 3)

    with Run(place, said, resume=True) as run:
        assert run.answers(CACHE.strategy) == ([[answer("a", 1.0)], [answer("b", 5.0)]], None)
        assert run.answers("window") == ([], None)
        latest = run.memory(CACHE, Agenda(agenda), 2)
        assert latest is not None
        same(latest, memory(8.0, seed=8))
        assert run.memory(CacheConfig("window"), Agenda(agenda), 2) is None
        # A checkpoint that the journal does not reach is of no use.
        assert run.memory(CACHE, Agenda(agenda), 1) is None
        run.check_model(ENGINE)
        run.enter(latest)
        assert run.due(68.0, 0.0)
        run.append([answer("c", 9.0)])
        run.append([{"type": "done", "strategy": CACHE.strategy}])
    with Run(place, said, resume=True) as run:
        answers, done = run.answers(CACHE.strategy)
        assert [batch[0]["answer"] for batch in answers] == ["a", "b", "c"]
        assert done == {"type": "done", "strategy": CACHE.strategy}
        run.finish()
    assert not place.exists()
    assert said == []


def test_only_the_latest_checkpoint_is_kept_and_none_of_another_strategy(tmp_path: Path, said: Said):
    with Run(tmp_path / "x", said) as run:
        for end in (4.0, 8.0, 12.0):
            run.checkpoint(session(end))
    assert [path.name for path in (tmp_path / "x").glob("*.safetensors")] == ["000000012000.safetensors"]
    with Run(tmp_path / "x", said, resume=True) as run:
        run.enter(None)
    assert not list((tmp_path / "x").glob("*.safetensors"))


def test_a_run_that_begins_anew_says_what_it_replaces_and_does_so_when_it_writes(tmp_path: Path, said: Said):
    with Run(tmp_path / "x", said) as run:
        run.append([answer("old", 30.0)])
        run.checkpoint(session(720.0))
    with Run(tmp_path / "x", said) as run:
        assert len(said) == 1
        assert said[0] == "an interrupted run of just this got to 12:00; starting over, without --resume"
        assert run.batches == []
    with Run(tmp_path / "x", said, resume=True) as run:
        assert run.batches == [[answer("old", 30.0)]]
    with Run(tmp_path / "x", said) as run:
        run.append([answer("new")])
    assert sorted(os.listdir(tmp_path / "x")) == ["answers.jsonl", "lock", "run.json"]
    with Run(tmp_path / "x", said, resume=True) as run:
        assert run.batches == [[answer("new")]]


def test_another_model_is_refused_and_no_interrupted_run_is_said(tmp_path: Path, said: Said):
    with Run(tmp_path / "x", said, resume=True) as run:
        assert said.pop() == "there is no interrupted run of just this; starting at the beginning"
        run.check_model(ENGINE)
        run.append([answer("a")])
    with (
        Run(tmp_path / "x", said, resume=True) as run,
        pytest.raises(ConfigError, match="model's files have changed"),
    ):
        run.check_model(SimpleNamespace(fingerprint="another"))  # type: ignore[arg-type]


def test_the_same_run_elsewhere_is_left_alone(tmp_path: Path, said: Said):
    """Whether it has begun to write when this one looks, or not before this one wants to."""
    with Run(tmp_path / "x", said) as late, Run(tmp_path / "x", said) as run:
        run.append([answer("a")])
        late.append([answer("b")])
        assert not late.resumable
        with Run(tmp_path / "x", said, resume=True) as other:
            other.append([answer("c")])
            other.checkpoint(session(4.0))
            other.finish()
    assert [text.partition(";")[0] for text in said] == ["the same run is going on elsewhere"] * 2
    with Run(tmp_path / "x", said, resume=True) as run:
        assert run.batches == [[answer("a")]]


def test_a_place_that_cannot_be_written_to_is_said_once(tmp_path: Path, said: Said):
    (tmp_path / "file").touch()
    with Run(tmp_path / "file" / "x", said) as run:
        run.append([answer("a")])
        run.checkpoint(session(4.0))
        run.append([answer("b")])
        run.finish()
    (text,) = said
    assert text.startswith("nothing more is kept to resume from: ")
    assert "\n" not in text


def test_a_full_disk_leaves_what_was_whole(tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch):
    with Run(tmp_path / "x", said) as run:
        run.append([answer("a")])
        write = os.write

        def full(descriptor: int, data: bytes) -> int:
            write(descriptor, data[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            run.append([answer("b")])
        run.append([answer("c")])
        run.checkpoint(session(4.0))
    (text,) = said
    assert "No space left" in text
    with Run(tmp_path / "x", said, resume=True) as run:
        assert run.batches == [[answer("a")]]
        run.append([answer("b")])
    with Run(tmp_path / "x", said, resume=True) as run:
        assert run.batches == [[answer("a")], [answer("b")]]


def test_nothing_is_kept_where_nothing_shall_be(tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with Run(None, said, resume=True) as run:
        run.check_model(ENGINE)
        assert not run.due(1000.0, 0.0)
        run.append([answer("a")])
        run.checkpoint(session(4.0))
        assert run.answers(CACHE.strategy) == ([], None)
        assert run.memory(CACHE, Agenda([]), 0) is None
        run.finish()
    assert list(tmp_path.iterdir()) == []
    assert said == []


def test_a_workspace_is_for_one_process_and_leaves_what_is_not_its_own(tmp_path: Path):
    space = Workspace(tmp_path / "x")
    space.begin({"a": 1})
    code = (
        "from pathlib import Path; from kvvideo.storage.workspace import Workspace; "
        f"Workspace(Path({str(tmp_path / 'x')!r}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Busy" in result.stderr
    with pytest.raises(Busy):
        Workspace(tmp_path / "x")
    space.close()
    with Workspace(tmp_path / "x") as again:
        assert again.about == {"a": 1}
        (tmp_path / "x" / "mine.txt").touch()
        again.remove()
    assert os.listdir(tmp_path / "x") == ["mine.txt"]
    with Workspace(tmp_path / "x") as again:
        assert again.about is None


def test_the_state_directory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("KVVIDEO_STATE_DIR", raising=False)
    assert state_directory() == Path("/home/somebody/.local/state/kvvideo")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_directory() == Path("/state/kvvideo")
    monkeypatch.setenv("KVVIDEO_STATE_DIR", "/own")
    assert state_directory() == Path("/own")


def test_every_setting_makes_another_key():
    settings: dict[str, Any] = {"video": ["f", "a.mp4"], "questions": [["q", 1.0]], "seed": 0}
    assert key(**settings) == key(**json.loads(json.dumps(settings)))
    others = [{"video": ["f", "b.mp4"]}, {"questions": [["q", None]]}, {"seed": 1}]
    assert len({key(**settings), *(key(**{**settings, **other}) for other in others)}) == 4


class Sees:
    """Of a session: it says how many frames it has seen."""

    def __init__(self, chunks: int) -> None:
        self.chunks, self.end = chunks, 4.0 * chunks

    def ingesting(self, chunk: Chunk) -> Generator[None, None, None]:
        self.chunks, self.end = self.chunks + 1, chunk.end
        yield from ()

    def answering(
        self, questions: list[str], also: Chunk | None = None, **_: Any
    ) -> Generator[None, None, list[Answer]]:
        shown = 8 * self.chunks + (0 if also is None else len(also.frames))
        yield from ()
        return [Answer(f"{q} of {len(questions)}", str(shown), (), (), "stop", 0.0, 0.0) for q in questions]

    def stats(self) -> None:
        return None

    def timeline(self) -> list[Span]:
        return []


@settings(max_examples=500)
@given(st.integers(1, 4), st.lists(st.integers(0, 36), max_size=8), st.integers(1, 20), st.data())
def test_a_run_that_goes_on_answers_the_rest(count: int, moments: list[int], every: int, data: st.DataObject):
    """From any checkpoint, the very last too, with any number of batches answered that reaches as far as that."""
    frames = np.zeros((8, 28, 28, 3), np.uint8)
    starts = [4.0 * i for i in range(count)]
    chunks = [Chunk(frames, tuple(s + i / 2 for i in range(8)), s, s + 4.0, 2.0) for s in starts]
    asked = [Question(f"q{i}", at / 2) for i, at in enumerate(moments)] + [Question("r")]
    period = data.draw(st.sampled_from([None, every / 2]))

    def agenda() -> Agenda:
        return Agenda(asked, period)

    def said(found: list[list[Asked]]) -> list[list[tuple[float, str, str]]]:
        return [[(one.at, one.answer.question, one.answer.text) for one in batch] for batch in found]

    def go_on(chunks_before: int, answered: int) -> list[list[tuple[float, str, str]]]:
        seen: Any = Sees(chunks_before)
        found = analyzing(seen, chunks[chunks_before:], agenda(), answered=answered)
        return said([batch for batch in found if batch is not None])

    whole = go_on(0, 0)
    stands = data.draw(st.sampled_from([count, *range(count)]))
    due = len(agenda().before(4.0 * stands)) if stands else 0
    known = data.draw(st.integers(due, len(whole)))
    assert whole[:known] + go_on(stands, sum(map(len, whole[:known]))) == whole


@pytest.mark.parametrize(
    ("text", "count"),
    [("500MB", 500_000_000), ("2GB", 2 * 10**9), ("1GiB", 2**30), ("1.5 kib", 1536), ("7b", 7), ("0.5TB", 5 * 10**11)],
)
def test_sizes_as_people_write_them(text: str, count: int):
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "10", "GB", "-1GB", "1e3MB", "1 PB", "1.GB", "٣GB", "1G"])
def test_bad_sizes_are_named(text: str):
    with pytest.raises(ConfigError, match="is not a size; write a number and its unit"):
        parse_size(text)
