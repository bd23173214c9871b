"""Options that several commands share, in groups, and the settings that each group adds up to."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvvideo.cli import complete
from kvvideo.compression.config import ALWAYS, WAYS, CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.outputs import FORMATS, TEXT, Choice, choose
from kvvideo.outputs.choice import TEMPLATE, listed
from kvvideo.outputs.look import ROOM, Look
from kvvideo.runs.recall import COUNT, MOST, Looking
from kvvideo.session import EngineConfig
from kvvideo.session.config import DTYPES
from kvvideo.sizes import parse_size
from kvvideo.times import parse_time
from kvvideo.video.address import is_live
from kvvideo.video.decoder import check_file

if TYPE_CHECKING:
    from kvvideo.video import Source

CACHE, RECALL, MODEL, VIDEO, OUTPUT = "Cache", "Looking again", "Model", "Video", "Output"
"""Panels of the help."""

FPS, CHUNK_SECONDS, MAX_ANSWER_TOKENS, CHECKPOINT_EVERY = 2.0, 4.0, 128, "60s"
DEFAULT_MODEL, MAX_MODEL_LEN = EngineConfig.model, EngineConfig.max_model_len
_CACHE = CacheConfig()
STRATEGY, MAX_TOKENS, RATIO, SINK = _CACHE.strategy, _CACHE.max_tokens, _CACHE.ratio, _CACHE.sink
SCORE_NORM, POSITIONS = ALWAYS["score_norm"], _CACHE.positions

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
FrameTokens = Annotated[
    int | None,
    typer.Option(
        "--frame-tokens",
        min=1,
        help="Most tokens for a pair of frames; more shows finer detail. Default: 128, or what the model names.",
        rich_help_panel=VIDEO,
    ),
]
MaxAnswerTokens = Annotated[int, typer.Option("--max-answer-tokens", min=1, help="Longest answer.")]
Question = Annotated[
    list[str] | None,
    typer.Option("--question", "-q", help="What to ask: at the end, or '@10:30 …' at that moment. Repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would take, without loading the model.")]


def _formats(context: typer.Context, option: typer.CallbackParam, value: list[str] | None) -> list[str] | None:
    """Return ``value``; a wrong one is refused at once, while it is known where it was set."""
    try:
        listed(value or ())
    except ConfigError as error:
        if is_typed(context, str(option.name)):
            raise
        raise typer.BadParameter(str(error).removeprefix("format: ")) from None
    return value


@dataclass(frozen=True)
class Cache:
    """The strategy of the cache, and its budget."""

    strategy: Strategy = STRATEGY
    max_tokens: MaxTokens = MAX_TOKENS
    ratio: Ratio = RATIO
    budget: Budget = None
    sink: Sink = SINK
    window: Window = None
    queries: Queries = None
    score_norm: ScoreNorm = SCORE_NORM
    positions: Positions = POSITIONS

    def config(self) -> CacheConfig:
        """Return the cache's settings.

        Raises:
            ConfigError: if one is out of range, or in conflict with another.
        """
        common = dict(vars(self))
        own = {name: common.pop(name) for name in ("queries", "score_norm")}
        return CacheConfig(**common, options=own.items())


@dataclass(frozen=True)
class Recall:
    """Looking again at what was evicted."""

    recall: Annotated[
        int,
        typer.Option(
            "--recall",
            min=0,
            max=MOST,
            help="Stretches that a question finds and is shown again, if they were evicted; 0: none.",
            rich_help_panel=RECALL,
        ),
    ] = COUNT
    recall_frame_tokens: Annotated[
        int | None,
        typer.Option(
            "--recall-frame-tokens",
            min=4,
            help="Most tokens for a pair of their frames, to look closer than before. Default: as many as before.",
            rich_help_panel=RECALL,
        ),
    ] = None

    def looking(self) -> Looking:
        """Return the settings of looking again.

        Raises:
            ConfigError: if one is out of range.
        """
        return Looking(self.recall, self.recall_frame_tokens)


@dataclass(frozen=True)
class LiveRecall(Recall):
    """The same for a video that may be live."""

    keep_frames: Annotated[
        str,
        typer.Option(
            "--keep-frames",
            help="Room on the disk for frames of what can be read only once, e.g. a camera, meanwhile; 0: none.",
            rich_help_panel=RECALL,
        ),
    ] = "1GB"

    def looking(self) -> Looking:
        """Return the settings of looking again, frames that are kept included."""
        try:
            kept = 0 if self.keep_frames.strip() == "0" else parse_size(self.keep_frames)
        except ConfigError as error:
            raise ConfigError(f"keep-frames: {error}") from error
        return replace(super().looking(), keep_bytes=kept)


@dataclass(frozen=True)
class Engine:
    """The model, and how it runs."""

    model: Model = DEFAULT_MODEL
    dtype: Dtype = "auto"
    seed: Seed = 0
    max_model_len: MaxModelLen = MAX_MODEL_LEN

    def config(self, cache: CacheConfig, **more: Any) -> EngineConfig:
        """Return the engine's settings, ``more`` of ``EngineConfig`` included.

        Raises:
            ConfigError: if one is out of range.
        """
        return EngineConfig(cache=cache, **vars(self), **more)


@dataclass(frozen=True)
class Video:
    """The part of a video that is read, and its frames."""

    fps: Fps = FPS
    chunk: ChunkSeconds = CHUNK_SECONDS
    start: Annotated[str | None, typer.Option("--from", help="Begin here, e.g. 1:30.", rich_help_panel=VIDEO)] = None
    end: Annotated[str | None, typer.Option("--to", help="End here.", rich_help_panel=VIDEO)] = None
    frame_tokens: FrameTokens = None
    decoder: Annotated[
        str,
        typer.Option(
            "--decoder",
            help="pyav; nvdec, on an NVIDIA GPU; or decord (plain H.264 mp4 only).",
            rich_help_panel=VIDEO,
            autocompletion=complete.decoder,
        ),
    ] = "pyav"

    def reading(self, config: EngineConfig) -> dict[str, Any]:
        """Return the settings that ``plan`` and ``Source`` take.

        Raises:
            ConfigError: if ``--from`` or ``--to`` is no time, or the model cannot be had.
        """
        begin, until = (None if time is None else parse_time(time) for time in (self.start, self.end))
        from kvvideo.session.prediction import frame_pixels

        low, high = frame_pixels(config, self.frame_tokens)
        return {
            "fps": self.fps,
            "chunk_seconds": self.chunk,
            "start": begin,
            "end": until,
            "min_pixels": low,
            "max_pixels": high,
        }


@dataclass(frozen=True)
class LiveVideo(Video):
    """A video that may be live: also what to do when it stalls, or is too fast."""

    follow: Annotated[
        bool,
        typer.Option("--follow", help="The file is still being written: read on at its end.", rich_help_panel=VIDEO),
    ] = False
    retry: Annotated[
        str,
        typer.Option("--retry", help="Live: how long to wait for a source that stalls; 0: not.", rich_help_panel=VIDEO),
    ] = "30s"
    when_behind: Annotated[
        str,
        typer.Option(
            "--when-behind",
            help="Live, and too fast for the model: lag, or drop what cannot be taken in.",
            rich_help_panel=VIDEO,
            autocompletion=complete.one_of("lag", "drop"),
        ),
    ] = "lag"

    def source(self, video: str, reading: dict[str, Any]) -> "Source":
        """Return ``video`` as a source that is read as ``reading`` says.

        Raises:
            ConfigError: if a setting is out of range.
        """
        from kvvideo.video import Live, Source

        is_one = self.follow or is_live(video)
        live = Live(parse_time(self.retry), self.when_behind, self.follow) if is_one else None
        return Source(video, decoder=self.decoder, live=live, **reading)

    @contextmanager
    def looked_for(self, video: str) -> Iterator[None]:
        """Report a file that is missing in place of an error of the model's, which may be a download away."""
        try:
            yield
        except ConfigError:
            if not self.follow and not is_live(video):
                check_file(video)
            raise


@dataclass(frozen=True)
class Output:
    """The formats of answers, and the files they go to."""

    format: Annotated[
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
    ] = None
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="NAME",
            help=f"Files to write, with fields in braces; '-' is stdout. Default: '{TEMPLATE}' in this folder.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that are there already.", rich_help_panel=OUTPUT)
    ] = False

    pictures: Annotated[
        str,
        typer.Option(
            "--pictures",
            help="In HTML: all; none; or auto: as large as there is room for in a page of 3 MB.",
            autocompletion=complete.one_of(*ROOM),
            rich_help_panel=OUTPUT,
        ),
    ] = Look.pictures
    video_link: Annotated[
        bool,
        typer.Option(
            "--video-link",
            help="In HTML: play the video beside the answers, from its file.",
            rich_help_panel=OUTPUT,
        ),
    ] = False

    def look(self, video: str | None) -> Look:
        """Return how an HTML report shows ``video``, which is None if it is not at hand.

        Raises:
            ConfigError: if it cannot show it so.
        """
        choice = self.choice()
        plays = self.video_link and "html" in (choice.stdout, *choice.files)
        return Look(self.pictures, video if plays else None)

    def choice(self, strategies: int = 1) -> Choice:
        """Return where the answers of so many strategies go.

        Raises:
            ConfigError: if a format cannot go where it should.
        """
        return choose(self.format or (), self.output, strategies)


def period(every: str) -> float:
    """Return the seconds of video between checkpoints, 0 for none.

    Raises:
        ConfigError: if ``every`` is no time.
    """
    try:
        return parse_time(every)
    except ConfigError as error:
        raise ConfigError(f"checkpoint-every: {error}") from error


def is_typed(context: typer.Context, name: str) -> bool:
    """Return True if the option ``name`` is on the command line, not set by a variable or a file for many runs."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
