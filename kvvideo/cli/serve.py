"""``kvvideo serve``: vLLM's OpenAI server with the bounded cache, or an engine that answers about saved memories."""

import os
import signal
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from kvvideo.cli import options
from kvvideo.cli.ask import DtypeNow, ModelNow, VideoNow
from kvvideo.cli.command import ALTERNATIVES, Command
from kvvideo.cli.download import ensure
from kvvideo.cli.panels import SERVER
from kvvideo.cli.stop import say
from kvvideo.errors import ConfigError
from kvvideo.session import EngineConfig
from kvvideo.session.allowance import AUTO, Allowance
from kvvideo.video.address import local_path

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
    memory: Annotated[
        str,
        typer.Option(
            "--memory", metavar="SIZE", help="Room for all requests, e.g. 8GB.", rich_help_panel=options.CACHE
        ),
    ] = AUTO


@dataclass(frozen=True)
class _Answers(options.Recall):
    """Settings for memories alone: those of ``kvvideo ask``, and where the server is."""

    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; 0.0.0.0 lets others in.", rich_help_panel=SERVER)
    ] = "127.0.0.1"
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0: any that is free.", rich_help_panel=SERVER)
    ] = 8000
    api_key: Annotated[
        str | None, typer.Option("--api-key", help="Key that clients must have.", rich_help_panel=SERVER)
    ] = None
    video: VideoNow = None
    model_now: ModelNow = None
    dtype: DtypeNow = None
    seed: options.Seed = 0
    max_model_len: options.MaxModelLen = options.MAX_MODEL_LEN


_OF_MEMORIES = {field.name for field in fields(_Answers)}
_OF_MODELS = {field.name for field in fields(_Cache)} | {"fps", "frame_tokens"}
_OF_BOTH = ("port", "api_key")
"""Options that vLLM has, too. Those of the command line are its own to read; variables and files it does not know."""


class Serve(Command):
    """The command: its options are those of what is served."""

    # A request's bound and the room of all are two things here.
    alternatives = ALTERNATIVES[:1]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse ``args``; options of the other kind of server are left among the extra ones."""
        if args and not {*args} & {*ctx.help_option_names}:
            ctx.meta[__name__] = _OF_MODELS if _are_memories(args) else _OF_MEMORIES
        rest: list[str] = super().parse_args(ctx, args)
        for parameter in self.params:
            if parameter.name in _OF_BOTH and ctx.meta.get(__name__) is _OF_MEMORIES:
                parameter.handle_parse_result(ctx, {}, [])
        return rest

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, all of them for help."""
        others = ctx.meta.get(__name__, ())
        return [parameter for parameter in super().get_params(ctx) if parameter.name not in others]


def _are_memories(words: list[str]) -> bool:
    from kvvideo.storage.file import SUFFIX, is_memory_file

    return is_memory_file(words[0]) or any(word.lower().endswith(SUFFIX) for word in words)


def command(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="Hub name or directory of a model, 'tiny' is bundled; or .kvv files, one or several.",
            show_default=False,
        ),
    ],
    *,
    cache: _Cache,
    fps: options.Fps = options.FPS,
    frame_tokens: options.FrameTokens = None,
    answers: _Answers,
) -> None:
    """Serve MODEL by OpenAI's API, with the cache of each request bounded: vLLM's own server.

    Examples:
        kvvideo serve tiny
        kvvideo serve Qwen/Qwen2.5-VL-3B-Instruct --port 8000 --max-tokens 8192

    All other options are those of 'vllm serve', such as --port 8000 or --max-num-seqs 32: 'python -m kvvideo.launch
    --help=all' lists them. Only this machine can reach it unless --host says otherwise. What the caches do is told at
    /metrics.

    'kvvideo serve movie.kvv' answers questions about saved memories by the same API. The model stays loaded, and
    'kvvideo ask movie.kvv' uses it.
    """
    if _are_memories([model, *context.args]):
        _serve_memories([model, *context.args], answers)
        return
    from kvvideo.serve.server import Serving

    if model.startswith("-"):
        raise ConfigError(f"the model comes first: kvvideo serve MODEL {model} …")
    memory = Allowance.parse(cache.memory).memory
    line = Serving(model, cache.config(), fps, frame_tokens, memory, answers.port).command(context.args)
    if answers.api_key is not None:
        # Not on the line, which every user of the machine may read.
        os.environ["VLLM_API_KEY"] = answers.api_key
    # In place of this process: what vLLM starts imports that one's module, and the exit code is vLLM's. A Ctrl-C waits
    # until it knows what to do with one.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.execv(line[0], line)


def _serve_memories(words: list[str], answers: _Answers) -> None:
    if unknown := next((word for word in words if word.startswith("-")), None):
        raise ConfigError(f"{unknown} is not for memories; 'kvvideo serve {words[0]} --help' lists what is")
    from kvvideo.serve.memories import Answering, serve

    answering = Answering(
        EngineConfig(max_model_len=answers.max_model_len, seed=answers.seed),
        answers.looking(),
        None if answers.video is None else local_path(answers.video),
        answers.model_now,
        answers.dtype,
    )
    serve(
        [Path(word) for word in words],
        answering,
        host=answers.host,
        port=answers.port,
        key=answers.api_key,
        say=say,
        ensure=ensure,
    )
