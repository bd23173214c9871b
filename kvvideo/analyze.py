"""The main job: stream a video into a session and ask each question at its moment."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kvvideo.agenda import Agenda
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
    """

    answer: Answer
    at: float
    cache: CacheStats
    held: tuple[tuple[float, float], ...]


def analyze(
    session: Session,
    chunks: Iterable[Chunk],
    agenda: Agenda,
    *,
    max_tokens: int = 128,
    temperature: float = 0.0,
    seed: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
    on_chunk: Callable[[], None] = lambda: None,
) -> Iterator[Asked]:
    """Ingest ``chunks`` and yield answers as they are given.

    A question at a moment sees every frame shown up to it and none after: where the moment falls
    inside a chunk, the chunk's beginning is shown on the question's fork alone, so that asking never
    changes what is remembered.

    Args:
        session: takes the chunks.
        chunks: of one video, in order.
        agenda: what to ask when; what it still holds afterwards was not asked.
        max_tokens, temperature, seed: of the answers.
        stopped: asked after every chunk; once true, nothing more is ingested or asked.
        on_chunk: called after every chunk.

    Raises:
        VideoError: the chunks ended early. Questions for the end are answered first, about what there was.
        EngineError: vLLM failed, or ended the session.
    """

    def ask(at: float, questions: list[str], also: Chunk | None = None) -> Iterator[Asked]:
        if not questions:
            return
        answers = session.ask_all(questions, also=also, max_tokens=max_tokens, temperature=temperature, seed=seed)
        cache, held = session.stats(), list(session.held())
        if also is not None:
            shown = (also.start, max(also.times[-1], also.start))
            held = [*held, shown] if not held or held[-1][1] < also.start else [*held[:-1], (held[-1][0], shown[1])]
        for answer in answers:
            yield Asked(answer, at, cache, tuple(held))

    source = iter(chunks)
    failure: Exception | None = None
    while True:
        try:
            chunk = next(source, None)
        except Exception as error:
            chunk, failure = None, error
        if chunk is None:
            break
        for at, questions in agenda.before(chunk.end):
            also = chunk.until(at) or (chunk.until(chunk.times[0]) if session.chunks == 0 else None)
            yield from ask(at, [q.text for q in questions], also)
        session.ingest(chunk)
        on_chunk()
        if stopped():
            return
    if session.chunks:
        yield from ask(session.end, [q.text for q in agenda.at_end(session.end)])
    if failure is not None:
        raise failure
