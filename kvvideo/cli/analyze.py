"""``kvvideo analyze``: stream a video, answer questions at their moments."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvvideo.agenda import Agenda, Question
from kvvideo.cli import options
from kvvideo.config import CacheConfig
from kvvideo.errors import INTERRUPTED, ConfigError, KvvideoError
from kvvideo.session import EngineConfig
from kvvideo.times import parse_time

if TYPE_CHECKING:
    from kvvideo.cli.render import Progress
    from kvvideo.session import Engine
    from kvvideo.types import Chunk


class Format(StrEnum):
    text = "text"
    jsonl = "jsonl"


def command(
    context: typer.Context,
    video: Annotated[Path, typer.Argument(help="The video file.", show_default=False)],
    question: Annotated[
        list[str] | None,
        typer.Option("--question", "-q", help="What to ask: at the end, or '@10:30 …' at that moment. Repeatable."),
    ] = None,
    every: Annotated[
        str | None, typer.Option("--every", help="Ask the questions without a time this often, e.g. 30s or 1:00.")
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="Output: text, or one JSON record a line.")] = (
        Format.text
    ),
    max_answer_tokens: Annotated[int, typer.Option("--max-answer-tokens", min=1, help="Longest answer.")] = 128,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, without loading the model.")
    ] = False,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="NAME,NAME,…",
            help="Answer under each of these strategies, side by side; the model is loaded once.",
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
    fps: Annotated[
        float, typer.Option("--fps", help="Frames per second to look at.", rich_help_panel=options.VIDEO)
    ] = 2.0,
    chunk: Annotated[
        float, typer.Option("--chunk", help="Seconds ingested at a time.", rich_help_panel=options.VIDEO)
    ] = 4.0,
    start: Annotated[
        str | None, typer.Option("--from", help="Begin here, e.g. 1:30.", rich_help_panel=options.VIDEO)
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="End here.", rich_help_panel=options.VIDEO)] = None,
    frame_tokens: Annotated[
        int | None,
        typer.Option(
            "--frame-tokens",
            min=1,
            help="Most tokens for a pair of frames; more shows finer detail. Default: 128, or what the model names.",
            rich_help_panel=options.VIDEO,
        ),
    ] = None,
    decoder: Annotated[
        str, typer.Option("--decoder", help="pyav, or decord (plain H.264 mp4 only).", rich_help_panel=options.VIDEO)
    ] = "pyav",
) -> None:
    """Stream VIDEO through the model and answer questions about it.

    Nothing of the answers stays in the model's memory, so every question is asked of the video alone.
    Ctrl-C finishes the chunk at hand, prints what there is and exits 130; a second one stops at once.
    """
    begin = None if start is None else parse_time(start)
    until = None if end is None else parse_time(end)
    names = [strategy] if compare is None else _compared(compare, context)
    caches = [
        options.cache_config(name, max_tokens, ratio, budget, sink, window, queries, score_norm, positions)
        for name in names
    ]
    config = EngineConfig(model=model, cache=caches[0], dtype=dtype, max_model_len=max_model_len, seed=seed)
    questions = [Question.parse(text) for text in question or ()]
    if not questions and not dry_run:
        raise ConfigError("there is nothing to ask; add -q 'What happens?' or -q '@10:30 What just happened?'")
    period = None if every is None else parse_time(every)
    # Every strategy takes the questions out of an agenda of its own; one that cannot be asked shows at once.
    agendas = [Agenda(questions, period, begin or 0.0, until) for _ in caches]
    from kvvideo.session.prediction import frame_pixels

    low, high = frame_pixels(config, frame_tokens)
    reading = {
        "fps": fps, "chunk_seconds": chunk, "start": begin, "end": until, "min_pixels": low, "max_pixels": high,
    }  # fmt: skip
    if dry_run:
        for cache in caches:
            _dry_run(str(video), decoder, reading, replace(config, cache=cache), format)
    else:
        _run(str(video), decoder, reading, config, list(zip(caches, agendas, strict=True)), format, max_answer_tokens)


def _compared(names: str, context: typer.Context) -> list[str]:
    """The strategies that ``--compare`` lists."""
    source = context.get_parameter_source("strategy")
    if source is not None and source.name != "DEFAULT":
        raise ConfigError("compare: it names the strategies itself; leave --strategy out")
    listed = [name.strip() for name in names.split(",")]
    if twice := sorted({name for name in listed if listed.count(name) > 1}):
        raise ConfigError(f"compare: {', '.join(map(repr, twice))} is there more than once")
    return listed


class _Stop:
    """Turns the first Ctrl-C into a request to finish; a second one interrupts as usual."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> "_Stop":
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("kvvideo: finishing this chunk; press Ctrl-C again to stop at once", file=sys.stderr)


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


@dataclass(frozen=True)
class _Job:
    """What is the same for all strategies of a run."""

    video: str
    reading: dict[str, Any]
    max_answer_tokens: int
    emit: Callable[[dict[str, Any]], None]
    progress: "Progress"
    stop: _Stop

    def run(
        self, engine: "Engine", chunks: Iterable["Chunk"], length: float | None, agenda: Agenda, began: float
    ) -> KvvideoError | None:
        """Answer under the strategy that ``engine`` uses, up to the final record; returns what went wrong."""
        from kvvideo import records
        from kvvideo.analyze import analyze
        from kvvideo.session import open_session

        cache, start = engine.config.cache, self.reading["start"] or 0.0
        schedule = cache.schedule(engine.block_size)
        common = {"video": self.video, "model": engine.config.model, "strategy": cache.strategy}
        answers, failure = 0, None
        session, streaming = open_session(engine), time.perf_counter()

        def show() -> None:
            rate = session.frames / (time.perf_counter() - streaming)
            end = self.reading["end"] if length is None else length
            self.progress.chunk(session.end, end, rate, records.cache(session.stats(), schedule))

        try:
            for asked in analyze(
                session, chunks, agenda, max_tokens=self.max_answer_tokens, seed=engine.config.seed,
                stopped=lambda: self.stop.asked, on_chunk=show,
            ):  # fmt: skip
                answers += 1
                self.emit(records.answer(asked, schedule=schedule, **common))
        except KvvideoError as error:
            failure = error
        stats = session.stats() if session.alive else None
        session.close()
        status = "interrupted" if self.stop.asked else "error" if failure else "complete"
        self.emit(
            records.done(
                status, str(failure) if failure else None, agenda.left(), stats, schedule=schedule,
                answers=answers, chunks=session.chunks, frames=session.frames, start=start, end=max(session.end, start),
                seconds=time.perf_counter() - began, **common,
            )
        )  # fmt: skip
        return failure


def _run(
    video: str, decoder: str, reading: dict[str, Any], config: EngineConfig, runs: list[tuple[CacheConfig, Agenda]],
    format: Format, max_answer_tokens: int,
) -> None:  # fmt: skip
    from kvvideo.cli import render
    from kvvideo.video import VideoReader

    compared: list[dict[str, Any]] | None = [] if len(runs) > 1 else None
    engine: Engine | None = None
    failures: list[KvvideoError | None] = []
    try:
        with render.Progress() as progress, _Stop() as stop:
            job = _Job(video, reading, max_answer_tokens, _emit(format, compared), progress, stop)
            for cache, agenda in runs:
                began = time.perf_counter()
                if engine is not None and stop.asked:
                    engine.use(cache)
                    job.run(engine, (), None, agenda, began)
                    continue
                # The reader comes first: a bad video is found before the model is loaded, and meanwhile it decodes.
                with VideoReader(video, decoder=decoder, **reading) as reader:
                    if engine is None:
                        progress.say(f"loading {config.model} …")
                        engine = _start(config, [cache for cache, _ in runs])
                    engine.use(cache)
                    failures.append(job.run(engine, reader, reader.info.duration, agenda, began))
    finally:
        if compared:
            render.comparison(compared)
    for text in dict.fromkeys(q.text for _, agenda in runs for q in agenda.left()):
        print(f"kvvideo: not asked: {text}", file=sys.stderr)
    errors = [error for error in failures if error is not None]
    for text in dict.fromkeys(str(error) for error in errors[1:] if str(error) != str(errors[0])):
        print(f"kvvideo: {text}", file=sys.stderr)
    if errors:
        raise errors[0]
    if stop.asked:
        raise SystemExit(INTERRUPTED)


def _dry_run(video: str, decoder: str, reading: dict[str, Any], config: EngineConfig, format: Format) -> None:
    from dataclasses import asdict

    from kvvideo.cli import render
    from kvvideo.session.prediction import predict
    from kvvideo.video import plan, probe

    info = probe(video, decoder)
    planned = plan(info, **reading)
    if planned.chunks is None or planned.frames is None:
        raise ConfigError(f"{video!r} does not say how long it is; give --to to predict what that much will take")
    prediction = predict(config, planned, reading["chunk_seconds"], reading["fps"], reading["start"] or 0.0)
    record = {
        "type": "prediction", "schema": 1, "video": video, "model": config.model, "strategy": config.cache.strategy,
        "width": planned.width, "height": planned.height, "chunks": planned.chunks, "frames": planned.frames,
        **asdict(prediction),
    }  # fmt: skip
    if format is Format.jsonl:
        print(json.dumps(record))
    else:
        render.prediction(record)
