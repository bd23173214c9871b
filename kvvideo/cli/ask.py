"""``kvvideo ask``: answer from a memory that ``kvvideo ingest`` wrote."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvvideo.agenda import Question
from kvvideo.cli import complete, options
from kvvideo.cli.options import Format
from kvvideo.cli.stop import Stop, say
from kvvideo.errors import INTERRUPTED, ConfigError, KvvideoError
from kvvideo.session import EngineConfig
from kvvideo.times import format_time

if TYPE_CHECKING:
    from kvvideo.memories.file import MemoryFile


def command(
    memory: Annotated[Path, typer.Argument(help="The .kvv file.", show_default=False)],
    question: Annotated[
        list[str] | None,
        typer.Option("--question", "-q", help="What to ask: at the end, or '@10:30 …' at that moment. Repeatable."),
    ] = None,
    format: options.Output = Format.text,
    video: Annotated[
        str | None,
        typer.Option("--video", help="Where the video is now. Default: where it was, or beside the .kvv file."),
    ] = None,
    max_answer_tokens: options.MaxAnswerTokens = options.MAX_ANSWER_TOKENS,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Where the model is now. Default: as it was.",
            rich_help_panel=options.MODEL,
            autocompletion=complete.model,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="auto, float32, bfloat16 or float16. Default: as it was.", rich_help_panel=options.MODEL
        ),
    ] = None,
    seed: options.Seed = 0,
    max_model_len: options.MaxModelLen = options.MAX_MODEL_LEN,
) -> None:
    """Answer questions from MEMORY, a file that 'kvvideo ingest' wrote.

    A question at a moment is answered from the checkpoint before it, with the frames between shown again if the
    video is at hand; without it, from the checkpoint alone, and a note on stderr says of which moment that is.
    """
    questions = [Question.parse(text) for text in question or ()]
    if not questions:
        raise ConfigError("there is nothing to ask; add -q 'What happens?' or -q '@10:30 What just happened?'")
    from kvvideo.memories.file import MemoryFile

    config = EngineConfig(max_model_len=max_model_len, seed=seed)
    with MemoryFile(memory) as file:
        _run(file, questions, format, video, max_answer_tokens, config, model, dtype)


def _run(
    file: "MemoryFile", questions: list[Question], format: Format, video: str | None, max_answer_tokens: int,
    config: EngineConfig, model: str | None, dtype: str | None,
) -> None:  # fmt: skip
    from kvvideo import records
    from kvvideo.ask import agenda_of, answers, check
    from kvvideo.cli import render
    from kvvideo.memories.origin import engine_for, video_of
    from kvvideo.playback import Playback
    from kvvideo.session import Engine

    began, last = time.perf_counter(), file.memory()
    agenda = agenda_of(last, questions)
    source, note = video_of(last, file.path, video)
    if note:
        say(note)
    config = engine_for(last, config, model, dtype)
    check(file, last, source, questions, config.model)
    path = str(last.source.get("path", file.path)) if source is None else source.path
    count, failure = 0, None
    with render.Progress() as progress, Stop() as stop:

        def on_chunk() -> None:
            if stop.asked:
                raise _Stopped
            progress.chunk(playback.session.end, None, 0.0, records.cache(playback.session.stats(), schedule))

        progress.say(f"loading {config.model} …")
        engine = Engine(config)
        schedule = config.cache.schedule(engine.block_size)
        common = {"video": path, "model": config.model, "strategy": config.cache.strategy}
        playback = Playback(engine, source, saved=file, memory=last)
        stats = playback.session.stats()
        try:
            for batch in answers(
                playback, agenda, questions, stopped=lambda: stop.asked, on_chunk=on_chunk,
                max_tokens=max_answer_tokens, seed=config.seed,
            ):  # fmt: skip
                for asked in batch:
                    if asked.answered_at is not None:
                        say(
                            f"'@{format_time(asked.at)} {asked.answer.question}' is answered from "
                            f"{format_time(asked.answered_at)}, as the video is not at hand"
                        )
                    _emit(records.answer(asked, schedule=schedule, **common), format)
                    count += 1
        except _Stopped:
            pass
        except KvvideoError as error:
            failure = error
        playback.close()
    start = last.source.get("start") or 0.0
    status = "interrupted" if stop.asked else "error" if failure else "complete"
    _emit(
        records.done(
            status, str(failure) if failure else None, agenda.left(), stats, schedule=schedule, answers=count,
            chunks=last.chunks, frames=last.frames, start=start, end=last.end, seconds=time.perf_counter() - began,
            **common,
        ),
        format,
    )  # fmt: skip
    for question in agenda.left():
        say(f"not asked: {question.text}")
    if failure is not None:
        raise failure
    if stop.asked:
        raise SystemExit(INTERRUPTED)


class _Stopped(Exception):
    """Ctrl-C while frames are shown again."""


def _emit(record: dict[str, Any], format: Format) -> None:
    from kvvideo.cli import render

    if format is Format.jsonl:
        print(json.dumps(record, ensure_ascii=False), flush=True)
    elif record["type"] == "answer":
        render.answer(record)
    else:
        render.summary(record)
