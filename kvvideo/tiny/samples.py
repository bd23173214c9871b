"""Sample videos of the synthetic worlds: an H.264 mp4, its lines of speech, and questions with their answers."""

import itertools
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from kvvideo.times import format_time
from kvvideo.tiny import film, scenery, world

QUESTIONS = 12
"""Questions about a clip, of which half are asked at its end: our choice."""

Progress = Callable[[float, float], None]
"""Called after each frame with the seconds written and the seconds in all."""


def make(
    out: Path,
    seed: int,
    minutes: float,
    truth: Path | None = None,
    *,
    fps: int = 8,
    density: float | None = None,
    on_frame: Progress = lambda *_: None,
) -> list[world.Question]:
    """Write the clip of ``seed`` in the letters' world to ``out`` and return the questions one can ask of it.

    Args:
        out: the mp4 to write; subtitles beside it, which would be another clip's, are removed.
        seed: random seed of the clip and its questions.
        minutes: length, rounded to whole slots.
        truth: a JSON Lines file that gets one more line for this video, if any.
        fps: frames per second of the video.
        density: part of the slots that show a letter; drawn from the seed if None.
        on_frame: told how far it is.

    Raises:
        OSError: if it cannot be written; what was at ``out`` is still there then, as it is until the clip is complete.
    """
    clip = world.Clip(seed, _slots(minutes), density)
    _write(out, clip, clip.duration, "", fps, on_frame)
    rng = np.random.default_rng([seed, 1])
    asked = clip.questions(rng, QUESTIONS // 2, end=False)
    kinds: tuple[world.Kind, ...] = ("colour", "when")
    asked += [clip.question(None, kinds[i % len(kinds)], rng) for i in range(QUESTIONS // 2)]
    _append(truth, out, asked)
    return asked


def make_film(
    out: Path,
    seed: int,
    minutes: float,
    truth: Path | None = None,
    *,
    fps: int = 8,
    on_frame: Progress = lambda *_: None,
) -> list[world.Question]:
    """Write the film of ``seed`` to ``out``, its lines to ``sidecar(out)``, and return questions one can ask of it.

    Args and errors are those of ``make``.
    """
    script = draw_script(seed, _slots(minutes))
    _write(out, scenery.Film(seed, len(script), script=script), len(script) * world.SLOT, srt(script), fps, on_frame)
    asked = ask(np.random.default_rng([seed, 1]), script, QUESTIONS)
    _append(truth, out, asked)
    return asked


def sidecar(out: Path) -> Path:
    """Return the file of the subtitles of ``out``, where kvvideo and players find them."""
    return out.with_suffix(".srt")


def draw_script(seed: int, slots: int) -> film.Script:
    """Draw the first script of ``seed`` with a line about a letter: of a film without letters little can be asked."""
    rng = np.random.default_rng([seed, slots])
    while True:
        script = film.draw_script(rng, slots)
        if any(line.letter for line in script.lines.values()):
            return script


def srt(script: film.Script) -> str:
    """Return the lines of ``script`` as SubRip, each for the whole of its slot."""
    import pysubs2

    made = pysubs2.SSAFile()
    for slot, line in sorted(script.lines.items()):
        times = pysubs2.make_time(s=slot * world.SLOT), pysubs2.make_time(s=(slot + 1) * world.SLOT)
        made.append(pysubs2.SSAEvent(*times, text=line.text))
    return made.to_string("srt")


def ask(rng: np.random.Generator, script: film.Script, count: int) -> list[world.Question]:
    """Draw ``count`` questions about ``script``, each kind once before one comes again; half of them at its end."""
    end = round(len(script) * world.SLOT)
    # Of the first slot nothing is past; where there is no other, its last second is asked about.
    along = np.sort(rng.integers(min(round(world.SLOT), end - 1), end, count - count // 2))
    kinds = itertools.cycle(film.KINDS[i] for i in rng.permutation(len(film.KINDS)))
    asked: list[world.Question] = []
    for t in [*map(float, along), *[None] * (count // 2)]:
        drawn = None
        while drawn is None:
            drawn = film.ask(rng, moment_at(script, t), next(kinds))
        asked.append(replace(drawn, t=t))
    return asked


def moment_at(script: film.Script, t: float | None) -> film.Moment:
    """Return what a question at ``t`` seconds, a whole number, has seen of ``script``; None for the end.

    The frame at ``t`` itself is seen, and so the second that begins with it shows.
    """
    if t is None:
        return film.Moment(script, len(script) - 1)
    slot = int(t // world.SLOT)
    return film.Moment(script, slot, t - slot * world.SLOT + 1.0)


def encode(
    clip: world.Clip | scenery.Film, seconds: float, out: Path, fps: int = 8, on_frame: Progress = lambda *_: None
) -> None:
    """Write ``seconds`` of ``clip`` as H.264: a keyframe every four seconds, B-frames between."""
    import av

    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        stream.codec_context.gop_size = round(fps * world.SLOT)
        # Two threads: libx264 splits small pictures differently by their number, and files should not.
        stream.options = {"crf": "25", "preset": "slow", "bf": "2", "threads": "2"}
        for i in range(round(seconds * fps)):
            frame = av.VideoFrame.from_ndarray(clip.frame(i / fps), format="rgb24")
            container.mux(stream.encode(frame))
            on_frame((i + 1) / fps, seconds)
        container.mux(stream.encode(None))


def _slots(minutes: float) -> int:
    return max(1, round(minutes * 60 / world.SLOT))


def _write(
    out: Path, clip: world.Clip | scenery.Film, seconds: float, lines: str, fps: int, on_frame: Progress
) -> None:
    """Write ``clip`` and what is said in it; both are in their places only when they are complete."""
    part = out.with_name(f".{out.stem}.{os.getpid()}.part{out.suffix}")
    try:
        encode(clip, seconds, part, fps, on_frame)
        # The lines first: those of another clip are never beside this one.
        if lines:
            sidecar(part).write_text(lines, encoding="utf-8")
            sidecar(part).replace(sidecar(out))
        else:
            sidecar(out).unlink(missing_ok=True)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
        sidecar(part).unlink(missing_ok=True)


def _append(truth: Path | None, out: Path, asked: list[world.Question]) -> None:
    """Append a job line about ``out`` to ``truth``, if there is one."""
    if truth is None:
        return
    line = {
        "id": out.stem,
        "video": os.path.relpath(out, truth.parent),
        "questions": [{"t": None if a.t is None else format_time(a.t), "q": a.q, "answer": a.answer} for a in asked],
    }
    with truth.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
