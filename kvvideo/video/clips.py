"""Cut stretches out of a video, as files of their own."""

import os
from dataclasses import asdict

from kvvideo.errors import ConfigError
from kvvideo.times import format_time
from kvvideo.video.address import Address, is_live
from kvvideo.video.geometry import MAX_PIXELS, MIN_PIXELS
from kvvideo.video.process import WorkerProcess
from kvvideo.video.reader import STALL_SECONDS
from kvvideo.video.sampling import Grid


def cut(path: str | os.PathLike[str], start: float, end: float, target: str | os.PathLike[str]) -> None:
    """Write what ``path`` shows from ``start`` to ``end``, in seconds of the source, to ``target``, an mp4 file.

    Pictures and sound are copied as they are where their codecs allow; else pictures are encoded anew, and sound is
    left out (``cutting``). It is done in a process of its own.

    Raises:
        VideoError: if the file cannot be decoded, shows nothing then, or ``target`` cannot be written.
        ConfigError: if ``path`` does not stay, as files do, or the stretch is none.
    """
    name = os.fsdecode(path)
    if is_live(name):
        raise ConfigError(f"{Address.of(name).name!r} is no file: clips can be cut out of files only")
    if not start < end:
        raise ConfigError(f"there is nothing from {format_time(start)} to {format_time(end)} to cut out")
    worker = WorkerProcess(name, start, None, False, 1, ())
    request = {
        "path": name,
        "decoder": "pyav",
        "grid": asdict(Grid.of(1.0, 2.0, start, end)),
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "what": "clip",
        "quiet": False,
        "target": os.path.abspath(target),
        "live": None,
    }
    try:
        worker.ask(request)
        for _ in ("what is known of the video", "the end"):
            worker.next(STALL_SECONDS)
    finally:
        worker.close()
