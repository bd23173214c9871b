"""One video answered under one or several strategies: all records of the run, with the model loaded once."""

import os
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvvideo._version import __version__
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, KvvideoError, VideoError
from kvvideo.outputs.samples import Samples
from kvvideo.runs.agenda import Agenda, Question, Task
from kvvideo.session import EngineConfig, open_engine
from kvvideo.times import format_time

if TYPE_CHECKING:
    from kvvideo.runs.journal import Batch, Record, Run
    from kvvideo.session import Engine
    from kvvideo.session.memory import Memory
    from kvvideo.types import Chunk
    from kvvideo.video import Source, VideoReader


@dataclass(frozen=True)
class Asking:
    """What is asked: the same of every strategy.

    Attributes:
        questions: at their moments, or at the end.
        every: if given, the questions without a moment are asked every so many seconds.
        task: what is asked besides, all along.
        max_answer_tokens: longest answer.
    """

    questions: Sequence[Question]
    every: float | None = None
    task: Task | None = None
    max_answer_tokens: int = 128

    def agenda(self, start: float | None, end: float | None) -> Agenda:
        """The questions about a video that is read from ``start`` to ``end``, for one strategy to take out.

        Raises:
            ConfigError: if one can never be asked.
        """
        return Agenda(self.questions, self.every, start or 0.0, end, self.task)

    def check(self, source: "Source", length: float | None) -> None:
        """See that there will be something to see, and a moment for each question, once the video's length is known.

        Args:
            length: of the video, in seconds; None if it is not known, or not yet.

        Raises:
            ConfigError: naming the first moment that lies after the end.
        """
        if length is None or (source.live is not None and source.live.follow):
            return
        if (source.start or 0.0) >= length:
            raise ConfigError(
                f"there is nothing to see from {format_time(source.start or 0.0)} on in {source.path!r}, which lasts "
                f"{format_time(length)}; start earlier"
            )
        for question in self.questions:
            # A frame is shown for a while, and how long the last one is not every file says.
            if question.at is not None and question.at > length + 1 / source.fps:
                raise ConfigError(
                    f"{f'@{format_time(question.at)} {question.text}'!r} is after the end: {source.path!r} lasts "
                    f"{format_time(length)}"
                )


@dataclass
class Hooks:
    """What is called while a run goes on.

    Attributes:
        stopped: asked after every chunk; once true, nothing more is ingested or asked.
        loading: told the model that is loaded now.
        chunk: told of every chunk: where the stream stands and where it ends, if that is known, both in seconds; frames
            a second so far, if that says anything; and the cache, as in a record.
        watching: given the chunks that are read, returns the same.
    """

    stopped: Callable[[], bool] = lambda: False
    loading: Callable[[str], None] = lambda _: None
    chunk: "Callable[[float, float | None, float | None, Record], None]" = lambda *_: None
    watching: "Callable[[Iterable[Chunk]], Iterable[Chunk]]" = lambda chunks: chunks


def kept(
    source: "Source",
    config: EngineConfig,
    caches: Sequence[CacheConfig],
    asking: Asking,
    every: float,
    resume: bool,
    say: Callable[[str], None],
) -> "Run":
    """What a run keeps to resume from; nothing if the video cannot be read again, or nothing shall be kept.

    Args:
        every: seconds of video between checkpoints; 0 to keep nothing.
        resume: whether to go on from what an interrupted run left.
        say: takes lines for the person who waits.

    Raises:
        ConfigError: if there is nothing to resume from.
    """
    from kvvideo.runs import journal

    fingerprint = source.fingerprint() if every else None
    if fingerprint is None:
        if resume:
            raise ConfigError(f"resume: {source.path!r} is not a file, so it cannot be read again")
        return journal.Run(None, say)
    looked = {name: value for name, value in source.as_dict().items() if name != "path"}
    task = asking.task
    key = journal.key(
        version=__version__,
        video=[fingerprint, os.path.basename(source.path)],
        reading=looked,
        model=config.model,
        dtype=config.dtype,
        seed=config.seed,
        caches=[cache.as_dict() for cache in caches],
        every=asking.every,
        questions=[[q.text, q.at] for q in asking.questions],
        max_answer_tokens=asking.max_answer_tokens,
        task=None if task is None else [task.name, task.every],
    )
    try:
        directory = journal.state_directory() / "runs" / key
    except ConfigError as error:
        say(f"nothing is kept to resume from: {error}")
        return journal.Run(None, say)
    return journal.Run(directory, say, resume=resume, every=every)


def files_of(run: "Run") -> set[str]:
    """Absolute names of the files that the interrupted part of ``run`` wrote its answers to."""
    return {name for batch in run.batches for note in batch if note["type"] == "files" for name in note["files"]}


@dataclass
class Answering:
    """A run: ``source`` is streamed once for each of ``caches``, and what is asked is answered.

    Attributes:
        source: the video.
        config: of the engine.
        caches: of the strategies, no two with the same name.
        asking: what to ask.
        kept: what is kept to resume from.
        hooks: what is called meanwhile.
        files: absolute names of the files that records are written to; a run that resumes this one may replace them.
        engine: what was loaded; it may be used further, and should be closed.
        agendas: for each strategy what was not asked yet.
        failures: what went wrong, in order.
        samples: for each strategy what its cache held over time.
        end: where the video ended that was read, in seconds.
        complete: whether all that can be asked was; if the video could not be read to its end, nothing changes that.
    """

    source: "Source"
    config: EngineConfig
    caches: Sequence[CacheConfig]
    asking: Asking
    kept: "Run"
    hooks: Hooks = field(default_factory=Hooks)
    files: Collection[str] = ()
    engine: "Engine | None" = field(default=None, init=False)
    failures: list[KvvideoError] = field(default_factory=list, init=False)
    complete: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.samples = {cache.strategy: Samples() for cache in self.caches}
        self.agendas = [self._agenda() for _ in self.caches]
        self._noted = False
        self.end = 0.0

    def records(self) -> "Generator[Record, None, None]":
        """The answers under each strategy as they are given, each followed by a last record; see ``docs/records.md``.

        Records of an interrupted run that is resumed come first, word for word. What goes wrong under one strategy
        is among ``failures``, and does not keep the next from running.

        Raises:
            KvvideoError: if the video cannot be opened, or the model not be loaded.
        """
        for cache, agenda in zip(self.caches, self.agendas, strict=True):
            for record in self._records(cache, agenda):
                self._note_files()
                yield record
        self.complete = not self.hooks.stopped() and all(isinstance(error, VideoError) for error in self.failures)

    def _agenda(self) -> Agenda:
        return self.asking.agenda(self.source.start, self.source.end)

    def _records(self, cache: CacheConfig, agenda: Agenda) -> "Iterator[Record]":
        began = time.perf_counter()
        earlier, finished = self.kept.answers(cache.strategy)
        if finished is not None:
            agenda.at_end(finished["end"])
            self.end = max(self.end, finished["end"])
            self._sample_again(cache.strategy, finished["end"])
            yield from (record for batch in earlier for record in batch)
            yield finished
            return
        if self.engine is not None and self.hooks.stopped():
            self.engine.use(cache)
            yield from self._answer(self.engine, None, agenda, began, None, earlier)
            return
        memory = self.kept.memory(cache, self._agenda(), sum(map(len, earlier)))
        # The reader comes first: a bad video is found before the model is loaded, and meanwhile it decodes.
        with self.source.open(skip_chunks=0 if memory is None else memory.chunks) as reader:
            if memory is None:
                self.asking.check(self.source, reader.info.duration)
            if self.engine is None:
                self.hooks.loading(self.config.model)
                self.engine = open_engine(self.config, self.caches)
                self.kept.check_model(self.engine)
            self.engine.use(cache)
            self.kept.enter(memory)
            if memory is not None:
                self._sample_again(cache.strategy, memory.end)
            yield from self._answer(self.engine, reader, agenda, began, memory, earlier)

    def _answer(
        self,
        engine: "Engine",
        reader: "VideoReader | None",
        agenda: Agenda,
        began: float,
        memory: "Memory | None",
        earlier: "Sequence[Batch]",
    ) -> "Iterator[Record]":
        """Answer under the strategy that ``engine`` uses, up to the final record.

        Args:
            reader: of the chunks after ``memory``; None if nothing more is read.
            memory: where to go on; None for the beginning.
            earlier: answers given before an interruption.
        """
        from kvvideo.runs import records
        from kvvideo.runs.streaming import batches
        from kvvideo.session import VideoSession, open_session

        cache, start = engine.config.cache, self.source.start or 0.0
        end = self.source.end if reader is None else self.source.ends(reader.info.duration)
        schedule, samples = cache.schedule(engine.block_size), self.samples[cache.strategy]
        common = {"video": str(self.source.path), "model": engine.config.model, "strategy": cache.strategy}
        answers, failure = sum(map(len, earlier)), None
        yield from (record for batch in earlier for record in batch)
        session = open_session(engine) if memory is None else VideoSession.load(engine, memory)
        streaming, known = time.perf_counter(), session.frames
        fresh: list[Any] = []

        def keep_samples() -> None:
            if fresh:
                self.kept.append([{"type": "samples", "strategy": cache.strategy, "samples": [*fresh]}])
                fresh.clear()

        def on_chunk() -> None:
            held = records.cache(session.stats(), schedule)
            rate = (session.frames - known) / (time.perf_counter() - streaming)
            self.hooks.chunk(session.end, end, rate, held)
            samples.add(session.end, held)
            # The baselines keep no cache that could be saved; they begin anew, with what the journal has.
            if isinstance(session, VideoSession):
                fresh.append([session.end, held])
                if self.hooks.stopped() or self.kept.due(session.end, start):
                    keep_samples()
                    self.kept.checkpoint(session)

        try:
            for asked in batches(
                session,
                self.hooks.watching(reader or ()),
                agenda,
                max_tokens=self.asking.max_answer_tokens,
                seed=engine.config.seed,
                answered=answers,
                stopped=self.hooks.stopped,
                on_chunk=on_chunk,
            ):
                batch = [records.answer(one, schedule=schedule, **common) for one in asked]
                self.kept.append(batch)
                answers += len(batch)
                yield from batch
        except KvvideoError as error:
            failure = error
            self.failures.append(error)
        except GeneratorExit:
            session.close()
            raise
        stats = session.stats() if session.alive else None
        session.close()
        self.end = max(self.end, session.end)
        status = "interrupted" if self.hooks.stopped() else "error" if failure else "complete"
        done = records.done(
            status,
            str(failure) if failure else None,
            agenda.left(),
            stats,
            schedule=schedule,
            answers=answers,
            chunks=session.chunks,
            frames=session.frames,
            start=start,
            end=max(session.end, start),
            waited=0.0 if reader is None else reader.waited,
            seconds=time.perf_counter() - began,
            **common,
        )
        if status == "complete":
            keep_samples()
            self.kept.append([done])
        yield done

    def _note_files(self) -> None:
        """Before the first of the files is written, have it on the disk that they are ours."""
        if self.files and not self._noted:
            self.kept.append([{"type": "files", "files": [*self.files]}])
        self._noted = True

    def _sample_again(self, strategy: str, end: float) -> None:
        """What the cache held up to ``end`` before the interruption."""
        known = {
            at: held
            for batch in self.kept.batches
            for note in batch
            if note["type"] == "samples" and note["strategy"] == strategy
            for at, held in note["samples"]
            if at <= end + 1e-6
        }
        for at, held in sorted(known.items()):
            self.samples[strategy].add(at, held)
