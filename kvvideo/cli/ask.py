"""``kvvideo ask``: answer from a memory that ``kvvideo ingest`` wrote."""

from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvvideo.cli import complete, options
from kvvideo.cli.download import ensure
from kvvideo.cli.stop import Stop, note, say
from kvvideo.errors import INTERRUPTED, ConfigError
from kvvideo.outputs import Choice, Stills
from kvvideo.runs.agenda import Question
from kvvideo.runs.analyze import Hooks
from kvvideo.runs.recall import Looking, of_memory
from kvvideo.session import EngineConfig
from kvvideo.times import format_time
from kvvideo.video.address import local_path

if TYPE_CHECKING:
    from kvvideo.storage.file import MemoryFile


def command(
    memory: Annotated[Path, typer.Argument(help="The .kvv file that 'kvvideo ingest' wrote.", show_default=False)],
    *,
    question: options.Question = None,
    output: options.Output,
    video: Annotated[
        str | None,
        typer.Option(
            "--video", metavar="FILE", help="Where the video is now. [as it was]", rich_help_panel=options.VIDEO
        ),
    ] = None,
    max_answer_tokens: options.MaxAnswerTokens = options.MAX_ANSWER_TOKENS,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Where the model is now. [as it was]",
            rich_help_panel=options.MODEL,
            autocompletion=complete.model,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="NAME",
            help="auto, float32, bfloat16 or float16. [as it was]",
            rich_help_panel=options.MODEL,
            autocompletion=complete.one_of(*options.DTYPES),
        ),
    ] = None,
    recall: options.Recall,
    seed: options.Seed = 0,
    max_model_len: options.MaxModelLen = options.MAX_MODEL_LEN,
) -> None:
    """Answer questions from MEMORY, without going through the video again.

    Examples:
        kvvideo ask movie.kvv -q "What happens?"
        kvvideo ask movie.kvv -q "@10:30 What just happened?" -f json

    A question at a moment is answered from the checkpoint before it, with the frames between shown again if the
    video is at hand; without it, from the checkpoint alone, and a note on stderr says of which moment that is.
    """
    questions = [Question.parse(text) for text in question or ()]
    if not questions:
        raise ConfigError("there is nothing to ask; add -q 'What happens?' or -q '@10:30 What just happened?'")
    from kvvideo.storage.file import MemoryFile

    config, choice = EngineConfig(max_model_len=max_model_len, seed=seed), output.choice()
    with MemoryFile(memory) as file:
        _run(file, questions, choice, output.force, video, max_answer_tokens, recall.looking(), config, model, dtype)


def _run(
    file: "MemoryFile",
    questions: list[Question],
    choice: Choice,
    force: bool,
    video: str | None,
    max_answer_tokens: int,
    looking: Looking,
    config: EngineConfig,
    model: str | None,
    dtype: str | None,
) -> None:
    from kvvideo.cli import render
    from kvvideo.outputs.delivery import Delivery
    from kvvideo.runs.ask import agenda_of, answering, check
    from kvvideo.runs.origin import engine_for, video_of

    agenda_of(last := file.memory(), questions)
    source, lacking = video_of(last, file.path, None if video is None else local_path(video))
    if lacking:
        say(lacking)
    config = engine_for(last, config, model, dtype)
    check(file, last, source, questions, config.model)
    recall = of_memory(last, looking, source, file.frames(), say)
    config = looking.room_for(config, last)
    ensure(config.model)
    progress, status, unasked = render.Progress(), "", []
    with ExitStack() as stack:
        delivery = Delivery(
            choice,
            render.Answers(),
            stem=file.path.stem,
            strategies=[config.cache.strategy],
            say=say,
            note=note,
            force=force,
            inputs=[file.path] if source is None else [file.path, Path(source.path)],
            frame=stack.enter_context(closing(Stills(source, recall))),
        )
        stop = stack.enter_context(Stop())
        hooks = Hooks(lambda: stop.asked, lambda model: progress.loading(model, stop), progress.chunk)
        records = answering(
            file, last, source, questions, config, hooks=hooks, recall=recall, max_answer_tokens=max_answer_tokens
        )
        try:
            with progress:
                for record in records:
                    if record["type"] == "answer":
                        _note(record)
                    else:
                        status, unasked = record["status"], record["unasked"]
                    delivery.write(record)
        finally:
            failure = delivery.close()
            for question in unasked:
                say(f"not asked: {question['question']}")
    if failure is not None:
        raise SystemExit(failure.exit_code)
    if status == "interrupted":
        raise SystemExit(INTERRUPTED)


def _note(record: dict[str, Any]) -> None:
    """Say of which moment an answer is, if it is not the one that was asked about."""
    if record["answered_at"] != record["asked_at"]:
        say(
            f"'@{format_time(record['asked_at'])} {record['question']}' is answered from "
            f"{format_time(record['answered_at'])}, as the video is not at hand"
        )
