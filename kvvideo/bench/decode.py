"""``bench decode``: speed and memory of each decoder on a high-definition video, and an engine's wait for it."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvvideo.bench.machine import describe
from kvvideo.session import Engine, EngineConfig, VideoSession
from kvvideo.session.prediction import FRAME_TOKENS, frame_pixels
from kvvideo.video import VideoReader
from kvvideo.video.geometry import FACTOR

RATE = 30
"""Frames a second of the clip."""

WARM_CHUNKS = 16
"""Chunks that an engine ingests before anything is measured, compactions included: kernels are compiled for sizes."""


class Run(NamedTuple):
    """One reading of the clip: its seconds, those to the first chunk, and the decoder's peak memory in MB."""

    seconds: float
    first: float
    peak_mb: float


def run(
    decoders: Sequence[str],
    seconds: float = 20.0,
    size: tuple[int, int] = (1920, 1080),
    fps: float = 2.0,
    repeats: int = 3,
    on_run: Callable[[str, float], None] = lambda *_: None,
    config: EngineConfig | None = None,
    frame_tokens: int | None = None,
) -> dict[str, Any]:
    """Make an H.264 clip and read it through ``VideoReader`` with each decoder by turns; return the report.

    Args:
        decoders: their names.
        seconds: length of the clip, which has 30 frames a second and a key frame every 2 s.
        size: its width and height.
        fps: frames a second to sample.
        repeats: runs of the whole, of which medians are taken.
        on_run: called with a decoder's name and its speed as a multiple of real time.
        config: settings of an engine that ingests the clip from each decoder afterwards; None for no engine.
        frame_tokens: most tokens for a pair of its frames.
    """
    runs: dict[str, list[Run]] = {name: [] for name in decoders}
    with tempfile.TemporaryDirectory(prefix="kvvideo-") as folder:
        clip = Path(folder) / "clip.mp4"
        make_clip(clip, seconds, size)
        bytes_ = clip.stat().st_size
        for _ in range(repeats):
            for name in decoders:
                runs[name].append(_read(clip, fps, name))
                on_run(name, seconds / runs[name][-1].seconds)
        fed = [] if config is None else _feed(config, decoders, clip, fps, frame_tokens)
    return {
        "bench": "decode",
        "machine": describe(),
        "seconds": seconds,
        "size": list(size),
        "fps": fps,
        "bytes": bytes_,
        "repeats": repeats,
        "decoders": [{"decoder": name, **_summary(runs[name], seconds, fps)} for name in decoders],
        "fed": fed,
    }


def _read(clip: Path, fps: float, decoder: str) -> Run:
    began = time.perf_counter()
    first = peak = 0.0
    with VideoReader(clip, fps, decoder=decoder, max_pixels=FRAME_TOKENS * FACTOR**2) as reader:
        for _ in reader:
            first = first or time.perf_counter() - began
            peak = max(peak, _peak_mb(reader.pid))
    return Run(time.perf_counter() - began, first, peak)


def _summary(runs: Sequence[Run], seconds: float, fps: float) -> dict[str, float]:
    """Return medians of ``runs``, which each read ``seconds`` of video at ``fps``, and the largest peak."""
    took = statistics.median(run.seconds for run in runs)
    return {
        "seconds": round(took, 3),
        "first_chunk_seconds": round(statistics.median(run.first for run in runs), 3),
        "sampled_per_second": round(fps * seconds / took, 1),
        "source_frames_per_second": round(RATE * seconds / took, 1),
        "times_real_time": round(seconds / took, 2),
        "peak_mb": round(max(run.peak_mb for run in runs), 1),
    }


def _feed(
    config: EngineConfig, decoders: Sequence[str], clip: Path, fps: float, frame_tokens: int | None
) -> list[dict[str, Any]]:
    """Return how busy an engine is that ingests ``clip`` from each decoder, from its first chunk on.

    Decoders run ahead, in processes of their own. ``busy`` is the part of the time that the engine works; what it
    waits is in ``waited_seconds``. ``engine_times_real_time`` is its speed if it never had to.
    """
    engine = Engine(config)
    low, high = frame_pixels(config, frame_tokens)
    found = []
    for name in decoders:
        opened = partial(VideoReader, clip, fps, decoder=name, min_pixels=low, max_pixels=high)
        with opened() as reader, VideoSession(engine) as session:
            for chunk in itertools.islice(reader, WARM_CHUNKS):
                session.ingest(chunk)
        worked = waited = covered = 0.0
        with opened() as reader, VideoSession(engine) as session:
            for chunk in reader:
                began, waited = time.perf_counter(), reader.waited
                session.ingest(chunk)
                worked += time.perf_counter() - began
                covered += chunk.end - chunk.start
        found.append(
            {
                "decoder": name,
                "model": config.model,
                "busy": round(worked / (worked + waited), 3),
                "worked_seconds": round(worked, 3),
                "waited_seconds": round(waited, 3),
                "times_real_time": round(covered / (worked + waited), 2),
                "engine_times_real_time": round(covered / worked, 2),
            }
        )
    engine.close()
    return found


def make_clip(path: Path, seconds: float, size: tuple[int, int]) -> None:
    """Write an H.264 clip of a picture that moves, with some noise, at ``RATE`` frames a second."""
    import av

    width, height = size
    random = np.random.default_rng(0)
    down, across = np.mgrid[0:height, 0 : 2 * width].astype(np.float32)
    picture = np.stack([np.sin(down / 37 + across / 53), np.sin(across / 71), np.sin(down / 29)], axis=-1) * 90 + 128
    picture = (picture + random.normal(0, 8, picture.shape)).clip(0, 255).astype(np.uint8)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "superfast", "g": str(2 * RATE), "x264-params": "log-level=none"}
        for number in range(round(RATE * seconds)):
            shift = 4 * number % width
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:, shift : shift + width]), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def _peak_mb(pid: int) -> float:
    """Return the peak resident memory of a process in MB; 0 where that is not known or it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), 0.0)
