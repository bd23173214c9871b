"""``kvvideo samples``: clips nobody has seen, with questions and answers."""

from pathlib import Path
from typing import Annotated

import typer

from kvvideo.cli.command import App

app = App(no_args_is_help=True, help="Make clips with known answers.")


@app.callback()
def _group() -> None:
    """A group even while there is one command."""


@app.command("make")
def make(
    video: Annotated[Path, typer.Argument(help="The mp4 to write.", show_default=False)],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed is another clip.")] = 0,
    minutes: Annotated[float, typer.Option("--minutes", help="Length of the clip.")] = 1.0,
    truth: Annotated[
        Path | None, typer.Option("--truth", help="Append the questions and answers to this job file, a line a video.")
    ] = None,
) -> None:
    """Write a synthetic clip that the bundled model can be asked about."""
    from kvvideo.tiny.samples import make as write

    write(video, seed=seed, minutes=minutes, truth=truth)
