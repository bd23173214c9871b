"""``kvvideo analyze``: stream a video, answer questions at their moments."""

import json
import signal
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from kvvideo.agenda import Agenda, Question
from kvvideo.cli import options
from kvvideo.errors import INTERRUPTED, ConfigError, KvvideoError
from kvvideo.session import EngineConfig
from kvvideo.times import parse_time


class Format(StrEnum):
    text = "text"
    jsonl = "jsonl"


def command(
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
    strategy: options.Strategy = options.STRATEGY,
    max_tokens: options.MaxTokens = options.MAX_TOKENS,
    ratio: options.Ratio = options.RATIO,
    budget: options.Budget = None,
    sink: options.Sink = options.SINK,
    window: options.Window = None,
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
    config = EngineConfig(
        model=model,
        cache=options.cache_config(strategy, max_tokens, ratio, budget, sink, window),
        dtype=dtype,
        max_model_len=max_model_len,
        seed=seed,
    )
    questions = [Question.parse(text) for text in question or ()]
    if not questions and not dry_run:
        raise ConfigError("there is nothing to ask; add -q 'What happens?' or -q '@10:30 What just happened?'")
    agenda = Agenda(questions, None if every is None else parse_time(every), begin or 0.0, until)
    from kvvideo.session.prediction import frame_pixels

    low, high = frame_pixels(config, frame_tokens)
    reading = {
        "fps": fps, "chunk_seconds": chunk, "start": begin, "end": until, "min_pixels": low, "max_pixels": high,
    }  # fmt: skip
    if dry_run:
        _dry_run(str(video), decoder, reading, config, format)
    else:
        _run(str(video), decoder, reading, config, agenda, format, max_answer_tokens)


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


def _emit(format: Format) -> Callable[[dict[str, Any]], None]:
    from kvvideo.cli import render

    if format is Format.text:
        return lambda record: render.answer(record) if record["type"] == "answer" else render.summary(record)

    def write(record: dict[str, Any]) -> None:
        print(json.dumps(record, ensure_ascii=False), flush=True)

    return write


def _run(
    video: str, decoder: str, reading: dict[str, Any], config: EngineConfig, agenda: Agenda, format: Format,
    max_answer_tokens: int,
) -> None:  # fmt: skip
    from kvvideo import records
    from kvvideo.analyze import analyze
    from kvvideo.cli import render
    from kvvideo.session import Engine, VideoSession
    from kvvideo.video import VideoReader

    began = time.perf_counter()
    emit = _emit(format)
    common = {"video": video, "model": config.model, "strategy": config.cache.strategy}
    answers, status, failure = 0, "complete", None
    # The reader comes first: a bad video is found before the model is loaded, and decoding begins meanwhile.
    with VideoReader(video, decoder=decoder, **reading) as reader, render.Progress() as progress, _Stop() as stop:
        progress.say(f"loading {config.model} …")
        engine = Engine(config)
        session = VideoSession(engine)
        schedule = config.cache.schedule(engine.block_size)
        streaming = time.perf_counter()

        def show() -> None:
            rate = session.frames / (time.perf_counter() - streaming)
            end = reading["end"] if reader.info.duration is None else reader.info.duration
            progress.chunk(session.end, end, rate, records.cache(session.stats(), schedule))

        try:
            for asked in analyze(
                session, reader, agenda, max_tokens=max_answer_tokens, seed=config.seed,
                stopped=lambda: stop.asked, on_chunk=show,
            ):  # fmt: skip
                answers += 1
                emit(records.answer(asked, schedule=schedule, **common))
        except KvvideoError as error:
            status, failure = "error", error
        if stop.asked:
            status = "interrupted"
        stats = session.stats() if session.alive else None
    record = records.done(
        status, str(failure) if failure else None, agenda.left(), stats, schedule=schedule, answers=answers,
        chunks=session.chunks, frames=session.frames, start=reading["start"] or 0.0,
        end=max(session.end, reading["start"] or 0.0), seconds=time.perf_counter() - began, **common,
    )  # fmt: skip
    emit(record)
    for left in record["unasked"]:
        print(f"kvvideo: not asked: {left['question']}", file=sys.stderr)
    if failure is not None:
        raise failure
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
