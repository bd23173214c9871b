"""Sample videos of the synthetic world: an H.264 mp4 and a line of questions with their answers."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvvideo.times import format_time
from kvvideo.tiny import world


def make(
    out: Path,
    seed: int,
    minutes: float,
    truth: Path | None = None,
    *,
    fps: int = 8,
    questions: int = 12,
    density: float | None = None,
    width: int = world.WIDTH,
    height: int = world.HEIGHT,
    on_frame: Callable[[float, float], None] = lambda *_: None,
) -> list[world.Question]:
    """Write the clip of ``seed`` to ``out`` and return the questions one can ask of it.

    Args:
        out: the mp4 to write.
        seed: random seed of the clip and its questions.
        minutes: length, rounded to whole slots.
        truth: a JSON Lines file that gets one more line for this video, if any.
        fps: frames per second of the video.
        questions: number of questions; half of them are asked at the end.
        density: part of the slots that show a letter; drawn from the seed if None.
        width: of the video, in pixels.
        height: of the video, in pixels.
        on_frame: called after each frame with the seconds written and the seconds in all.

    Raises:
        OSError: if it cannot be written; what was at ``out`` is still there then, as it is until the clip is complete.
    """
    clip = world.Clip(seed, max(1, round(minutes * 60 / world.SLOT)), density, width, height)
    part = out.with_name(f".{out.stem}.{os.getpid()}.part{out.suffix}")
    try:
        encode(clip, part, fps, on_frame)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    rng = np.random.default_rng([seed, 1])
    asked = clip.questions(rng, questions - questions // 2, end=False)
    kinds: tuple[world.Kind, ...] = ("colour", "when")
    asked += [clip.question(None, kinds[i % len(kinds)], rng) for i in range(questions // 2)]
    if truth is not None:
        line = {
            "id": out.stem,
            "video": os.path.relpath(out, truth.parent),
            "questions": [
                {"t": None if a.t is None else format_time(a.t), "q": a.q, "answer": a.answer} for a in asked
            ],
        }
        with truth.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return asked


def encode(
    clip: world.Clip, out: Path, fps: int = 8, on_frame: Callable[[float, float], None] = lambda *_: None
) -> None:
    """Write ``clip`` as H.264: a keyframe every four seconds, B-frames between."""
    import av

    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        stream.codec_context.gop_size = round(fps * world.SLOT)
        # Two threads: libx264 splits small pictures differently by their number, and files should not.
        stream.options = {"crf": "25", "preset": "slow", "bf": "2", "threads": "2"}
        for i in range(round(clip.duration * fps)):
            frame = av.VideoFrame.from_ndarray(clip.frame(i / fps), format="rgb24")
            container.mux(stream.encode(frame))
            on_frame((i + 1) / fps, clip.duration)
        container.mux(stream.encode(None))
