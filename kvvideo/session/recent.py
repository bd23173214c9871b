"""The baseline without a memory: the last chunks themselves, shown again for every question."""

import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from kvvideo.errors import EngineError
from kvvideo.prompt import OPENING
from kvvideo.session.base import Answer, Session, Span
from kvvideo.session.engine import Engine
from kvvideo.session.session import VideoSession
from kvvideo.types import CacheStats, Chunk


class RecentSession(Session):
    """Holds the pixels of as many of the last chunks as stay below the cache's ``max_tokens``, and nothing else.

    Questions are asked of a session opened for them, which reads those chunks anew and is closed
    again. It never compacts, so this is what the model can do with the same memory and no method. Its
    statistics are those of the session that a question would open now; between questions no block is in use.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        cache = engine.config.cache
        self._max_tokens = (cache.schedule(engine.block_size) or cache).max_tokens
        self._reserved = self._seen = self._count(OPENING)
        self._held: deque[tuple[Chunk, int]] = deque()
        self._log: list[tuple[float, float]] = []
        self._closed = False

    def ingest(self, chunk: Chunk) -> None:
        """Hold the pixels of ``chunk``, and drop those of the oldest that no longer fit."""
        size = self._size(chunk)
        self._held.append((chunk, size))
        while self._reserved + sum(size for _, size in self._held) >= self._max_tokens:
            self._held.popleft()
        self._log.append((chunk.start, chunk.end))
        self._seen += size
        self.chunks += 1
        self.frames += len(chunk.frames)
        self.end = chunk.end

    def asking(self, questions: Sequence[str], **options: Any) -> Generator[tuple[int, Answer] | None, None, None]:
        """Read anew what is held, and ask the session that has read it."""
        if not self.alive:
            raise EngineError("this session was ended; there is nothing left to ask about")
        began = time.perf_counter()
        with VideoSession(self.engine, self._opening()) as session:
            for chunk, _ in self._held:
                yield from session.ingesting(chunk)
            seconds = time.perf_counter() - began
            with closing(session.asking(questions, **options)) as answers:
                for answer in answers:
                    yield None if answer is None else (answer[0], _later(answer[1], seconds))

    @property
    def alive(self) -> bool:
        """True if neither the session nor the engine was closed."""
        return not self._closed and not self.engine.closed

    def stats(self) -> CacheStats:
        """Return what the session that a question would open now holds.

        Raises:
            EngineError: if the session has ended.
        """
        if not self.alive:
            raise EngineError("the session was ended and holds nothing")
        if not self.chunks:
            return CacheStats(0, 0, 0, 0, 0, 0)
        live = self._count(self._opening()) + sum(size for _, size in self._held)
        blocks = -(-live // self.engine.block_size)
        return CacheStats(self._seen, live, self._seen - live, blocks, 0, blocks * self.engine.scheduler.block_bytes)

    def timeline(self) -> list[Span]:
        """Return each chunk, with a share of 1 if its pixels are held and 0 if not."""
        gone = self.chunks - len(self._held)
        return [Span(*times, float(index >= gone)) for index, times in enumerate(self._log)]

    def close(self) -> None:
        """Drop all pixels."""
        self._closed = True
        self._held.clear()

    def _opening(self) -> str:
        """Return the text before the chunks, at most ``_reserved`` tokens."""
        return OPENING

    def _count(self, text: str) -> int:
        return len(self.engine.tokenizer(text).input_ids)

    def _size(self, chunk: Chunk) -> int:
        """Return the tokens of ``chunk`` after others.

        Raises:
            EngineError: if the session was closed, or not even this chunk alone would fit.
        """
        if not self.alive:
            raise EngineError("this session was ended; start a new one and feed it the video again")
        size = self.engine.chunk_tokens(chunk)
        room = min(self._max_tokens - 1, self.engine.config.step_tokens) - self._reserved
        if size > room:
            raise EngineError(
                f"one chunk of {len(chunk.frames)} frames is {size} tokens, more than the {room} there is room for; "
                "use shorter chunks, fewer frames per second, smaller frames, or a larger max_tokens"
            )
        return size


def _later(answer: Answer, seconds: float) -> Answer:
    """Return ``answer`` with the reading counted in its times: whoever asked has waited for it too."""
    first, last = answer.first_token_seconds + seconds, answer.seconds + seconds
    return replace(answer, first_token_seconds=first, seconds=last)
