"""The main job: stream a video into a session and ask each question at its moment."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvvideo.runs.agenda import Agenda, Question
from kvvideo.session import Answer, Session
from kvvideo.types import CacheStats, Chunk


@dataclass(frozen=True)
class Asked:
    """An answer, when it was given, and what the memory held then.

    Attributes:
        answer: the question and what the model said.
        at: moment of the source the question was asked at, in seconds.
        cache: the session's cache, in which the question left no trace.
        held: stretches of the source, in seconds, of which something was still held.
        answered_at: moment it was answered from, where that is an earlier one, because the frames between are not at
            hand; None if it is ``at``.
        question: what it answers, as it stood on the agenda, if it did.
        error: what ended the video before its end, where it was asked because of that.
    """

    answer: Answer
    at: float
    cache: CacheStats
    held: tuple[tuple[float, float], ...]
    answered_at: float | None = None
    question: Question | None = None
    error: Exception | None = None


def analyze(session: Session, chunks: Iterable[Chunk], agenda: Agenda, **options: Any) -> Iterator[Asked]:
    """Ingest ``chunks`` and yield answers as they are given: ``batches``, one answer at a time."""
    for batch in batches(session, chunks, agenda, **options):
        yield from batch


def batches(session: Session, chunks: Iterable[Chunk], agenda: Agenda, **options: Any) -> Iterator[list[Asked]]:
    """Ingest ``chunks`` and yield the answers to what is asked at one moment, as they are given; see ``analyzing``."""
    return session.engine.driven(analyzing(session, chunks, agenda, **options))


def analyzing(
    session: Session,
    chunks: Iterable[Chunk | None],
    agenda: Agenda,
    *,
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int | None = None,
    answered: int = 0,
    stopped: Callable[[], bool] = lambda: False,
    on_chunk: Callable[[], None] = lambda: None,
) -> Generator[list[Asked] | None, None, None]:
    """``batches`` for one of several sessions of an engine: yields None where it waits for a step, or for a chunk.

    A question at a moment sees every frame shown up to it and none after: where the moment falls
    inside a chunk, the chunk's beginning is shown on the question's fork alone, so that asking never
    changes what is remembered.

    Args:
        session: takes the chunks. It may have taken some already: ``chunks`` are those after.
        chunks: of one video, in order; None where the next is not there yet.
        agenda: what to ask when; what it still holds afterwards was not asked.
        max_tokens, temperature, seed: of the answers.
        answered: how many questions, the first of the agenda, were answered earlier and are not asked.
        stopped: asked after every chunk; once true, nothing more is ingested or asked.
        on_chunk: called after every chunk, when all that was due before its end has been yielded.

    Raises:
        VideoError: the chunks ended early. Questions for the end are answered first, about what there was.
        EngineError: vLLM failed, or ended the session.
    """
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    failure: Exception | None = None

    def asked(
        at: float, questions: list[Question], also: Chunk | None = None
    ) -> Generator[list[Asked] | None, None, None]:
        nonlocal answered
        # Those asked at one moment were answered together, or not at all.
        if answered > 0:
            answered -= len(questions)
        elif questions:
            answers = yield from session.answering([q.text for q in questions], also=also, **options)
            found = _asked(session, at, answers, also)
            yield [
                replace(one, question=question, error=failure) for one, question in zip(found, questions, strict=True)
            ]

    if answered:
        # All that was due until where the session stands was; the next call would take it for due there.
        answered -= sum(len(questions) for _, questions in agenda.before(session.end))
    source = iter(chunks)
    while True:
        try:
            chunk = next(source)
        except StopIteration:
            break
        except Exception as error:
            failure = error
            break
        if chunk is None:
            yield None
            continue
        for at, questions in agenda.before(chunk.end):
            also = chunk.until(at) or (chunk.until(chunk.times[0]) if session.chunks == 0 else None)
            yield from asked(at, questions, also)
        yield from session.ingesting(chunk)
        on_chunk()
        if stopped():
            return
    if session.chunks:
        yield from asked(session.end, agenda.at_end(session.end))
    if failure is not None:
        raise failure


def ask(
    session: Session, at: float, questions: Sequence[str], also: Chunk | None = None, **options: Any
) -> list[Asked]:
    """Ask ``questions`` at the moment ``at``, which ``session`` stands at, or at the end of ``also``.

    Args:
        also: frames since then, to show without remembering them.
        options: of ``Session.ask_all``.
    """
    return _asked(session, at, session.ask_all(questions, also=also, **options), also)


def _asked(session: Session, at: float, answers: Sequence[Answer], also: Chunk | None) -> list[Asked]:
    cache, held = session.stats(), list(session.held())
    if also is not None:
        shown = (also.start, max(also.times[-1], also.start))
        held = [*held, shown] if not held or held[-1][1] < also.start else [*held[:-1], (held[-1][0], shown[1])]
    return [Asked(answer, at, cache, tuple(held)) for answer in answers]
