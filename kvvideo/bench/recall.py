"""``bench recall``: how often a question finds the chunk it is about, by strategy, budget and length of the stream.

Clips are of the letters' world, as long as ten hours; a letter is shown once in all that time. Found is a
chunk that would be shown again: the best entry of an event, not any chunk of it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from kvvideo.bench.clips import SEEDS, LettersClip, clip_size, slots_in
from kvvideo.bench.intervals import wilson
from kvvideo.bench.machine import describe
from kvvideo.bench.memory import start, tokens_at_most, whole_blocks
from kvvideo.bench.probes import past
from kvvideo.errors import ConfigError
from kvvideo.session import Engine, EngineConfig, VideoSession
from kvvideo.session.index import Found
from kvvideo.tiny import world

FIRST = (1, 4, 8)
"""Numbers of events, the best first, that are looked through: our choice."""


@dataclass
class Cell:
    """Results of one strategy at one share and one length.

    Attributes:
        strategy: its name.
        share: of the stream that the cache may hold at most.
        minutes: length of a clip.
        max_tokens: the share in tokens.
        asked: questions about letters that are not on screen any more, at the end of each clip.
        found: those of them whose chunk is among the first events, by ``FIRST``.
        index_bytes: of the vectors that chunks are found by, at the end.
        ms_per_question: mean of finding, of questions asked at once.
        ms_per_chunk: of ingesting, mean.
        seconds: in all.
    """

    strategy: str
    share: float
    minutes: float
    max_tokens: int
    asked: int = 0
    found: list[int] = field(default_factory=lambda: [0] * len(FIRST))
    index_bytes: int = 0
    ms_per_question: float = 0.0
    ms_per_chunk: float = 0.0
    seconds: float = 0.0


def run(
    config: EngineConfig,
    strategies: Sequence[str],
    shares: Sequence[float],
    minutes: Sequence[float],
    *,
    clips: int = 2,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Stream every clip with every strategy at every share, and look for what was shown; return the report.

    Args:
        config: the model and the cache settings that all strategies share; ``ratio`` sets the budget.
        strategies: names of those that bound a cache.
        shares: ``max_tokens``, as parts of the stream's tokens.
        minutes: lengths of clips.
        clips: number of clips of each length.
        seed: added to the first clip's seed.
        on_progress: told what is being done.
    """
    size, first = clip_size(config), SEEDS + seed
    longest = LettersClip(first, slots_in(max(minutes)), size)
    engine = start(config, strategies, round(max(shares) * tokens_at_most(longest, size)) + 1024)
    cells, skipped = [], []
    for length in minutes:
        made = [LettersClip(first + number, slots_in(length), size) for number in range(clips)]
        total = _tokens(engine, made[0])
        for share in shares:
            for name in strategies:
                cell = Cell(name, share, length, whole_blocks(share * total, engine.block_size))
                on_progress(f"{name} at {share:.0%} of {length:g} min")
                try:
                    engine.use(replace(config.cache, strategy=name, max_tokens=cell.max_tokens))
                    _fill(cell, engine, made)
                except ConfigError as error:
                    skipped.append({"strategy": name, "share": share, "minutes": length, "reason": str(error)})
                else:
                    cells.append(cell)
    engine.close()
    return {
        "bench": "recall",
        "machine": describe(),
        "model": config.model,
        "clips": clips,
        "seed": first,
        "ratio": config.cache.ratio,
        "first": [*FIRST],
        "cells": [_summary(cell) for cell in cells],
        "skipped": skipped,
    }


def _summary(cell: Cell) -> dict[str, Any]:
    """Return a cell as the report has it: its counts, with shares and intervals."""
    intervals = [wilson(found, cell.asked) for found in cell.found]
    return {
        **asdict(cell),
        "among": [round(found / max(1, cell.asked), 4) for found in cell.found],
        "intervals": [[round(low, 4), round(high, 4)] for low, high in intervals],
    }


def _tokens(engine: Engine, clip: LettersClip) -> int:
    """Return the tokens of a stream of ``clip``, but for its opening."""
    chunk = clip.chunk(0)
    return sum(engine.chunk_tokens(replace(chunk, start=slot.start)) for slot in clip.drawn.slots)


def _fill(cell: Cell, engine: Engine, clips: Sequence[LettersClip]) -> None:
    """Stream all ``clips`` and count into ``cell`` what is found at their ends."""
    began, ingesting, finding = time.perf_counter(), 0.0, 0.0
    for clip in clips:
        probes = [*past(clip, len(clip), np.random.default_rng(clip.seed))]
        with VideoSession(engine) as session:
            for number in range(len(clip)):
                chunk = clip.chunk(number)
                fed = time.perf_counter()
                session.ingest(chunk)
                ingesting += time.perf_counter() - fed
            asked = time.perf_counter()
            events = engine.drive(session.finding([probe.question for probe in probes]))
            finding += time.perf_counter() - asked
            cell.index_bytes = session.index.bytes
        for probe, found in zip(probes, events, strict=True):
            rank = _rank(found, world.SLOT * len(clip) - (probe.age or 0.0) - world.SLOT / 2)
            cell.asked += 1
            cell.found = [count + (rank < first) for count, first in zip(cell.found, FIRST, strict=True)]
    cell.ms_per_question = round(1000 * finding / max(1, cell.asked), 2)
    cell.ms_per_chunk = round(1000 * ingesting / sum(map(len, clips)), 2)
    cell.seconds = round(time.perf_counter() - began, 1)


def _rank(events: Iterator[Found], moment: float) -> int:
    """Return the number of the first event, from 0, whose best entry is that of ``moment`` (seconds)."""
    best = (event.best for event in islice(events, FIRST[-1]))
    return next((rank for rank, hit in enumerate(best) if hit.start <= moment < hit.end), FIRST[-1])
