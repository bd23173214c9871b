"""Run a batch from its jobs to its summary: only what is not done yet, and every record is on the disk at once."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from kvvideo.batch.jobs import is_right
from kvvideo.batch.results import Record, Results, differs
from kvvideo.batch.streams import Answered, Ended, Event, Streams
from kvvideo.batch.tasks import Defaults, Task, Want
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import KvvideoError, VideoError
from kvvideo.runs import records
from kvvideo.runs.recall import OFF, Looking
from kvvideo.runs.streaming import Asked
from kvvideo.session import Engine, EngineConfig, open_engine
from kvvideo.times import format_time

QUESTION_WORDS = 256
"""Tokens that a question is taken to have at most, beside the frames shown with it and its answer."""


class Queue:
    """Waiting tasks, those of one cache together."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks: dict[CacheConfig, deque[Task]] = {}
        for task in tasks:
            self.put(task)

    def put(self, task: Task) -> None:
        """Add a task behind those that wait."""
        self._tasks.setdefault(task.cache, deque()).append(task)

    def caches(self) -> Iterator[CacheConfig]:
        """Yield cache settings of which there are tasks, until there are none."""
        while cache := next((cache for cache, tasks in self._tasks.items() if tasks), None):
            yield cache

    def take(self, cache: CacheConfig) -> Task | None:
        """Return the next task of ``cache``; None if none waits."""
        tasks = self._tasks.get(cache)
        return tasks.popleft() if tasks else None

    def __len__(self) -> int:
        return sum(map(len, self._tasks.values()))


class Executor(Protocol):
    """Does tasks, somewhere."""

    def events(self, queue: Queue) -> Iterator[Event]:
        """Do the tasks in ``queue``, and those put there meanwhile; yield events as they happen.

        Raises:
            KvvideoError: if nothing can go on.
        """


@dataclass(frozen=True)
class Local:
    """Does tasks with one engine in this process.

    Args:
        engine: how it is run; ``sessions`` are streamed at once.
        max_answer_tokens: longest answer.
        loaded: shown the engine as soon as it is there.
        kept: where checkpoints are; None for none.
        every: seconds of video between checkpoints.
        stopped: once true, every video stops after the chunk at hand.
        caches: settings that tasks may come with.
        looking: how questions look again.
    """

    engine: EngineConfig
    caches: Sequence[CacheConfig]
    max_answer_tokens: int = 128
    loaded: Callable[[Engine], None] = lambda _: None
    kept: Callable[[Task], Path | None] = lambda _: None
    every: float = 60.0
    stopped: Callable[[], bool] = lambda: False
    looking: Looking = OFF

    def events(self, queue: Queue) -> Iterator[Event]:
        """Load the engine and do the tasks in ``queue``; see ``Executor``."""
        engine = open_engine(self.engine, self.caches)
        try:
            self.loaded(engine)
            yield from self.work(engine, queue)
        finally:
            engine.close()

    def work(self, engine: Engine, queue: Queue) -> Iterator[Event]:
        """Do the tasks in ``queue`` with ``engine``, those of one cache after those of another."""
        for cache in queue.caches():
            if self.stopped():
                return
            engine.use(cache)
            yield from Streams(
                engine,
                partial(queue.take, cache),
                max_tokens=self.max_answer_tokens,
                looking=self.looking,
                kept=self.kept,
                every=self.every,
                stopped=self.stopped,
            ).run()


def question_tokens(chunk_tokens: int, max_answer_tokens: int) -> int:
    """Return the tokens a question needs in the pool: a chunk may be shown with it, its answer as long as allowed."""
    return chunk_tokens + QUESTION_WORDS + max_answer_tokens


@dataclass
class Counts:
    """Counts of what is done of a batch, and of what was to be done.

    Attributes:
        questions: in all, those done in earlier runs included.
        tasks: ingests to be done in this run.
        ended: ingests of them that came to an end.
        complete: those of them that came to the end of their video.
        seconds: of video that were ingested in this run.
        frames: ingested in this run.
    """

    questions: int = 0
    tasks: int = 0
    ended: int = 0
    complete: int = 0
    seconds: float = 0.0
    frames: int = 0


@dataclass
class Batch:
    """One run of a batch.

    Args:
        tasks: of all its jobs.
        results: where records go.
        defaults: of the jobs.
        retries: how often a video that fails is tried again.
        fail_fast: stop at the first failure.
        only_failed: do again what failed, and nothing else.
        on_event: shown what happens, after it was written down.
        say: takes lines for the person who waits.

    Raises:
        ConfigError: if ``results`` has answers that were made otherwise.
    """

    tasks: Sequence[Task]
    results: Results
    defaults: Defaults
    retries: int = 0
    fail_fast: bool = False
    only_failed: bool = False
    on_event: Callable[[Event], None] = lambda _: None
    say: Callable[[str], None] = lambda _: None
    progress: Counts = field(default_factory=Counts)
    failing: bool = False
    """Whether something failed now and nothing more is begun because of that."""

    def __post_init__(self) -> None:
        self._broken: dict[str, list[tuple[Want, Record]]] = {}
        self._began = time.perf_counter()
        for task in self.tasks:
            self.results.check(task)
        self.progress.questions = len(self._wants())

    def pending(self) -> list[Task]:
        """Return the tasks that are to be done. Videos that are not there are written down as failed."""
        found = []
        for task in self.tasks:
            wants = [want for some in task.wants.values() for want in some if self._is_due(want, task)]
            if wants:
                self.results.retry(wants)
                found.append(task.only(wants))
        there = [task for task in found if task.fingerprint is not None]
        self.progress.tasks = len(found)
        for task in found:
            if task.fingerprint is None:
                error = VideoError(f"{task.source.path!r} is no file that can be read")
                self._end(Ended(task, error, [*task.wants]), [])
        return there

    def run(self, executor: Executor, tasks: Sequence[Task]) -> None:
        """Do ``tasks``.

        Raises:
            KvvideoError: if nothing can go on; what was done is on the disk.
        """
        queue = Queue(tasks)
        for event in executor.events(queue):
            again = self._take(event)
            if again is not None:
                queue.put(again)

    def summary(self, status: str, error: str | None = None) -> Record:
        """Return the results of this run and those before it, as ``summary.json`` has them."""
        wants = self._wants()
        done = [(want, record) for want in wants if (record := self.results.of(want)) is not None]
        answered = [(want, record) for want, record in done if record["type"] == "answer"]
        strategies = dict.fromkeys(task.cache.strategy for task in self.tasks)
        took = time.perf_counter() - self._began
        return {
            "type": "summary",
            "schema": records.SCHEMA,
            "status": status,
            "error": error,
            "model": self.defaults.engine.model,
            "jobs": len({want.job.id for want in wants}),
            "videos": len({task.source.path for task in self.tasks}),
            "questions": len(wants),
            "answered": len(answered),
            "failed": len(done) - len(answered),
            "left": len(wants) - len(done),
            **_score([record for _, record in answered]),
            "strategies": {
                name: _score([record for _, record in answered if record["strategy"] == name]) for name in strategies
            },
            "now": {
                "ingests": self.progress.ended,
                "complete": self.progress.complete,
                "video_seconds": round(self.progress.seconds, 3),
                "frames": self.progress.frames,
                "seconds": round(took, 3),
            },
        }

    def _wants(self) -> list[Want]:
        return [want for task in self.tasks for wants in task.wants.values() for want in wants]

    def _is_due(self, want: Want, task: Task) -> bool:
        record = self.results.of(want)
        if record is None:
            return not self.only_failed
        # What failed of a file that has been mended since says nothing any more.
        return record["type"] == "failed" and (self.only_failed or differs(record, want, task))

    def _take(self, event: Event) -> Task | None:
        """Write down an event; return the task to try again, if there is one."""
        again = None
        if isinstance(event, Answered):
            self._answered(event)
        elif isinstance(event, Ended):
            again = self._ended(event)
        self.on_event(event)
        return again

    def _answered(self, event: Answered) -> None:
        task = event.task
        made = [(want, self._record(asked, want, event)) for asked in event.asked for want in _of(task, asked)]
        broken = event.asked[0].error is not None
        if broken:
            # Whether they count is known when it is known that nobody tries again.
            self._broken.setdefault(task.key, []).extend(made)
        else:
            self.results.answer([record for _, record in made])

    def _record(self, asked: Asked, want: Want, event: Answered) -> Record:
        task = event.task
        record = _common(want, task) | records.answer(
            asked,
            video=task.source.path,
            model=self.defaults.engine.model,
            strategy=task.cache.strategy,
            schedule=event.schedule,
        )
        expected = want.asking.expected
        if expected is not None:
            record |= {"expected": expected, "right": is_right(record["answer"], expected)}
        return record

    def _ended(self, event: Ended) -> Task | None:
        task, error = event.task, event.error
        self.progress.seconds += event.end - event.start
        self.progress.frames += event.frames
        broken = self._broken.pop(task.key, [])
        if event.stopped:
            return None
        undone = [*_left(event), *(want for want, _ in broken)]
        if error is not None and undone and task.attempt < self.retries:
            self.say(f"{error}; trying again")
            return replace(task.only(undone), attempt=task.attempt + 1)
        self._end(event, broken)
        return None

    def _end(self, event: Ended, broken: list[tuple[Want, Record]]) -> None:
        """End a task: questions without an answer failed, and those of ``broken``, whose answers do not count."""
        task, left = event.task, _left(event)
        self.progress.ended += 1
        self.progress.complete += event.error is None
        failures = [(want, _failure(want, task, self.defaults, _why(want, event), {})) for want in left]
        failures += [(want, _failure(want, task, self.defaults, _why(want, event), said)) for want, said in broken]
        if failures:
            self.results.fail([record for _, record in failures])
            for line in dict.fromkeys(f"{want.job.where}: {record['error']}" for want, record in failures):
                self.say(line)
            self.failing = self.fail_fast
        elif event.error is not None:
            self.say(f"{task.jobs[0].where}: all was answered, but {event.error}")
        self.results.drop_checkpoints(task)


def _left(event: Ended) -> list[Want]:
    return [want for question in event.left for want in event.task.wants[question]]


def _of(task: Task, asked: Asked) -> list[Want]:
    assert asked.question is not None
    return task.wants[asked.question]


def _why(want: Want, event: Ended) -> KvvideoError:
    """Return the reason that there is no answer."""
    if event.error is not None:
        return event.error
    at = want.asking.question.at
    assert at is not None
    return VideoError(f"{event.task.source.path!r} ends at {format_time(event.end)}, before {format_time(at)}")


def _failure(want: Want, task: Task, defaults: Defaults, error: KvvideoError, record: Record) -> Record:
    """Return the record of a failure; ``record`` is of an answer given before the video broke off, or empty."""
    asking = want.asking
    said: Record = {
        "schema": records.SCHEMA,
        "video": task.source.path,
        "question": asking.question.text,
        "model": defaults.engine.model,
        "strategy": task.cache.strategy,
    }
    expected = {} if asking.expected is None else {"expected": asking.expected}
    return {
        **_common(want, task),
        **said,
        **expected,
        **record,
        "type": "failed",
        "error": str(error),
        "exit_code": error.exit_code,
        "attempts": task.attempt + 1,
    }


def _common(want: Want, task: Task) -> Record:
    meta: dict[str, Any] = {} if want.job.meta is None else {"meta": want.job.meta}
    return {
        "id": want.job.id,
        "index": want.index,
        "t": want.asking.question.at,
        **meta,
        "settings": task.settings,
        "fingerprint": task.fingerprint,
        **records.system(want.asking.question.system),
    }


def _score(answers: Sequence[Record]) -> Record:
    scored = [record["right"] for record in answers if "right" in record]
    return {"scored": len(scored), "right": sum(scored), "accuracy": sum(scored) / len(scored) if scored else None}
