"""``kvvideo chat``: talk about a video while it plays."""

import os
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from kvvideo.chat import commands
from kvvideo.cli import options
from kvvideo.cli.download import ensure
from kvvideo.cli.panels import PLAY
from kvvideo.errors import INTERRUPTED, ConfigError
from kvvideo.prompt import well_formed
from kvvideo.session import EngineConfig
from kvvideo.sizes import parse_size
from kvvideo.video.address import Address, local_path

if TYPE_CHECKING:
    from kvvideo.chat.player import Player
    from kvvideo.chat.screen import Screen
    from kvvideo.video import Source

_QUESTIONS = 4
"""Questions that the pool has room for: one with the dialogue before it, or those that are watched."""
_OF_A_VIDEO = {field.name for group in (options.Memory, options.LiveVideo) for field in fields(group)}
"""Options that say how a video is looked at and remembered, which a memory already says."""


def command(
    context: typer.Context,
    video: Annotated[
        str,
        typer.Argument(
            help=f"A saved memory (.kvv). Or {options.A_VIDEO[0].lower()}{options.A_VIDEO[1:]}",
            show_default=False,
        ),
    ],
    *,
    remember: Annotated[
        bool,
        typer.Option("--remember", help="Let what is said become part of the memory.", rich_help_panel=options.ASK),
    ] = False,
    system: options.System = "",
    speed: Annotated[
        str,
        typer.Option("--speed", metavar="SPEED", help="How fast to play: max, 1x, 2x, 0.5x.", rich_help_panel=PLAY),
    ] = "max",
    paused: Annotated[bool, typer.Option("--paused", help="Do not play until /play.", rich_help_panel=PLAY)] = False,
    checkpoint_every: Annotated[
        str,
        typer.Option(
            "--checkpoint-every",
            metavar="TIME",
            help="Video between moments that /at goes back to.",
            rich_help_panel=options.CACHE,
        ),
    ] = options.CHECKPOINT_EVERY,
    max_disk: Annotated[
        str,
        typer.Option(
            "--max-disk",
            metavar="SIZE",
            help="Room on the disk for the moments /at goes back to.",
            rich_help_panel=options.CACHE,
        ),
    ] = "2GB",
    beside: Annotated[
        str | None,
        typer.Option(
            "--video",
            metavar="FILE",
            help="Where the video of a saved memory is now.",
            rich_help_panel=options.VIDEO,
        ),
    ] = None,
    cache: options.Memory,
    recall: options.LiveRecall,
    engine: options.Engine,
    watching: options.LiveVideo,
) -> None:
    """Talk about VIDEO while it plays, in a terminal or through pipes. /help lists what can be done.

    Examples:
        kvvideo chat movie.mp4
        kvvideo chat samples/letters-1m.mp4 --model tiny --paused

    The video goes on while you type. Questions leave no trace in what the model remembers of it, unless --remember
    is given. Through a pipe, each line waits until the video is at its end or paused, so that a script always gets the
    same answers; of a camera or a broadcast, which may have no end, it is answered at once.
    """
    video, beside = local_path(video), None if beside is None else local_path(beside)
    looking = recall.looking()
    pace, every, room = commands.parse_speed(speed), options.period(checkpoint_every), parse_size(max_disk)
    system = well_formed(system).strip()
    config = engine.config(cache.config(), questions=_QUESTIONS).with_system(system)
    from kvvideo.chat.chat import Chat
    from kvvideo.chat.opening import Opening, others
    from kvvideo.chat.player import Player
    from kvvideo.chat.repl import run_pipe, run_terminal, unseen
    from kvvideo.chat.screen import PipeScreen, TerminalScreen
    from kvvideo.chat.signals import left_on_signals
    from kvvideo.runs.journal import state_directory
    from kvvideo.session.pool import with_room_for
    from kvvideo.storage.scratch import scratch

    subject = _subject(context, video, beside, watching, config)
    if not isinstance(subject, Path):
        config = config.with_words_of(subject)
        sized = looking.room_in(config, subject.fps, subject.chunk_seconds, subject.max_pixels)
        sized = with_room_for(others(sized.cache), sized)
        config, _ = cache.settle(sized, [sized.cache], subject.as_dict(), engine.max_model_len)
    file = subject if isinstance(subject, Path) else None
    # Lines and video cannot come the same way.
    typed = _terminal() if video == "-" else sys.stdin
    screen = TerminalScreen() if typed.isatty() and sys.stdout.isatty() else PipeScreen()
    model, dtype = (vars(engine)[name] if options.is_typed(context, name) else None for name in ("model", "dtype"))
    code, at_once = 0, False
    with scratch() as directory:
        opening = Opening(config, directory, room, every, beside, model, dtype, screen.notice, looking)
        player = Player(lambda: opening.open(subject), screen.notice, pace, not paused, system)
        with closing(player), left_on_signals():
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


def _subject(
    context: typer.Context, video: str, beside: str | None, watching: options.LiveVideo, config: EngineConfig
) -> "Path | Source":
    """Return the memory file, or the source, that ``video`` names; the model is at hand then.

    Raises:
        ConfigError: if there is no such video or model, or an option is given that says what a memory says itself.
    """
    from kvvideo.storage.file import is_memory_file

    if is_memory_file(video):
        given = [one for one in context.command.params if one.name in _OF_A_VIDEO]
        if flags := ", ".join(one.opts[0] for one in given if options.is_typed(context, str(one.name))):
            raise ConfigError(f"{flags}: {video!r} is a memory, which stays as it was made; leave that out")
        return Path(video)
    if beside is not None:
        raise ConfigError(f"--video: {video!r} is a video itself; leave that out")
    with watching.looked_for(video):
        source = watching.source(video, watching.reading(config))
        ensure(config.model, source)
    return source


def _wait(player: "Player", screen: "Screen") -> None:
    """Wait until the model is loaded, and say meanwhile how long that has taken."""
    begun = time.monotonic()
    player.waiting = lambda: screen.waiting(f"… {time.monotonic() - begun:.0f} s; Ctrl-C leaves")
    try:
        player.wait_ready()
    finally:
        player.waiting = lambda: None
        screen.waiting("")


def _terminal() -> TextIO:
    """Return the terminal, for lines to be typed at.

    Raises:
        ConfigError: if there is none.
    """
    try:
        return open("/dev/tty")
    except OSError:
        raise ConfigError(
            "the video comes from stdin, so there is nowhere to type; give a file or a URL, or run it in a terminal"
        ) from None
