"""``kvvideo analyze``: stream a video, answer questions at their moments."""

import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvvideo.cli import complete, options
from kvvideo.cli.download import ensure
from kvvideo.cli.stop import Stop, note, say
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import INTERRUPTED, ConfigError, KvvideoError
from kvvideo.outputs import FORMATS, Choice, Stills, open_files
from kvvideo.outputs.jsons import document, line
from kvvideo.outputs.paths import Names, output_paths, stem_of
from kvvideo.outputs.writer import to_stdout
from kvvideo.runs.agenda import TASKS, Agenda, Question, Task
from kvvideo.runs.analyze import Answering, Asking, Hooks, files_of, kept
from kvvideo.runs.changes import only_changes
from kvvideo.runs.interrupted import much
from kvvideo.runs.recall import Looking
from kvvideo.session import EngineConfig
from kvvideo.times import format_time, parse_time
from kvvideo.video.address import local_path

if TYPE_CHECKING:
    from kvvideo.runs.journal import Run
    from kvvideo.video import Source


@dataclass(frozen=True)
class Questions(options.Questions):
    """The questions and the task, with their moments."""

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

    only_changes: Annotated[
        bool,
        typer.Option("--only-changes", help="With --every, --task: only new answers.", rich_help_panel=options.ASK),
    ] = False

    def asking(self, questions: list[Question], start: float | None, max_answer_tokens: int) -> Asking:
        """Return ``questions`` and the task, with their times; ``start`` is where the video is begun to be read.

        Raises:
            ConfigError: if there is no such task, a time is none, or nothing is asked again whose changes are wanted.
        """
        period = None if self.every is None else parse_time(self.every)
        task = None
        if self.task is not None:
            every = TASKS.get(self.task, 1.0) if period is None else period
            task = Task(self.task, every, start or 0.0, self.told)
        elif self.only_changes and period is None:
            raise ConfigError("only-changes: nothing is asked again and again; add --every 30s or --task caption")
        return Asking(questions, period, task, max_answer_tokens, self.only_changes)


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
    cache: options.Memory,
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
    config = engine.config(caches[0]).with_system(asked.told)
    questions = asked.listed(video)
    if not questions and asked.task is None and not dry_run:
        raise ConfigError(
            "there is nothing to ask; add -q 'What happens?', -q '@10:30 What just happened?' or --task caption"
        )
    apart = options.period(checkpoint_every)
    if resume and not apart:
        raise ConfigError("resume: with --checkpoint-every 0 nothing is kept that could be gone on from")
    with watching.looked_for(video):
        reading = watching.reading(config)
    choice = output.choice(len(caches))
    source = watching.source(video, reading, _written(choice, video, names))
    looking = recall.looking()
    config = looking.room_in(
        config.with_words_of(source), reading["fps"], reading["chunk_seconds"], reading["max_pixels"]
    )
    config, caches = cache.settle(config, caches, reading, engine.max_model_len)
    asking = asked.asking(questions, reading["start"], max_answer_tokens)
    # Questions that cannot be asked show before anything is loaded.
    asking.agenda(reading["start"], reading["end"])
    output.look(video)
    if dry_run:
        configs = [replace(config, cache=cache) for cache in caches]
        _dry_run(source, configs, choice, output.force, asking, bool(apart))
        return
    if compare is not None and not source.replayable and source.live is not None:
        raise ConfigError(f"compare: {video!r} can be read only once, and each strategy reads it; record it first")
    with watching.looked_for(video):
        ensure(config.model, source)
    with kept(source, config, caches, asking, looking, apart, resume, say, sys.argv[1:], cache.is_auto) as run:
        if cache.is_auto and run.max_tokens is not None:
            # What the interrupted run found, whatever is there now.
            before = replace(cache, max_tokens=run.max_tokens)
            config, caches = before.settle(config, caches, reading, engine.max_model_len)
        _run(source, config, caches, asking, looking, choice, output, run)


def _written(choice: Choice, video: str, strategies: Sequence[str]) -> list[Path]:
    """Return the files that answers go to: what an earlier run wrote beside the video are no subtitles of it."""
    wanted = [Names(stem_of(video), name, FORMATS[form].extension) for name in strategies for form in choice.files]
    return output_paths(choice.template, wanted, Path())


def _inputs(source: "Source") -> list[Path]:
    """Return the files that are read, which answers may not replace."""
    return [Path(name) for name in (source.path, source.words_from) if name is not None]


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
    output: options.Output,
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
            force=output.force,
            strategies=[cache.strategy for cache in caches],
            own=files_of(run),
            inputs=_inputs(source),
            frame=stills,
            samples=answering.samples,
            look=output.look(source.path),
        )
        answering.files = delivery.files
        try:
            with progress, closing(answering.records()) as records:
                progress.wait(f"opening {source.path} …")
                for record in only_changes(records, asking.questions) if asking.only_changes else records:
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
                say(f"the same command with --resume{answering.more_room} goes on from there{much()}")
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
    source: "Source", configs: list[EngineConfig], choice: Choice, force: bool, asking: Asking, keeps: bool
) -> None:
    from kvvideo.cli import render
    from kvvideo.cli.predict import looked_at, prediction
    from kvvideo.runs.forecast import checkpoint_bytes
    from kvvideo.runs.journal import runs_directory, shortage

    names, stem = [config.cache.strategy for config in configs], stem_of(source.path)
    # Files that cannot be written show here too.
    open_files(choice.template, choice.files, stem=stem, strategies=names, force=force, inputs=_inputs(source))
    info = looked_at(source)
    predictions = [prediction(source, info, config, asking) for config in configs]
    if keeps and source.replayable:
        for record, config in zip(predictions, configs, strict=True):
            record["checkpoint_bytes"] = checkpoint_bytes(config, source, info)
        with suppress(KvvideoError, OSError):
            if why := shortage(max(record["checkpoint_bytes"] for record in predictions), runs_directory()):
                say(f"nothing would be kept to resume from: {why}")
    match choice.stdout:
        case "json":
            to_stdout(document(predictions))
        case "jsonl":
            to_stdout("".join(map(line, predictions)))
        case _:
            for record in predictions:
                render.prediction(record)
