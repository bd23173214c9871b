"""Batches look again: videos side by side answer as each alone, and the pool is never too small for what is shown."""

import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import kvvideo.session
from kvvideo.batch.jobs import read_jobs
from kvvideo.batch.ray import Cluster, Given, Worker, _Fleet
from kvvideo.batch.run import Local, Queue, question_tokens
from kvvideo.batch.streams import Answered, Ended, Event, Streams
from kvvideo.batch.tasks import Defaults, Task, tasks_of
from kvvideo.compression.config import CacheConfig
from kvvideo.runs.recall import MOST, Looking
from kvvideo.runs.streaming import Asked, analyze
from kvvideo.session import EngineConfig, open_engine, open_session
from kvvideo.session.pool import pool_bytes, sessions_in
from kvvideo.session.prediction import frame_pixels
from kvvideo.tiny import samples, world
from tests.batch.test_batch import job, lines, write
from tests.conftest import EngineFor
from tests.helpers.commands import records, run
from tests.helpers.looking import SMALL, STRATEGY, Watched, as_asked

Record = dict[str, Any]

SLOTS, SEEDS = 14, (101, 102, 103, 104)
CACHE = CacheConfig(strategy="streaming", max_tokens=192, sink=16)
CONFIG = EngineConfig(model="tiny", cache=CACHE, sessions=3, questions=8, max_model_len=4096)
WORDS = (*SMALL, *STRATEGY, "--max-answer-tokens", "8")


@pytest.fixture(autouse=True)
def watched(engine_for: EngineFor, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Whatever a batch does, no request is preempted and questions stay within their room."""
    watched = as_asked(monkeypatch)
    monkeypatch.setattr("kvvideo.batch.run.open_engine", kvvideo.session.open_engine)
    yield watched
    assert (watched.preemptions, watched.over) == (0, 0)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of 56 s, and questions about letters of their first 24, at the end and before."""
    directory = tmp_path_factory.mktemp("clips")
    jobs = []
    for seed in SEEDS:
        samples.make(directory / f"{seed}.mp4", seed=seed, minutes=SLOTS * world.SLOT / 60, density=0.5)
        early = {s.letter: s.colour for s in world.Clip(seed, SLOTS, density=0.5).slots if s.letter and s.start < 24}
        asked = [{"q": f"What colour was the letter {letter}?", "answer": colour} for letter, colour in early.items()]
        jobs.append(job(str(seed), f"{seed}.mp4") | {"questions": [*asked[:3], {"t": "0:46", **asked[0]}]})
    return write(directory / "jobs.jsonl", *jobs)


def batched(capfd: pytest.CaptureFixture[str], jobs: Path, output: Path, *words: object) -> tuple[Record, list[Record]]:
    done = run(capfd, "batch", jobs, "-o", output, *WORDS, "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), lines(output / "results.jsonl")


def defaults(count: int) -> Defaults:
    low, high = frame_pixels(CONFIG)
    return Defaults(CONFIG, {"min_pixels": low, "max_pixels": high}, 8, Looking(count))


def sized(config: EngineConfig, task: Task, count: int) -> EngineConfig:
    """Return ``config`` with the room for questions that a batch gives it."""
    source = task.source
    chunk = round(source.chunk_seconds * source.fps / 2) * source.max_pixels // 28**2
    config = replace(config, question_tokens=question_tokens(chunk, 8))
    return Looking(count).room_in(config, source.fps, source.chunk_seconds, source.max_pixels)


def facts(asked: Sequence[Asked]) -> list[tuple[Any, ...]]:
    return [(one.answer.question, one.at, one.answer.token_ids, one.answer.looked_at, one.held) for one in asked]


def by_video(events: Sequence[Event]) -> dict[str, list[Asked]]:
    found: dict[str, list[Asked]] = {}
    for event in events:
        if isinstance(event, Answered):
            found.setdefault(event.task.source.path, []).extend(event.asked)
    return found


def test_side_by_side_is_as_one_after_the_other(
    four: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], watched: Watched
) -> None:
    """Records say what was looked at, and are those of ``analyze``; most answers are right, without recall few."""
    summary, found = batched(capfd, four, tmp_path / "again", "--at-once", 3)
    assert watched.open == 3
    assert summary["right"] >= 0.9 * summary["scored"] > 10
    assert all(record["looked_at"] for record in found)
    without, plain = batched(capfd, four, tmp_path / "without", "--at-once", 3, "--recall", 0)
    assert without["right"] <= 0.3 * summary["right"]
    assert not any("looked_at" in record or "index_bytes" in record["cache"] for record in plain)
    said = ("asked_at", "question", "answer", "looked_at", "held", "cache")
    for path in sorted({record["video"] for record in found}):
        mine = [record for record in found if record["video"] == path]
        asked = [w for r in mine for w in ("-q", r["question"] if r["t"] is None else f"@{r['t']:g} {r['question']}")]
        done = run(capfd, "analyze", path, *WORDS, "-f", "jsonl", *asked)
        assert done.returncode == 0, done.stderr
        alone = {(r["asked_at"], r["question"]): r for r in records(done.stdout)[:-1]}
        assert len(alone) == len(mine)
        for record in mine:
            other = alone[record["asked_at"], record["question"]]
            assert {name: record[name] for name in said} == {name: other[name] for name in said}


def test_answers_with_another_recall_are_not_taken_for_these(
    four: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    batched(capfd, four, tmp_path, "--limit", 1)
    before = (tmp_path / "results.jsonl").read_bytes()
    done = run(capfd, "batch", four, "-o", tmp_path, *WORDS, "--limit", 1, "--recall", 0)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "results.jsonl").read_bytes() == before
    summary, _ = batched(capfd, four, tmp_path, "--limit", 1)
    assert summary["now"]["ingests"] == 0


@pytest.mark.parametrize(("questions", "count"), [(1, 4), (8, 2)])
def test_the_pool_is_just_large_enough(four: Path, watched: Watched, questions: int, count: int) -> None:
    """However many questions may be open, all are asked with what they want to see, as of one video alone."""
    tasks = tasks_of(read_jobs(four), defaults(count))
    config = replace(sized(CONFIG, tasks[0], count), questions=questions)
    size = pool_bytes(config)
    assert size is not None
    assert (sessions_in(size, config), sessions_in(size - 1, config)) == (3, 2)
    engine = open_engine(replace(config, kv_bytes=size), [CACHE])
    assert engine.capacity == 3
    queue = Queue(tasks)
    events = [*Streams(engine, partial(queue.take, CACHE), max_tokens=8, looking=Looking(count)).run()]
    assert [event.error for event in events if isinstance(event, Ended)] == [None] * len(SEEDS)
    assert watched.open == 3
    found = by_video(events)
    looked = [len(one.answer.looked_at) for asked in found.values() for one in asked]
    assert set(looked) <= {*range(1, count + 1)}
    assert looked.count(count) > len(looked) / 2
    assert 0 < watched.most <= engine.question_room
    for task in tasks:
        with task.source.open() as reader, open_session(engine) as session:
            recall = Looking(count).of_file(task.source)
            alone = [*analyze(session, reader, task.agenda(), max_tokens=8, recall=recall)]
        assert facts(found[task.source.path]) == facts(alone)


def test_few_bytes_hold_fewer_videos_and_answer_the_same(
    four: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], watched: Watched
) -> None:
    """With the least pool that is taken there is one video at a time; with less, nothing begins."""
    _, wanted = batched(capfd, four, tmp_path / "many")
    config = replace(watched.configs[-1], sessions=1, kv_bytes=None)
    least = pool_bytes(config)
    assert least is not None
    watched.open = 0
    _, found = batched(capfd, four, tmp_path / "few", "--kv-memory", f"{least}B")
    assert watched.open == 1
    key = lambda record: (record["id"], record["index"])  # noqa: E731
    said = ("asked_at", "question", "answer", "looked_at")
    assert [[r[name] for name in said] for r in sorted(found, key=key)] == [
        [r[name] for name in said] for r in sorted(wanted, key=key)
    ]
    done = run(capfd, "batch", four, "-o", tmp_path / "none", *WORDS, "--kv-memory", f"{least - 1}B")
    assert done.returncode == 2
    assert "surely holds 0 videos at once" in done.stderr


def test_a_check_counts_what_is_shown_again(four: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The pool it foretells is the one that the batch takes; no model is loaded for it."""
    pools = []
    for recall in (0, 4, MOST):
        words = ("--recall", recall, "--recall-frame-tokens", 100)
        done = run(capfd, "batch", four, "-o", tmp_path, *WORDS, "--check", "--json", *words)
        assert done.returncode == 0, done.stderr
        *each, total = records(done.stdout)
        assert all((record["index_bytes"] > 0) == (recall > 0) for record in each)
        pools.append(total["pool_bytes"])
    assert pools[0] <= pools[1] < pools[2]


def test_the_pool_is_as_foretold(
    four: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], watched: Watched
) -> None:
    words = ("--recall", MOST, "--recall-frame-tokens", 100, "--limit", 1)
    done = run(capfd, "batch", four, "-o", tmp_path / "check", *WORDS, "--check", "--json", *words)
    assert watched.configs == []
    batched(capfd, four, tmp_path / "run", *words)
    assert records(done.stdout)[-1]["pool_bytes"] == pool_bytes(watched.configs[-1])


def test_engines_of_a_cluster_look_again(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker does what this process does, and is told by the cluster how questions look."""
    looking, tasks = Looking(4), tasks_of(read_jobs(four), defaults(4))[:2]
    local = Local(sized(CONFIG, tasks[0], 4), [CACHE], 8, looking=looking)
    queue = Queue(tasks)
    wanted = by_video([*local.events(queue)])
    monkeypatch.setattr("kvvideo.batch.ray.open_engine", kvvideo.session.open_engine)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    worker = Worker(local, str(four.parent))
    worker.load()
    events, given = list[Event](), [Given(str(n), task, None) for n, task in enumerate(tasks)]
    while sum(isinstance(event, Ended) for event in events) < len(tasks):
        turn = worker.turn(given, False)
        assert turn.error is None
        events += [event for _, event in turn.events]
        given = []
    worker.turn([], True)
    found = by_video(events)
    assert {path: facts(asked) for path, asked in found.items()} == {path: facts(a) for path, a in wanted.items()}
    assert all(one.answer.looked_at for asked in found.values() for one in asked)


def test_a_cluster_hands_on_how_to_look() -> None:
    class Ray:
        """As much of Ray as an empty fleet asks for."""

        def nodes(self) -> list[dict[str, Any]]:
            return [{"Alive": True, "Resources": {"CPU": 4.0}}]

        def remote(self, **_: Any) -> Any:
            return lambda worker: worker

    looking: Looking = Looking(2, 64)
    cluster = Cluster(CONFIG, [CACHE], 8, looking=looking, engines=1, cpus=1)
    ray: Any = Ray()
    assert _Fleet(cluster, ray, Queue([]))._local.looking == looking
