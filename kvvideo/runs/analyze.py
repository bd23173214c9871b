"""One video answered under one or several strategies: all records of the run, with the model loaded once."""

import os
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kvvideo._version import __version__
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, FullError, KvvideoError, VideoError
from kvvideo.outputs.samples import Samples
from kvvideo.runs.agenda import Agenda, Question, Task
from kvvideo.runs.recall import Looking
from kvvideo.session import EngineConfig, open_engine
from kvvideo.times import format_time

if TYPE_CHECKING:
    from kvvideo.runs.journal import Record, Run
    from kvvideo.session import Engine, Recall
    from kvvideo.types import Chunk, Progress
    from kvvideo.video import Source, VideoInfo


@dataclass(frozen=True)
class Asking:
    """The questions of a run, the same for every strategy.

    Attributes:
        questions: at their moments, or at the end.
        every: if given, the questions without a moment are asked every so many seconds.
        task: what is asked besides, all along.
        max_answer_tokens: longest answer.
        only_changes: give an answer to what is asked again only if it is another than the last one.
    """

    questions: Sequence[Question]
    every: float | None = None
    task: Task | None = None
    max_answer_tokens: int = 128
    only_changes: bool = False

    def agenda(self, start: float | None, end: float | None) -> Agenda:
        """Return the agenda of one strategy for a video that is read from ``start`` to ``end`` seconds.

        Raises:
            ConfigError: if one can never be asked.
        """
        return Agenda(self.questions, self.every, start or 0.0, end, self.task)

    def count(self, start: float, end: float) -> int:
        """Return how many answers a video has that is read from ``start`` to ``end`` seconds."""
        # A question may be asked just after what is read.
        return len(self.agenda(start, None).at_end(end)) if self.questions or self.task else 0

    def check(self, source: "Source", info: "VideoInfo", *configs: EngineConfig) -> None:
        """Check what can be known before a model is loaded, if the length of the video is.

        Args:
            source: the video, which must have frames to show, and a moment for each question.
            info: of the video.
            configs: of the engine, under each strategy; one that forgets nothing must have room for all.

        Raises:
            ConfigError: naming the first moment that lies after the end, or how far the room goes.
        """
        from kvvideo.session.prediction import check_room

        length = info.duration
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
        for config in configs:
            asked = [*self.questions, *([] if self.task is None else [self.task.question(length)])]
            check_room(config, source, info, [question.prompt for question in asked])


@dataclass
class Hooks:
    """Callbacks of a run.

    Attributes:
        stopped: asked after every chunk; once true, nothing more is ingested or asked.
        loading: told the model that is loaded now.
        loaded: called once it is.
        chunk: told of every chunk how far the stream is now.
        watching: given the chunks that are read, returns the same.
    """

    stopped: Callable[[], bool] = lambda: False
    loading: Callable[[str], None] = lambda _: None
    chunk: "Callable[[Progress], None]" = lambda _: None
    watching: "Callable[[Iterable[Chunk]], Iterable[Chunk]]" = lambda chunks: chunks
    loaded: Callable[[], None] = lambda: None


def kept(
    source: "Source",
    config: EngineConfig,
    caches: Sequence[CacheConfig],
    asking: Asking,
    looking: Looking,
    every: float,
    resume: bool,
    say: Callable[[str], None],
    command: Sequence[str] = (),
    auto: bool = False,
) -> "Run":
    """Open the directory a run is resumed from. Nothing is kept if ``every`` is 0 or the video cannot be read again.

    Args:
        source: the video; a run of another, or with other settings than these, has another directory.
        config: of the engine.
        caches: of the strategies.
        asking: the questions.
        looking: how they look again.
        every: seconds of video between checkpoints; 0 to keep nothing.
        resume: go on from what an interrupted run left.
        say: takes lines for the person who waits.
        command: the words that began the run, noted for whoever wants to go on with it.
        auto: True if the machine has decided on ``max_tokens``; then a run that is resumed says them.

    Raises:
        ConfigError: if there is nothing to resume from.
    """
    from kvvideo.runs import journal

    fingerprint = source.fingerprint() if every else None
    if fingerprint is None:
        if resume:
            raise ConfigError(f"resume: {source.path!r} is not a file, so it cannot be read again")
        return journal.Run(None, say)
    task = asking.task
    key = journal.key(
        version=__version__,
        video=[fingerprint, os.path.basename(source.path)],
        reading=source.reading(),
        model=config.model,
        dtype=config.dtype,
        seed=config.seed,
        caches=[cache.as_dict() | ({"max_tokens": None} if auto else {}) for cache in caches],
        every=asking.every,
        questions=[[q.text, q.at, *filter(None, [q.system])] for q in asking.questions],
        max_answer_tokens=asking.max_answer_tokens,
        recall=[looking.count, looking.frame_tokens],
        task=None if task is None else [task.name, task.every, *filter(None, [task.system])],
    )
    try:
        directory = journal.runs_directory() / key
    except ConfigError as error:
        say(f"nothing is kept to resume from: {error}")
        return journal.Run(None, say)
    notes: Record = {"max_tokens": caches[0].max_tokens} if auto else {}
    return journal.Run(directory, say, resume=resume, every=every, notes={**_begun(source, command), **notes})


def _begun(source: "Source", command: Sequence[str]) -> "Record":
    """Return how a run is begun, for a list of runs."""
    begun: Record = {"video": source.path, "command": [*command]}
    with suppress(OSError):  # the folder may be gone
        begun["folder"] = os.getcwd()
    return begun


def files_of(run: "Run") -> set[str]:
    """Absolute names of the files that the interrupted part of ``run`` wrote its answers to."""
    return {name for batch in run.batches for note in batch if note["type"] == "files" for name in note["files"]}


@dataclass
class Answering:
    """A run: streams ``source`` once for each of ``caches``, and answers the questions.

    Attributes:
        source: the video.
        config: of the engine.
        caches: of the strategies, no two with the same name.
        asking: what to ask.
        kept: directory that the run is resumed from.
        recall: how questions look again; None for not at all.
        hooks: called meanwhile.
        files: absolute names of the files that records are written to; a run that resumes this one may replace them.
        engine: what was loaded; it may be used further, and should be closed.
        agendas: for each strategy what was not asked yet.
        failures: what went wrong, in order.
        samples: for each strategy what its cache held over time.
        end: where the video ended that was read, in seconds.
        load_seconds: that loading the model took.
        complete: all that can be asked was. A video that cannot be read to its end leaves nothing more to ask.
    """

    source: "Source"
    config: EngineConfig
    caches: Sequence[CacheConfig]
    asking: Asking
    kept: "Run"
    recall: "Recall | None" = None
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
        self.load_seconds = 0.0

    def records(self) -> "Generator[Record, None, None]":
        """Yield the answers under each strategy as they are given, then a last record; see ``docs/records.md``.

        Records of an interrupted run that is resumed come first, word for word. What goes wrong under one strategy
        is among ``failures``, and does not keep the next from running.

        Raises:
            KvvideoError: if the video cannot be opened, or the model not be loaded.
        """
        for cache, agenda in zip(self.caches, self.agendas, strict=True):
            for record in self._records(cache, agenda):
                self._note_files()
                yield record
        ended = all(isinstance(error, VideoError) for error in self.failures)
        self.complete = ended and not self.hooks.stopped()

    @property
    def more_room(self) -> str:
        """Words about what more a session needs that had no room for the rest; empty if all had."""
        full = any(isinstance(error, FullError) for error in self.failures)
        return " and a larger --max-model-len" if full else ""

    def _agenda(self) -> Agenda:
        return self.asking.agenda(self.source.start, self.source.end)

    def _records(self, cache: CacheConfig, agenda: Agenda) -> "Iterator[Record]":
        from kvvideo.runs.forecast import checkpoint_bytes
        from kvvideo.runs.one_pass import Pass

        began, loading = time.perf_counter(), 0.0
        earlier, finished = self.kept.answers(cache.strategy)
        given = [record for batch in earlier for record in batch]
        if finished is not None:
            agenda.at_end(finished["end"])
            self.end = max(self.end, finished["end"])
            self._sample_again(cache.strategy, finished["end"])
            yield from given
            yield finished
            return
        if self.engine is not None and self.hooks.stopped():
            self.engine.use(cache)
            yield from given
            yield from Pass(self, self.engine, None, agenda, None, len(given), began).records()
            return
        memory = self.kept.memory(cache, self._agenda(), len(given))
        # The reader comes first: a bad video is found before the model is loaded, and meanwhile it decodes.
        with self.source.open(skip_chunks=0 if memory is None else memory.chunks) as reader:
            configs = [replace(self.config, cache=cache) for cache in self.caches if self.engine is None]
            if memory is None:
                self.asking.check(self.source, reader.info, *configs)
            if configs and self.kept.keeps:
                self.kept.weigh(max(checkpoint_bytes(config, self.source, reader.info) for config in configs))
            if self.engine is None:
                self.hooks.loading(self.config.model)
                began_loading = time.perf_counter()
                self.engine = open_engine(self.config, self.caches)
                self.load_seconds = loading = time.perf_counter() - began_loading
                self.hooks.loaded()
                self.kept.check_model(self.engine)
            self.engine.use(cache)
            self.kept.enter(memory)
            if memory is not None:
                self._sample_again(cache.strategy, memory.end)
            yield from given
            yield from Pass(self, self.engine, reader, agenda, memory, len(given), began, loading).records()

    def _note_files(self) -> None:
        """Before the first file is written, have it in the journal that the files are this run's."""
        if self.files and not self._noted:
            self.kept.append([{"type": "files", "files": [*self.files]}])
        self._noted = True

    def _sample_again(self, strategy: str, end: float) -> None:
        """Note once more what the cache held up to ``end`` before the interruption."""
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
