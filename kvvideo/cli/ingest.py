"""``kvvideo ingest``: stream a video once and write down what is remembered of it."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvvideo.cli import options
from kvvideo.cli.download import ensure
from kvvideo.cli.stop import Stop, note, say
from kvvideo.errors import INTERRUPTED, ConfigError
from kvvideo.outputs import jsons
from kvvideo.outputs.writer import to_stdout
from kvvideo.runs.analyze import Asking
from kvvideo.session import EngineConfig
from kvvideo.sizes import parse_size
from kvvideo.storage.workspace import was_begun
from kvvideo.times import format_time
from kvvideo.video.address import local_path

if TYPE_CHECKING:
    from kvvideo.compression.schedule import Schedule
    from kvvideo.runs.ingest import Ingested, Part
    from kvvideo.types import Progress
    from kvvideo.video import Source


def command(
    video: Annotated[str, typer.Argument(help=options.A_VIDEO, show_default=False)],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file to write. [the video's name with .kvv]", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    checkpoint_every: Annotated[
        str,
        typer.Option(
            "--checkpoint-every",
            metavar="TIME",
            help="Video between moments to go back to; 0: the end.",
            rich_help_panel=options.CACHE,
        ),
    ] = options.CHECKPOINT_EVERY,
    max_disk: Annotated[
        str,
        typer.Option(
            "--max-disk",
            metavar="SIZE",
            help="Room on the disk for these; beyond it some go.",
            rich_help_panel=options.CACHE,
        ),
    ] = "10GB",
    keep_frames: Annotated[
        bool,
        typer.Option(
            "--keep-frames", help="Put the frames into the file, to look at again.", rich_help_panel=options.OUTPUT
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where this was interrupted.", rich_help_panel=options.OUTPUT)
    ] = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Throw away what an interrupted run left.", rich_help_panel=options.OUTPUT),
    ] = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    json_output: options.Json = False,
    cache: options.Memory,
    engine: options.Engine,
    watching: options.LiveVideo,
) -> None:
    """Stream VIDEO through the model once and write what is remembered of it, for 'kvvideo ask'.

    Examples:
        kvvideo ingest movie.mp4
        kvvideo ingest movie.mp4 -o movie.kvv --checkpoint-every 5m --keep-frames

    While it works, its checkpoints are in a folder named as the file with .part added. Ctrl-C finishes the chunk at
    hand, takes a checkpoint and exits 130; after that, or a crash, --resume goes on.
    """
    from kvvideo.runs.ingest import recorded_tokens

    video = local_path(video)
    config = engine.config(cache.config())
    apart, room = options.period(checkpoint_every), parse_size(max_disk)
    with watching.looked_for(video):
        reading = watching.reading(config)
    path = Path(Path(video).stem + ".kvv") if output is None else output
    if resume and cache.is_auto:
        cache = replace(cache, max_tokens=recorded_tokens(path))
    source = watching.source(video, reading)
    config, _ = cache.settle(config.with_words_of(source), [config.cache], reading, engine.max_model_len)
    from kvvideo.session import BASELINES

    if config.cache.strategy in BASELINES:
        raise ConfigError(
            f"strategy: {config.cache.strategy!r} keeps no cache that could be written down; choose another"
        )
    if dry_run:
        _dry_run(source, config, path, apart, room, keep_frames, json_output)
        return
    from kvvideo.runs.ingest import Part, is_made, part_of

    if resume and not source.replayable:
        raise ConfigError(f"resume: {video!r} is not a file, so it cannot be read again")
    if resume and not force and not was_begun(part_of(path)) and is_made(path, source, config, keep_frames):
        note(f"{str(path)!r} is complete already")
        return
    with watching.looked_for(video):
        ensure(config.model, source)
    how = {"keep_frames": keep_frames, "resume": resume, "restart": restart, "force": force}
    with Part(path, source, config.cache, config.dtype, **how) as part:
        _run(source, config, part, apart, room, keep_frames, json_output)


def _run(
    source: "Source",
    config: EngineConfig,
    part: "Part",
    every: float,
    room: int,
    keep_frames: bool,
    json_output: bool,
) -> None:
    from kvvideo.cli import render
    from kvvideo.runs import records

    began, stop = time.perf_counter(), Stop()
    try:
        done, schedule, waited = _ingest(source, config, part, every, room, keep_frames, stop)
    except BaseException:
        if part.resumable:
            say("the same command with --resume goes on from the last checkpoint")
        raise
    start = source.start or 0.0
    status, why = records.outcome(stop.asked, done.error)
    record = records.ingest(
        status,
        why,
        done.cache,
        schedule=schedule,
        video=source.path,
        output=str(part.output),
        model=config.model,
        strategy=config.cache.strategy,
        chunks=done.chunks,
        frames=done.frames,
        start=start,
        end=max(done.end, start),
        resumed_from=done.since,
        checkpoints=done.checkpoints,
        bytes=done.bytes,
        waited=waited,
        seconds=time.perf_counter() - began,
    )
    record |= records.subtitles(source.words_from)
    if json_output:
        to_stdout(jsons.line(record))
    render.ingested(record)
    if done.error is not None:
        raise done.error
    if status == "interrupted":
        if part.resumable:
            say(f"the same command with --resume goes on from {format_time(done.end)}")
        raise SystemExit(INTERRUPTED)


def _ingest(
    source: "Source", config: EngineConfig, part: "Part", every: float, room: int, keep_frames: bool, stop: Stop
) -> "tuple[Ingested, Schedule | None, float]":
    """Return what came of it, the schedule of the cache, and the seconds spent waiting for frames."""
    from kvvideo.cli import render
    from kvvideo.runs.forecast import check_disk, forecast
    from kvvideo.runs.ingest import ingest
    from kvvideo.runs.pace import Stopwatch
    from kvvideo.session import Engine

    # The reader comes first: a bad video is found before the model is loaded, and meanwhile it decodes.
    with render.Progress(source.start) as progress, stop:
        progress.wait(f"opening {source.path} …")
        with source.open(skip_chunks=0 if part.memory is None else part.memory.chunks) as reader:
            Asking(()).check(source, reader.info, config)
            if (wanted := forecast(config, source, reader.info, every, room, keep_frames)) is not None:
                check_disk(part.output, wanted)
            progress.loading(config.model, stop, part.close)
            began = time.perf_counter()
            engine = Engine(config)
            watch = Stopwatch(config, source, reader.info, time.perf_counter() - began)
            stop.begun()

            def on_chunk(now: "Progress") -> None:
                watch.chunk(now.cache.live)
                progress.chunk(now)

            schedule = config.cache.schedule(engine.block_size)
            done = ingest(
                engine,
                source,
                part,
                every=every,
                max_bytes=room,
                reader=reader,
                stopped=lambda: stop.asked,
                on_chunk=on_chunk,
                on_write=lambda: progress.wait(f"writing {part.output} …"),
            )
    watch.keep()
    return done, schedule, reader.waited


def _dry_run(
    source: "Source",
    config: EngineConfig,
    output: Path,
    every: float,
    room: int,
    keep_frames: bool,
    json_output: bool,
) -> None:
    from kvvideo.cli import render
    from kvvideo.cli.predict import looked_at, prediction
    from kvvideo.runs.forecast import check_disk, forecast

    info = looked_at(source)
    record = prediction(source, info, config)
    wanted = forecast(config, source, info, every, room, keep_frames)
    if wanted is not None:
        check_disk(output, wanted)
        record |= {name: value for name, value in asdict(wanted).items() if keep_frames or name != "frame_bytes"}
    if json_output:
        to_stdout(jsons.line(record))
    else:
        render.prediction(record)
