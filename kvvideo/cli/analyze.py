"""``kvvideo analyze``: stream a video, answer questions at their moments."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvvideo.cli import complete, options
from kvvideo.cli.download import ensure
from kvvideo.cli.stop import Stop, note, say
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import INTERRUPTED, ConfigError, KvvideoError
from kvvideo.outputs import Choice, Stills, open_files
from kvvideo.outputs.jsons import document, line
from kvvideo.outputs.paths import stem_of
from kvvideo.outputs.writer import to_stdout
from kvvideo.runs.agenda import TASKS, Agenda, Question, Task
from kvvideo.runs.analyze import Answering, Asking, Hooks, files_of, kept
from kvvideo.runs.recall import Looking
from kvvideo.session import EngineConfig
from kvvideo.times import format_time, parse_time
from kvvideo.video.address import local_path

if TYPE_CHECKING:
    from kvvideo.runs.journal import Run
    from kvvideo.video import Source


@dataclass(frozen=True)
class Questions:
    """The questions and the task, with their moments."""

    question: options.Question = None
    every: Annotated[
        str | None,
        typer.Option(
            "--every", metavar="TIME", help="Ask what has no time of its own this often.", rich_help_panel=options.ASK
        ),
    ] = None
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help=f"All along: caption (every {TASKS['caption']:g}s) or timeline ({TASKS['timeline']:g}s).",
            rich_help_panel=options.ASK,
            autocompletion=complete.one_of(*TASKS),
        ),
    ] = None

    def asking(self, questions: list[Question], start: float | None, max_answer_tokens: int) -> Asking:
        """Return ``questions`` and the task, with their times; ``start`` is where the video is begun to be read."""
        period = None if self.every is None else parse_time(self.every)
        if self.task is None:
            return Asking(questions, period, None, max_answer_tokens)
        asked = Task(self.task, TASKS.get(self.task, 1.0) if period is None else period, start or 0.0)
        return Asking(questions, period, asked, max_answer_tokens)


def command(
    context: typer.Context,
    video: Annotated[str, typer.Argument(help=options.A_VIDEO, show_default=False)],
    *,
    asked: Questions,
    output: options.Output,
    max_answer_tokens: options.MaxAnswerTokens = options.MAX_ANSWER_TOKENS,
    checkpoint_every: options.CheckpointEvery = options.CHECKPOINT_EVERY,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on where this command was interrupted.", rich_help_panel=options.OUTPUT),
    ] = False,
    dry_run: options.DryRun = False,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="NAME,NAME,…",
            help="Answer under each strategy, side by side.",
            autocompletion=complete.strategies,
            rich_help_panel=options.CACHE,
        ),
    ] = None,
    cache: options.Cache,
    recall: options.LiveRecall,
    engine: options.Engine,
    watching: options.LiveVideo,
) -> None:
    """Stream VIDEO through the model and answer questions about it.

    Examples:
        kvvideo analyze movie.mp4 -q "What happens?" -q "@10:30 What just happened?"
        kvvideo analyze movie.mp4 --every 1:00 -q "Who is on screen?" -o movie.srt

    Every question is asked of the video alone: answers leave nothing in memory. Ctrl-C finishes the chunk at hand and
    prints what there is; after that, or a crash, the same command with --resume goes on.
    """
    video = local_path(video)
    names = [cache.strategy] if compare is None else _compared(compare, context)
    caches = [replace(cache, strategy=name).config() for name in names]
    config = engine.config(caches[0])
    questions = [Question.parse(text) for text in asked.question or ()]
    if not questions and asked.task is None and not dry_run:
        raise ConfigError(
            "there is nothing to ask; add -q 'What happens?', -q '@10:30 What just happened?' or --task caption"
        )
    apart = options.period(checkpoint_every)
    if resume and not apart:
        raise ConfigError("resume: with --checkpoint-every 0 nothing is kept that could be gone on from")
    with watching.looked_for(video):
        reading = watching.reading(config)
    looking = recall.looking()
    config = looking.room_in(config, reading["fps"], reading["chunk_seconds"], reading["max_pixels"])
    asking = asked.asking(questions, reading["start"], max_answer_tokens)
    # Questions that cannot be asked show before anything is loaded.
    asking.agenda(reading["start"], reading["end"])
    choice = output.choice(len(caches))
    if dry_run:
        configs = [replace(config, cache=cache) for cache in caches]
        _dry_run(video, watching.decoder, reading, configs, choice, output.force, asking)
        return
    source = watching.source(video, reading)
    if compare is not None and not source.replayable and source.live is not None:
        raise ConfigError(f"compare: {video!r} can be read only once, and each strategy reads it; record it first")
    with watching.looked_for(video):
        ensure(config.model, source)
    with kept(source, config, caches, asking, looking, apart, resume, say) as run:
        _run(source, config, caches, asking, looking, choice, output.force, run)


def _compared(names: str, context: typer.Context) -> list[str]:
    """Return the strategies that ``--compare`` lists.

    Raises:
        ConfigError: if one is there twice, or ``--strategy`` is given, too.
    """
    if options.is_typed(context, "strategy"):
        raise ConfigError("compare: it names the strategies itself; leave --strategy out")
    listed = [name.strip() for name in names.split(",")]
    names_only = [name.partition(":")[0] for name in listed]
    if twice := sorted({name for name in names_only if names_only.count(name) > 1}):
        raise ConfigError(f"compare: {', '.join(map(repr, twice))} is there more than once")
    return listed


def _run(
    source: "Source",
    config: EngineConfig,
    caches: list[CacheConfig],
    asking: Asking,
    looking: Looking,
    choice: Choice,
    force: bool,
    run: "Run",
) -> None:
    from kvvideo.cli import render
    from kvvideo.outputs.delivery import Delivery

    progress = render.Progress(source.start)
    with Stop() as stop, looking.during(source, say) as (recall, watching), closing(Stills(source, recall)) as stills:
        hooks = Hooks(
            lambda: stop.asked,
            lambda model: progress.loading(model, stop),
            progress.chunk,
            lambda chunks: watching(stills.watching(chunks)),
            stop.begun,
        )
        answering = Answering(source, config, caches, asking, run, recall, hooks)
        delivery = Delivery(
            choice,
            render.Answers(len(caches) > 1),
            stem=stem_of(source.path),
            say=say,
            note=note,
            force=force,
            strategies=[cache.strategy for cache in caches],
            own=files_of(run),
            inputs=[Path(source.path)],
            frame=stills,
            samples=answering.samples,
        )
        answering.files = delivery.files
        try:
            with progress, closing(answering.records()) as records:
                progress.wait(f"opening {source.path} …")
                for record in records:
                    delivery.write(record)
        finally:
            with render.Transient() as shown:
                # Of a comparison the answers come only now, to where this would be shown.
                if choice.files and len(caches) == 1:
                    shown.wait("writing files …")
                failure = delivery.close()
            if answering.complete and failure is None:
                run.finish()
            elif run.resumable:
                say("the same command with --resume goes on from there")
    unasked = _conclude(answering.agendas, answering.failures, answering.end)
    if failure is not None:
        raise SystemExit(failure.exit_code)
    if stop.asked and not answering.complete:
        raise SystemExit(INTERRUPTED)
    if unasked:
        raise SystemExit(1)


def _conclude(agendas: Sequence[Agenda], errors: Sequence[KvvideoError], end: float) -> bool:
    """Say what was not asked and what went wrong.

    Args:
        agendas: of each strategy.
        errors: those that ended the run of a strategy.
        end: where the part of the video that was read ended, in seconds.

    Returns:
        True if a question was not asked.

    Raises:
        KvvideoError: the first of ``errors``, for the exit code.
    """
    unasked = dict.fromkeys((q.text, q.at) for agenda in agendas for q in agenda.left())
    for text, at in unasked:
        late = at is not None and at > end
        say(f"not asked: {text}" + (f" (at {format_time(at or 0.0)}; what was read ends at {format_time(end)})" * late))
    for text in dict.fromkeys(str(error) for error in errors[1:] if str(error) != str(errors[0])):
        say(text)
    if errors:
        raise errors[0]
    return bool(unasked)


def _dry_run(
    video: str,
    decoder: str,
    reading: dict[str, Any],
    configs: list[EngineConfig],
    choice: Choice,
    force: bool,
    asking: Asking,
) -> None:
    from kvvideo.cli import render
    from kvvideo.cli.predict import prediction

    names = [config.cache.strategy for config in configs]
    # Files that cannot be written show here too.
    open_files(choice.template, choice.files, stem=stem_of(video), strategies=names, force=force, inputs=[Path(video)])
    predictions = [prediction(video, decoder, reading, config, asking) for config in configs]
    match choice.stdout:
        case "json":
            to_stdout(document(predictions))
        case "jsonl":
            to_stdout("".join(map(line, predictions)))
        case _:
            for record in predictions:
                render.prediction(record)
