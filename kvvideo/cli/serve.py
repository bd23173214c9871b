"""``kvvideo serve``: vLLM's OpenAI server with the bounded cache."""

import os
import signal
from dataclasses import dataclass
from typing import Annotated

import typer

from kvvideo.cli import options
from kvvideo.errors import ConfigError

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Options that are not ours are for vLLM."""


@dataclass(frozen=True)
class _Cache(options.Cache):
    # Without the letter that stands for it elsewhere: vLLM's own -sc and -asc would be read as that.
    strategy: Annotated[
        str,
        typer.Option(
            "--strategy", metavar="NAME", help="What to keep; see 'kvvideo strategies'.", rich_help_panel=options.CACHE
        ),
    ] = options.STRATEGY


def command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Hub name or directory; 'tiny' is bundled.", show_default=False)],
    *,
    cache: _Cache,
    fps: options.Fps = options.FPS,
    frame_tokens: options.FrameTokens = None,
) -> None:
    """Serve MODEL by OpenAI's API, with the cache of each request bounded: vLLM's own server.

    Examples:
        kvvideo serve tiny
        kvvideo serve Qwen/Qwen2.5-VL-3B-Instruct --port 8000 --max-tokens 8192

    All other options are those of 'vllm serve', such as --port 8000 or --max-num-seqs 32: 'python -m kvvideo.launch
    --help=all' lists them. Only this machine can reach it unless --host says otherwise. What the caches do is told at
    /metrics.
    """
    from kvvideo.serve.server import Serving

    if model.startswith("-"):
        raise ConfigError(f"the model comes first: kvvideo serve MODEL {model} …")
    line = Serving(model, cache.config(), fps, frame_tokens).command(context.args)
    # In place of this process: what vLLM starts imports that one's module, and the exit code is vLLM's. A Ctrl-C waits
    # until it knows what to do with one.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.execv(line[0], line)
