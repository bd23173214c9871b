"""Batches: videos side by side in one real engine, each question asked once, and what is done stays done."""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from kvvideo.batch import run as batch_run
from kvvideo.batch.jobs import read_jobs
from kvvideo.batch.run import Queue
from kvvideo.batch.streams import Answered, Ended, Event, Moved, Streams, _look
from kvvideo.batch.tasks import Defaults, Task, tasks_of
from kvvideo.cli import main
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.runs.streaming import analyze
from kvvideo.session import Engine, EngineConfig, open_session
from kvvideo.session.pool import pool_bytes, sessions_in
from kvvideo.session.prediction import frame_pixels
from kvvideo.tiny import samples
from kvvideo.video import VideoReader
from tests.helpers.clips import truncated

pytestmark = pytest.mark.usefixtures("no_looking_again")

Record = dict[str, Any]

CACHE = CacheConfig(max_tokens=320, sink=16)
CONFIG = EngineConfig(
    index=False, model="tiny", dtype="float32", cache=CACHE, sessions=3, questions=8, max_model_len=4096
)
LOW, HIGH = frame_pixels(CONFIG)
DEFAULTS = Defaults(CONFIG, {"min_pixels": LOW, "max_pixels": HIGH}, max_answer_tokens=8)
WORDS = ("--model", "tiny", "--dtype", "float32", "--max-tokens", "320", "--sink", "16", "--max-answer-tokens", "8")
NOW = "Which letter is on screen now?"
SCHEMA = Draft202012Validator(
    json.loads((resources.files("kvvideo.outputs") / "schema/record.schema.json").read_text(encoding="utf-8"))
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of 40 s; ``cut.mp4`` breaks off, and ``none.mp4`` is no video."""
    directory = tmp_path_factory.mktemp("clips")
    for seed in range(4):
        samples.make(directory / f"{seed}.mp4", seed=seed, minutes=40 / 60, density=0.5)
    truncated(directory / "0.mp4", directory).rename(directory / "cut.mp4")
    (directory / "none.mp4").write_bytes(b"no video" * 1000)
    return directory


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One for all batches of this module: it stays open when they close it."""
    engine = Engine(replace(CONFIG, cache=CACHE, spare_rows=2))
    close = engine.close
    engine.close = lambda: None  # type: ignore[method-assign]
    yield engine
    close()


@pytest.fixture
def started(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[EngineConfig]:
    """Batches get the engine of the module; what they would have started."""
    found: list[EngineConfig] = []

    def start(config: EngineConfig, caches: list[CacheConfig]) -> Engine:
        found.append(config)
        return engine

    monkeypatch.setattr(batch_run, "open_engine", start)
    return found


@pytest.fixture
def kvvideo(
    started: list[EngineConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: its exit code, and what it wrote to stdout and stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kvvideo", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return (code if isinstance(code, int) else 0), out, err

    return call


def job(name: str, video: str, *questions: str | tuple[str, str], **more: Any) -> Record:
    """A line of a job file: questions for the end, or ``(time, question)``."""
    asked = [{"q": q} if isinstance(q, str) else {"t": q[0], "q": q[1]} for q in questions]
    return {"id": name, "video": video, "questions": asked, **more}


def write(path: Path, *jobs: Record) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in jobs))
    return path


def lines(path: Path) -> list[Record]:
    """The records in a file, each checked against the schema; none if there is no file."""
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for record in found:
        SCHEMA.validate(record)
    return found


def untimed(records: list[Record]) -> list[Record]:
    """Without what differs from run to run, in an order of its own."""
    kept = [{k: v for k, v in record.items() if k not in ("seconds", "first_token_seconds")} for record in records]
    return sorted(kept, key=lambda record: (record["id"], record["index"]))


@pytest.fixture
def four(clips: Path) -> Path:
    """Four jobs to four videos, two moments each."""
    jobs = [
        job(f"j{n}", f"{n}.mp4", ("0:13", NOW), ("0:30", NOW), "When did the letter A appear?", meta={"n": n})
        for n in range(4)
    ]
    return write(clips / "four.jsonl", *jobs)


def tasks(path: Path, defaults: Defaults = DEFAULTS) -> list[Task]:
    return tasks_of(read_jobs(path), defaults)


def streamed(engine: Engine, tasks: list[Task], **options: Any) -> list[Event]:
    """What happens when they are run."""
    queue = Queue(tasks)
    return [*Streams(engine, partial(queue.take, CACHE), max_tokens=8, **options).run()]


def test_side_by_side_is_as_one_after_the_other(engine: Engine, four: Path):
    """All four at once, three of them in the engine, say and hold what each says and holds alone."""
    engine.use(CACHE)
    together: dict[str, list[Any]] = {}
    open_at_once = []
    queue = Queue(tasks(four))
    streams = Streams(engine, partial(queue.take, CACHE), max_tokens=8)
    for event in streams.run():
        open_at_once.append(len(engine.scheduler.requests))
        if isinstance(event, Answered):
            together.setdefault(event.task.source.path, []).extend(event.asked)
    assert max(open_at_once) >= engine.capacity == 3
    for task in tasks(four):
        with task.source.open() as reader, open_session(engine) as session:
            alone = [*analyze(session, reader, task.agenda(), max_tokens=8)]
        beside = together[task.source.path]
        assert [(a.answer.token_ids, a.at, a.cache, a.held) for a in beside] == [
            (a.answer.token_ids, a.at, a.cache, a.held) for a in alone
        ]
        assert [a.question.at for a in beside if a.question] == [13.0, 30.0, None]
        assert alone[-1].cache.compactions >= 3


def test_as_many_are_open_as_the_pool_surely_holds(engine: Engine):
    """The pool of n sessions is just that large, and no smaller one holds n."""
    for sessions in (1, 3, 7):
        config = replace(CONFIG, sessions=sessions)
        size = pool_bytes(config)
        assert size is not None
        assert sessions_in(size, config) == sessions
        assert sessions_in(size - 1, config) == sessions - 1
    assert engine.capacity == CONFIG.sessions
    assert engine.blocks == sum(
        [
            CONFIG.sessions * (CACHE.max_tokens // engine.block_size + 1),
            CONFIG.questions * (CONFIG.question_tokens // engine.block_size + 2),
            1,
        ]
    )


def test_questions_wait_for_others(engine: Engine, clips: Path):
    """Many at the same moment of several videos: never more than the pool has room for, and all are answered."""
    engine.use(CACHE)
    path = write(
        clips / "many.jsonl",
        *(job(f"j{n}", f"{n}.mp4", *((f"0:0{s}", f"{q}?") for s in (1, 5) for q in range(6))) for n in range(3)),
    )
    most = 0
    queue = Queue([replace(task, source=replace(task.source, end=8.0)) for task in tasks(path)])
    asked = 0
    step = engine.step

    def stepping() -> Any:
        nonlocal most
        most = max(most, engine.open_questions)
        return step()

    engine.step = stepping  # type: ignore[method-assign]
    try:
        for event in Streams(engine, partial(queue.take, CACHE), max_tokens=8).run():
            asked += len(event.asked) if isinstance(event, Answered) else 0
    finally:
        del engine.step  # type: ignore[method-assign]
    assert asked == 36
    assert 6 <= most <= CONFIG.questions


def test_nobody_waits_for_a_video_that_is_not_decoded(engine: Engine, four: Path, monkeypatch: pytest.MonkeyPatch):
    """One decoder stands still after its first chunk until all the others are at their ends."""
    engine.use(CACHE)
    slow, ended = tasks(four)[0].source.path, set[str]()
    ready = VideoReader.ready.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(
        VideoReader,
        "ready",
        property(lambda self: ready(self) and (self.path != slow or self.position < 4.0 or len(ended) == 3)),
    )
    queue = Queue(tasks(four))
    order = []
    for event in Streams(engine, partial(queue.take, CACHE), max_tokens=8).run():
        if isinstance(event, Ended):
            order.append(event.task.source.path)
            ended.add(event.task.source.path)
    assert order[-1] == slow
    assert len(order) == 4


def test_every_question_has_one_record(four: Path, tmp_path: Path, kvvideo: Callable[..., Any]):
    code, out, err = kvvideo("batch", four, "-o", tmp_path, *WORDS, "--json")
    assert code == 0, err
    records = lines(tmp_path / "results.jsonl")
    assert {(r["id"], r["t"]) for r in records} == {(f"j{n}", t) for n in range(4) for t in (13.0, 30.0, None)}
    assert len({(r["id"], r["index"]) for r in records}) == len(records) == 12
    assert all(r["meta"] == {"n": int(r["id"][1])} for r in records)
    summary = json.loads(out)
    SCHEMA.validate(summary)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert (summary["answered"], summary["failed"], summary["left"], summary["status"]) == (12, 0, 0, "complete")
    assert summary["now"]["video_seconds"] == 160.0

    # Once more: nothing is asked again, and no model is loaded.
    before = (tmp_path / "results.jsonl").read_bytes()
    code, out, err = kvvideo("batch", four, "-o", tmp_path, *WORDS, "--json")
    assert code == 0
    assert json.loads(out)["now"]["ingests"] == 0
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_one_ingest_answers_several_jobs(clips: Path, tmp_path: Path, kvvideo: Callable[..., Any]):
    path = write(
        clips / "shared.jsonl",
        job("a", "0.mp4", ("0:13", NOW), NOW),
        job("b", "./0.mp4", NOW, ("0:13", NOW)),
        job("c", "0.mp4", NOW, strategy="streaming"),
        job("d", "0.mp4", NOW, budget=512),
        {"id": "e", "video": "0.mp4", "questions": [{"q": NOW, "answer": "?"}, {"t": 13, "q": NOW, "answer": "none"}]},
        job("f", "0.mp4", NOW, system="Be brief."),
    )
    code, out, _ = kvvideo("batch", path, "-o", tmp_path, *WORDS, "--json")
    assert code == 0
    records = {(r["id"], r["index"]): r for r in lines(tmp_path / "results.jsonl")}
    assert json.loads(out)["now"]["ingests"] == 3
    same = [records["a", 1], records["b", 0], records["e", 0]]
    assert len({json.dumps({k: v for k, v in r.items() if k in ("answer", "seconds", "cache")}) for r in same}) == 1
    assert records["c", 0]["strategy"] == "streaming"
    assert records["d", 0]["cache"]["budget"] == 512
    assert {key: record["system"] for key, record in records.items() if "system" in record} == {("f", 0): "Be brief."}
    assert records["e", 0]["right"] is False
    right = records["e", 1]["answer"] == "none"
    assert records["e", 1]["right"] is right
    summary = json.loads(out)
    assert (summary["scored"], summary["right"]) == (2, int(right))
    assert summary["strategies"]["distinct"]["scored"] == 2
    assert summary["strategies"]["streaming"] == {"scored": 0, "right": 0, "accuracy": None}


@pytest.mark.slow
def test_failures_stop_nobody_else(clips: Path, tmp_path: Path, kvvideo: Callable[..., Any]):
    path = write(
        clips / "bad.jsonl",
        job("none", "none.mp4", NOW),
        job("gone", "gone.mp4", NOW, ("0:01", NOW)),
        job("cut", "cut.mp4", ("0:05", NOW), ("0:38", NOW), NOW),
        job("late", "1.mp4", ("0:05", NOW), ("5:00", NOW)),
        job("big", "2.mp4", NOW, fps=300, to="0:04"),
        job("good", "3.mp4", NOW),
    )
    words = ("batch", path, "-o", tmp_path, *WORDS, "--json", "--retries", "1")
    code, out, err = kvvideo(*words)
    assert code == 1
    summary = json.loads(out)
    assert (summary["answered"], summary["failed"], summary["left"]) == (3, 7, 0)
    answered = {(r["id"], r["index"]) for r in lines(tmp_path / "results.jsonl")}
    assert answered == {("cut", 0), ("late", 0), ("good", 0)}
    failed = {(r["id"], r["index"]): r for r in lines(tmp_path / "failed.jsonl")}
    assert {key[0]: r["exit_code"] for key, r in failed.items()} == {
        "none": 3,
        "gone": 3,
        "cut": 3,
        "late": 3,
        "big": 5,
    }
    assert "ends at 0:40, before 5:00" in failed["late", 1]["error"]
    assert "is no file" in failed["gone", 0]["error"]
    # What could be said of the video up to where it breaks off is not lost.
    assert failed["cut", 2]["answer"]
    assert "answer" not in failed["cut", 1]
    assert {key[0]: r["attempts"] for key, r in failed.items()} == {"none": 2, "gone": 1, "cut": 2, "late": 1, "big": 2}
    assert f"{path}:1: " in err
    assert "Traceback" not in err

    # What failed is not tried again unless that is asked for, or the file is another.
    code, out, _ = kvvideo(*words)
    assert (code, json.loads(out)["now"]["ingests"]) == (1, 0)
    (clips / "gone.mp4").write_bytes((clips / "3.mp4").read_bytes())
    try:
        code, out, _ = kvvideo(*words)
        summary = json.loads(out)
        assert (code, summary["answered"], summary["failed"], summary["now"]["ingests"]) == (1, 5, 5, 1)
        assert len(lines(tmp_path / "failed.jsonl")) == 5
        code, out, _ = kvvideo(*words, "--only-failed")
    finally:
        (clips / "gone.mp4").unlink()
    summary = json.loads(out)
    assert (code, summary["answered"], summary["failed"], summary["now"]["ingests"]) == (1, 5, 5, 4)
    assert len(lines(tmp_path / "failed.jsonl")) == 5
    assert {("gone", 0), ("gone", 1)} <= {(r["id"], r["index"]) for r in lines(tmp_path / "results.jsonl")}


def test_what_a_strategy_that_forgets_nothing_cannot_hold_is_found_before(
    clips: Path, tmp_path: Path, kvvideo: Callable[..., Any]
) -> None:
    """By --check, and where the video is opened."""
    path = write(clips / "full.jsonl", job("a", "0.mp4", NOW, strategy="full"), job("b", "0.mp4", NOW))
    code, out, _ = kvvideo("batch", path, "-o", tmp_path, *WORDS, "--max-model-len", "420", "--check", "--json")
    full, bounded, _ = (json.loads(line) for line in out.splitlines())
    (finding,) = full["findings"]
    assert (code != 0, bounded["findings"]) == (True, [])
    assert finding.startswith(f"{path}:1: strategy: 'full' forgets nothing")
    config = replace(CONFIG, cache=CacheConfig("full"), max_model_len=420)
    with pytest.raises(ConfigError, match="add --to 0:"):
        _look(config, tasks(path)[0], None)
    reader, memory = _look(replace(config, max_model_len=4096), tasks(path)[0], None)
    reader.close()
    assert memory is None


def test_videos_that_were_not_read_to_their_end_are_not_counted_as_such(
    clips: Path, tmp_path: Path, kvvideo: Callable[..., Any]
) -> None:
    path = write(
        clips / "ends.jsonl", job("none", "none.mp4", NOW), job("gone", "gone.mp4", NOW), job("good", "3.mp4", NOW)
    )
    code, _, err = kvvideo("batch", path, "-o", tmp_path, *WORDS)
    assert code == 1
    assert "now: 1 of 3 videos to their end, 0:40 of video, 80 frames in " in err
    now = json.loads((tmp_path / "summary.json").read_text())["now"]
    assert (now["ingests"], now["complete"]) == (3, 1)


@pytest.mark.slow
def test_fail_fast_stops_at_the_first_failure(clips: Path, tmp_path: Path, kvvideo: Callable[..., Any]):
    path = write(clips / "fast.jsonl", job("none", "none.mp4", NOW), *(job(f"j{n}", f"{n}.mp4", NOW) for n in range(4)))
    code, out, err = kvvideo("batch", path, "-o", tmp_path, *WORDS, "--json", "--fail-fast")
    summary = json.loads(out)
    assert (code, summary["status"], summary["failed"]) == (1, "error", 1)
    assert summary["left"] >= 1
    assert "goes on from there" in err
    code, out, _ = kvvideo("batch", path, "-o", tmp_path, *WORDS, "--json")
    assert (code, json.loads(out)["answered"], json.loads(out)["left"]) == (1, 4, 0)


@pytest.mark.slow
def test_parts_of_a_batch(four: Path, tmp_path: Path, kvvideo: Callable[..., Any]):
    code, out, _ = kvvideo("batch", four, "-o", tmp_path, *WORDS, "--json", "--limit", "1")
    assert (code, json.loads(out)["questions"]) == (0, 3)
    shards = []
    for part in ("1/2", "2/2"):
        code, out, _ = kvvideo("batch", four, "-o", tmp_path, *WORDS, "--json", "--shard", part)
        assert (code, json.loads(out)["answered"]) == (0, 6)
        shards.append(lines(tmp_path / f"results.{part.replace('/', '-of-')}.jsonl"))
    # To begin one of them anew takes nothing from the others.
    before = [(tmp_path / name).read_bytes() for name in ("results.jsonl", "results.1-of-2.jsonl")]
    code, out, _ = kvvideo("batch", four, "-o", tmp_path, *WORDS, "--json", "--shard", "2/2", "--restart")
    assert (code, json.loads(out)["answered"], json.loads(out)["now"]["ingests"]) == (0, 6, 2)
    assert [(tmp_path / name).read_bytes() for name in ("results.jsonl", "results.1-of-2.jsonl")] == before
    # What was done before shards began is done.
    first = lines(tmp_path / "results.jsonl")
    assert sorted(r["id"] for r in [*first, *shards[0], *shards[1]]) == sorted(
        f"j{n}" for n in range(4) for _ in range(3)
    )
    code, out, _ = kvvideo("batch", four, "-o", tmp_path, *WORDS, "--json")
    assert (code, json.loads(out)["answered"], json.loads(out)["now"]["ingests"]) == (0, 12, 0)


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", "5/9"])
def test_parts_that_are_none(four: Path, tmp_path: Path, kvvideo: Callable[..., Any], part: str):
    code, _, err = kvvideo("batch", four, "-o", tmp_path, *WORDS, "--shard", part)
    assert code == 2
    assert "shard: " in err


def test_results_of_other_settings_are_not_mixed(clips: Path, tmp_path: Path, kvvideo: Callable[..., Any]):
    video = clips / "changing.mp4"
    video.write_bytes((clips / "0.mp4").read_bytes())
    path = write(clips / "changing.jsonl", job("a", "changing.mp4", NOW, to="0:08"))
    assert kvvideo("batch", path, "-o", tmp_path, *WORDS)[0] == 0
    code, _, err = kvvideo("batch", path, "-o", tmp_path, *WORDS, "--strategy", "window")
    assert code == 2
    assert "has answers to 'a' that were made with other settings" in err
    told = write(clips / "told.jsonl", job("a", "changing.mp4", NOW, to="0:08", system="Be brief."))
    code, _, err = kvvideo("batch", told, "-o", tmp_path, *WORDS)
    assert code == 2
    assert "has answers to 'a' that were made with other settings" in err
    video.write_bytes((clips / "1.mp4").read_bytes())
    code, _, err = kvvideo("batch", path, "-o", tmp_path, *WORDS)
    assert code == 2
    assert "has changed since" in err
    video.unlink()
    assert kvvideo("batch", path, "-o", tmp_path, *WORDS)[0] == 0, "it is not needed any more"
    video.write_bytes((clips / "1.mp4").read_bytes())
    code, out, _ = kvvideo("batch", path, "-o", tmp_path, *WORDS, "--restart", "--json")
    assert (code, json.loads(out)["now"]["ingests"]) == (0, 1)
    assert len(lines(tmp_path / "results.jsonl")) == 1
    about = tmp_path / ".kvvideo" / "all" / "run.json"
    about.write_text('{"model": "another"}')
    path = write(clips / "changing.jsonl", job("a", "changing.mp4", NOW, to="0:08"), job("b", "1.mp4", NOW, to="0:08"))
    code, _, err = kvvideo("batch", path, "-o", tmp_path, *WORDS)
    assert code == 2
    assert "the model's files have changed" in err


def test_a_torn_line_is_asked_again_and_a_damaged_one_is_said(four: Path, tmp_path: Path, kvvideo: Callable[..., Any]):
    assert kvvideo("batch", four, "-o", tmp_path, *WORDS, "--limit", "2")[0] == 0
    results = tmp_path / "results.jsonl"
    whole = lines(results)
    os.truncate(results, results.stat().st_size - 5)
    code, out, _ = kvvideo("batch", four, "-o", tmp_path, *WORDS, "--limit", "2", "--json")
    assert (code, json.loads(out)["now"]["ingests"]) == (0, 1)
    assert untimed(lines(results)) == untimed(whole)
    text = results.read_text().splitlines(keepends=True)
    results.write_text("".join([text[0], "{}\n", *text[1:]]))
    code, _, err = kvvideo("batch", four, "-o", tmp_path, *WORDS)
    assert code == 2
    assert f"{results}:2: this is no record of a batch" in err


def test_two_do_not_write_to_one_place(four: Path, tmp_path: Path, kvvideo: Callable[..., Any]):
    from kvvideo.batch.results import Results

    with Results(tmp_path):
        code, _, err = kvvideo("batch", four, "-o", tmp_path, *WORDS)
    assert code == 2
    assert "another kvvideo is writing to" in err
    (tmp_path / "file").touch()
    code, _, err = kvvideo("batch", four, "-o", tmp_path / "file", *WORDS)
    assert code == 2
    assert "cannot be used: " in err


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_written(
    four: Path, tmp_path: Path, kvvideo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """The third record does not fit; half of it is not left there."""
    fsync, results = os.fsync, tmp_path / "results.jsonl"
    count = 0

    def full(descriptor: int) -> None:
        nonlocal count
        if results.exists() and os.path.samestat(os.fstat(descriptor), results.stat()):
            count += 1
            if count == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, out, err = kvvideo("batch", four, "-o", tmp_path, *WORDS, "--json")
    assert code == 2
    assert "No space left on device" in err
    summary = json.loads(out)
    assert (summary["status"], summary["answered"], summary["failed"]) == ("error", 2, 0)
    assert len(lines(results)) == 2
    code, out, _ = kvvideo("batch", four, "-o", tmp_path, *WORDS, "--json")
    assert (code, json.loads(out)["answered"]) == (0, 12)
    assert len(lines(results)) == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code"), [(RuntimeError("CUDA out of memory. Tried to"), 4), (RuntimeError("kernel died"), 5)]
)
def test_an_engine_that_fails_ends_the_batch_and_fails_no_video(
    four: Path,
    tmp_path: Path,
    engine: Engine,
    kvvideo: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    error: RuntimeError,
    code: int,
):
    steps = 0
    step = engine.llm.step

    def failing() -> Any:
        nonlocal steps
        steps += 1
        if steps == 25:
            raise error
        return step()

    with monkeypatch.context() as patch:
        patch.setattr(engine.llm, "step", failing)
        ended, out, err = kvvideo("batch", four, "-o", tmp_path, *WORDS, "--json")
    assert ended == code
    assert str(error) in err
    assert "Traceback" not in err
    summary = json.loads(out)
    assert (summary["status"], summary["failed"]) == ("error", 0)
    assert 0 < summary["left"] == 12 - len(lines(tmp_path / "results.jsonl"))
    ended, out, _ = kvvideo("batch", four, "-o", tmp_path, *WORDS, "--json")
    assert (ended, json.loads(out)["answered"]) == (0, 12)


@pytest.mark.slow
def test_a_session_that_is_lost_is_tried_again(four: Path, tmp_path: Path, engine: Engine, kvvideo: Callable[..., Any]):
    """vLLM ends it in the middle; the others go on, and what it had answered is not asked again."""
    lost: list[str] = []
    step = engine.step

    def losing() -> Any:
        sessions = [name for name in engine.scheduler.requests if name.startswith("video")]
        if not lost and sessions and len(lines(tmp_path / "results.jsonl")) >= 4:
            lost.append(sessions[0])
            engine.core.abort_requests([sessions[0]])
        return step()

    engine.step = losing  # type: ignore[method-assign]
    try:
        code, out, err = kvvideo("batch", four, "-o", tmp_path, *WORDS, "--json", "--retries", "1")
    finally:
        del engine.step  # type: ignore[method-assign]
    assert lost
    assert "trying again" in err
    assert (code, json.loads(out)["answered"]) == (0, 12)
    assert len(lines(tmp_path / "results.jsonl")) == 12


def test_what_it_takes_is_said_before_a_model_is_loaded(
    clips: Path, tmp_path: Path, started: list[EngineConfig], kvvideo: Callable[..., Any]
):
    path = write(
        clips / "check.jsonl",
        job("a", "0.mp4", NOW, ("0:30", NOW)),
        job("b", "1.mp4", NOW, ("1:00", NOW)),
        job("c", "none.mp4", NOW),
        job("d", "2.mp4", NOW, fps=1),
    )
    code, out, err = kvvideo("batch", path, "-o", tmp_path / "results", *WORDS, "--check", "--json")
    assert code == 1
    found = [json.loads(line) for line in out.splitlines()]
    for record in found:
        SCHEMA.validate(record)
    *checks, total = found
    assert [(r["jobs"], r.get("chunks"), r["error"] is None) for r in checks] == [
        (["a"], 10, True),
        (["b"], 10, True),
        (["c"], None, False),
        (["d"], 10, True),
    ]
    assert checks[0]["tokens"] > checks[3]["tokens"]
    assert f"{path}:2: question 2 is asked at 1:00, and '{clips}/1.mp4' ends at 0:40" in err
    assert f"{path}:3: " in err
    assert (total["questions"], total["seconds"], total["sessions"], total["errors"]) == (6, 120.0, 4, 1)
    assert not started
    assert not (tmp_path / "results").exists()
    code, out, _ = kvvideo("batch", path, *WORDS, "--check")
    assert "6 questions, 4 ingests, 4 at once in a pool of" in out

    # What was predicted is what happens.
    assert kvvideo("batch", path, "-o", tmp_path, *WORDS, "--limit", "1")[0] == 0
    seen = [record["cache"]["seen"] for record in lines(tmp_path / "results.jsonl") if record["t"] is None]
    assert seen == [checks[0]["tokens"]]


def test_a_pool_of_a_given_size(four: Path, tmp_path: Path, started: list[EngineConfig], kvvideo: Callable[..., Any]):
    code, _, err = kvvideo("batch", four, "-o", tmp_path, *WORDS, "--kv-memory", "1MB")
    assert code == 2
    assert "kv-memory: 1MB surely holds 0 videos at once" in err
    assert kvvideo("batch", four, "-o", tmp_path, *WORDS, "--kv-memory", "1GB")[0] == 0
    assert (started[0].sessions, started[0].kv_bytes) == (4, 10**9)


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ('{"id": "a"}', (), "jobs.jsonl:1: there is no 'video'"),
        (None, (), "cannot be read"),
        (json.dumps(job("a", "a.mp4", "a")), ("--strategy", "no"), "strategy: no 'no'"),
        (json.dumps(job("a", "a.mp4", "a")), ("--retries", "-1"), "retries"),
        (json.dumps(job("a", "a.mp4", "a")), ("--kv-memory", "much"), "is not a size"),
    ],
)
def test_what_cannot_be_run_is_said_at_once(
    tmp_path: Path, kvvideo: Callable[..., Any], content: str | None, words: tuple[str, ...], message: str
):
    path = tmp_path / "jobs.jsonl"
    if content is not None:
        path.write_text(content)
    code, out, err = kvvideo("batch", path, "-o", tmp_path / "results", *WORDS, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_progress_is_told_as_it_is_made(engine: Engine, four: Path):
    engine.use(CACHE)
    whole, part = tasks(four)[:2]
    part = replace(part, source=replace(part.source, start=8.0, end=24.0))
    part = replace(part, wants={replace(question, at=None): some for question, some in part.wants.items()})
    events = streamed(engine, [whole, part])
    moved = [event for event in events if isinstance(event, Moved)]
    assert len(moved) == 10 + 4
    assert {(event.task.key, event.start, event.progress.end) for event in moved} == {
        (whole.key, 0.0, 40.0),
        (part.key, 8.0, 24.0),
    }
    assert all(event.progress.cache.live <= CACHE.max_tokens for event in moved)
    ended = [event for event in events if isinstance(event, Ended)]
    assert {(event.start, event.end, event.frames, len(event.left)) for event in ended} == {
        (0.0, 40.0, 80, 0),
        (8.0, 24.0, 32, 0),
    }
