"""Predict the cost of a batch, and find what is wrong with it, before any model is loaded."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from kvvideo.batch.tasks import Defaults, Task
from kvvideo.errors import ConfigError, KvvideoError
from kvvideo.runs.records import SCHEMA
from kvvideo.session.prediction import check_room, predict, words_tokens
from kvvideo.times import format_time
from kvvideo.video import probe


def check(tasks: Sequence[Task], defaults: Defaults) -> Iterator[dict[str, Any]]:
    """Yield a record for each of ``tasks``: its cost, or ``error``, and ``findings`` about its questions."""
    with ThreadPoolExecutor(2, thread_name_prefix="kvvideo-check") as prober:
        yield from prober.map(partial(_check, defaults=defaults), tasks)


def _check(task: Task, defaults: Defaults) -> dict[str, Any]:
    source = task.source
    record: dict[str, Any] = {
        "type": "check",
        "schema": SCHEMA,
        "video": source.path,
        "strategy": task.cache.strategy,
        "jobs": [job.id for job in task.jobs],
        "where": task.jobs[0].where,
        "questions": sum(map(len, task.wants.values())),
        "error": None,
        "findings": [],
    }
    try:
        info = probe(source.path, source.decoder)
        planned, end = source.plan(info), None if info.duration is None else source.ends(info.duration)
        record["findings"] = [
            f"{want.job.where}: question {want.index + 1} is asked at {format_time(question.at)}, and "
            f"{source.path!r} ends at {format_time(end)}"
            for question, wants in task.wants.items()
            for want in wants
            if end is not None and question.at is not None and question.at > end
        ]
        record |= {"seconds": planned.seconds, "chunks": planned.chunks, "frames": planned.frames}
        if planned.chunks is not None:
            config = replace(defaults.engine, cache=task.cache)
            record |= asdict(predict(config, source, info))
            if source.words_from is not None:
                record |= {"subtitles": source.words_from, "words_tokens": words_tokens(config, source, info)}
            try:
                check_room(config, source, info, [question.prompt for question in task.wants])
            except ConfigError as error:
                record["findings"].append(f"{record['where']}: {error}")
    except KvvideoError as error:
        record["error"] = str(error)
    return record


def total(found: Sequence[dict[str, Any]], defaults: Defaults) -> dict[str, Any]:
    """Return the record of all ``found`` together; its sums leave out what is not known."""
    from kvvideo.session.pool import pool_bytes

    sums = {
        name: sum(record.get(name) or 0 for record in found)
        for name in ("questions", "seconds", "chunks", "frames", "tokens")
    }
    return {
        "type": "check_total",
        "schema": SCHEMA,
        "model": defaults.engine.model,
        **sums,
        "sessions": defaults.engine.sessions,
        "pool_bytes": pool_bytes(defaults.engine),
        "errors": sum(record["error"] is not None for record in found),
        "findings": sum(len(record["findings"]) for record in found),
    }
