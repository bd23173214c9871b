"""Get a model from the hub, for those who wait: before anything else, and with its progress on a terminal."""

from typing import TYPE_CHECKING

from kvvideo.cli import everywhere
from kvvideo.cli.everywhere import Way
from kvvideo.cli.stop import note, say
from kvvideo.errors import INTERRUPTED
from kvvideo.session.hub import fetch, is_here
from kvvideo.video.decoder import check_file

if TYPE_CHECKING:
    from kvvideo.video import Source


def ensure(model: str, source: "Source | None" = None) -> None:
    """Download what is not here of ``model``; Ctrl-C ends the command, and what was downloaded stays.

    A ``source`` that is not there is found first, and one that cannot be read, if it can be read again.

    Raises:
        ConfigError: if the model is not to be had.
        VideoError: if the video cannot be decoded.
    """
    if is_here(model):
        return
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if source is not None and source.live is None:
        check_file(source.path)
    if source is not None and source.replayable:
        source.open().close()
    if everywhere.way() is not Way.auto:
        disable_progress_bars()
    try:
        fetch(model, tell=note)
    except KeyboardInterrupt:
        say("stopped; the same command goes on with the download")
        raise SystemExit(INTERRUPTED) from None
