"""Batches over a Ray cluster of this machine: two engines, and one of them killed in the middle."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import kvvideo.batch.ray as batch_ray
from kvvideo.batch.jobs import read_jobs
from kvvideo.batch.ray import LOSSES, Cluster, Given, Loaded, Turn, Worker, _Place, connected, share_out
from kvvideo.batch.results import Results
from kvvideo.batch.run import Batch, Executor, Local, Queue
from kvvideo.batch.streams import Answered, Ended, Event, Moved
from kvvideo.batch.tasks import Defaults, Task, tasks_of
from kvvideo.cli.options import Video
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, EngineError, KvvideoError, OutOfMemoryError, VideoError
from kvvideo.runs.agenda import Question
from kvvideo.runs.streaming import Asked
from kvvideo.session import Answer, EngineConfig
from kvvideo.types import CacheStats, Progress
from tests.helpers import ROOT, SAMPLES
from tests.helpers.commands import command

ENGINE = EngineConfig("tiny", CacheConfig("streaming", max_tokens=512), sessions=2, max_model_len=2048, index=False)
ANSWER_TOKENS = 8
CLI = ("--model", "tiny", "-s", "streaming", "--max-tokens", "512", "--max-answer-tokens", "8", "--at-once", "2")
PARTS = [(0, 28), (4, 24), (12, 36), (20, 40), (32, 60)]
BROKEN = "broken"
NOTHING = CacheStats(0, 0, 0, 0, 0, 0)

pytestmark = [
    pytest.mark.skipif(torch.cuda.device_count() == 1, reason="an engine takes a GPU, and there must be two"),
    pytest.mark.usefixtures("no_looking_again"),
]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of a clip, asked as they go and at their ends, and a file that is no video."""
    directory = tmp_path_factory.mktemp("jobs")
    clip = SAMPLES / "letters-1m.mp4"
    (directory / "broken.mp4").write_bytes(b"no video" * 100)
    question = "Which letter is on screen now?"
    lines = [
        {
            "id": f"from {start}",
            "video": str(clip),
            "from": start,
            "to": end,
            "meta": {"part": index},
            "strategy": ("streaming", "distinct")[index % 2],
            "questions": [{"q": question}, *({"q": question, "t": start + offset} for offset in (7, 13))],
        }
        for index, (start, end) in enumerate(PARTS)
    ]
    lines.insert(2, {"id": BROKEN, "video": "broken.mp4", "questions": [{"q": "a"}, {"q": "b", "t": 1}]})
    path = directory / "jobs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray, on a cluster of our own, of which nothing is left in the end."""
    with connected() as ray:
        yield ray
        left = [process for process in here() if "ray" in " ".join(_line(process))]
        assert any("raylet" in " ".join(_line(process)) for process in left)
    assert psutil.wait_procs(left, timeout=60)[1] == []


def here() -> list[psutil.Process]:
    """All that runs because of us."""
    found: list[psutil.Process] = psutil.Process().children(recursive=True)
    return found


def kill_an_engine() -> None:
    """Kill one that has something to do: it is in a turn, which its process says in its name."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in here():
            if _line(process)[:1] == ["ray::Worker.turn"]:
                return process.kill()
    raise AssertionError("no engine works")


def _line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def tasks(jobs: Path) -> tuple[list[Task], Defaults]:
    """What ``kvvideo batch`` with ``CLI`` makes of a job file."""
    looked = Video().reading(ENGINE) | {"decoder": "pyav"}
    defaults = Defaults(ENGINE, looked, ANSWER_TOKENS)
    return tasks_of(read_jobs(jobs), defaults), defaults


def run(
    jobs: Path,
    directory: Path,
    make: Callable[..., Executor],
    on_event: Callable[[Event], None] = lambda _: None,
    **options: Any,
) -> dict[str, Any]:
    """One run of the batch; returns its summary."""
    made, defaults = tasks(jobs)
    with Results(directory) as results:
        batch = Batch(made, results, defaults, on_event=on_event)
        pending = batch.pending()
        caches = [*dict.fromkeys(task.cache for task in pending)]
        batch.run(make(ENGINE, caches, ANSWER_TOKENS, kept=results.checkpoints, every=4.0, **options), pending)
        return batch.summary("complete")


def records(directory: Path) -> dict[tuple[str, float | None, str], dict[str, Any]]:
    """All that is in the files, less what differs from run to run; nothing is there twice."""
    found: dict[tuple[str, float | None, str], dict[str, Any]] = {}
    for name in ("results", "failed"):
        for line in (directory / f"{name}.jsonl").read_text().splitlines():
            record = json.loads(line)
            key = record["id"], record["t"], record["question"]
            assert key not in found
            found[key] = {name: value for name, value in record.items() if "seconds" not in name}
    return found


@pytest.fixture(scope="module")
def undisturbed(jobs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, dict[str, Any]]:
    """What comes of the jobs with the engine of this process."""
    directory = tmp_path_factory.mktemp("local")
    summary = run(jobs, directory, Local)
    assert (summary["answered"], summary["failed"], summary["left"]) == (3 * len(PARTS), 2, 0)
    return records(directory)


@pytest.mark.slow
def test_stopped_and_killed_it_comes_to_the_same(
    jobs: Path, tmp_path: Path, undisturbed: dict[Any, dict[str, Any]], ray: Any
):
    """One engine is stopped as by Ctrl-C; then the command goes on with two, and one is killed in the middle."""
    events: list[Event] = []

    def stopped() -> bool:
        return any(isinstance(event, Answered) for event in events)

    summary = run(jobs, tmp_path, Cluster, events.append, engines=1, stopped=stopped)
    assert 1 <= summary["answered"] <= 4
    assert any(isinstance(event, Ended) and event.stopped for event in events)
    assert list(tmp_path.glob(".kvvideo/all/*/*.safetensors"))

    records_file = tmp_path / "results.jsonl"
    before = records_file.read_bytes()
    words = command("batch", jobs, "-o", tmp_path, *CLI, "--executor", "ray", "--engines", "2", "--ray-address")
    address = ray.get_runtime_context().gcs_address
    with subprocess.Popen([*words, address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as batch:
        try:
            while batch.poll() is None and records_file.read_bytes() == before:
                time.sleep(0.01)
            kill_an_engine()
            stdout, stderr = batch.communicate()
        finally:
            batch.kill()
    assert batch.returncode == 1, stderr
    assert stdout.startswith(f"{3 * len(PARTS)} of {3 * len(PARTS) + 2} questions answered, 2 failed, 0 left")
    assert stderr.count("kvvideo: an engine on the Ray cluster was lost, another takes its place: ") == 1
    assert [line for line in stderr.splitlines() if not line.startswith(("kvvideo: ", "now: "))] == []
    assert records(tmp_path) == undisturbed
    assert not list(tmp_path.glob(".kvvideo/all/*/*.safetensors"))

    done = records_file.read_bytes()
    again = subprocess.run([*words, "127.0.0.1:1"], capture_output=True, text=True, check=False)
    assert again.returncode == 1, again.stderr
    assert records_file.read_bytes() == done
    failed = [*words, "127.0.0.1:1", "--only-failed"]
    refused = subprocess.run(failed, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("kvvideo: ray-address: no Ray cluster can be joined at")


class Ready(Worker):
    """Does nothing."""

    def load(self) -> Loaded | KvvideoError:
        return Loaded("model", 1, "here", os.getpid())


class Dying(Ready):
    """Is killed whenever it is to do something, as by the kernel when there is no memory left."""

    def turn(self, given: Sequence[Given], stop: bool) -> Turn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Flawed(Ready):
    """Has a mistake in its program."""

    def load(self) -> Loaded:
        raise ValueError("that was not foreseen")


class Full(Ready):
    """Has no memory for what it is to do."""

    def turn(self, given: Sequence[Given], stop: bool) -> Turn:
        return Turn([], OutOfMemoryError("no memory for it"))


class Other(Ready):
    """Each of them has another model. It comes to no end unless it is told to stop."""

    def load(self) -> Loaded:
        return Loaded(str(os.getpid()), 1, "here", os.getpid())

    def turn(self, given: Sequence[Given], stop: bool) -> Turn:
        self._given |= {id(one): one for one in given}
        tasks = {one.name: one.task for one in self._given.values()}
        if stop:
            return Turn([(name, Ended(task, None, [*task.wants], stopped=True)) for name, task in tasks.items()])
        time.sleep(0.05)
        now = Progress(position=0.0, end=None, rate=None, cache=NOTHING, max_tokens=None)
        return Turn([(name, Moved(task, now, 0.0)) for name, task in tasks.items()])


PROGRAM = """
import ray
from tests.batch import test_ray
from kvvideo.batch.ray import Cluster
from kvvideo.cli import main
ray.cloudpickle.register_pickle_by_value(test_ray)
Cluster.worker = test_ray.Other
main()
"""
"""``kvvideo``, with engines that come to no end."""


@pytest.mark.slow
def test_a_batch_whose_only_machine_dies_says_so(jobs: Path, tmp_path: Path):
    """It does not wait for an engine that can start nowhere, and leaves nothing behind."""
    command = [sys.executable, "-c", PROGRAM, "batch", str(jobs), "-o", str(tmp_path), *CLI]
    path = os.pathsep.join([str(ROOT), *sys.path])
    with subprocess.Popen(
        [*command, "--executor", "ray", "--engines", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as batch:
        try:
            started: list[psutil.Process] = []
            while batch.poll() is None and not any(_line(one)[:1] == ["ray::Other.turn"] for one in started):
                time.sleep(0.05)
                started = psutil.Process(batch.pid).children(recursive=True)
            (raylet,) = [one for one in started if _line(one) and _line(one)[0].endswith("/raylet")]
            raylet.kill()
            stdout, stderr = batch.communicate(timeout=200)
        finally:
            batch.kill()
    last = [line for line in stderr.splitlines() if line.startswith("kvvideo: ")][-1]
    assert last == "kvvideo: no machine of the Ray cluster is alive any more; what was answered is kept: run it again"
    assert batch.returncode == 5
    assert stdout.startswith("0 of 17 questions answered")
    assert "Traceback" not in stderr
    assert psutil.wait_procs(started, timeout=60)[1] == []


JOIN = """
import sys
from tests.batch import test_ray as t
from kvvideo.batch import ray as batch
from kvvideo.errors import EngineError
from ray import cloudpickle
from ray.cluster_utils import Cluster
cloudpickle.register_pickle_by_value(t)
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
machine = cluster.add_node(num_cpus=1)
batch.Cluster.worker, batch.ROOMLESS_SECONDS = t.Other, 2.0
events = batch.Cluster(t.ENGINE, [t.ENGINE.cache], address=cluster.address, say=print).events(
    batch.Queue(t.tasks(t.Path(sys.argv[1]))[0])
)
try:
    next(events)
    cluster.remove_node(machine)
    for event in events:
        pass
except EngineError as error:
    print(error)
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_cluster_that_loses_its_machines_is_waited_for_and_then_given_up(jobs: Path):
    """Its head is there still: another machine may join."""
    path = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", JOIN, str(jobs)],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert [line for line in done.stdout.splitlines() if "another takes its place" not in line] == [
        "no machine of the Ray cluster has room for an engine any more; another is waited for",
        "for 2 s no machine of the Ray cluster had room for an engine; what was answered is kept: "
        "run it again when one has",
    ], done.stderr[-3000:]


class Head:
    """Stands for Ray: a head that says which machines there are, or does not answer."""

    def __init__(self) -> None:
        self.nodes_there = [node(2)]
        self.answers = threading.Event()
        self.answers.set()

    def nodes(self) -> list[dict[str, Any]]:
        self.answers.wait()
        return self.nodes_there


def test_the_machines_of_a_cluster_are_looked_after(monkeypatch: pytest.MonkeyPatch):
    for name, seconds in (("LOOK", 0.01), ("SILENT", 1.0), ("DEAD", 0.3), ("ROOMLESS", 0.6)):
        monkeypatch.setattr(batch_ray, f"{name}_SECONDS", seconds)
    head, said = Head(), list[str]()

    def checked(until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not until():
            assert time.monotonic() < deadline
            watch.check()
            time.sleep(0.01)

    def refused(words: str) -> None:
        with pytest.raises(EngineError, match=words):
            checked(lambda: False)
        head.nodes_there = [node(2)]
        head.answers.set()
        deadline = time.monotonic() + 60
        while not (watch._room and watch._heard):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        watch.check()

    watch = batch_ray._Watch(head, 0, 2, said.append)
    head.nodes_there = [node(0), node(2, alive=False)]
    checked(lambda: len(said) == 1)
    head.nodes_there = [node(0), node(4)]
    checked(lambda: watch._room)
    head.nodes_there = [node(0), node(1)]
    refused("for 0.6 s no machine of the Ray cluster had room for an engine; .* run it again")
    assert len(said) == 2
    head.nodes_there = [node(2, alive=False)]
    refused("no machine of the Ray cluster is alive any more; .* run it again")
    assert len(said) == 2
    head.answers.clear()
    refused("has not answered for 1 s; .* run it again")
    watch.close()
    assert not watch._thread.is_alive()


def test_a_batch_that_was_suspended_waits_anew():
    """Nobody answers a process that is stopped."""
    watch = batch_ray._Watch(Head(), 0, 2, print)
    watch._checked -= 10_000
    watch.check()
    watch.close()


@pytest.mark.parametrize(
    ("worker", "kind", "message", "lines"),
    [
        (Dying, EngineError, f"{LOSSES} engines in a row were lost on the Ray cluster, and nothing was answered", 2),
        (Flawed, EngineError, "an engine on the Ray cluster failed: ValueError: that was not foreseen", 0),
        (Full, OutOfMemoryError, "no memory for it", 0),
        (Other, ConfigError, "the model on here is another than on other machines of the Ray cluster", 0),
    ],
)
def test_what_an_engine_fails_of_is_said(
    jobs: Path,
    ray: Any,
    monkeypatch: pytest.MonkeyPatch,
    worker: type[Worker],
    kind: type[KvvideoError],
    message: str,
    lines: int,
):
    """It is the error that it would be here, and comes to an end."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(Cluster, "worker", worker)
    said: list[str] = []
    queue = Queue(tasks(jobs)[0])
    with pytest.raises(KvvideoError, match=re.escape(message)) as caught:
        list(Cluster(ENGINE, [ENGINE.cache], engines=2, say=said.append).events(queue))
    assert type(caught.value) is kind
    assert len(said) == lines


def test_a_lost_engine_leaves_what_it_has_not_answered(jobs: Path):
    """Of a video that broke off before, all is known: it is not tried once more because of that."""
    whole, begun, done, broken = tasks(jobs)[0][:4]
    place = _Place(None, None, tasks={task.key: task for task in (whole, begun, done, broken)})
    failure = VideoError("it broke off")

    def answer(task: Task, *questions: Question, error: Exception | None = None) -> None:
        event = Answered(replace(task, wants={}), [_asked(question, error) for question in questions], None)
        assert place.take(event, task.key) == replace(event, task=task)

    last, *others = begun.wants
    answer(begun, last)
    for question in done.wants:
        answer(done, question)
    end, *early = broken.wants
    answer(broken, end, error=failure)
    queue = Queue([])
    assert [*place.put_back(queue)] == [Ended(done, None, []), Ended(broken, failure, early)]
    left = [task for cache in queue.caches() for task in iter(partial(queue.take, cache), None)]
    assert {task.key: task.wants for task in left} == {
        whole.key: whole.wants,
        begun.key: {question: begun.wants[question] for question in others},
    }
    assert not place.tasks


def _asked(question: Question, error: Exception | None) -> Asked:
    answer = Answer(question.text, "an answer", (), (), "stop", 0.0, 0.0)
    return Asked(answer, 0.0, NOTHING, (), question=question, error=error)


def test_a_video_must_be_the_same_on_all_machines(jobs: Path, tmp_path: Path):
    """Else its task fails there, and no other."""
    task = tasks(jobs)[0][0]
    path = tmp_path / "video.mp4"
    task = replace(task, source=replace(task.source, path=str(path)))
    worker = Worker(Local(ENGINE, [ENGINE.cache]), str(tmp_path))
    for content, message in ((None, "is no file that can be read"), (b"other", "is another file")):
        if content is not None:
            path.write_bytes(content)
        ((name, event),) = worker.turn([Given("its name", task, None)], False).events
        assert name == "its name"
        assert isinstance(event, Ended)
        assert (event.task, event.left, event.stopped) == (task, [*task.wants], False)
        assert str(event.error) == (
            f"{str(path)!r} {message}, on {socket.gethostname()}; "
            "all machines of a Ray cluster must see the same videos"
        )


def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cpus, "memory": 1e9} | ({"GPU": gpus} if gpus else {})}


@pytest.mark.parametrize(
    ("nodes", "engines", "cpus", "shared"),
    [
        ([node(2)], None, None, (0, 2, 1)),
        ([node(2)], 2, None, (0, 1, 2)),
        ([node(16), node(7), node(64, alive=False)], None, None, (0, 4, 5)),
        ([node(16), node(7)], None, 8, (0, 8, 2)),
        ([node(16), node(7)], 6, None, (0, 3, 6)),
        ([node(32, 4), node(2, 4), node(64)], None, None, (1, 1, 6)),
        ([node(32, 4), node(2, 4), node(64)], 3, None, (1, 1, 3)),
        ([node(32, 4), node(2, 4), node(64)], None, 16, (1, 16, 2)),
    ],
)
def test_a_cluster_is_shared_out(nodes: list[Any], engines: int | None, cpus: int | None, shared: tuple[int, ...]):
    assert share_out(nodes, engines, cpus) == shared


@pytest.mark.parametrize(
    ("nodes", "engines", "cpus", "message"),
    [
        ([node(2)], 3, None, "there is room for 2 with 1 CPU each on the Ray cluster, not for 3"),
        ([node(2), node(2)], None, 3, "there is room for 0 with 3 CPUs each on the Ray cluster, not for 1"),
        ([node(8, 2)], 3, None, "there is room for 2 with a GPU and 1 CPU each on the Ray cluster, not for 3"),
        ([], None, None, "there is room for 0"),
    ],
)
def test_more_engines_than_there_is_room_for(nodes: list[Any], engines: int | None, cpus: int | None, message: str):
    with pytest.raises(ConfigError, match=message):
        share_out(nodes, engines, cpus)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--executor", "ray"], "executor: Ray is not installed; get it with: pip install 'kvvideo[ray]'"),
        (["--engines", "2"], "engines: only a Ray cluster has that; add --executor ray"),
        (["--ray-address", "auto"], "ray-address: only a Ray cluster has that; add --executor ray"),
    ],
)
def test_without_ray(jobs: Path, tmp_path: Path, options: list[str], message: str):
    program = "import sys; sys.modules['ray'] = None; from kvvideo.cli import main; main()"
    command = [sys.executable, "-c", program, "batch", str(jobs), "-o", str(tmp_path), *CLI, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"kvvideo: {message}\n")
    assert not list(tmp_path.iterdir())
