"""``bench memory``: what each strategy still remembers, by size of the cache, kind of question and age.

Clips of a synthetic world, which no model was trained on, are streamed once for each strategy and
share, and asked about, without and with looking again. A share is ``max_tokens`` as a
part of the stream: at 10 % the cache never takes more than a tenth of the full cache's memory. The budget follows from
it as everywhere.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kvvideo.bench import uniform
from kvvideo.bench.clips import SEEDS, Clip, clip_size, slots_in, world_of
from kvvideo.bench.intervals import clustered
from kvvideo.bench.machine import describe
from kvvideo.bench.probes import Probe, is_right, probes_of
from kvvideo.compression import load
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import KvvideoError
from kvvideo.prompt import chunk_text
from kvvideo.session import BASELINES, Engine, EngineConfig, Session, VideoSession, open_session
from kvvideo.session.hub import model_path
from kvvideo.session.pool import block_bytes, with_room_for
from kvvideo.session.recall import Recall
from kvvideo.video import tokens

AGES = (30.0, 60.0, 120.0, 240.0, 480.0, math.inf)
"""Upper ends, in seconds, of the classes of age that answers are counted in: our choice."""


@dataclass
class Cell:
    """Results of one strategy at one share.

    Attributes:
        strategy: its name.
        share: of the stream that the cache may hold at most.
        max_tokens: the same in tokens.
        recall: most stretches that a question was shown again.
        right, asked: counts of questions about the past, by class of age (``AGES``; last what was never shown).
        kinds: right and asked by kind of question, those about what is on screen included.
        clips: right and asked about the past, by clip.
        real_time_right, real_time_asked: counts of questions about what is on screen.
        real_time_changed: those of them that were answered otherwise than without looking again.
        peak_bytes: of the cache, side state included.
        index_bytes: of the vectors that chunks are found by, at the end.
        ms_per_chunk: of ingesting, mean.
        ms_per_question: mean of questions asked at once, answers included.
        seconds: in all, questions included.
    """

    strategy: str
    share: float
    max_tokens: int
    recall: int = 0
    right: list[int] = field(default_factory=lambda: [0] * (len(AGES) + 1))
    asked: list[int] = field(default_factory=lambda: [0] * (len(AGES) + 1))
    kinds: dict[str, list[int]] = field(default_factory=dict)
    clips: list[list[int]] = field(default_factory=list)
    real_time_right: int = 0
    real_time_asked: int = 0
    real_time_changed: int = 0
    peak_bytes: int = 0
    index_bytes: int = 0
    ms_per_chunk: float = 0.0
    ms_per_question: float = 0.0
    seconds: float = 0.0


def run(
    config: EngineConfig,
    strategies: Sequence[str],
    shares: Sequence[float],
    *,
    world: str = "film",
    recalls: Sequence[int] = (0,),
    minutes: float = 10.0,
    clips: int = 5,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Stream every clip with every strategy at every share, and ask; return the report.

    Args:
        config: the model and the cache settings that all strategies share; ``ratio`` sets the budget.
        strategies: names, or ``uniform``; ``full`` is always run, as the yardstick.
        shares: ``max_tokens``, as parts of the stream's tokens.
        world: name of the clips' world, of ``WORLDS``.
        recalls: most stretches that a question is shown again; each, and none, is tried on the same streams.
        minutes: length of a clip.
        clips: number of clips.
        seed: added to the first clip's seed.
        on_progress: told what is being done.
    """
    size, slots, first = clip_size(config), slots_in(minutes), SEEDS + seed
    made = [world_of(world)(first + number, slots, size) for number in range(clips)]
    bounded = [name for name in strategies if name == uniform.NAME or load(name).bounded]
    skipped, recalls = [], sorted({0, *recalls})
    policies = [name for name in bounded if name != uniform.NAME]
    engine = start(config, policies, max(tokens_at_most(clip, size) for clip in made))
    cells = _cells(engine, CacheConfig("full"), Cell("full", 1.0, 0), made, [0], on_progress)
    total = cells[0].max_tokens
    for share in shares:
        for name in bounded:
            most = whole_blocks(share * total, engine.block_size)
            again = [0] if name == uniform.NAME or name in BASELINES else recalls
            try:
                cache = replace(config.cache, strategy="recent" if name == uniform.NAME else name, max_tokens=most)
                cells += _cells(engine, cache, Cell(name, share, most), made, again, on_progress)
            except KvvideoError as error:
                # Too small for the sinks, or for whole chunks or notes; the others can still be measured.
                skipped.append({"strategy": name, "share": share, "reason": str(error)})
                on_progress(f"{name} at {share:.0%}: {error}")
    engine.close()
    return {
        "bench": "memory",
        "machine": describe(),
        "model": config.model,
        "world": world,
        "minutes": minutes,
        "clips": clips,
        "seed": first,
        "stream_tokens": total,
        "ratio": config.cache.ratio,
        "ages": [None if math.isinf(age) else age for age in AGES],
        "cells": [summary(cell, cells[0]) for cell in cells],
        "skipped": skipped,
    }


def summary(cell: Cell, full: Cell) -> dict[str, Any]:
    """Return a cell as the report has it: its counts, with shares and intervals."""
    right, asked = sum(cell.right), sum(cell.asked)
    low, high = clustered([(r, a) for r, a in cell.clips])
    yardstick = sum(full.right) / max(1, sum(full.asked))
    accuracy = right / max(1, asked)
    return {
        **asdict(cell),
        "backward": round(accuracy, 4),
        "backward_interval": [round(low, 4), round(high, 4)],
        "of_full": round(accuracy / yardstick, 4) if yardstick else None,
        "real_time": round(cell.real_time_right / max(1, cell.real_time_asked), 4),
        "by_age": [round(r / a, 4) if a else None for r, a in zip(cell.right, cell.asked, strict=True)],
        "by_kind": {kind: round(r / a, 4) for kind, (r, a) in cell.kinds.items()},
    }


def tokens_at_most(clip: Clip, size: tuple[int, int]) -> int:
    """Return an upper bound of the tokens of ``clip``, in pictures of ``size`` (height, width)."""
    last = clip.chunk(len(clip) - 1)
    text = sum(len(chunk_text(last.start, clip.words(number))) for number in range(len(clip)))
    return len(clip) * tokens(*size, len(last.frames)) + text + 256


def start(config: EngineConfig, strategies: Sequence[str], longest: int) -> Engine:
    """Start an engine whose pool holds a stream of ``longest`` tokens in full, and any strategy's side state."""
    caches = [replace(config.cache, strategy=name) for name in strategies]
    config = with_room_for(caches, replace(config, cache=CacheConfig("full"), max_model_len=longest + 1024))
    size = 32
    blocks = (longest + 1024) // size + config.questions * 34 + 2
    return Engine(replace(config, kv_bytes=blocks * block_bytes(model_path(config.model), config, size)))


def whole_blocks(count: float, size: int) -> int:
    """Return ``count`` tokens in whole blocks of ``size``, at least two."""
    return max(2, round(count / size)) * size


def _cells(
    engine: Engine,
    cache: CacheConfig,
    cell: Cell,
    clips: Sequence[Clip],
    recalls: Sequence[int],
    on_progress: Callable[[str], None],
) -> list[Cell]:
    """Stream all clips once; return a cell like ``cell`` for each number of ``recalls``, of which the first is 0."""
    engine.use(cache)
    cells = [Cell(cell.strategy, cell.share, cell.max_tokens, n) for n in recalls]
    ingesting, count = 0.0, 0
    for number, clip in enumerate(clips, 1):
        on_progress(f"{cell.strategy} at {cell.share:.0%}: clip {number} of {len(clips)}")
        probes = probes_of(clip)
        for own in cells:
            own.clips.append([0, 0])
        with (uniform.UniformSession if cell.strategy == uniform.NAME else open_session)(engine) as session:
            for index in range(len(clip)):
                chunk = clip.chunk(index)
                began = time.perf_counter()
                session.ingest(chunk)
                ingesting += time.perf_counter() - began
                count += 1
                for own in cells:
                    own.peak_bytes = max(own.peak_bytes, session.stats().bytes)
                if asked := probes.get(index + 1):
                    _ask(cells, session, clip, asked)
            for own in cells:
                own.index_bytes = session.index.bytes if isinstance(session, VideoSession) else 0
                own.max_tokens = own.max_tokens or session.stats().seen
    for own in cells:
        questions = own.real_time_asked + sum(own.asked)
        own.ms_per_chunk = round(ingesting / count * 1000, 2)
        own.ms_per_question = round(own.seconds / max(1, questions) * 1000, 2)
        own.seconds = round(ingesting + own.seconds, 1)
    return cells


def _ask(cells: Sequence[Cell], session: Session, clip: Clip, probes: Sequence[Probe]) -> None:
    """Ask ``probes`` once for each cell, which looks again as often as it says, and count the right answers."""
    before: list[str] = []
    for cell in cells:
        began = time.perf_counter()
        recall = Recall(cell.recall, clip) if cell.recall else None
        answers = session.ask_all([p.question for p in probes], recall=recall, max_tokens=16)
        cell.seconds += time.perf_counter() - began
        texts = [answer.text for answer in answers]
        before = before or texts
        for probe, said, earlier in zip(probes, texts, before, strict=True):
            _count(cell, probe, is_right(said, probe.answer), said != earlier)


def _count(cell: Cell, probe: Probe, right: bool, changed: bool) -> None:
    kind = cell.kinds.setdefault(probe.kind, [0, 0])
    kind[0] += right
    kind[1] += 1
    if probe.real_time:
        cell.real_time_right += right
        cell.real_time_asked += 1
        cell.real_time_changed += changed
        return
    age = probe.age
    place = len(AGES) if age is None else next(i for i, most in enumerate(AGES) if age <= most)
    cell.right[place] += right
    cell.asked[place] += 1
    cell.clips[-1][0] += right
    cell.clips[-1][1] += 1
