"""``kvvideo bench``: measurements anyone can repeat."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from kvvideo import compression
from kvvideo.cli import complete, options
from kvvideo.cli.command import App
from kvvideo.cli.download import ensure
from kvvideo.cli.panels import MEASURE, MODEL, OUTPUT
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.session import BASELINES, EngineConfig

app = App(
    help="""Measure speed and memory on this machine.

    Examples:
        kvvideo bench stream
        kvvideo bench memory --quick
    """
)

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Budget:
    """The strategy of the cache, and how much it keeps."""

    strategy: options.Strategy = options.STRATEGY
    max_tokens: options.MaxTokens = options.MAX_TOKENS
    ratio: options.Ratio = options.RATIO


@dataclass(frozen=True)
class Model:
    """The model, or its shape alone."""

    model: options.Model = "tiny"
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape",
            metavar="3b|7b",
            help="Qwen2.5-VL's true shape, with made-up weights.",
            rich_help_panel=MODEL,
            autocompletion=complete.one_of("3b", "7b"),
        ),
    ] = None
    dtype: options.Dtype = "auto"
    seed: options.Seed = 0

    def config(self, cache: CacheConfig, **more: Any) -> EngineConfig:
        """Return the engine's settings, ``more`` of ``EngineConfig`` included.

        Raises:
            ConfigError: if one is out of range.
        """
        from kvvideo.bench.shapes import shaped

        config = EngineConfig(model=self.model, cache=cache, dtype=self.dtype, seed=self.seed, **more)
        return shaped(config, self.shape)


@app.command("stream")
def stream(
    *,
    chunks: Annotated[
        int, typer.Option("--chunks", "-n", min=1, help="Chunks to stream.", rich_help_panel=MEASURE)
    ] = 500,
    cache: options.Cache,
    frame_tokens: options.FrameTokens = None,
    chunk: options.ChunkSeconds = options.CHUNK_SECONDS,
    model: Model,
    max_model_len: options.MaxModelLen = options.MAX_MODEL_LEN,
    index: Annotated[
        bool, typer.Option(help="Index the chunks, so that questions find them again.", rich_help_panel=MEASURE)
    ] = True,
    recall: Annotated[
        int,
        typer.Option(
            "--recall", min=0, help="Time a question that is shown so many chunks again.", rich_help_panel=MEASURE
        ),
    ] = 0,
    json_output: options.Json = False,
) -> None:
    """Measure time per chunk, and memory, along one long stream of made-up frames.

    Examples:
        kvvideo bench stream
        kvvideo bench stream -n 2000 --shape 3b --strategy h2o
    """
    from kvvideo.bench.frames import LARGE, SMALL, Frames
    from kvvideo.bench.stream import Window, run
    from kvvideo.cli import bench_tables, render

    if recall and not index:
        raise ConfigError("recall: without an index no chunk is found; leave --no-index out")
    config = model.config(cache.config(), max_model_len=max_model_len, index=index)
    # Small pictures for the bundled model, as always: figures can be compared with earlier ones.
    source = SMALL if model.shape is None and frame_tokens is None else LARGE
    frames = Frames(config, frame_tokens, source, seconds=chunk)
    ensure(config.model)
    with render.Progress() as progress:
        progress.wait(f"loading {config.model} …")

        def say(window: Window) -> None:
            progress.say(f"chunk {window.chunk}: {window.ms:.1f} ms")

        report = run(config, chunks, frames, recall=recall, on_window=say)
    if json_output:
        print(json.dumps(report))
    else:
        bench_tables.stream(report)


@app.command("start")
def start(
    model: options.Model = "tiny",
    dtype: options.Dtype = "auto",
    json_output: options.Json = False,
) -> None:
    """Measure each stage between the start and the first answer.

    Examples:
        kvvideo bench start
        kvvideo bench start -m Qwen/Qwen2.5-VL-3B-Instruct --json
    """
    from kvvideo.bench.start import run
    from kvvideo.cli import bench_tables

    report = run(EngineConfig(model=model, dtype=dtype))
    if json_output:
        print(json.dumps(report))
    else:
        bench_tables.start(report)


@app.command("checkpoint")
def checkpoint(
    *,
    minutes: Annotated[
        int,
        typer.Option(
            "--minutes", "-n", min=1, help="Minutes of video, with a checkpoint and without.", rich_help_panel=MEASURE
        ),
    ] = 30,
    cache: options.Cache,
    model: options.Model = "tiny",
    dtype: options.Dtype = "auto",
    seed: options.Seed = 0,
    max_model_len: options.MaxModelLen = options.MAX_MODEL_LEN,
    json_output: options.Json = False,
) -> None:
    """Measure the cost of a checkpoint every minute of video, and its size.

    Examples:
        kvvideo bench checkpoint
        kvvideo bench checkpoint -n 10 --max-tokens 16384
    """
    from kvvideo.bench.checkpoint import run
    from kvvideo.cli import bench_tables, render

    config = EngineConfig(model=model, cache=cache.config(), dtype=dtype, max_model_len=max_model_len, seed=seed)
    ensure(config.model)
    with render.Progress() as progress:
        progress.wait(f"loading {config.model} …")
        report = run(config, minutes, on_minute=lambda number, ms: progress.say(f"minute {number}: {ms:.0f} ms"))
    if json_output:
        print(json.dumps(report))
    else:
        bench_tables.checkpoint(report)


Lengths = Annotated[
    str,
    typer.Option(
        "--lengths",
        "-n",
        metavar="N,N,…",
        help="Lengths of the stream to compare at, in chunks.",
        rich_help_panel=MEASURE,
    ),
]
Against = Annotated[
    str, typer.Option("--against", metavar="NAME,NAME,…", help="Who takes part.", rich_help_panel=MEASURE)
]
LENGTHS, AGAINST = "10,30,100,300", "kvvideo,vllm-session,resend,transformers"


@app.command("ingest")
def ingest(
    *,
    lengths: Lengths = LENGTHS,
    against: Against = AGAINST,
    budget: Budget,
    frame_tokens: options.FrameTokens = None,
    chunk: options.ChunkSeconds = options.CHUNK_SECONDS,
    model: Model,
    json_output: options.Json = False,
) -> None:
    """Measure speed against the length of the stream, beside vLLM alone, the whole prompt again, and transformers.

    Examples:
        kvvideo bench ingest
        kvvideo bench ingest -n 10,100 --against kvvideo,resend
    """
    config = model.config(CacheConfig(**vars(budget)))
    _race(config, lengths, against, 0, frame_tokens, chunk, json_output)


@app.command("ask")
def ask(
    *,
    lengths: Lengths = LENGTHS,
    against: Against = AGAINST,
    questions: Annotated[
        int, typer.Option("--questions", min=1, help="Questions at each length.", rich_help_panel=MEASURE)
    ] = 5,
    budget: Budget,
    frame_tokens: options.FrameTokens = None,
    chunk: options.ChunkSeconds = options.CHUNK_SECONDS,
    model: Model,
    json_output: options.Json = False,
) -> None:
    """Measure the time to the first token of an answer against the length of the stream, beside the same others.

    Examples:
        kvvideo bench ask
        kvvideo bench ask -n 10,100 --questions 20
    """
    config = model.config(CacheConfig(**vars(budget)))
    _race(config, lengths, against, questions, frame_tokens, chunk, json_output)


@app.command("compaction")
def compaction(
    *,
    strategies: Annotated[
        str | None,
        typer.Option(
            "--strategies",
            "-s",
            metavar="NAME,NAME,…",
            help="Who takes part. [all that compact]",
            autocompletion=complete.strategies,
            rich_help_panel=MEASURE,
        ),
    ] = None,
    cycles: Annotated[
        int, typer.Option("--cycles", min=1, help="Compactions to measure for each strategy.", rich_help_panel=MEASURE)
    ] = 3,
    max_tokens: options.MaxTokens = options.MAX_TOKENS,
    ratio: options.Ratio = options.RATIO,
    frame_tokens: options.FrameTokens = None,
    model: Model,
    json_output: options.Json = False,
) -> None:
    """Measure the cost of each strategy: a compaction, watching queries, and their share of a step.

    Examples:
        kvvideo bench compaction
        kvvideo bench compaction -s distinct,h2o --shape 7b
    """
    from kvvideo.bench.compaction import Cost, names, run
    from kvvideo.cli import bench_tables, render

    chosen = names() if strategies is None else [name.strip() for name in strategies.split(",")]
    config = model.config(CacheConfig(strategy=chosen[0], max_tokens=max_tokens, ratio=ratio))
    ensure(config.model)
    with render.Progress() as progress:
        progress.wait(f"loading {config.model} …")

        def say(cost: Cost) -> None:
            progress.say(f"{cost.strategy}: {cost.compaction_ms:.1f} ms per compaction")

        report = run(config, chosen, cycles, frame_tokens, say)
    _print(report, bench_tables.compaction, json_output)


@app.command("profile")
def profile(
    *,
    cycles: Annotated[
        int, typer.Option("--cycles", min=1, help="Compactions to measure over.", rich_help_panel=MEASURE)
    ] = 4,
    budget: Budget,
    frame_tokens: options.FrameTokens = None,
    chunk: options.ChunkSeconds = options.CHUNK_SECONDS,
    model: Model,
    json_output: options.Json = False,
) -> None:
    """Measure the time of ingesting a chunk, part by part.

    Examples:
        kvvideo bench profile
        kvvideo bench profile --cycles 8 --shape 3b
    """
    from kvvideo.bench.profile import run
    from kvvideo.cli import bench_tables, render

    config = model.config(CacheConfig(**vars(budget)))
    ensure(config.model)
    with render.Progress() as progress:
        progress.wait(f"loading {config.model} …")
        report = run(config, cycles, frame_tokens, chunk, lambda number: progress.say(f"cycle {number} of {cycles}"))
    _print(report, bench_tables.profile, json_output)


@app.command("decode")
def decode(
    *,
    decoders: Annotated[
        str, typer.Option("--decoders", metavar="NAME,NAME,…", help="Who takes part.", rich_help_panel=MEASURE)
    ] = "pyav,decord",
    seconds: Annotated[
        float, typer.Option("--seconds", min=4.0, help="Length of the clip.", rich_help_panel=MEASURE)
    ] = 20.0,
    size: Annotated[
        str, typer.Option("--size", metavar="WxH", help="Width and height of the clip.", rich_help_panel=MEASURE)
    ] = "1920x1080",
    fps: options.Fps = options.FPS,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="How often to read it.", rich_help_panel=MEASURE)
    ] = 3,
    ingest: Annotated[
        bool, typer.Option("--ingest", help="Also ingest it: is there a wait for frames?", rich_help_panel=MEASURE)
    ] = False,
    budget: Budget,
    frame_tokens: options.FrameTokens = None,
    model: Model,
    json_output: options.Json = False,
) -> None:
    """Measure each decoder's speed and memory on an H.264 clip made on the spot, and whether an engine waits for it.

    Examples:
        kvvideo bench decode
        kvvideo bench decode --decoders pyav,nvdec --ingest
    """
    from kvvideo.bench.decode import run
    from kvvideo.cli import bench_tables, render

    try:
        width, height = (int(part) for part in size.split("x"))
    except ValueError as error:
        raise ConfigError(f"size: {size!r} is not a width and a height, such as 1920x1080") from error
    config = model.config(CacheConfig(**vars(budget))) if ingest else None
    with render.Progress() as progress:
        progress.say(f"making {seconds:g} s of {size} …")
        report = run(
            [name.strip() for name in decoders.split(",")],
            seconds,
            (width, height),
            fps,
            repeats,
            lambda name, times: progress.say(f"{name}: {times:.1f} x real time"),
            config,
            frame_tokens,
        )
    _print(report, bench_tables.decode, json_output)


def _race(
    config: EngineConfig,
    lengths: str,
    against: str,
    questions: int,
    frame_tokens: int | None,
    chunk: float,
    json_output: bool,
) -> None:
    from kvvideo.bench.race import run
    from kvvideo.cli import bench_tables, render

    chunks = _numbers(int, "lengths", lengths, "numbers of at least 2", LENGTHS, lambda length: length >= 2)
    names = [name.strip() for name in against.split(",")]
    ensure(config.model)
    with render.Progress() as progress:
        progress.wait(f"loading {config.model} …")
        report = run(
            config, chunks, names, questions, frame_tokens, chunk, lambda n: progress.say(f"chunk {n} of {max(chunks)}")
        )
    _print(report, bench_tables.race, json_output)


def _numbers(
    kind: Callable[[str], Number], name: str, text: str, said: str, example: str, is_good: Callable[[Number], bool]
) -> list[Number]:
    """Return the numbers in ``text`` that option ``name`` was given.

    Raises:
        ConfigError: if they are not what is ``said`` of them.
    """
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(map(is_good, numbers)):
        raise ConfigError(f"{name}: {text!r} are not {said} with commas between, such as {example}")
    return numbers


def _shares(text: str) -> list[float]:
    return _numbers(float, "shares", text, "numbers between 0 and 1", "0.05,0.1", lambda share: 0 < share < 1)


def _print(report: dict[str, Any], table: Callable[[dict[str, Any]], None], json_output: bool) -> None:
    if json_output:
        print(json.dumps(report))
    else:
        table(report)


QUICK = ("streaming,h2o,distinct", "0.05,0.1", 6.0, 2)
"""Scope of ``--quick``: strategies, shares, minutes and clips."""


@app.command("memory")
def memory(
    strategies: Annotated[
        str | None,
        typer.Option(
            "--strategies",
            "-s",
            metavar="NAME,NAME,…",
            help="Who takes part; uniform is frames at equal distances. [all but summary]",
            autocompletion=complete.strategies,
            rich_help_panel=MEASURE,
        ),
    ] = None,
    shares: Annotated[
        str,
        typer.Option(
            "--shares",
            metavar="N,N,…",
            help="The most a cache may hold, as parts of the stream.",
            rich_help_panel=MEASURE,
        ),
    ] = "0.02,0.05,0.1,0.2",
    recall: Annotated[
        str,
        typer.Option(
            "--recall", metavar="N,N,…", help="Stretches that a question is shown again.", rich_help_panel=MEASURE
        ),
    ] = "0",
    world: Annotated[
        str,
        typer.Option(
            "--world",
            metavar="NAME",
            help="film, unseen (a style never trained on) or letters.",
            rich_help_panel=MEASURE,
        ),
    ] = "film",
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.5, help="Length of a clip.", rich_help_panel=MEASURE)
    ] = 10.0,
    clips: Annotated[int, typer.Option("--clips", min=1, help="How many clips.", rich_help_panel=MEASURE)] = 5,
    quick: Annotated[
        bool, typer.Option("--quick", help="Three strategies, two shares, two clips of 6 min.", rich_help_panel=MEASURE)
    ] = False,
    ratio: options.Ratio = options.RATIO,
    sink: options.Sink = options.SINK,
    window: options.Window = None,
    queries: options.Queries = None,
    score_norm: options.ScoreNorm = options.SCORE_NORM,
    positions: options.Positions = options.POSITIONS,
    model: options.Model = "tiny",
    dtype: options.Dtype = "auto",
    seed: options.Seed = 0,
    json_output: options.Json = False,
    plots: Annotated[
        Path | None,
        typer.Option(
            "--plots", metavar="DIR", help="Write plots there (needs kvvideo[plots]).", rich_help_panel=OUTPUT
        ),
    ] = None,
    report_file: Annotated[
        Path | None, typer.Option("--from", help="Print or plot a report made earlier.", rich_help_panel=MEASURE)
    ] = None,
) -> None:
    """Measure what each strategy still remembers, by size of the cache and age, on clips no model was trained on.

    Examples:
        kvvideo bench memory --quick
        kvvideo bench memory --strategies distinct,h2o --shares 0.05,0.1 --plots plots
    """
    from kvvideo.cli import bench_tables, render

    if report_file is not None:
        report = _read_report(report_file)
    else:
        if quick:
            strategies, shares, minutes, clips = QUICK
        report = _measure(
            EngineConfig(
                model=model,
                dtype=dtype,
                seed=seed,
                cache=options.Cache(
                    ratio=ratio,
                    sink=sink,
                    window=window,
                    queries=queries,
                    score_norm=score_norm,
                    positions=positions,
                ).config(),
            ),
            strategies,
            shares,
            recall,
            world=world,
            minutes=minutes,
            clips=clips,
        )
    if json_output:
        print(json.dumps(report))
    else:
        bench_tables.memory(report)
    if plots is not None:
        from kvvideo.bench.plots import draw

        for path in draw(report, plots):
            render.aside(f"wrote {path}")


def _measure(
    config: EngineConfig,
    strategies: str | None,
    shares: str,
    recall: str,
    *,
    world: str,
    minutes: float,
    clips: int,
) -> dict[str, Any]:
    from kvvideo.bench import uniform
    from kvvideo.bench.clips import world_of
    from kvvideo.bench.memory import run
    from kvvideo.cli import render

    # Writing captions takes long, and the bundled model cannot.
    usual = [name for name in compression.load_all()[0] if name != "summary"] + [uniform.NAME]
    names = usual if strategies is None else [name.strip() for name in strategies.split(",")]
    for name in names:
        if name != uniform.NAME:
            compression.load(name)
    world_of(world)
    parts = _shares(shares)
    again = _numbers(int, "recall", recall, "whole numbers", "1,4", lambda count: count >= 0)
    ensure(config.model)
    with render.Progress() as progress:
        progress.wait(f"loading {config.model} …")
        return run(
            config,
            names,
            parts,
            world=world,
            recalls=again,
            minutes=minutes,
            clips=clips,
            seed=config.seed,
            on_progress=progress.say,
        )


def _read_report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read a report from {str(path)!r}: {error}") from error
    if not isinstance(report, dict) or report.get("bench") != "memory":
        raise ConfigError(f"{str(path)!r} is no report of 'kvvideo bench memory --json'")
    return report


SINK = 16
"""Sinks of ``bench recall``: 1 % of 10 minutes has room for no more."""


@app.command("recall")
def recall(
    *,
    strategies: Annotated[
        str,
        typer.Option(
            "--strategies",
            "-s",
            metavar="NAME,NAME,…",
            help="Who takes part.",
            autocompletion=complete.strategies,
            rich_help_panel=MEASURE,
        ),
    ] = "streaming,distinct",
    shares: Annotated[
        str,
        typer.Option(
            "--shares",
            metavar="N,N,…",
            help="The most a cache may hold, as parts of the stream.",
            rich_help_panel=MEASURE,
        ),
    ] = "0.01,0.05",
    minutes: Annotated[
        str, typer.Option("--minutes", metavar="N,N,…", help="Lengths of clips.", rich_help_panel=MEASURE)
    ] = "10,30",
    clips: Annotated[
        int, typer.Option("--clips", min=1, help="How many clips of each length.", rich_help_panel=MEASURE)
    ] = 2,
    ratio: options.Ratio = options.RATIO,
    sink: options.Sink = SINK,
    model: options.Model = "tiny",
    dtype: options.Dtype = "auto",
    seed: options.Seed = 0,
    json_output: options.Json = False,
) -> None:
    """Measure how often a question finds the chunk it is about, by strategy, budget and length of the stream.

    Examples:
        kvvideo bench recall
        kvvideo bench recall -s distinct --minutes 10,60
    """
    from kvvideo.bench.recall import run
    from kvvideo.cli import bench_tables, render

    names = [name.strip() for name in strategies.split(",")]
    if other := [name for name in names if name in BASELINES or not compression.load(name).bounded]:
        raise ConfigError(f"strategies: {', '.join(other)}: no cache that is compacted; choose others")
    parts, lengths = _shares(shares), _numbers(float, "minutes", minutes, "lengths", "10,30", lambda number: number > 0)
    config = EngineConfig(model=model, dtype=dtype, seed=seed, cache=CacheConfig(ratio=ratio, sink=sink))
    ensure(config.model)
    with render.Progress() as progress:
        progress.wait(f"loading {config.model} …")
        report = run(config, names, parts, lengths, clips=clips, seed=seed, on_progress=progress.say)
    _print(report, bench_tables.recall, json_output)
