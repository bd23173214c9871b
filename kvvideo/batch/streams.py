"""Several videos at once through one engine: while one is decoded or answers are written, the others go on.

Every video is a session. The engine's steps serve all of them together, and nobody waits for a video that is not
decoded yet as long as another is.
"""

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from kvvideo.batch.tasks import Task
from kvvideo.compression.schedule import Schedule
from kvvideo.errors import EngineError, KvvideoError, VideoError
from kvvideo.runs.agenda import Question
from kvvideo.runs.recall import OFF, Looking
from kvvideo.runs.streaming import Asked, Meter, analyzing
from kvvideo.session import Engine, EngineConfig, Session, VideoSession, open_session
from kvvideo.session.memory import Memory
from kvvideo.session.prediction import check_room
from kvvideo.storage.checkpoints import Checkpoints
from kvvideo.types import Chunk, Progress
from kvvideo.video import VideoReader

IDLE_SECONDS = 0.002
"""Seconds between two looks while every video is being decoded."""


@dataclass(frozen=True)
class Answered:
    """Questions of ``task`` were answered, those of one moment, from a cache bounded by ``schedule``."""

    task: Task
    asked: list[Asked]
    schedule: Schedule | None


@dataclass(frozen=True)
class Moved:
    """The video of ``task`` was ingested as far as ``progress`` says, in this run from ``start`` seconds on."""

    task: Task
    progress: Progress
    start: float


@dataclass(frozen=True)
class Ended:
    """``task`` came to an end.

    Attributes:
        task: the one that ended.
        error: reason that it ended early, or could not begin; None if it did not.
        left: questions that were not asked.
        stopped: it was told to stop; ``left`` can still be asked then.
        start: of the part of the video that was ingested, in seconds, after what an earlier run had.
        end: of that part, in seconds.
        frames: that were ingested.
    """

    task: Task
    error: KvvideoError | None
    left: list[Question]
    stopped: bool = False
    start: float = 0.0
    end: float = 0.0
    frames: int = 0


Event = Answered | Moved | Ended


class Streams:
    """Runs tasks side by side.

    Args:
        engine: all tasks are of its cache settings.
        take: the next task; None if there is none, for now or for good.
        max_tokens: longest answer.
        looking: how questions look again.
        kept: where the checkpoints of a task are, to go on from after a crash; None to keep none.
        every: seconds of video between checkpoints.
        stopped: once true, every video stops after the chunk at hand, with a checkpoint.
    """

    def __init__(
        self,
        engine: Engine,
        take: Callable[[], Task | None],
        *,
        max_tokens: int = 128,
        looking: Looking = OFF,
        kept: Callable[[Task], Path | None] = lambda _: None,
        every: float = 60.0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.engine, self.stopped = engine, stopped
        self.looking = looking
        self.max_tokens, self.kept, self.every = max_tokens, kept, every
        self.sessions = 0
        """Sessions that are open."""
        self._take = take
        self._streams: list[_Stream] = []

    def run(self) -> Iterator[Event]:
        """Yield events as they happen, until there are no more tasks.

        Raises:
            EngineError: vLLM failed, and with it all videos at hand.
            ConfigError: a checkpoint cannot be written.
        """
        with ThreadPoolExecutor(2, thread_name_prefix="kvvideo-batch") as openers:
            try:
                while self._begin(openers):
                    for stream in [*self._streams]:
                        yield from stream.advance()
                        if stream.ended:
                            self._streams.remove(stream)
                            stream.close()
                    if any(not stream.waits for stream in self._streams):
                        self.engine.step()
                        self.engine.check_progress()
                    elif self._streams:
                        time.sleep(IDLE_SECONDS)
            finally:
                # Only where it was cut short; an engine that has failed may fail again when it is to let go.
                for stream in self._streams:
                    with suppress(Exception):
                        stream.close()

    def _begin(self, openers: ThreadPoolExecutor) -> bool:
        """Begin tasks while there is room: one more than can be ingested, whose video opens meanwhile."""
        while len(self._streams) <= self.engine.capacity and not self.stopped():
            task = self._take()
            if task is None:
                break
            self._streams.append(_Stream(self, task, openers))
        return bool(self._streams)


class _Stream:
    """A task that was begun.

    Attributes:
        waits: it waits for something else than a step of the engine.
        ended: nothing more comes of it.
    """

    def __init__(self, host: Streams, task: Task, openers: ThreadPoolExecutor) -> None:
        self.waits = self.ended = False
        self._host, self._task = host, task
        self._reader: Future[tuple[VideoReader, Memory | None]] = openers.submit(
            _look, host.engine.config, task, host.kept(task)
        )
        self._work = self._working()

    def advance(self) -> Iterator[Event]:
        """Do what can be done before the next step, and yield its events."""
        self.waits = False
        for event in self._work:
            if event is None:
                return
            yield event
        self.ended = True

    def close(self) -> None:
        """End it, wherever it is."""
        self._work.close()
        with suppress(KvvideoError):
            self._reader.result()[0].close()

    def _working(self) -> Generator[Event | None, None, None]:
        """Yield all events of the task, and None where it waits."""
        host, task = self._host, self._task
        while not self._reader.done():
            self.waits = True
            yield None
        try:
            reader, memory = self._reader.result()
        except KvvideoError as error:
            yield Ended(task, error, [*task.wants])
            return
        while host.sessions >= host.engine.capacity and not host.stopped():
            self.waits = True
            yield None
        if host.stopped():
            yield Ended(task, None, [*task.wants], stopped=True)
            return
        host.sessions += 1
        try:
            with open_session(host.engine) if memory is None else VideoSession.load(host.engine, memory) as session:
                yield from self._streaming(session, reader)
        finally:
            host.sessions -= 1

    def _streaming(self, session: Session, reader: VideoReader) -> Generator[Event | None, None, None]:
        host, task, agenda = self._host, self._task, self._task.agenda()
        start, known, error = session.end or task.source.start or 0.0, session.frames, None
        last = start
        directory = host.kept(task)
        moved: list[Event] = []
        schedule = task.cache.schedule(host.engine.block_size)
        meter = Meter(session, schedule, task.source.ends(reader.info.duration))
        recall = host.looking.of_file(task.source)

        def on_chunk() -> None:
            nonlocal last
            moved.append(Moved(task, meter.progress(), start))
            due = host.stopped() or session.end - last >= host.every - 1e-6
            if store is not None and due and isinstance(session, VideoSession):
                store.add(session.save())
                last = session.end

        with nullcontext() if directory is None else Checkpoints(directory, max_bytes=0) as store:
            try:
                for asked in analyzing(
                    session,
                    self._chunks(reader),
                    agenda,
                    max_tokens=host.max_tokens,
                    seed=host.engine.config.seed,
                    recall=recall,
                    stopped=host.stopped,
                    on_chunk=on_chunk,
                ):
                    yield from moved
                    moved.clear()
                    yield None if asked is None else Answered(task, asked, schedule)
            except (VideoError, EngineError) as failure:
                error = failure
        yield from moved
        stopped = host.stopped() and error is None
        yield Ended(task, error, agenda.left(), stopped, start, max(session.end, start), session.frames - known)

    def _chunks(self, reader: VideoReader) -> Iterator[Chunk | None]:
        """Yield the chunks of ``reader``; None where the next is not decoded yet."""
        while True:
            if not reader.ready:
                self.waits = True
                yield None
            elif (chunk := next(reader, None)) is None:
                return
            else:
                yield chunk


def _look(config: EngineConfig, task: Task, directory: Path | None) -> tuple[VideoReader, Memory | None]:
    """Open the video, after what an earlier run of the task has left in ``directory``, if the engine has room for it.

    Raises:
        KvvideoError: if it cannot be read, or is more than an engine that forgets nothing holds.
    """
    memory = None
    if directory is not None and directory.is_dir():
        with Checkpoints(directory, max_bytes=0) as store:
            memory = store.latest()
    # What is still asked before it needs the beginning.
    if memory is not None and task.agenda().before(memory.end):
        memory = None
    reader = task.source.open(skip_chunks=0 if memory is None else memory.chunks)
    try:
        check_room(config, task.source, reader.info, [question.prompt for question in task.wants])
    except BaseException:
        reader.close()
        raise
    return reader, memory
