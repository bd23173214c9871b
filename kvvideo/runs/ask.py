"""Answering from a memory that was written down, with its video where that is at hand."""

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any, Self

from kvvideo.errors import ConfigError, KvvideoError
from kvvideo.runs import records
from kvvideo.runs.agenda import Agenda, Question
from kvvideo.runs.analyze import Hooks
from kvvideo.runs.origin import engine_for, video_of
from kvvideo.runs.playback import Arrival, Playback
from kvvideo.runs.recall import Looking, of_memory
from kvvideo.runs.streaming import Asked, Meter, asking
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


@dataclass(frozen=True)
class Saved:
    """A memory that was written down, with all that it takes to ask it.

    Attributes:
        file: memories of one video.
        memory: the last in ``file``.
        source: the video; None if it is not at hand.
        recall: how questions look again; None for not at all.
        config: of an engine for it.
    """

    file: MemoryFile
    memory: Memory
    source: Source | None
    recall: Recall | None
    config: EngineConfig

    @classmethod
    def of(
        cls,
        file: MemoryFile,
        config: EngineConfig,
        looking: Looking,
        say: Callable[[str], None],
        *,
        video: str | None = None,
        model: str | None = None,
        dtype: str | None = None,
    ) -> Self:
        """Return the memory at the end of ``file``, its video found and its model checked, before that is loaded.

        Args:
            file: memories of one video.
            config: of the engine, but for what the memory says itself.
            looking: how questions look again.
            say: takes lines for the person who waits.
            video: where the video is, if that is known.
            model: where the model is, if not where the memory says.
            dtype: to compute in, if not that of the memory.

        Raises:
            ConfigError: if the memory is damaged, or of another model than ``model``, or there is no such ``video``.
            VideoError: if the video cannot be read.
        """
        memory = file.memory()
        source, note = video_of(memory, file.path, video)
        if note:
            say(note)
        config = engine_for(memory, config, model, dtype)
        # One that must be downloaded first is known when it is loaded; the session looks again.
        if is_here(config.model) and of_model(model_path(config.model, weights=True)) != memory.fingerprint:
            raise ConfigError(
                f"{str(file.path)!r} was made with another model than {config.model!r}, or other weights of it: "
                f"{memory.model!r}; say where that is with --model"
            )
        recall = of_memory(memory, looking, source, file.frames(), say)
        return cls(file, memory, source, recall, looking.room_for(config, memory))

    def check(self, questions: Sequence[Question]) -> None:
        """Check that everything can be answered.

        Raises:
            ConfigError: if a question is of a moment that the memory knows nothing of, or of one before the first
                checkpoint and the video is not at hand.
        """
        agenda_of(self.memory, questions)
        first = self.file.times[0]
        for question in questions:
            if self.source is None and question.at is not None and question.at < first - 1e-6:
                raise ConfigError(
                    f"'@{format_time(question.at)} {question.text}' is before the first checkpoint, "
                    f"{format_time(first)}, and the video is not at hand; say where it is with --video"
                )

    def playback(self, engine: Engine) -> Playback:
        """Return a playback that stands at the end of the memory.

        Raises:
            ConfigError: if the memory does not fit the engine.
        """
        memory = self.memory if self.memory.tensors else self.file.memory()
        return Playback(engine, self.source, saved=self.file, memory=memory)


class _Stopped(Exception):
    """No more is wanted while frames are shown again."""


def answering(
    saved: Saved, questions: Sequence[Question], *, hooks: Hooks, max_answer_tokens: int = 128
) -> Iterator[records.Record]:
    """Load the model and ask ``questions`` of ``saved``; yield the records of ``recording``.

    Raises:
        ConfigError: if the model cannot be loaded.
        KvvideoError: after the last record, if something went wrong.
    """
    began = time.perf_counter()
    hooks.loading(saved.config.model)
    engine = Engine(saved.config)
    hooks.loaded()
    with closing(saved.playback(engine)) as playback:
        yield from engine.driven(
            recording(saved, playback, questions, began=began, hooks=hooks, max_answer_tokens=max_answer_tokens)
        )


def recording(
    saved: Saved,
    playback: Playback,
    questions: Sequence[Question],
    *,
    began: float,
    hooks: Hooks,
    max_answer_tokens: int = 128,
) -> Generator[records.Record | None, None, None]:
    """Ask ``questions``; yield the records of the answers in order of time and a last one, and None to wait for a step.

    Args:
        saved: what is asked.
        playback: of it; stands at the end of the memory, and does so again afterwards.
        questions: what to ask.
        began: moment that the last record counts its seconds from, by ``time.perf_counter``.
        hooks: called meanwhile; a run that is stopped asks no more.
        max_answer_tokens: longest answer.

    Raises:
        KvvideoError: after the last record, if something went wrong.
    """
    memory, config, source = saved.memory, saved.config, saved.source
    agenda, count, failure = agenda_of(memory, questions), 0, None
    common: dict[str, Any] = {
        "video": str(memory.source.get("path", saved.file.path)) if source is None else source.path,
        "model": config.model,
        "strategy": config.cache.strategy,
        "schedule": config.cache.schedule(playback.engine.block_size),
    }
    stats = playback.session.stats()
    options = {"max_tokens": max_answer_tokens, "seed": config.seed, "recall": saved.recall}
    try:
        with closing(_answers(playback, agenda, questions, hooks, **options)) as batches:
            for batch in batches:
                if batch is None:
                    yield None
                    continue
                for asked in batch:
                    count += 1
                    yield records.answer(asked, **common)
    except KvvideoError as error:
        failure = error
    status, why = records.outcome(hooks.stopped(), failure)
    done = records.done(
        status,
        why,
        agenda.left(),
        stats,
        answers=count,
        seconds=time.perf_counter() - began,
        **_seen(memory),
        **common,
    )
    yield done | records.subtitles((memory.source.get("subtitles") or {}).get("name"))
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
    return playback.engine.driven(_answers(playback, agenda, questions, hooks or Hooks(), **options))


def _answers(
    playback: Playback, agenda: Agenda, questions: Sequence[Question], hooks: Hooks, **options: Any
) -> Generator[list[Asked] | None, None, None]:
    """Do what ``answers`` does, but yield None where the engine must step for a question."""
    end, schedule = playback.session.end, playback.engine.config.cache.schedule(playback.engine.block_size)

    def on_chunk() -> None:
        if hooks.stopped():
            raise _Stopped
        hooks.chunk(Meter(playback.session, schedule).progress())

    moments = sorted({q.at for q in questions if q.at is not None and q.at < end})
    # Closed at once, however this ends, so that the playback stands at the end again.
    with suppress(_Stopped), closing(_stand_at(playback, moments, on_chunk)) as stands:
        for at, arrival in stands:
            if hooks.stopped():
                return
            due = [question for _, some in agenda.before(math.nextafter(at, math.inf)) for question in some]
            asked = yield from asking(playback.session, at, due, playback.also, **options)
            yield asked if arrival.exact else [replace(one, answered_at=arrival.at) for one in asked]
    if not hooks.stopped() and (due := agenda.at_end(end)):
        asked = yield from asking(playback.session, end, due, **options)
        yield asked


def _stand_at(
    playback: Playback, moments: Sequence[float], on_chunk: Callable[[], None]
) -> Generator[tuple[float, Arrival], None, None]:
    """Let ``playback`` stand at one of the ascending ``moments`` after the other."""
    if moments:
        with playback.visit(moments[0], on_chunk) as arrival:
            yield moments[0], arrival
            for at in moments[1:]:
                yield at, playback.go(at, on_chunk)
