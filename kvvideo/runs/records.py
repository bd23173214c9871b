"""Make the records that ``-f jsonl`` writes: one an answer, and one at the end. ``outputs.schema`` describes them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, Literal, cast

from kvvideo.compression.schedule import Schedule
from kvvideo.outputs.plots import shares
from kvvideo.outputs.schema import records as models
from kvvideo.runs.agenda import Question
from kvvideo.runs.streaming import Asked
from kvvideo.types import CacheStats, Hit

SCHEMA: Final = 1
PARTS: Final = 64
"""Stretches, or parts of the video, that the record of an answer tells apart: 1 kB of JSON, more than a bar shows."""

Record = dict[str, Any]


def answer(asked: Asked, *, video: str, model: str, strategy: str, schedule: Schedule | None) -> Record:
    """Return the record of one answer. ``schedule`` is None for a cache without bound."""
    said, since = asked.answer, None if asked.question is None else asked.question.since
    record: models.Answer = {
        "type": "answer",
        "schema": SCHEMA,
        "video": video,
        "asked_at": round(asked.at, 3),
        "answered_at": round(asked.at if asked.answered_at is None else asked.answered_at, 3),
        "question": said.question,
        "answer": said.text,
        "finish_reason": cast(Literal["stop", "length"], said.finish_reason),
        "task": None if asked.question is None else asked.question.task,
        "since": None if since is None else round(since, 3),
        "model": model,
        "strategy": strategy,
        "cache": _cache(asked.cache, schedule),
        "held": [[round(start, 3), round(end, 3)] for start, end in _joined(asked.held)],
        "first_token_seconds": round(said.first_token_seconds, 4),
        "seconds": round(said.seconds, 4),
    }
    told = system("" if asked.question is None else asked.question.system)
    return {**record, **told, **_remembered(asked), **looked_at(said.looked_at)}


def system(words: str) -> Record:
    """Return the field of an answer about what the model was told before its question; nothing for no words."""
    return {"system": words} if words else {}


def subtitles(name: str | None) -> Record:
    """Return the field about what the words of a video were read from; nothing for None."""
    return {} if name is None else {"subtitles": name}


def _joined(stretches: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return ``PARTS`` stretches at most: where there are more, those with the shortest gaps between become one."""
    gaps = sorted(range(1, len(stretches)), key=lambda index: stretches[index][0] - stretches[index - 1][1])
    cuts = [0, *sorted(gaps[-(PARTS - 1) :]), len(stretches)]
    return [(stretches[first][0], stretches[last - 1][1]) for first, last in pairwise(cuts)] if stretches else []


def _remembered(asked: Asked) -> Record:
    """Return the field about the share that is held of each part of what was seen; nothing if nothing was."""
    start, end = (asked.timeline[0].start, asked.timeline[-1].end) if asked.timeline else (0.0, 0.0)
    if start == end:
        return {}
    held = [(span.start, span.end, span.share) for span in asked.timeline]
    found: models.Remembered = {
        "start": round(start, 3),
        "end": round(end, 3),
        # Two digits, but of a small share not only zeros.
        "shares": [float(f"{share:.2g}") for share in shares(held, start, end, min(PARTS, len(held)))],
    }
    return {"remembered": found}


def looked_at(hits: Sequence[Hit]) -> Record:
    """Return the field of an answer about what was shown again for it; nothing if nothing was."""
    found: list[models.Hit] = [
        {"start": round(hit.start, 3), "end": round(hit.end, 3), "score": round(hit.score, 4)} for hit in hits
    ]
    return {"looked_at": found} if found else {}


def done(
    status: models.Status,
    error: str | None,
    unasked: list[Question],
    stats: CacheStats | None,
    *,
    video: str,
    model: str,
    strategy: str,
    schedule: Schedule | None,
    answers: int,
    chunks: int,
    frames: int,
    start: float,
    end: float,
    waited: float,
    seconds: float,
    loading: float = 0.0,
) -> Record:
    """Return the last record of a run.

    Of its ``seconds`` so many ``waited`` for frames, once the first were there, and ``loading`` the model took so many.
    """
    record: models.Done = {
        "type": "done",
        "schema": SCHEMA,
        "video": video,
        "status": status,
        "error": error,
        "model": model,
        "strategy": strategy,
        "answers": answers,
        "unasked": [{"asked_at": q.at, "question": q.text} for q in unasked],
        "chunks": chunks,
        "frames": frames,
        "start": round(start, 3),
        "end": round(end, 3),
        "cache": None if stats is None else _cache(stats, schedule),
        "waited_seconds": round(waited, 3),
        "seconds": round(seconds, 3),
    }
    if loading:
        record["load_seconds"] = round(loading, 3)
    return {**record}


def ingest(
    status: models.Status,
    error: str | None,
    stats: CacheStats | None,
    *,
    video: str,
    output: str,
    model: str,
    strategy: str,
    schedule: Schedule | None,
    chunks: int,
    frames: int,
    start: float,
    end: float,
    resumed_from: float | None,
    checkpoints: int,
    bytes: int | None,
    waited: float,
    seconds: float,
) -> Record:
    """Return the record of ``ingest``; ``bytes`` is the size of the file, if there is one."""
    record: models.Ingest = {
        "type": "ingest",
        "schema": SCHEMA,
        "video": video,
        "output": output,
        "status": status,
        "error": error,
        "model": model,
        "strategy": strategy,
        "chunks": chunks,
        "frames": frames,
        "start": round(start, 3),
        "end": round(end, 3),
        "resumed_from": None if resumed_from is None else round(resumed_from, 3),
        "cache": None if stats is None else _cache(stats, schedule),
        "checkpoints": checkpoints,
        "bytes": bytes,
        "waited_seconds": round(waited, 3),
        "seconds": round(seconds, 3),
    }
    return {**record}


def outcome(stopped: bool, failure: Exception | None) -> tuple[models.Status, str | None]:
    """Return the ``status`` and the ``error`` of a run that was stopped, or failed, or neither."""
    return "interrupted" if stopped else "error" if failure else "complete", str(failure) if failure else None


def cache(stats: CacheStats, schedule: Schedule | None) -> Record:
    """Return the cache part of a record: its bound, both None if it has none, and what it holds."""
    return {**_cache(stats, schedule)}


def _cache(stats: CacheStats, schedule: Schedule | None) -> models.Cache:
    found: models.Cache = {
        "budget": schedule.budget if schedule else None,
        "max_tokens": schedule.max_tokens if schedule else None,
        "seen": stats.seen,
        "live": stats.live,
        "evicted": stats.evicted,
        "blocks": stats.blocks,
        "compactions": stats.compactions,
        "bytes": stats.bytes,
    }
    if stats.index_bytes:
        found["index_bytes"] = stats.index_bytes
    return found
