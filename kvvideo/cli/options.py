"""Options that several commands share, and what they add up to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvvideo.cli import complete
from kvvideo.compression.config import ALWAYS, WAYS, CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.outputs import FORMATS, TEXT
from kvvideo.outputs.choice import TEMPLATE, listed
from kvvideo.session import EngineConfig
from kvvideo.session.config import DTYPES
from kvvideo.times import parse_time

if TYPE_CHECKING:
    from kvvideo.video import Live

CACHE, MODEL, VIDEO, OUTPUT = "Cache", "Model", "Video", "Output"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Hub name or directory; 'tiny' is bundled.",
        rich_help_panel=MODEL,
        autocompletion=complete.model,
    ),
]
Strategy = Annotated[
    str,
    typer.Option(
        "--strategy",
        "-s",
        help="What to keep; see 'kvvideo strategies'.",
        rich_help_panel=CACHE,
        autocompletion=complete.strategy,
    ),
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", help="Compact the cache when it holds this many tokens.", rich_help_panel=CACHE)
]
Ratio = Annotated[float, typer.Option("--ratio", help="Share of --max-tokens to keep.", rich_help_panel=CACHE)]
Budget = Annotated[
    int | None, typer.Option("--budget", help="Tokens to keep, instead of --ratio.", rich_help_panel=CACHE)
]
Sink = Annotated[int, typer.Option("--sink", help="First tokens that are always kept.", rich_help_panel=CACHE)]
Window = Annotated[
    int | None,
    typer.Option("--window", help="Most recent tokens that are always kept.", rich_help_panel=CACHE),
]
Queries = Annotated[
    int | None,
    typer.Option(
        "--queries", help="Last queries of each step that are watched (h2o, snapkv); 0: all.", rich_help_panel=CACHE
    ),
]
ScoreNorm = Annotated[
    str,
    typer.Option(
        "--score-norm",
        help="Attention received (h2o): sum or mean.",
        rich_help_panel=CACHE,
        autocompletion=complete.one_of("sum", "mean"),
    ),
]
Positions = Annotated[
    str,
    typer.Option(
        "--positions",
        help="absolute, or contiguous: close the gaps that eviction leaves.",
        rich_help_panel=CACHE,
        autocompletion=complete.one_of(*WAYS),
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="auto, float32, bfloat16 or float16.",
        rich_help_panel=MODEL,
        autocompletion=complete.one_of(*DTYPES),
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", rich_help_panel=MODEL)]
MaxModelLen = Annotated[
    int,
    typer.Option(
        "--max-model-len",
        help="Longest request for vLLM; limits the live cache, not the video.",
        rich_help_panel=MODEL,
    ),
]

Fps = Annotated[float, typer.Option("--fps", help="Frames per second to look at.", rich_help_panel=VIDEO)]
ChunkSeconds = Annotated[float, typer.Option("--chunk", help="Seconds ingested at a time.", rich_help_panel=VIDEO)]
Start = Annotated[str | None, typer.Option("--from", help="Begin here, e.g. 1:30.", rich_help_panel=VIDEO)]
End = Annotated[str | None, typer.Option("--to", help="End here.", rich_help_panel=VIDEO)]
FrameTokens = Annotated[
    int | None,
    typer.Option(
        "--frame-tokens",
        min=1,
        help="Most tokens for a pair of frames; more shows finer detail. Default: 128, or what the model names.",
        rich_help_panel=VIDEO,
    ),
]
Decoder = Annotated[
    str,
    typer.Option(
        "--decoder",
        help="pyav; nvdec, on an NVIDIA GPU; or decord (plain H.264 mp4 only).",
        rich_help_panel=VIDEO,
        autocompletion=complete.decoder,
    ),
]
Follow = Annotated[
    bool,
    typer.Option("--follow", help="The file is still being written: read on at its end.", rich_help_panel=VIDEO),
]
Retry = Annotated[
    str,
    typer.Option("--retry", help="Live: how long to wait for a source that stalls; 0: not.", rich_help_panel=VIDEO),
]
WhenBehind = Annotated[
    str,
    typer.Option(
        "--when-behind",
        help="Live, and too fast for the model: lag, or drop what cannot be taken in.",
        rich_help_panel=VIDEO,
        autocompletion=complete.one_of("lag", "drop"),
    ),
]
MaxAnswerTokens = Annotated[int, typer.Option("--max-answer-tokens", min=1, help="Longest answer.")]


def _formats(context: typer.Context, option: typer.CallbackParam, value: list[str] | None) -> list[str] | None:
    """``value``, which is looked at before anything else is done, so that it can be said where it was set."""
    try:
        listed(value or ())
    except ConfigError as error:
        if is_typed(context, str(option.name)):
            raise
        raise typer.BadParameter(str(error).removeprefix("format: ")) from None
    return value


Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        "-f",
        metavar="NAME,…",
        callback=_formats,
        help=f"{', '.join((TEXT, *FORMATS))}. Several, or HTML, go to files; text is on stdout then. Repeatable.",
        autocompletion=lambda: [(TEXT, "for people, on stdout"), *((name, f.help) for name, f in FORMATS.items())],
        rich_help_panel=OUTPUT,
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="NAME",
        help=f"Files to write, with fields in braces; '-' is stdout. Default: '{TEMPLATE}' in this folder.",
        rich_help_panel=OUTPUT,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there already.", rich_help_panel=OUTPUT)]

RETRY, WHEN_BEHIND = "30s", "lag"
FPS, CHUNK_SECONDS, DECODER, MAX_ANSWER_TOKENS, CHECKPOINT_EVERY = 2.0, 4.0, "pyav", 128, "60s"

DEFAULT_MODEL = EngineConfig.model
_CACHE = CacheConfig()
STRATEGY, MAX_TOKENS, RATIO, SINK = _CACHE.strategy, _CACHE.max_tokens, _CACHE.ratio, _CACHE.sink
SCORE_NORM, POSITIONS = ALWAYS["score_norm"], _CACHE.positions
MAX_MODEL_LEN = EngineConfig.max_model_len


def cache_config(
    strategy: str,
    max_tokens: int,
    ratio: float,
    budget: int | None,
    sink: int,
    window: int | None,
    queries: int | None,
    score_norm: str,
    positions: str,
) -> CacheConfig:
    """The cache settings that these options describe."""
    own = {"queries": queries, "score_norm": score_norm}
    return CacheConfig(strategy, max_tokens, ratio, budget, sink, window, positions=positions, options=own.items())


def reading(
    config: EngineConfig, fps: float, chunk: float, start: str | None, end: str | None, frame_tokens: int | None
) -> dict[str, Any]:
    """How these options say that a video is looked at, as ``plan`` and ``Source`` take it."""
    begin, until = (None if time is None else parse_time(time) for time in (start, end))
    from kvvideo.session.prediction import frame_pixels

    low, high = frame_pixels(config, frame_tokens)
    return {
        "fps": fps,
        "chunk_seconds": chunk,
        "start": begin,
        "end": until,
        "min_pixels": low,
        "max_pixels": high,
    }


@contextmanager
def video_first(video: str, follow: bool) -> Iterator[None]:
    """Say of a file that is not there, rather than of a model: that may be a download away."""
    from kvvideo.video.address import is_live
    from kvvideo.video.decoder import check_file

    try:
        yield
    except ConfigError:
        if not follow and not is_live(video):
            check_file(video)
        raise


def place(video: str) -> str:
    """The name of a video, also of one that was given as a ``file://`` URL."""
    from kvvideo.video.address import local_path

    return local_path(video)


def live(video: str, follow: bool, retry: str, when_behind: str) -> "Live | None":
    """How these options say that a live source is treated; None for a file."""
    from kvvideo.video import Live, is_live

    return Live(parse_time(retry), when_behind, follow) if follow or is_live(video) else None


def period(every: str) -> float:
    """Seconds of video between checkpoints, 0 for none.

    Raises:
        ConfigError: if it is no time.
    """
    try:
        return parse_time(every)
    except ConfigError as error:
        raise ConfigError(f"checkpoint-every: {error}") from error


def is_typed(context: typer.Context, name: str) -> bool:
    """Whether the option ``name`` is on the command line, and not set by a variable or a file for many runs."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
