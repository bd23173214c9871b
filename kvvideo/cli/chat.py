"""``kvvideo chat``: talk about a video while it plays."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from kvvideo.chat import commands
from kvvideo.cli import options
from kvvideo.cli.download import ensure
from kvvideo.errors import INTERRUPTED, ConfigError
from kvvideo.session import EngineConfig
from kvvideo.sizes import parse_size

if TYPE_CHECKING:
    from kvvideo.chat.chat import Screen
    from kvvideo.chat.player import Player

_QUESTIONS = 4
"""Questions that the pool has room for: one with the dialogue before it, or those that are watched."""
_OF_A_VIDEO = (
    "strategy",
    "max_tokens",
    "ratio",
    "budget",
    "sink",
    "window",
    "queries",
    "score_norm",
    "positions",
    "fps",
    "chunk",
    "start",
    "end",
    "frame_tokens",
    "decoder",
    "follow",
    "retry",
    "when_behind",
)
"""Options that say how a video is looked at and remembered, which a memory already says."""


def command(
    context: typer.Context,
    video: Annotated[
        str,
        typer.Argument(
            help="A video file or a saved memory (.kvv); or live: '-' (stdin), a camera's number, a URL (rtsp://…).",
            show_default=False,
        ),
    ],
    remember: Annotated[
        bool, typer.Option("--remember", help="Let what is said become part of what the model has seen.")
    ] = False,
    speed: Annotated[str, typer.Option("--speed", help="How fast to play: max, 1x, 2x, 0.5x.")] = "max",
    paused: Annotated[bool, typer.Option("--paused", help="Do not play until /play.")] = False,
    checkpoint_every: Annotated[
        str, typer.Option("--checkpoint-every", help="Seconds of video between the memories that /at goes back to.")
    ] = options.CHECKPOINT_EVERY,
    max_disk: Annotated[str, typer.Option("--max-disk", help="Room for those memories, while the chat lasts.")] = "2GB",
    beside: Annotated[
        str | None, typer.Option("--video", help="The video of a saved memory, if it is somewhere else now.")
    ] = None,
    strategy: options.Strategy = options.STRATEGY,
    max_tokens: options.MaxTokens = options.MAX_TOKENS,
    ratio: options.Ratio = options.RATIO,
    budget: options.Budget = None,
    sink: options.Sink = options.SINK,
    window: options.Window = None,
    queries: options.Queries = None,
    score_norm: options.ScoreNorm = options.SCORE_NORM,
    positions: options.Positions = options.POSITIONS,
    model: options.Model = options.DEFAULT_MODEL,
    dtype: options.Dtype = "auto",
    seed: options.Seed = 0,
    max_model_len: options.MaxModelLen = options.MAX_MODEL_LEN,
    fps: options.Fps = options.FPS,
    chunk: options.ChunkSeconds = options.CHUNK_SECONDS,
    start: options.Start = None,
    end: options.End = None,
    frame_tokens: options.FrameTokens = None,
    decoder: options.Decoder = options.DECODER,
    follow: options.Follow = False,
    retry: options.Retry = options.RETRY,
    when_behind: options.WhenBehind = options.WHEN_BEHIND,
) -> None:
    """Talk about VIDEO while it plays, in a terminal or through pipes. /help lists what can be done.

    The video goes on while you type. Questions leave no trace in what the model remembers of it, unless --remember
    is given. Through a pipe, each line waits until the video is at its end or paused, so that a script always gets the
    same answers; of a camera or a broadcast, which may have no end, it is answered at once.
    """
    video, beside = options.place(video), None if beside is None else options.place(beside)
    given = {name for name in context.params if options.is_typed(context, name)}
    pace, every, room = commands.parse_speed(speed), options.period(checkpoint_every), parse_size(max_disk)
    cache = options.cache_config(strategy, max_tokens, ratio, budget, sink, window, queries, score_norm, positions)
    config = EngineConfig(model, cache, dtype, max_model_len, questions=_QUESTIONS, seed=seed)
    from kvvideo.chat.chat import Chat
    from kvvideo.chat.opening import Opening
    from kvvideo.chat.player import Player
    from kvvideo.chat.repl import PipeScreen, TerminalScreen, run_pipe, run_terminal, unseen
    from kvvideo.chat.scratch import scratch
    from kvvideo.runs.journal import state_directory
    from kvvideo.storage.file import is_memory_file
    from kvvideo.video import Source
    from kvvideo.video.address import Address

    file = Path(video) if is_memory_file(video) else None
    if file is not None and (settled := [name for name in _OF_A_VIDEO if name in given]):
        flags = ", ".join(parameter.opts[0] for parameter in context.command.params if parameter.name in settled)
        raise ConfigError(f"{flags}: {video!r} is a memory, which stays as it was made; leave that out")
    if file is None and beside is not None:
        raise ConfigError(f"--video: {video!r} is a video itself; leave that out")
    if file is None:
        with options.video_first(video, follow):
            source = Source(
                video,
                decoder=decoder,
                live=options.live(video, follow, retry, when_behind),
                **options.reading(config, fps, chunk, start, end, frame_tokens),
            )
            ensure(model, source)
    typed = sys.stdin
    if video == "-":
        # Lines and video cannot come the same way.
        typed = _terminal()
    screen = TerminalScreen() if typed.isatty() and sys.stdout.isatty() else PipeScreen()
    code, at_once = 0, False
    with scratch() as directory:
        opening = Opening(
            config,
            directory,
            room,
            every,
            beside,
            model if "model" in given else None,
            dtype if "dtype" in given else None,
            screen.notice,
        )
        player = Player(
            lambda: opening.open_video(source) if file is None else opening.open_memory(file),
            screen.notice,
            pace,
            playing=not paused,
        )
        with closing(player), _left_on_signals():
            screen.notice(f"loading {config.model if file is None else file} …")
            try:
                with unseen(typed) if isinstance(screen, TerminalScreen) else nullcontext():
                    _wait(player, screen)
            except (KeyboardInterrupt, SystemExit) as stop:
                code, at_once = getattr(stop, "code", INTERRUPTED), True
            else:
                chat = Chat(
                    player, screen, video, remember, lambda playback, path: opening.open_memory(path, playback), file
                )
                if isinstance(screen, TerminalScreen):
                    code = run_terminal(chat, screen, typed, state_directory() / "history")
                else:
                    code = run_pipe(chat, typed, endless=file is None and not Address.of(video).waits)
    if at_once:
        # A thread that loads a model can only be ended with its process; nothing is lost yet.
        os._exit(code)
    if code:
        raise SystemExit(code)


def _wait(player: "Player", screen: "Screen") -> None:
    """Until the model is loaded, say how long that has taken."""
    begun = time.monotonic()
    player.waiting = lambda: screen.waiting(f"… {time.monotonic() - begun:.0f} s; Ctrl-C leaves")
    try:
        player.wait_ready()
    finally:
        player.waiting = lambda: None
        screen.waiting("")


def _terminal() -> TextIO:
    try:
        return open("/dev/tty")
    except OSError:
        raise ConfigError(
            "the video comes from stdin, so there is nowhere to type; give a file or a URL, or run it in a terminal"
        ) from None


@contextmanager
def _left_on_signals() -> Iterator[None]:
    """What ends a program, such as the terminal that is closed, ends a chat as /bye does: nothing is left behind.

    Once it ends, for whatever reason, no signal ends it halfway: a window and the shell in it each send their own.
    """
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]

    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    def leave(number: int, frame: FrameType | None) -> None:
        ignore()
        raise SystemExit(128 + number)

    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        ignore()
