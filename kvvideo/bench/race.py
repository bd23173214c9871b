"""``bench ingest`` and ``bench ask``: speed against the length of the stream, beside alternatives to kvvideo."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from kvvideo.bench import operations
from kvvideo.bench.frames import Frames, heading
from kvvideo.bench.rivals import RIVALS, Kvvideo, Over, Rival, open_rivals
from kvvideo.session import EngineConfig
from kvvideo.types import Chunk

QUESTION = "Which letter is on screen now?"
LAST = 20
"""Chunks before each length whose median is taken: our choice."""

TEXT = 32
"""Room for the text around a chunk's frames, in tokens."""


@dataclass(frozen=True)
class Row:
    """Figures of one rival at one length of the stream.

    Attributes:
        rival: its name.
        chunks: length of the stream.
        ms: median milliseconds per chunk of the last ``LAST`` up to there; the very first chunk counts nowhere.
        mean_ms: mean of all since the length before, compactions included.
        frames_per_second: rate that ``mean_ms`` comes to.
        first_token_ms: median of some questions' times to the first token; None if none was asked.
        tokens: seen so far.
        held_bytes: of keys and values held.
    """

    rival: str
    chunks: int
    ms: float
    mean_ms: float
    frames_per_second: float
    first_token_ms: float | None
    tokens: int
    held_bytes: int


def run(
    config: EngineConfig,
    lengths: Sequence[int],
    rivals: Sequence[str] = RIVALS,
    questions: int = 0,
    frame_tokens: int | None = None,
    chunk_seconds: float = 4.0,
    on_chunk: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Let ``rivals`` follow one stream side by side, chunk by chunk in random order; return the report.

    Other work on the machine so hits all of them alike, and ratios inside the run mean something.

    Args:
        config: settings of kvvideo's engine.
        lengths: in chunks, at which rivals are compared.
        rivals: of ``RIVALS``.
        questions: asked of each at each length.
        frame_tokens: most tokens for a pair of frames.
        chunk_seconds: of video that all of them are shown at a time.
        on_chunk: called with the number of each chunk that all have seen.
    """
    chance, frames = random.Random(config.seed), Frames(config, frame_tokens, seconds=chunk_seconds)
    lengths = sorted(set(lengths))
    rows: list[Row] = []
    ended: dict[str, str] = {}
    live: list[int] = []
    with ExitStack() as closing:
        racing, left_out = open_rivals(config, rivals, lengths[-1], frames.tokens + TEXT, closing)
        took: dict[Rival, list[float]] = {rival: [] for rival in racing}
        viewers = {rival: viewer for viewer, rival in enumerate(racing)}
        for number in range(lengths[-1]):
            for rival in chance.sample(racing, len(racing)):
                try:
                    took[rival].append(_ingest(rival, frames.chunk(number, viewers[rival])))
                except Over as over:
                    ended[rival.name] = f"ended after {number} chunks: {over}"
                    racing.remove(rival)
            live += [rival.live for rival in racing if isinstance(rival, Kvvideo)]
            on_chunk(number + 1)
            if number + 1 not in lengths:
                continue
            asked = _ask(racing, questions, chance)
            before = max([length for length in lengths if length <= number], default=1)
            rows += [
                _row(rival, number + 1, took[rival][1:][-LAST:], took[rival][before:], asked[rival], frames.count)
                for rival in racing
            ]
        about = {rival.name: rival.about for rival in took}
        seen = max(rival.seen for rival in took)
    return {
        **heading("ask" if questions else "ingest", config, 1, frames),
        "questions": questions,
        "rivals": about,
        "rows": [asdict(row) for row in rows],
        "ended": ended,
        "left_out": left_out,
        "ratios": ratios(rows),
        "limit": _limit(config, rows, seen / lengths[-1], frames.tokens, live),
    }


def _ask(racing: Sequence[Rival], questions: int, chance: random.Random) -> dict[Rival, list[float]]:
    """Ask each rival ``questions`` questions, in random order; return the seconds to their first tokens."""
    asked: dict[Rival, list[float]] = {rival: [] for rival in racing}
    for _ in range(questions):
        for rival in chance.sample(racing, len(racing)):
            asked[rival].append(rival.ask(QUESTION))
    return asked


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Return the speed of kvvideo as a multiple of each rival's, where the stream was longest for both.

    ``vllm-session at first`` compares vLLM's session at its first length with kvvideo at its slowest.
    """
    own = {row.chunks: row for row in rows if row.rival == "kvvideo"}
    found: dict[str, float] = {}
    for name in dict.fromkeys(row.rival for row in rows if row.rival != "kvvideo"):
        both = [row for row in rows if row.rival == name and row.chunks in own]
        if both:
            found[name] = round(both[-1].mean_ms / own[both[-1].chunks].mean_ms, 3)
            if name == "vllm-session":
                found[f"{name} at first"] = round(both[0].ms / max(row.ms for row in own.values()), 3)
    return found


def _limit(
    config: EngineConfig, rows: Sequence[Row], tokens: float, video_tokens: int, live: Sequence[int]
) -> dict[str, Any] | None:
    """Return the least time of a chunk with kvvideo's cache since the length before the last; None without kvvideo.

    That is the milliseconds of the matrix products alone. ``ratios`` are multiples of it that each rival took.
    """
    if not live:
        return None
    lengths = sorted({row.chunks for row in rows})
    since = live[lengths[-2] if len(lengths) > 1 else 0 :]
    work = operations.of_chunk(config, tokens, video_tokens, statistics.fmean(since))
    rate = operations.rate(config)
    ms = 1000 * work.all / rate
    last = [row for row in rows if row.chunks == lengths[-1]]
    return {
        "operations": asdict(work),
        "operations_per_second": round(rate),
        "dtype": operations.dtype(config),
        "ms": round(ms, 2),
        "ratios": {row.rival: round(row.mean_ms / ms, 2) for row in last},
    }


def _ingest(rival: Rival, chunk: Chunk) -> float:
    began = time.perf_counter()
    rival.ingest(chunk)
    return time.perf_counter() - began


def _row(rival: Rival, chunks: int, last: list[float], since: list[float], asked: list[float], frames: int) -> Row:
    mean = statistics.fmean(since or last)
    return Row(
        rival.name,
        chunks,
        round(1000 * statistics.median(last), 2),
        round(1000 * mean, 2),
        round(frames / mean, 1),
        round(1000 * statistics.median(asked), 2) if asked else None,
        rival.seen,
        rival.held_bytes,
    )
