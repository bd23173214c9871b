"""``kvvideo bench``: measurements anyone can repeat."""

import json
from typing import Annotated

import typer

from kvvideo.cli import options
from kvvideo.session import EngineConfig

app = typer.Typer(no_args_is_help=True, help="Measure speed and memory on this machine.")


@app.command("stream")
def stream(
    chunks: Annotated[int, typer.Option("--chunks", "-n", min=1, help="Chunks of 4 s to stream.")] = 500,
    strategy: options.Strategy = options.STRATEGY,
    max_tokens: options.MaxTokens = options.MAX_TOKENS,
    ratio: options.Ratio = options.RATIO,
    budget: options.Budget = None,
    sink: options.Sink = options.SINK,
    window: options.Window = None,
    model: options.Model = "tiny",
    dtype: options.Dtype = "auto",
    seed: options.Seed = 0,
    max_model_len: options.MaxModelLen = options.MAX_MODEL_LEN,
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Time per chunk, and memory, along one long stream of made-up frames."""
    from kvvideo.bench.stream import run
    from kvvideo.cli import render

    config = EngineConfig(
        model=model, cache=options.cache_config(strategy, max_tokens, ratio, budget, sink, window), dtype=dtype,
        max_model_len=max_model_len, seed=seed,
    )  # fmt: skip
    with render.Progress() as progress:
        progress.say(f"loading {model} …")
        report = run(config, chunks, on_window=lambda w: progress.say(f"chunk {w.chunk}: {w.ms:.1f} ms"))
    if json_output:
        print(json.dumps(report))
    else:
        render.stream_report(report)


@app.command("start")
def start(
    model: options.Model = "tiny",
    dtype: options.Dtype = "auto",
    json_output: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Where the time goes between the start and the first answer."""
    from kvvideo.bench.start import run
    from kvvideo.cli import render

    report = run(EngineConfig(model=model, dtype=dtype))
    if json_output:
        print(json.dumps(report))
    else:
        render.start_report(report)
