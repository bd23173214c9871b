"""What ``-f jsonl`` writes: one record an answer, one at the end. ``docs/records.md`` describes them.

Version 1. A field may be added without a new version; none is renamed, removed or changed in meaning.
"""

from dataclasses import asdict
from typing import Any

from kvvideo.compression.schedule import Schedule
from kvvideo.runs.agenda import Question
from kvvideo.runs.streaming import Asked
from kvvideo.types import CacheStats

SCHEMA = 1

Record = dict[str, Any]


def answer(asked: Asked, *, video: str, model: str, strategy: str, schedule: Schedule | None) -> Record:
    """The record of one answer. ``schedule`` is None for a cache without bound."""
    said, since = asked.answer, None if asked.question is None else asked.question.since
    return {
        "type": "answer",
        "schema": SCHEMA,
        "video": video,
        "asked_at": round(asked.at, 3),
        "answered_at": round(asked.at if asked.answered_at is None else asked.answered_at, 3),
        "question": said.question,
        "answer": said.text,
        "finish_reason": said.finish_reason,
        "task": None if asked.question is None else asked.question.task,
        "since": None if since is None else round(since, 3),
        "model": model,
        "strategy": strategy,
        "cache": cache(asked.cache, schedule),
        "held": [[round(start, 3), round(end, 3)] for start, end in asked.held],
        "first_token_seconds": round(said.first_token_seconds, 4),
        "seconds": round(said.seconds, 4),
    }


def done(
    status: str,
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
) -> Record:
    """The last record of a run.

    Args:
        status: ``complete``, ``interrupted`` or ``error``.
        waited: seconds for frames, once the first were there.
    """
    return {
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
        "cache": None if stats is None else cache(stats, schedule),
        "waited_seconds": round(waited, 3),
        "seconds": round(seconds, 3),
    }


def ingest(
    status: str,
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
    """The record of ``ingest``; ``status`` is as in ``done``, and ``bytes`` the size of the file, if there is one."""
    return {
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
        "cache": None if stats is None else cache(stats, schedule),
        "checkpoints": checkpoints,
        "bytes": bytes,
        "waited_seconds": round(waited, 3),
        "seconds": round(seconds, 3),
    }


def outcome(stopped: bool, failure: Exception | None) -> tuple[str, str | None]:
    """Return the ``status`` and the ``error`` of a run that was stopped, or failed, or neither."""
    return "interrupted" if stopped else "error" if failure else "complete", str(failure) if failure else None


def cache(stats: CacheStats, schedule: Schedule | None) -> Record:
    """The cache part of a record: its bound, both None if it has none, and what it holds."""
    budget, max_tokens = (schedule.budget, schedule.max_tokens) if schedule else (None, None)
    return {"budget": budget, "max_tokens": max_tokens, **asdict(stats)}
