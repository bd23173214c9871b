"""``Session``, the interface of all sessions, however they remember. All commands take any of them."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Self

from kvvideo.prompt import Turn
from kvvideo.session.engine import Engine
from kvvideo.session.recall import Recall
from kvvideo.types import CacheStats, Chunk, Hit


@dataclass(frozen=True)
class Answer:
    """The model's answer to one question.

    Attributes:
        question: as it was asked.
        text: the answer.
        token_ids: its tokens, the end marker included.
        logprobs: of each token, if they were asked for.
        finish_reason: ``stop``, or ``length`` if the answer was cut at ``max_tokens``.
        first_token_seconds: from asking to the first token.
        seconds: from asking to the last token.
        looked_at: stretches whose frames were shown once more before the question, in order of time.
    """

    question: str
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    first_token_seconds: float
    seconds: float
    looked_at: tuple[Hit, ...] = ()


@dataclass(frozen=True)
class Span:
    """A stretch of video, ``start`` to ``end`` in seconds, and the share of its tokens still held, 0 to 1."""

    start: float
    end: float
    share: float


class Session(ABC):
    """A video streamed into ``engine``; questions see what is remembered of it and leave no trace in that."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.chunks = 0
        self.frames = 0
        self.end = 0.0
        """Time in the source up to which was ingested, in seconds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def ingest(self, chunk: Chunk) -> None:
        """Let the model see ``chunk``, and forget what is due.

        Raises:
            EngineError: if the session was ended, by vLLM or by ``close``, or cannot take the chunk.
        """

    def ingesting(self, chunk: Chunk) -> Generator[None, None, None]:
        """As ``ingest``, but yields where the engine must step for it, so that several sessions share its steps."""
        self.ingest(chunk)
        yield from ()

    @abstractmethod
    def asking(
        self,
        questions: Sequence[str],
        *,
        also: Chunk | None = None,
        dialogue: Sequence[Turn] = (),
        system: str = "",
        recall: Recall | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int | None = None,
        logprobs: bool = False,
    ) -> Generator[tuple[int, Answer] | None, None, None]:
        """As ``stream``, but yields None where the engine must step for it. No more questions than may be open."""

    @property
    @abstractmethod
    def alive(self) -> bool:
        """True if the session can go on: it was neither closed nor ended by vLLM."""

    @abstractmethod
    def stats(self) -> CacheStats:
        """Return what the cache holds now, in tokens, blocks and bytes.

        Raises:
            EngineError: if the session has ended.
        """

    @abstractmethod
    def timeline(self) -> list[Span]:
        """Return, for each chunk ingested, the share of its tokens still held."""

    @abstractmethod
    def close(self) -> None:
        """End the session and give all that it holds back."""

    def ask(self, question: str, **options: Any) -> Answer:
        """Ask one question; see ``ask_all``."""
        return self.ask_all([question], **options)[0]

    def ask_all(
        self,
        questions: Sequence[str],
        *,
        also: Chunk | None = None,
        dialogue: Sequence[Turn] = (),
        system: str = "",
        recall: Recall | None = None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int | None = None,
        logprobs: bool = False,
    ) -> list[Answer]:
        """Ask questions as one batch, each on a fork of its own.

        Args:
            questions: what to ask, in words.
            also: frames to show before the question without remembering them: the beginning of the
                next chunk, when the question belongs to a moment inside it.
            dialogue: earlier questions and answers that the model shall know of.
            system: what the model is told before them, as a system turn; the memory has nothing of it.
            recall: how to look again at what was evicted; None for not at all.
            max_tokens: longest answer.
            temperature: 0 is greedy.
            seed: of the sampling.
            logprobs: True for answers with the log probability of each token.

        Raises:
            EngineError: if nothing was ingested, or vLLM ended the session or a question.
        """
        return self.engine.drive(
            self.answering(
                questions,
                also=also,
                dialogue=dialogue,
                system=system,
                recall=recall,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                logprobs=logprobs,
            )
        )

    def answering(self, questions: Sequence[str], **options: Any) -> Generator[None, None, list[Answer]]:
        """As ``ask_all``, but yields where the engine must step for it, or other questions must end first."""
        answers: dict[int, Answer] = {}
        limit = self.engine.config.questions
        for first in range(0, len(questions), limit):
            batch = questions[first : first + limit]
            while self.engine.open_questions and self.engine.open_questions + len(batch) > limit:
                yield
            with closing(self.asking(batch, **options)) as asking:
                for answer in asking:
                    if answer is None:
                        yield
                    else:
                        answers[first + answer[0]] = answer[1]
        return [answers[index] for index in range(len(questions))]

    def stream(self, questions: Sequence[str], **options: Any) -> Generator[tuple[int, Answer], None, None]:
        """As ``ask_all``, yielding ``(index, answer so far)`` as tokens come. Closing it drops what is left."""
        return self.engine.driven(self.asking(questions, **options))

    def held(self) -> list[tuple[float, float]]:
        """Return the stretches of the source, in seconds, of which any layer or head still holds a token."""
        return held(self.timeline())


def held(timeline: Iterable[Span]) -> list[tuple[float, float]]:
    """Return the stretches of ``timeline`` of which anything is held, in seconds; those that touch are one."""
    stretches: list[tuple[float, float]] = []
    for span in timeline:
        if span.share <= 0:
            continue
        if stretches and abs(stretches[-1][1] - span.start) < 1e-6:
            stretches[-1] = (stretches[-1][0], span.end)
        else:
            stretches.append((span.start, span.end))
    return stretches
