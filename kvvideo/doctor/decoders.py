"""Check each decoder on a clip made on the spot, in a process of its own, as any video is decoded."""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kvvideo.doctor.finding import Finding, broken, ok, warning
from kvvideo.doctor.machine import gpu_is_there
from kvvideo.errors import KvvideoError, first_line
from kvvideo.video import DECODERS, VideoReader

FPS, FRAMES, SIDE = 8, 16, 112
"""Frames per second, number of frames, and width and height of the clip."""

_SLACK = 8.0
"""Largest error of a frame's brightness, 0 to 255, after coding."""

_DEFAULT = "pyav"

_MENDS = {
    "pyav": "pip install --force-reinstall av",
    "nvdec": "install a newer driver, or in a container let NVIDIA_DRIVER_CAPABILITIES include video,",
    "decord": "pip install --force-reinstall decord",
}


def decoders() -> Iterator[Finding]:
    """Check that each decoder returns the frames that were put into a clip."""
    with tempfile.TemporaryDirectory(prefix="kvvideo-") as folder:
        clip = Path(folder) / "test.mp4"
        try:
            _write(clip)
        except Exception as error:
            yield broken("decoder pyav", f"PyAV cannot make a clip to try: {first_line(error)}", _MENDS["pyav"])
            return
        for name in DECODERS:
            if name == "nvdec" and not gpu_is_there():
                continue
            if problem := _problem(name, clip):
                bad = broken if name == _DEFAULT else warning
                use = "" if name == _DEFAULT else f" if you want --decoder {name}"
                yield bad(f"decoder {name}", problem, _MENDS[name] + use)
            else:
                yield ok(f"decoder {name}", f"returned the {FRAMES} frames of a test clip")


def _levels() -> np.ndarray:
    """Return the brightness of each frame: no two are alike."""
    return np.linspace(20, 235, FRAMES)


def _write(clip: Path) -> None:
    import av

    with av.open(str(clip), "w") as out:
        stream = out.add_stream("libx264", rate=FPS)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for level in _levels():
            image = np.full((SIDE, SIDE, 3), level, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))


def _problem(name: str, clip: Path) -> str | None:
    """Return what is wrong with decoder ``name``; None if it returns the frames of ``clip`` and warns of nothing."""
    said = _Warnings()
    logger = logging.getLogger("kvvideo.video")
    logger.addHandler(said)
    try:
        with VideoReader(clip, fps=FPS, chunk_seconds=1.0, decoder=name, stall_seconds=30.0) as chunks:
            seen = np.concatenate([chunk.frames.mean(axis=(1, 2, 3)) for chunk in chunks])
    except KvvideoError as error:
        return first_line(error)
    finally:
        logger.removeHandler(said)
    if said.texts:
        return said.texts[0]
    if len(seen) != FRAMES:
        return f"returned {len(seen)} frames of {FRAMES}"
    wrong = np.flatnonzero(np.abs(seen - _levels()) > _SLACK)
    return f"frame {wrong[0] + 1} and later differ from the test clip" if len(wrong) else None


class _Warnings(logging.Handler):
    """Keeps what a decoder warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
