"""``bench memory``: what each strategy still remembers, by size of the cache and by age.

Clips of the synthetic world, which no model was trained on, are streamed once for each strategy and
share; every letter shown so far is then asked about. A share is ``max_tokens`` as a part of the stream: at 10 % the
cache never takes more than a tenth of the full cache's memory. The budget follows from it as everywhere.
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from kvvideo.bench.machine import describe
from kvvideo.compression import load
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import KvvideoError
from kvvideo.prompt import chunk_text
from kvvideo.session import Engine, EngineConfig, open_session
from kvvideo.session.hub import model_path
from kvvideo.session.pool import block_bytes, with_room_for
from kvvideo.session.prediction import frame_pixels
from kvvideo.times import format_time
from kvvideo.tiny import world
from kvvideo.types import Chunk
from kvvideo.video import frame_size, tokens

FPS = 2.0

AGES = (30.0, 60.0, 120.0, 240.0, 480.0, math.inf)
"""Upper ends, in seconds, of the classes of age that answers are counted in: our choice."""

MOMENTS = (0.4, 0.7, 1.0)
"""Parts of a clip after which everything shown so far is asked about: our choice."""

REAL_TIME = 12
"""Moments of a clip at which it is asked what is on screen: our choice."""

SEEDS = 700_000
"""First seed of the clips; the bundled model was trained on others."""


@dataclass(frozen=True)
class Probe:
    """One question, its right answer, and how old what it asks for is (0: on screen)."""

    question: str
    answer: str
    age: float
    real_time: bool


@dataclass(frozen=True)
class Clip:
    """A clip as chunks, and what is asked after which of them (by number, from 1)."""

    chunks: list[Chunk]
    probes: dict[int, list[Probe]]


@dataclass
class Cell:
    """Results of one strategy at one share.

    Attributes:
        strategy: its name.
        share: of the stream that the cache may hold at most.
        max_tokens: the same in tokens.
        right, asked: counts of questions about the past, by class of age (``AGES``).
        real_time_right, real_time_asked: counts of questions about what is on screen.
        peak_bytes: of the cache, side state included.
        ms_per_chunk: of ingesting, mean.
        seconds: in all, questions included.
    """

    strategy: str
    share: float
    max_tokens: int
    right: list[int]
    asked: list[int]
    real_time_right: int = 0
    real_time_asked: int = 0
    peak_bytes: int = 0
    ms_per_chunk: float = 0.0
    seconds: float = 0.0


def make_clip(seed: int, slots: int, height: int, width: int) -> Clip:
    """Draw a clip of ``slots`` chunks with as many of the 26 letters as fit, in pictures of that size."""
    drawn = world.Clip(seed, slots, density=min(0.6, len(world.LETTERS) / slots))
    count = round(world.SLOT * FPS)
    chunks = []
    for slot in drawn.slots:
        times = tuple(slot.start + i / FPS for i in range(count))
        pictures = [Image.fromarray(drawn.frame(t)).resize((width, height), Image.Resampling.BICUBIC) for t in times]
        chunks.append(Chunk(np.stack([np.asarray(p) for p in pictures]), times, slot.start, slot.end, FPS))
    rng = np.random.default_rng([seed, 2])
    probes: dict[int, list[Probe]] = {}
    for part in MOMENTS:
        now = max(1, round(part * slots))
        probes[now] = list(_backward(drawn, now, rng))
    for now in rng.choice(np.arange(1, slots + 1), min(REAL_TIME, slots), replace=False).tolist():
        probes.setdefault(now, []).extend(_real_time(drawn, now))
    return Clip(chunks, probes)


def _backward(clip: world.Clip, now: int, rng: np.random.Generator) -> Iterable[Probe]:
    for index, slot in enumerate(clip.slots[:now]):
        if slot.letter is not None and slot.colour is not None and index < now - 1:
            age = world.SLOT * now - slot.end
            yield Probe(world.phrase("colour", rng, slot.letter), slot.colour, age, False)
            yield Probe(world.phrase("when", rng, slot.letter), format_time(slot.start), age, False)


def _real_time(clip: world.Clip, now: int) -> Iterable[Probe]:
    slot = clip.slots[now - 1]
    yield Probe(world.PHRASES["now"][0], slot.letter or world.NONE, 0.0, True)
    yield Probe(world.PHRASES["now colour"][0], slot.colour or world.NONE, 0.0, True)


def is_right(said: str, answer: str) -> bool:
    """Return True if ``answer`` stands in what was said, as a word, and no other answer of its kind does."""
    words = {*world.COLOURS, world.NONE} if answer in world.COLOURS else {answer}
    found = {word for word in words | {answer} if re.search(rf"(?<![\w:]){re.escape(word)}(?![\w:])", said, re.I)}
    return found == {answer}


def interval(right: int, asked: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson's score."""
    if not asked:
        return 0.0, 1.0
    z, p = 1.96, right / asked
    centre = (p + z * z / (2 * asked)) / (1 + z * z / asked)
    half = z * math.sqrt(p * (1 - p) / asked + z * z / (4 * asked**2)) / (1 + z * z / asked)
    return max(0.0, centre - half), min(1.0, centre + half)


def run(
    config: EngineConfig,
    strategies: Sequence[str],
    shares: Sequence[float],
    *,
    minutes: float = 10.0,
    clips: int = 4,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda _: None,
    on_cell: Callable[[Cell], None] = lambda _: None,
) -> dict[str, Any]:
    """Stream every clip with every strategy at every share, and ask; return the report.

    Args:
        config: the model and the cache settings that all strategies share; ``ratio`` sets the budget.
        strategies: names; ``full`` is always run, as the yardstick.
        shares: ``max_tokens``, as parts of the stream's tokens.
        minutes: length of a clip.
        clips: number of clips.
        seed: added to the first clip's seed.
        on_progress: told what is being done.
        on_cell: told each result.
    """
    height, width = frame_size(world.HEIGHT, world.WIDTH, *frame_pixels(config))
    made = []
    for number in range(clips):
        on_progress(f"drawing clip {number + 1} of {clips}")
        made.append(make_clip(SEEDS + seed + number, max(4, round(minutes * 60 / world.SLOT)), height, width))
    bounded = [name for name in strategies if load(name).bounded]
    skipped = []
    engine = _start(config, bounded, _tokens_at_most(made, height, width))
    cells = [_cell(engine, CacheConfig("full"), "full", 1.0, 0, made, on_progress)]
    on_cell(cells[0])
    total = cells[0].max_tokens
    for share in shares:
        for name in bounded:
            cache = replace(config.cache, strategy=name, max_tokens=_whole_blocks(share * total, engine.block_size))
            try:
                cells.append(_cell(engine, cache, name, share, cache.max_tokens, made, on_progress))
            except KvvideoError as error:
                # Too small for a baseline that needs whole chunks or notes; the others can still be measured.
                skipped.append({"strategy": name, "share": share, "reason": str(error)})
                on_progress(f"{name} at {share:.0%}: {error}")
                continue
            on_cell(cells[-1])
    engine.close()
    return {
        "bench": "memory",
        "machine": describe(),
        "model": config.model,
        "minutes": minutes,
        "clips": clips,
        "seed": SEEDS + seed,
        "stream_tokens": total,
        "ratio": config.cache.ratio,
        "ages": [None if math.isinf(age) else age for age in AGES],
        "cells": [summary(cell, cells[0]) for cell in cells],
        "skipped": skipped,
    }


def summary(cell: Cell, full: Cell) -> dict[str, Any]:
    """Return a cell as the report has it: its counts, with shares and intervals."""
    right, asked = sum(cell.right), sum(cell.asked)
    low, high = interval(right, asked)
    yardstick = sum(full.right) / max(1, sum(full.asked))
    accuracy = right / max(1, asked)
    return {
        **asdict(cell),
        "backward": round(accuracy, 4),
        "backward_interval": [round(low, 4), round(high, 4)],
        "of_full": round(accuracy / yardstick, 4) if yardstick else None,
        "real_time": round(cell.real_time_right / max(1, cell.real_time_asked), 4),
        "by_age": [round(r / a, 4) if a else None for r, a in zip(cell.right, cell.asked, strict=True)],
    }


def _tokens_at_most(clips: Sequence[Clip], height: int, width: int) -> int:
    """Return an upper bound of the longest clip's tokens."""
    text = max(len(chunk_text(clip.chunks[-1].start)) for clip in clips)
    return max(sum(tokens(height, width, len(c.frames)) + text for c in clip.chunks) for clip in clips) + 256


def _start(config: EngineConfig, strategies: Sequence[str], longest: int) -> Engine:
    """Start an engine whose pool holds the longest clip in full, and any strategy's side state."""
    caches = [replace(config.cache, strategy=name) for name in strategies]
    config = with_room_for(caches, replace(config, cache=CacheConfig("full"), max_model_len=longest + 1024))
    size = 32
    blocks = (longest + 1024) // size + config.questions * 34 + 2
    return Engine(replace(config, kv_bytes=blocks * block_bytes(model_path(config.model), config, size)))


def _whole_blocks(count: float, size: int) -> int:
    return max(2, round(count / size)) * size


def _cell(
    engine: Engine,
    cache: CacheConfig,
    name: str,
    share: float,
    max_tokens: int,
    clips: Sequence[Clip],
    on_progress: Callable[[str], None],
) -> Cell:
    engine.use(cache)
    cell = Cell(name, share, max_tokens, [0] * len(AGES), [0] * len(AGES))
    began, ingesting, count = time.perf_counter(), 0.0, 0
    for number, clip in enumerate(clips):
        on_progress(f"{name} at {share:.0%}: clip {number + 1} of {len(clips)}")
        with open_session(engine) as session:
            for index, chunk in enumerate(clip.chunks, 1):
                start = time.perf_counter()
                session.ingest(chunk)
                ingesting += time.perf_counter() - start
                count += 1
                cell.peak_bytes = max(cell.peak_bytes, session.stats().bytes)
                if probes := clip.probes.get(index):
                    answers = session.ask_all([p.question for p in probes], max_tokens=16)
                    for probe, answer in zip(probes, answers, strict=True):
                        _count(cell, probe, is_right(answer.text, probe.answer))
            if name == "full":
                cell.max_tokens = max(cell.max_tokens, session.stats().seen)
    cell.ms_per_chunk = round(ingesting / count * 1000, 2)
    cell.seconds = round(time.perf_counter() - began, 1)
    return cell


def _count(cell: Cell, probe: Probe, right: bool) -> None:
    if probe.real_time:
        cell.real_time_right += right
        cell.real_time_asked += 1
        return
    place = next(i for i, age in enumerate(AGES) if probe.age <= age)
    cell.right[place] += right
    cell.asked[place] += 1
