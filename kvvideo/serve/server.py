"""``vllm serve`` with the bounded cache: sets it up, and refuses what cannot work before anything is loaded.

No server of our own: vLLM's parser reads the arguments, with our values in place of its defaults, and vLLM
serves. What is said explicitly stands, unless evicting tokens would silently break it.
"""

import argparse
import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvvideo.compression.config import KEY, CacheConfig
from kvvideo.errors import INTERRUPTED, ConfigError, EngineError, KvvideoError, first_line
from kvvideo.plugin import surface
from kvvideo.plugin.platform import is_cpu
from kvvideo.plugin.register import check_installed
from kvvideo.plugin.settings import cache_config
from kvvideo.session.arguments import block_size, engine_args
from kvvideo.session.config import EngineConfig
from kvvideo.session.environment import set_common
from kvvideo.session.hub import fetch, is_here, model_path, named
from kvvideo.session.model_config import text_config
from kvvideo.session.pool import block_bytes
from kvvideo.session.prediction import frame_pixels
from kvvideo.sizes import format_size

HOST = "127.0.0.1"
"""Address to listen at unless told otherwise: nobody but this machine can ask it."""

CPU_REQUESTS = 16
"""Requests computed at once on a CPU unless told otherwise; its pool holds as many at their largest."""

_FLAG = f"--{KEY}="
_DTYPES = {"half": "float16", "float": "float32"}
"""Names that vLLM also takes for types of numbers."""


@dataclass(frozen=True)
class Serving:
    """Settings of a server beside those that ``vllm serve`` takes.

    Attributes:
        model: hub name, directory, or ``tiny``.
        cache: how each request's cache is bounded.
        fps: frames per second to sample from a video.
        frame_tokens: most tokens for a pair of frames; None for the model's own, or 128.
        memory: bytes for the caches of all requests, on each GPU; None for what vLLM takes.
        port: to listen at.
    """

    model: str
    cache: CacheConfig
    fps: float = 2.0
    frame_tokens: int | None = None
    memory: int | None = None
    port: int = 8000

    def command(self, arguments: list[str]) -> list[str]:
        """Return the command line of a process that serves this, with further ``arguments`` of ``vllm serve``."""
        settings = {**vars(self), "cache": self.cache.as_dict()}
        del settings["model"]
        return [sys.executable, "-m", "kvvideo.launch", _FLAG + json.dumps(settings), self.model, *arguments]


def main(arguments: list[str]) -> None:
    """Serve: the body of ``python -m kvvideo.launch``. Errors become one line on stderr and an exit code."""
    try:
        if arguments and arguments[0].startswith(_FLAG):
            told = json.loads(arguments[0].removeprefix(_FLAG))
            cache = CacheConfig.from_dict(told.pop("cache"))
            _serve(Serving(arguments[1], cache, **told), arguments[1:])
        else:
            surface.check_version()
            surface.check()
            from kvvideo.plugin.server import ServeCommand

            command = ServeCommand()
            command.run(command.parse(arguments))
    except KvvideoError as error:
        print(f"kvvideo: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _serve(serving: Serving, arguments: list[str]) -> None:
    """Serve with the bounded cache.

    Raises:
        ConfigError: if something cannot be used as given, before anything is loaded.
        EngineError: if vLLM cannot be used, or ended otherwise than by being told to.
    """
    set_common()
    # vLLM ends its engine by a signal, often before that has taken its shared memory down. Python then does so, and
    # need not warn a person who pressed Ctrl-C of it.
    own = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), own)))
    check_installed()
    text_config(model_path(serving.model))
    surface.check()
    from kvvideo.plugin.server import ServeCommand

    command = ServeCommand()
    command.refuse_with("'python -m kvvideo.launch --help=all' lists what vLLM takes")
    command.set_defaults(_defaults(serving))
    args = command.parse(arguments)
    _complete(serving, args)
    _check(args)
    if args.load_format != "dummy" and os.path.isdir(args.model) and not is_here(serving.model):
        fetch(serving.model, tell=_say)
    _announce(serving, args)
    try:
        command.run(args)
    except KvvideoError:
        raise
    except Exception as error:
        raise EngineError(f"vLLM could not serve {serving.model!r}: {_reason(error)}") from error


def _defaults(serving: Serving) -> dict[str, Any]:
    """Return what stands in place of vLLM's defaults, by the names of its options."""
    low, high = frame_pixels(EngineConfig(serving.model), serving.frame_tokens)
    size = {"shortest_edge": low, "longest_edge": high}
    defaults = {
        **engine_args(**serving.cache.as_dict()),
        "host": HOST,
        "port": serving.port,
        "kv_cache_memory_bytes": serving.memory,
        # Told to end, it first answers what it is computing, if that takes no longer.
        "shutdown_timeout": 5,
        "block_size": block_size(),
        # Of a list of pictures, all; of a video file, as many as make this rate.
        "media_io_kwargs": {"video": {"num_frames": -1, "fps": serving.fps}},
        "mm_processor_kwargs": {"videos_kwargs": {"size": size, "cap_pixels_per_frame": False}},
    }
    if is_cpu():
        defaults |= {"enforce_eager": True, "skip_mm_profiling": True}
        defaults |= {"max_num_seqs": CPU_REQUESTS, "max_num_batched_tokens": EngineConfig.step_tokens}
    return defaults


def _complete(serving: Serving, args: argparse.Namespace) -> None:
    """Settle what depends on other arguments.

    Raises:
        ConfigError: if they settle the bounded cache by themselves.
    """
    path = model_path(serving.model)
    if args.served_model_name is None:
        short = [Path(path).name] if path == serving.model and os.path.isdir(path) else []
        args.served_model_name = [*short, serving.model]
    # Of another revision, or in another place, vLLM gets the model itself.
    elsewhere = args.revision is not None or args.download_dir is not None
    args.model_tag = args.model = named(serving.model) if elsewhere else path
    own = engine_args(**serving.cache.as_dict())["additional_config"]
    if args.additional_config != own and KEY in args.additional_config:
        raise ConfigError(f"additional-config: {KEY!r} in it is what options such as --strategy and --max-tokens say")
    args.additional_config = {**args.additional_config, **own}
    args.media_io_kwargs = {**args.media_io_kwargs, "video": _decoding(args)}
    if serving.memory is not None:
        least = _pool_bytes(serving, args, 1)
        if args.kv_cache_memory_bytes < least:
            raise ConfigError(
                f"memory: {format_size(args.kv_cache_memory_bytes)} is too little for a request of "
                f"{serving.cache.max_tokens} tokens; use at least {-(-least // 10**6)}MB, or a smaller --max-tokens"
            )
    elif is_cpu() and args.kv_cache_memory_bytes is None and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        args.kv_cache_memory_bytes = _pool_bytes(serving, args, args.max_num_seqs) or 1 << 30


def _pool_bytes(serving: Serving, args: argparse.Namespace, requests: int) -> int:
    """Return the bytes, on each GPU, of a pool that holds so many requests at their largest; 0 if they are unbounded.

    One block more stands for what is evicted.
    """
    schedule = serving.cache.schedule(args.block_size)
    if schedule is None:
        return 0
    config = EngineConfig(serving.model, serving.cache, _DTYPES.get(args.dtype, args.dtype))
    per_block: int = block_bytes(model_path(serving.model), config, args.block_size, args.tensor_parallel_size)
    size: int = args.block_size
    return (requests * (schedule.max_tokens // size + 1) + 1) * per_block


def _decoding(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that read whole files: our decoder, unless another is named, in the size they are shown."""
    from kvvideo.plugin.loader import LOADER

    said = {"video_backend": LOADER, **(args.media_io_kwargs.get("video") or {})}
    size = ((args.mm_processor_kwargs or {}).get("videos_kwargs") or {}).get("size") or {}
    if said["video_backend"] != LOADER or not {"shortest_edge", "longest_edge"} <= size.keys():
        return said
    return {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"], **said}


def _check(args: argparse.Namespace) -> None:
    """Check now what vLLM, or the cache, would find wrong once it is loading.

    Raises:
        ConfigError: saying what it would be.
    """
    from kvvideo.plugin.server import configured

    if args.uds is None:
        listening(args.host, args.port).close()
    try:
        config = configured(args)
    except KvvideoError:
        raise
    except Exception as error:
        raise ConfigError(f"vLLM refuses these settings: {_reason(error)}") from error
    cache_config(config)


def listening(host: str | None, port: int) -> socket.socket:
    """Return a socket that has the address.

    Raises:
        ConfigError: if it cannot be had.
    """
    found = socket.socket(socket.AF_INET6 if ":" in (host or "") else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host or "", port))
    except (OSError, OverflowError) as error:
        found.close()
        raise ConfigError(
            f"cannot listen on {host or 'any address'}, port {port}: {getattr(error, 'strerror', None) or error}; "
            "name another with --port or --host"
        ) from error
    return found


def _say(text: str) -> None:
    print(f"kvvideo: {text}", file=sys.stderr)


def _announce(serving: Serving, args: argparse.Namespace) -> None:
    scheme = "https" if args.ssl_keyfile else "http"
    where = f"unix:{args.uds}" if args.uds else f"{scheme}://{args.host or '0.0.0.0'}:{args.port}/v1"
    cache = serving.cache
    bound = f"at most {cache.max_tokens:,} tokens a request" if cache.schedule(args.block_size) else "no bound"
    print(f"kvvideo: serving {args.served_model_name[0]} at {where} ({cache.strategy}, {bound})", file=sys.stderr)
    if args.host == HOST and not args.uds:
        print("kvvideo: only this machine can reach it; --host 0.0.0.0 lets others", file=sys.stderr)


def _reason(error: Exception) -> str:
    """Return in a line what went wrong; of pydantic's errors, without its frame."""
    if callable(found := getattr(error, "errors", None)):
        return "; ".join(str(one["msg"]) for one in found())
    return first_line(error)
