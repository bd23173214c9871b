"""``kvvideo analyze``: stream a video, answer questions at their moments."""

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvvideo import __version__
from kvvideo.agenda import Agenda, Question
from kvvideo.cli import complete, options
from kvvideo.cli.options import Format
from kvvideo.cli.stop import Stop, say
from kvvideo.config import CacheConfig
from kvvideo.errors import INTERRUPTED, ConfigError, KvvideoError, VideoError
from kvvideo.session import EngineConfig
from kvvideo.times import parse_time

if TYPE_CHECKING:
    from kvvideo.cli.render import Progress
    from kvvideo.journal import Batch, Run
    from kvvideo.memories.memory import Memory
    from kvvideo.session import Engine
    from kvvideo.types import Chunk
    from kvvideo.video import Source


def command(
    context: typer.Context,
    video: Annotated[str, typer.Argument(help="The video file.", show_default=False)],
    question: Annotated[
        list[str] | None,
        typer.Option("--question", "-q", help="What to ask: at the end, or '@10:30 …' at that moment. Repeatable."),
    ] = None,
    every: Annotated[
        str | None, typer.Option("--every", help="Ask the questions without a time this often, e.g. 30s or 1:00.")
    ] = None,
    format: options.Output = Format.text,
    max_answer_tokens: options.MaxAnswerTokens = options.MAX_ANSWER_TOKENS,
    checkpoint_every: Annotated[
        str,
        typer.Option(
            "--checkpoint-every", help="Video between two checkpoints, e.g. 60s; 0: keep nothing for --resume."
        ),
    ] = options.CHECKPOINT_EVERY,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where this same command was interrupted; prints all answers.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, without loading the model.")
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="NAME,NAME,…",
            help="Answer under each of these strategies, side by side; the model is loaded once.",
            autocompletion=complete.strategies,
            rich_help_panel=options.CACHE,
        ),
    ] = None,
    strategy: options.Strategy = options.STRATEGY,
    max_tokens: options.MaxTokens = options.MAX_TOKENS,
    ratio: options.Ratio = options.RATIO,
    budget: options.Budget = None,
    sink: options.Sink = options.SINK,
    window: options.Window = None,
    queries: options.Queries = None,
    score_norm: options.ScoreNorm = options.SCORE_NORM,
    positions: options.Positions = options.POSITIONS,
    model: options.Model = options.DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    seed: options.Seed = 0,
    max_model_len: options.MaxModelLen = options.MAX_MODEL_LEN,
    fps: options.Fps = options.FPS,
    chunk: options.ChunkSeconds = options.CHUNK_SECONDS,
    start: options.Start = None,
    end: options.End = None,
    frame_tokens: options.FrameTokens = None,
    decoder: options.Decoder = options.DECODER,
    follow: options.Follow = False,
    retry: options.Retry = options.RETRY,
    when_behind: options.WhenBehind = options.WHEN_BEHIND,
) -> None:
    """Stream VIDEO through the model and answer questions about it.

    Nothing of the answers stays in the model's memory, so every question is asked of the video alone.
    Ctrl-C finishes the chunk at hand, prints what there is and exits 130; a second one stops at once.
    After that, or a crash, the same command with --resume goes on.
    """
    names = [strategy] if compare is None else _compared(compare, context)
    caches = [
        options.cache_config(name, max_tokens, ratio, budget, sink, window, queries, score_norm, positions)
        for name in names
    ]
    config = EngineConfig(model=model, cache=caches[0], dtype=dtype, max_model_len=max_model_len, seed=seed)
    questions = [Question.parse(text) for text in question or ()]
    if not questions and not dry_run:
        raise ConfigError("there is nothing to ask; add -q 'What happens?' or -q '@10:30 What just happened?'")
    asking = _Asking(questions, None if every is None else parse_time(every), max_answer_tokens)
    apart = options.period(checkpoint_every)
    if resume and not apart:
        raise ConfigError("resume: with --checkpoint-every 0 nothing is kept that could be gone on from")
    reading = options.reading(config, fps, chunk, start, end, frame_tokens)
    # Questions that cannot be asked show before anything is loaded.
    asking.agenda(reading)
    if dry_run:
        _dry_run(video, decoder, reading, [replace(config, cache=cache) for cache in caches], format)
        return
    from kvvideo.video import Source

    source = Source(video, decoder=decoder, live=options.live(video, follow, retry, when_behind), **reading)
    if compare is not None and not source.replayable and source.live is not None:
        raise ConfigError(f"compare: {video!r} can be read only once, and each strategy reads it; record it first")
    with _kept(source, config, caches, asking, apart, resume) as kept:
        _run(source, config, caches, asking, format, kept)


@dataclass(frozen=True)
class _Asking:
    """What is asked: the same of every strategy."""

    questions: list[Question]
    every: float | None
    max_answer_tokens: int

    def agenda(self, reading: dict[str, Any]) -> Agenda:
        """The questions, for one strategy to take out."""
        return Agenda(self.questions, self.every, reading["start"] or 0.0, reading["end"])


def _compared(names: str, context: typer.Context) -> list[str]:
    """The strategies that ``--compare`` lists."""
    if options.is_typed(context, "strategy"):
        raise ConfigError("compare: it names the strategies itself; leave --strategy out")
    listed = [name.strip() for name in names.split(",")]
    if twice := sorted({name for name in listed if listed.count(name) > 1}):
        raise ConfigError(f"compare: {', '.join(map(repr, twice))} is there more than once")
    return listed


def _emit(format: Format, compared: list[dict[str, Any]] | None) -> Callable[[dict[str, Any]], None]:
    """Writes records. As text, the answers of several strategies go to ``compared``, to be shown side by side."""
    from kvvideo.cli import render

    if format is Format.text:
        answer = render.answer if compared is None else compared.append
        return lambda r: answer(r) if r["type"] == "answer" else render.summary(r, named=compared is not None)

    def write(record: dict[str, Any]) -> None:
        print(json.dumps(record, ensure_ascii=False), flush=True)

    return write


def _start(config: EngineConfig, caches: list[CacheConfig]) -> "Engine":
    """An engine with a pool for any of ``caches``; each is tried, so that one that cannot be is known at once."""
    from kvvideo.compression import load
    from kvvideo.session import Engine, open_session
    from kvvideo.session.memory import spare_rows

    largest = next((cache for cache in caches if not load(cache.strategy).bounded), caches[0])
    engine = Engine(replace(config, cache=replace(largest, spare_rows=spare_rows(largest, caches))))
    for cache in caches:
        engine.use(cache)
        open_session(engine).close()
    return engine


def _kept(
    source: "Source", config: EngineConfig, caches: list[CacheConfig], asking: _Asking, apart: float, resume: bool
) -> "Run":
    """What this run keeps for ``--resume``; nothing if the video cannot be read again, or nothing shall be kept."""
    from kvvideo import journal

    fingerprint = source.fingerprint() if apart else None
    if fingerprint is None:
        if resume:
            raise ConfigError(f"resume: {source.path!r} is not a file, so it cannot be read again")
        return journal.Run(None, say)
    looked = {name: value for name, value in source.as_dict().items() if name != "path"}
    key = journal.key(
        version=__version__, video=[fingerprint, os.path.basename(source.path)], reading=looked, model=config.model,
        dtype=config.dtype, seed=config.seed, caches=[cache.as_dict() for cache in caches], every=asking.every,
        questions=[[q.text, q.at] for q in asking.questions], max_answer_tokens=asking.max_answer_tokens,
    )  # fmt: skip
    try:
        directory = journal.state_directory() / "runs" / key
    except ConfigError as error:
        say(f"nothing is kept to resume from: {error}")
        return journal.Run(None, say)
    return journal.Run(directory, say, resume=resume, every=apart)


@dataclass(frozen=True)
class _Job:
    """What is the same for all strategies of a run."""

    source: "Source"
    asking: _Asking
    emit: Callable[[dict[str, Any]], None]
    progress: "Progress"
    stop: Stop
    kept: "Run"

    def run(
        self, engine: "Engine", chunks: Iterable["Chunk"], length: float | None, agenda: Agenda, began: float,
        memory: "Memory | None" = None, earlier: "Sequence[Batch]" = (),
    ) -> KvvideoError | None:  # fmt: skip
        """Answer under the strategy that ``engine`` uses, up to the final record; returns what went wrong.

        Args:
            chunks: those after ``memory``.
            memory: where to go on; None for the beginning.
            earlier: answers given before an interruption.
        """
        from kvvideo import records
        from kvvideo.analyze import batches
        from kvvideo.session import VideoSession, open_session

        cache, start = engine.config.cache, self.source.start or 0.0
        schedule = cache.schedule(engine.block_size)
        common = {"video": str(self.source.path), "model": engine.config.model, "strategy": cache.strategy}
        answers, failure = sum(map(len, earlier)), None
        for batch in earlier:
            for record in batch:
                self.emit(record)
        session = open_session(engine) if memory is None else VideoSession.load(engine, memory)
        streaming, known = time.perf_counter(), session.frames

        def on_chunk() -> None:
            rate = (session.frames - known) / (time.perf_counter() - streaming)
            end = self.source.end if length is None else length
            self.progress.chunk(session.end, end, rate, records.cache(session.stats(), schedule))
            # The baselines keep no cache that could be saved; they begin anew, with what the journal has.
            if isinstance(session, VideoSession) and (self.stop.asked or self.kept.due(session.end, start)):
                self.kept.checkpoint(session)

        try:
            for asked in batches(
                session, chunks, agenda, max_tokens=self.asking.max_answer_tokens, seed=engine.config.seed,
                answered=answers, stopped=lambda: self.stop.asked, on_chunk=on_chunk,
            ):  # fmt: skip
                batch = [records.answer(one, schedule=schedule, **common) for one in asked]
                self.kept.append(batch)
                for record in batch:
                    self.emit(record)
                answers += len(batch)
        except KvvideoError as error:
            failure = error
        stats = session.stats() if session.alive else None
        session.close()
        status = "interrupted" if self.stop.asked else "error" if failure else "complete"
        done = records.done(
            status, str(failure) if failure else None, agenda.left(), stats, schedule=schedule,
            answers=answers, chunks=session.chunks, frames=session.frames, start=start, end=max(session.end, start),
            seconds=time.perf_counter() - began, **common,
        )  # fmt: skip
        if status == "complete":
            self.kept.append([done])
        self.emit(done)
        return failure


def _run(
    source: "Source", config: EngineConfig, caches: list[CacheConfig], asking: _Asking, format: Format,
    kept: "Run",
) -> None:  # fmt: skip
    from kvvideo.cli import render

    reading = source.as_dict()
    compared: list[dict[str, Any]] | None = [] if len(caches) > 1 else None
    engine: Engine | None = None
    failures: list[KvvideoError | None] = []
    agendas = [asking.agenda(reading) for _ in caches]
    complete = False
    try:
        with render.Progress() as progress, Stop() as stop:
            job = _Job(source, asking, _emit(format, compared), progress, stop, kept)
            for cache, agenda in zip(caches, agendas, strict=True):
                began = time.perf_counter()
                earlier, finished = kept.answers(cache.strategy)
                if finished is not None:
                    agenda.at_end(finished["end"])
                    for record in [*(r for batch in earlier for r in batch), finished]:
                        job.emit(record)
                    continue
                if engine is not None and stop.asked:
                    engine.use(cache)
                    job.run(engine, (), None, agenda, began, earlier=earlier)
                    continue
                memory = kept.memory(cache, asking.agenda(reading), sum(map(len, earlier)))
                # The reader comes first: a bad video is found before the model is loaded, and meanwhile it decodes.
                with source.open(skip_chunks=0 if memory is None else memory.chunks) as reader:
                    if engine is None:
                        progress.say(f"loading {config.model} …")
                        engine = _start(config, caches)
                        kept.check_model(engine)
                    engine.use(cache)
                    kept.enter(memory)
                    failures.append(job.run(engine, reader, reader.info.duration, agenda, began, memory, earlier))
        complete = not stop.asked and all(f is None or isinstance(f, VideoError) for f in failures)
    finally:
        if compared:
            render.comparison(compared)
        if complete:
            kept.finish()
        elif kept.resumable:
            say("the same command with --resume goes on from there")
    _conclude(agendas, [error for error in failures if error is not None])
    if stop.asked:
        raise SystemExit(INTERRUPTED)


def _conclude(agendas: list[Agenda], errors: list[KvvideoError]) -> None:
    """Say what was not asked and what went wrong; the first error is raised, for the exit code."""
    for text in dict.fromkeys(q.text for agenda in agendas for q in agenda.left()):
        say(f"not asked: {text}")
    for text in dict.fromkeys(str(error) for error in errors[1:] if str(error) != str(errors[0])):
        say(text)
    if errors:
        raise errors[0]


def _dry_run(video: str, decoder: str, reading: dict[str, Any], configs: list[EngineConfig], format: Format) -> None:
    from kvvideo.cli import render
    from kvvideo.cli.predict import prediction

    for config in configs:
        record = prediction(video, decoder, reading, config)
        if format is Format.jsonl:
            print(json.dumps(record))
        else:
            render.prediction(record)
