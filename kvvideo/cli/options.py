"""Options that several commands share, in groups, and the settings that each group adds up to."""

import math
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvvideo.cli import complete
from kvvideo.cli.panels import ASK, CACHE, EXPERT, MODEL, OUTPUT, VIDEO
from kvvideo.cli.stop import note
from kvvideo.compression.config import ALWAYS, WAYS, CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.outputs import FORMATS, TEXT, Choice, choose
from kvvideo.outputs.choice import TEMPLATE, listed
from kvvideo.outputs.look import ROOM, Look
from kvvideo.prompt import well_formed
from kvvideo.runs import agenda
from kvvideo.runs.questions import STDIN, read_questions
from kvvideo.runs.recall import COUNT, MOST, Looking
from kvvideo.session import EngineConfig
from kvvideo.session.allowance import AUTO, Allowance, chunk_tokens
from kvvideo.session.config import DTYPES
from kvvideo.sizes import parse_size
from kvvideo.times import parse_time
from kvvideo.video.address import is_live, local_path
from kvvideo.video.decoder import check_file

if TYPE_CHECKING:
    from kvvideo.video import Source

A_VIDEO = "A file, a URL, a camera's number, or '-' for stdin."
FPS, CHUNK_SECONDS, MAX_ANSWER_TOKENS, CHECKPOINT_EVERY = 2.0, 4.0, 128, "60s"
DEFAULT_MODEL, MAX_MODEL_LEN = EngineConfig.model, EngineConfig.max_model_len
_CACHE = CacheConfig()
STRATEGY, MAX_TOKENS, RATIO, SINK = _CACHE.strategy, _CACHE.max_tokens, _CACHE.ratio, _CACHE.sink
SCORE_NORM, POSITIONS = ALWAYS["score_norm"], _CACHE.positions
_LONG_READ = 256 << 20
"""Bytes of a file from which on it is said that a track of subtitles is looked for: reading them may take seconds."""

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
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
        metavar="NAME",
        help="What to keep; see 'kvvideo strategies'.",
        rich_help_panel=CACHE,
        autocompletion=complete.strategy,
    ),
]
_MAX_TOKENS = "Compact at so many tokens."
MaxTokens = Annotated[int, typer.Option("--max-tokens", help=_MAX_TOKENS, rich_help_panel=EXPERT)]
Ratio = Annotated[float, typer.Option("--ratio", help="Share of --max-tokens to keep.", rich_help_panel=EXPERT)]
Budget = Annotated[
    int | None, typer.Option("--budget", help="Tokens to keep, instead of --ratio.", rich_help_panel=EXPERT)
]
Sink = Annotated[int, typer.Option("--sink", help="First tokens that are always kept.", rich_help_panel=EXPERT)]
Window = Annotated[
    int | None, typer.Option("--window", help="Most recent tokens that are always kept.", rich_help_panel=EXPERT)
]
Queries = Annotated[
    int | None,
    typer.Option("--queries", help="Queries of a step to watch (h2o, snapkv); 0: all.", rich_help_panel=EXPERT),
]
ScoreNorm = Annotated[
    str,
    typer.Option(
        "--score-norm",
        metavar="NAME",
        help="Attention received (h2o): sum or mean.",
        rich_help_panel=EXPERT,
        autocompletion=complete.one_of("sum", "mean"),
    ),
]
Positions = Annotated[
    str,
    typer.Option(
        "--positions",
        metavar="NAME",
        help="absolute; contiguous: close evicted gaps.",
        rich_help_panel=EXPERT,
        autocompletion=complete.one_of(*WAYS),
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="auto, float32, bfloat16 or float16.",
        rich_help_panel=MODEL,
        autocompletion=complete.one_of(*DTYPES),
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", rich_help_panel=EXPERT)]
_MAX_MODEL_LEN = "vLLM's longest request; not the video's."
MaxModelLen = Annotated[int, typer.Option("--max-model-len", help=_MAX_MODEL_LEN, rich_help_panel=EXPERT)]

Fps = Annotated[float, typer.Option("--fps", help="Frames per second to look at.", rich_help_panel=VIDEO)]
ChunkSeconds = Annotated[
    float, typer.Option("--chunk", metavar="SECONDS", help="Seconds ingested at a time.", rich_help_panel=EXPERT)
]
FrameTokens = Annotated[
    int | None,
    typer.Option(
        "--frame-tokens",
        min=1,
        help="Most tokens for a pair of frames; more shows finer detail. [128, or what the model names]",
        rich_help_panel=VIDEO,
    ),
]
MaxAnswerTokens = Annotated[
    int, typer.Option("--max-answer-tokens", min=1, help="Longest answer.", rich_help_panel=ASK)
]
Question = Annotated[
    list[str] | None,
    typer.Option("--question", "-q", help="At the end, or '@10:30 …' at that time. Repeatable.", rich_help_panel=ASK),
]
QuestionsFile = Annotated[
    Path | None,
    typer.Option(
        "--questions",
        metavar="FILE",
        allow_dash=True,
        show_default=False,
        help="Questions: one a line, or JSONL; '-' is stdin.",
        rich_help_panel=ASK,
    ),
]
System = Annotated[
    str,
    typer.Option(
        "--system",
        metavar="TEXT",
        show_default=False,
        help="Told before each question, e.g. 'Answer in one word.'",
        rich_help_panel=ASK,
    ),
]
CheckpointEvery = Annotated[
    str,
    typer.Option(
        "--checkpoint-every",
        metavar="TIME",
        help="Video between checkpoints; 0: no --resume.",
        rich_help_panel=CACHE,
    ),
]
Subtitles = Annotated[
    str,
    typer.Option(
        "--subtitles",
        metavar="FILE",
        help="Words to show with the frames: a file, auto or off.",
        rich_help_panel=VIDEO,
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Say what it would take, without loading the model.", rich_help_panel=OUTPUT),
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there already.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=OUTPUT)]


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
class Questions:
    """The questions, and what the model is told before each."""

    question: Question = None
    questions: QuestionsFile = None
    system: System = ""

    def listed(self, video: str) -> list["agenda.Question"]:
        """Return the questions about ``video`` of the command line, then those of the file.

        Raises:
            ConfigError: if one cannot be read, or is to come from stdin as ``video`` does.
        """
        found = [agenda.Question.parse(text) for text in self.question or ()]
        if self.questions is not None:
            name = str(self.questions)
            if name == STDIN == video:
                raise ConfigError("questions: the video comes from stdin already; write the questions to a file")
            found += read_questions(name)
        return [replace(question, system=self.told) for question in found]

    @property
    def told(self) -> str:
        """Words that the model is told before each question; empty for none."""
        return well_formed(self.system).strip()


@dataclass(frozen=True)
class Cache:
    """The strategy of the cache, and its budget."""

    strategy: Strategy = STRATEGY
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help=_MAX_TOKENS, rich_help_panel=EXPERT)] = (
        MAX_TOKENS
    )
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
        common = {name: getattr(self, name) for name in Cache.__dataclass_fields__}
        own = {name: common.pop(name) for name in ("queries", "score_norm")}
        return CacheConfig(**common | {"max_tokens": self.tokens or MAX_TOKENS}, options=own.items())

    @property
    def tokens(self) -> int | None:
        """``max_tokens`` if it is exact; a budget beyond the default is, and needs as much room as the ratio says."""
        if self.max_tokens is None and self.budget is not None and self.budget >= MAX_TOKENS and 0 < self.ratio < 1:
            return math.ceil(self.budget / self.ratio)
        return self.max_tokens


@dataclass(frozen=True)
class Memory(Cache):
    """The same, as large as ``memory`` says unless ``max_tokens`` does."""

    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", help=f"{_MAX_TOKENS} [by --memory]", rich_help_panel=EXPERT),
    ] = None
    memory: Annotated[
        str,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Room for the cache, e.g. 8GB.",
            rich_help_panel=CACHE,
        ),
    ] = AUTO

    @property
    def is_auto(self) -> bool:
        """True if the machine decides."""
        return self.tokens is None and self.memory.strip().lower() == AUTO

    def settle(
        self,
        config: EngineConfig,
        caches: Sequence[CacheConfig],
        reading: dict[str, Any],
        max_model_len: int | None,
        machine: bool = True,
    ) -> tuple[EngineConfig, list[CacheConfig]]:
        """Return the settings with their numbers for a video that is read as ``reading`` says; see ``Allowance``.

        Raises:
            ConfigError: if the size is none, too little, or more than there is room for.
        """
        allowance = Allowance.parse(self.memory, self.tokens, max_model_len)
        chunk = chunk_tokens(reading["fps"], reading["chunk_seconds"], reading["max_pixels"]) + config.words_tokens
        return allowance.settle(config, caches, chunk, machine)


@dataclass(frozen=True)
class Recall:
    """Looking again at what was evicted."""

    recall: Annotated[
        int,
        typer.Option(
            "--recall",
            min=0,
            max=MOST,
            help="Stretches a question looks at again; 0: none.",
            rich_help_panel=CACHE,
        ),
    ] = COUNT
    recall_frame_tokens: Annotated[
        int | None,
        typer.Option(
            "--recall-frame-tokens",
            min=4,
            help="Tokens for two frames looked at again. [as before]",
            rich_help_panel=EXPERT,
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
            metavar="SIZE",
            help="Disk for frames of a camera or a pipe.",
            rich_help_panel=CACHE,
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
    max_model_len: Annotated[
        int | None,
        typer.Option("--max-model-len", help=f"{_MAX_MODEL_LEN} [enough]", rich_help_panel=EXPERT),
    ] = None

    def config(self, cache: CacheConfig, **more: Any) -> EngineConfig:
        """Return the engine's settings, ``more`` of ``EngineConfig`` included.

        Raises:
            ConfigError: if one is out of range.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        return EngineConfig(cache=cache, **given, **more)


@dataclass(frozen=True)
class Video:
    """The part of a video that is read, its frames, and the words that go with them."""

    fps: Fps = FPS
    chunk: ChunkSeconds = CHUNK_SECONDS
    start: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Begin here, e.g. 1:30.", rich_help_panel=VIDEO)
    ] = None
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="End here.", rich_help_panel=VIDEO)] = None
    frame_tokens: FrameTokens = None
    subtitles: Subtitles = "auto"
    decoder: Annotated[
        str,
        typer.Option(
            "--decoder",
            metavar="NAME",
            help="pyav, nvdec (NVIDIA), decord (H.264 mp4).",
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
        typer.Option("--follow", help="The file is still written: read on at its end.", rich_help_panel=VIDEO),
    ] = False
    retry: Annotated[
        str,
        typer.Option(
            "--retry", metavar="TIME", help="Live: wait so long for a source that stalls.", rich_help_panel=VIDEO
        ),
    ] = "30s"
    when_behind: Annotated[
        str,
        typer.Option(
            "--when-behind",
            metavar="NAME",
            help="Live, if the model is too slow: lag or drop.",
            rich_help_panel=VIDEO,
            autocompletion=complete.one_of("lag", "drop"),
        ),
    ] = "lag"

    def source(self, video: str, reading: dict[str, Any], spared: Collection[Path] = ()) -> "Source":
        """Return ``video`` as a source that is read as ``reading`` says, with its subtitles; a line says which.

        Args:
            video: as it was named.
            reading: as of ``reading``.
            spared: files beside the video that are no subtitles of it.

        Raises:
            ConfigError: if a setting is out of range.
            VideoError: if there are no such subtitles.
        """
        from kvvideo.cli import render
        from kvvideo.video import Live, Source

        is_one = self.follow or is_live(video)
        live = Live(parse_time(self.retry), self.when_behind, self.follow) if is_one else None
        source = Source(video, decoder=self.decoder, live=live, **reading)
        is_long = os.path.isfile(video) and os.path.getsize(video) > _LONG_READ
        with render.Transient() if is_long else nullcontext() as shown:
            if shown is not None:
                shown.wait(f"looking for subtitles of {video} …")
            return source.with_subtitles(local_path(self.subtitles), spared=spared, note=note)

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
            help=f"{', '.join((TEXT, *FORMATS))}.",
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
            help=f"Files; '-' is stdout. [{TEMPLATE}]",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    force: Force = False

    pictures: Annotated[
        str,
        typer.Option(
            "--pictures",
            metavar="HOW",
            help="In HTML: all, none, or auto: a page of 3 MB.",
            autocompletion=complete.one_of(*ROOM),
            rich_help_panel=OUTPUT,
        ),
    ] = Look.pictures
    video_link: Annotated[
        bool,
        typer.Option(
            "--video-link",
            help="In HTML: play the video beside the answers.",
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
