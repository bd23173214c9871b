"""Answering from a memory that was written down, with its video where that is at hand."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import chain
from typing import Any

from kvvideo.errors import ConfigError, KvvideoError
from kvvideo.runs import records
from kvvideo.runs.agenda import Agenda, Question
from kvvideo.runs.analyze import Hooks
from kvvideo.runs.playback import Arrival, Playback
from kvvideo.runs.streaming import Asked, Meter, ask
from kvvideo.session import Recall
from kvvideo.session.config import EngineConfig
from kvvideo.session.engine import Engine
from kvvideo.session.hub import is_here, model_path
from kvvideo.session.memory import Memory
from kvvideo.session.model_files import of_model
from kvvideo.storage.file import MemoryFile
from kvvideo.times import format_time
from kvvideo.video import Source


def agenda_of(memory: Memory, questions: Sequence[Question]) -> Agenda:
    """Return the agenda of ``questions`` for a memory.

    Raises:
        ConfigError: if a question is of a moment that it knows nothing of.
    """
    return Agenda(questions, None, memory.source.get("start") or 0.0, memory.end)


def check(file: MemoryFile, memory: Memory, source: Source | None, questions: Sequence[Question], model: str) -> None:
    """Check that everything can be answered, before the model is loaded.

    Args:
        file: memories of one video.
        memory: the last in ``file``.
        source: the video; None if it is not at hand.
        questions: what will be asked.
        model: name of the model that is to be loaded.

    Raises:
        ConfigError: if ``model`` is another than that of the memory, or a question is of a moment before the first
            checkpoint and the video is not at hand.
    """
    # One that must be downloaded first is known when it is loaded; the session looks again.
    if is_here(model) and of_model(model_path(model, weights=True)) != memory.fingerprint:
        raise ConfigError(
            f"{str(file.path)!r} was made with another model than {model!r}, or other weights of it: {memory.model!r}; "
            "say where that is with --model"
        )
    first = file.times[0]
    for question in questions:
        if source is None and question.at is not None and question.at < first - 1e-6:
            raise ConfigError(
                f"'@{format_time(question.at)} {question.text}' is before the first checkpoint, {format_time(first)}, "
                "and the video is not at hand; say where it is with --video"
            )


class _Stopped(Exception):
    """No more is wanted while frames are shown again."""


def answering(
    file: MemoryFile,
    memory: Memory,
    source: Source | None,
    questions: Sequence[Question],
    config: EngineConfig,
    *,
    hooks: Hooks,
    recall: Recall | None = None,
    max_answer_tokens: int = 128,
) -> Iterator[records.Record]:
    """Ask ``questions`` of ``memory``; yield the records of the answers in order of time, and a last one.

    Args:
        file: memories of one video.
        memory: the last in ``file``.
        source: the video; None if it is not at hand.
        questions: what to ask.
        config: of the engine, for this memory.
        hooks: called meanwhile; a run that is stopped asks no more.
        recall: how questions look again; None for not at all.
        max_answer_tokens: longest answer.

    Raises:
        ConfigError: if the model cannot be loaded.
        KvvideoError: after the last record, if something went wrong.
    """
    began, agenda, count, failure = time.perf_counter(), agenda_of(memory, questions), 0, None
    hooks.loading(config.model)
    schedule = config.cache.schedule((engine := Engine(config)).block_size)
    common: dict[str, Any] = {
        "video": str(memory.source.get("path", file.path)) if source is None else source.path,
        "model": config.model,
        "strategy": config.cache.strategy,
        "schedule": schedule,
    }
    playback = Playback(engine, source, saved=file, memory=memory)
    stats = playback.session.stats()
    with closing(playback):
        try:
            options = {"max_tokens": max_answer_tokens, "seed": config.seed, "recall": recall}
            said = answers(playback, agenda, questions, hooks, **options)
            for asked in chain.from_iterable(said):
                count += 1
                yield records.answer(asked, **common)
        except KvvideoError as error:
            failure = error
    status, why = records.outcome(hooks.stopped(), failure)
    yield records.done(
        status,
        why,
        agenda.left(),
        stats,
        answers=count,
        seconds=time.perf_counter() - began,
        **_seen(memory),
        **common,
    )
    if failure is not None:
        raise failure


def _seen(memory: Memory) -> dict[str, Any]:
    """Return the part of the last record that is about the video."""
    start = memory.source.get("start") or 0.0
    return {"chunks": memory.chunks, "frames": memory.frames, "start": start, "end": memory.end, "waited": 0.0}


def answers(
    playback: Playback,
    agenda: Agenda,
    questions: Sequence[Question],
    hooks: Hooks | None = None,
    **options: Any,
) -> Iterator[list[Asked]]:
    """Answer ``questions`` in order of time, those of one moment together.

    Args:
        playback: stands at the end of the memory, and does so again afterwards.
        agenda: of the questions; what it still holds afterwards was not asked.
        questions: what to ask.
        hooks: called meanwhile; a run that is stopped asks no more.
        options: of ``Session.ask_all``.

    Raises:
        VideoError: the video cannot be read.
        EngineError: vLLM failed, or ended the session.
    """
    hooks = hooks or Hooks()
    end, schedule = playback.session.end, playback.engine.config.cache.schedule(playback.engine.block_size)

    def on_chunk() -> None:
        if hooks.stopped():
            raise _Stopped
        hooks.chunk(Meter(playback.session, schedule).progress())

    moments = sorted({q.at for q in questions if q.at is not None and q.at < end})
    with suppress(_Stopped):
        for at, arrival in _stand_at(playback, moments, on_chunk):
            if hooks.stopped():
                return
            due = [question for _, some in agenda.before(math.nextafter(at, math.inf)) for question in some]
            asked = ask(playback.session, at, due, playback.also, **options)
            yield asked if arrival.exact else [replace(one, answered_at=arrival.at) for one in asked]
    if not hooks.stopped() and (due := agenda.at_end(end)):
        yield ask(playback.session, end, due, **options)


def _stand_at(
    playback: Playback, moments: Sequence[float], on_chunk: Callable[[], None]
) -> Iterator[tuple[float, Arrival]]:
    """Let ``playback`` stand at one of the ascending ``moments`` after the other."""
    if moments:
        with playback.visit(moments[0], on_chunk) as arrival:
            yield moments[0], arrival
            for at in moments[1:]:
                yield at, playback.go(at, on_chunk)
