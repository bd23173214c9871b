"""The one loop of all runs: stream a video into a session and ask each question at its moment."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from kvvideo.compression.schedule import Schedule
from kvvideo.errors import FullError
from kvvideo.runs.agenda import Agenda, Question
from kvvideo.session import Answer, Recall, Session, Span
from kvvideo.session.base import held
from kvvideo.types import CacheStats, Chunk, Progress
from kvvideo.video import VideoReader


@dataclass(frozen=True)
class Asked:
    """An answer, when it was given, and what the memory held then.

    Attributes:
        answer: the question and what the model said.
        at: moment of the source the question was asked at, in seconds.
        cache: the session's cache, in which the question left no trace.
        timeline: stretches of the source that were seen, and the share of each that was still held.
        answered_at: moment it was answered from, where that is an earlier one, because the frames between are not at
            hand; None if it is ``at``.
        question: what it answers, as it stood on the agenda, if it did.
        error: what ended the video before its end, where it was asked because of that.
    """

    answer: Answer
    at: float
    cache: CacheStats
    timeline: tuple[Span, ...]
    answered_at: float | None = None
    question: Question | None = None
    error: Exception | None = None

    @property
    def text(self) -> str:
        """Words that the model answered with."""
        return self.answer.text

    @property
    def held(self) -> tuple[tuple[float, float], ...]:
        """Stretches of the source, in seconds, of which something was still held."""
        return tuple(held(self.timeline))


def analyze(session: Session, chunks: Iterable[Chunk], agenda: Agenda, **options: Any) -> Iterator[Asked]:
    """Ingest ``chunks`` and yield answers as they are given: ``batches``, one answer at a time."""
    for batch in batches(session, chunks, agenda, **options):
        yield from batch


def batches(session: Session, chunks: Iterable[Chunk], agenda: Agenda, **options: Any) -> Iterator[list[Asked]]:
    """Ingest ``chunks`` and yield together the answers to all that is asked at one moment; see ``analyzing``."""
    return session.engine.driven(analyzing(session, chunks, agenda, **options))


def analyzing(
    session: Session,
    chunks: Iterable[Chunk | None],
    agenda: Agenda,
    *,
    answered: int = 0,
    stopped: Callable[[], bool] = lambda: False,
    on_chunk: Callable[[], None] = lambda: None,
    **options: Any,
) -> Generator[list[Asked] | None, None, None]:
    """Do what ``batches`` does, for one of several sessions of an engine: yield None to wait for a step, or a chunk.

    A question at a moment sees every frame shown up to it and none after: where the moment falls
    inside a chunk, the chunk's beginning is shown on the question's fork alone, so that asking never
    changes what is remembered.

    Args:
        session: takes the chunks. It may have taken some already: ``chunks`` are those after.
        chunks: of one video, in order; None where the next is not there yet.
        agenda: what to ask when; what it still holds afterwards was not asked.
        answered: how many questions, the first of the agenda, were answered earlier and are not asked.
        stopped: asked after every chunk; once true, nothing more is ingested or asked.
        on_chunk: called after every chunk, when all that was due before its end has been yielded.
        options: of ``Session.ask_all``.

    Raises:
        VideoError: the chunks ended early. Questions for the end are answered first, about what there was.
        FullError: the session has no room for more; likewise.
        EngineError: vLLM failed, or ended the session.
    """
    if answered:
        # All that was due until where the session stands was; the next call would take it for due there.
        answered -= sum(len(questions) for _, questions in agenda.before(session.end))
    rest, failure = _Rest(session, agenda, answered, options), None
    for chunk in _to_the_end(chunks):
        if chunk is None:
            yield None
            continue
        if isinstance(chunk, Exception):
            failure = chunk
            break
        try:
            yield from rest.ask(agenda.before(chunk.end), chunk)
            yield from session.ingesting(chunk)
        except FullError as error:
            failure = error
            break
        on_chunk()
        if stopped():
            return
    if session.chunks:
        try:
            yield from rest.ask([(session.end, agenda.at_end(session.end))], error=failure)
        except FullError as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _to_the_end(chunks: Iterable[Chunk | None]) -> Iterator[Chunk | Exception | None]:
    """Yield ``chunks``, and at last the error that ended them early, if one did."""
    try:
        # Through chain, so that closing this leaves a reader open.
        yield from chain(chunks)
    except Exception as error:
        yield error


@dataclass
class _Rest:
    """Asks the questions of a run but the first ``answered``; those that have no room are on the agenda again."""

    session: Session
    agenda: Agenda
    answered: int
    options: dict[str, Any]

    def ask(
        self,
        due: list[tuple[float, list[Question]]],
        chunk: Chunk | None = None,
        error: Exception | None = None,
    ) -> Generator[list[Asked] | None, None, None]:
        """Yield the answers of each moment together, and None where the engine must step for them.

        Args:
            due: moments in order, with their questions.
            chunk: the next of the session, if they lie in it.
            error: what ended the video before its end, if that is why they are asked.
        """
        for index, (at, questions) in enumerate(due):
            # Those asked at one moment were answered together, or not at all.
            if self.answered > 0:
                self.answered -= len(questions)
            elif questions:
                also = None if chunk is None else shown_until(chunk, at, self.session)
                try:
                    found = yield from asking(self.session, at, questions, also, **self.options)
                except FullError:
                    self.agenda.put_back([question for _, some in due[index:] for question in some])
                    raise
                yield [replace(one, error=error) for one in found]


def shown_until(chunk: Chunk, at: float, session: Session) -> Chunk | None:
    """Return the part of ``chunk``, the next of ``session``, that a question asked ``at`` seconds sees.

    A question before the very first frame sees that frame, for there must be something to ask about.
    """
    return chunk.until(at) or (chunk.until(chunk.times[0]) if session.chunks == 0 else None)


def ask(
    session: Session, at: float, questions: Sequence[Question], also: Chunk | None = None, **options: Any
) -> list[Asked]:
    """Ask questions at the moment that a session stands at, or at the end of ``also``.

    Args:
        session: what is asked.
        at: that moment, in seconds of the source.
        questions: what to ask; their own moments say nothing here.
        also: frames since the last whole chunk, to show without remembering them.
        options: of ``Session.ask_all``.
    """
    return session.engine.drive(asking(session, at, questions, also, **options))


def asking(
    session: Session, at: float, questions: Sequence[Question], also: Chunk | None = None, **options: Any
) -> Generator[None, None, list[Asked]]:
    """Do what ``ask`` does, but yield where the engine must step for it."""
    answers = yield from _answers(session, questions, also, **options)
    cache, timeline = session.stats(), tuple(session.timeline())
    if also is not None:
        timeline = (*timeline, Span(also.start, max(also.times[-1], also.start), 1.0))
    return [
        Asked(answer, at, cache, timeline, question=question)
        for answer, question in zip(answers, questions, strict=True)
    ]


def _answers(
    session: Session, questions: Sequence[Question], also: Chunk | None, recall: Recall | None = None, **options: Any
) -> Generator[None, None, list[Answer]]:
    """Return the answers in order. What a task asks is about now, and does not look again."""
    alike: dict[tuple[bool, str], list[int]] = {}
    for number, question in enumerate(questions):
        alike.setdefault((bool(question.task), question.system), []).append(number)
    found: dict[int, Answer] = {}
    for (of_task, system), numbers in sorted(alike.items()):
        texts, again = [questions[number].text for number in numbers], None if of_task else recall
        said = yield from session.answering(texts, also=also, recall=again, system=system, **options)
        found.update(zip(numbers, said, strict=True))
    return [found[number] for number in range(len(questions))]


class Meter:
    """Measures how far a stream has come, and how fast it has gone since this was made.

    Args:
        session: what the stream goes into.
        schedule: of its cache; None for a cache without bound.
        end: where the stream ends, in seconds of the source; None if that is not known.
        reader: of the stream, if it may be live.
    """

    def __init__(
        self,
        session: Session,
        schedule: Schedule | None,
        end: float | None = None,
        reader: VideoReader | None = None,
    ) -> None:
        self._session, self._schedule, self._end, self._reader = session, schedule, end, reader
        self._frames, self._began = session.frames, time.perf_counter()

    def progress(self) -> Progress:
        """Return how far it is now."""
        passed = time.perf_counter() - self._began
        frames = self._session.frames - self._frames
        live = None if self._reader is None else self._reader.live
        return Progress(
            position=self._session.end,
            end=self._end,
            rate=frames / passed if frames and passed else None,
            cache=self._session.stats(),
            max_tokens=None if self._schedule is None else self._schedule.max_tokens,
            behind=0.0 if live is None else live.behind,
            dropped=0.0 if live is None else live.dropped,
        )
