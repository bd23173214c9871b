"""``kvvideo samples``: clips nobody has seen, with questions and answers."""

import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from kvvideo.cli.command import App
from kvvideo.cli.panels import OUTPUT
from kvvideo.cli.stop import note
from kvvideo.errors import ConfigError
from kvvideo.sizes import format_size
from kvvideo.times import format_time

app = App(
    help="""Make clips with known answers.

    Examples:
        kvvideo samples make clip.mp4
        kvvideo samples make clip.mp4 --minutes 4 --seed 7 --truth jobs.jsonl
    """
)


class World(StrEnum):
    """A synthetic world that clips are made of."""

    film = "film"
    letters = "letters"


@app.callback()
def _group() -> None:
    """A group even while there is one command."""


@app.command("make")
def make(
    video: Annotated[Path, typer.Argument(help="The mp4 to write.", show_default=False)],
    world: Annotated[
        World, typer.Option("--world", help="A film of places and speech, or letters alone.", rich_help_panel=OUTPUT)
    ] = World.film,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Another seed is another clip.", rich_help_panel=OUTPUT)
    ] = 0,
    minutes: Annotated[float, typer.Option("--minutes", help="Length of the clip.", rich_help_panel=OUTPUT)] = 1.0,
    truth: Annotated[
        Path | None,
        typer.Option("--truth", help="Append questions and answers to this job file.", rich_help_panel=OUTPUT),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that are there already.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Write a synthetic clip that the bundled model can be asked about.

    A film has lines of speech: they are written beside it, as clip.srt, where every command finds them.

    Examples:
        kvvideo samples make clip.mp4
        kvvideo samples make clip.mp4 --minutes 4 --seed 7 --truth jobs.jsonl
    """
    from kvvideo.cli import render
    from kvvideo.tiny import samples

    if video.is_dir():
        raise ConfigError(f"{str(video)!r} is a folder; name a file in it")
    if not video.parent.is_dir():
        raise ConfigError(f"there is no folder {str(video.parent)!r} to write {video.name!r} to")
    lines = samples.sidecar(video)
    # Also in a world without speech: the lines of another clip are not to be beside this one.
    for path in (video, lines):
        if path.exists() and not force:
            raise ConfigError(f"{str(path)!r} exists; add --force to replace it, or choose another name")
    write = samples.make if world is World.letters else samples.make_film
    with render.Transient() as shown:

        def on_frame(done: float, length: float) -> None:
            shown.say(f"making {video}: {format_time(math.floor(done))} of {format_time(round(length))}")

        try:
            asked = write(video, seed=seed, minutes=minutes, truth=truth, on_frame=on_frame)
        except ValueError as error:  # PyAV's, of a name that says no format
            raise ConfigError(f"{str(video)!r} cannot be written: {error}; name an .mp4") from None
    note(f"wrote {video}: {format_size(video.stat().st_size)}")
    if lines.exists():
        note(f"wrote {lines}: what is said in it")
    if truth is not None:
        note(f"appended a line of {len(asked)} questions to {truth}")
