"""One video's stream: ingest chunks, ask questions, see what is still remembered."""

import time
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import compress, islice
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from kvvideo.errors import ConfigError, EngineError, FullError, KvvideoError
from kvvideo.prompt import OPENING, Turn, dialogue_text, question_text, system_text
from kvvideo.session.base import Answer, Session, Span
from kvvideo.session.engine import CHUNKS, Engine
from kvvideo.session.index import ChunkIndex, Found
from kvvideo.session.memory import INDEX, Memory
from kvvideo.session.recall import Recall, Shown, chosen, fetched, wanted
from kvvideo.types import CacheStats, Chunk, Hit
from kvvideo.video.geometry import tokens


class VideoSession(Session):
    """A video streamed into ``engine``, with a cache that never grows past its bound.

    Questions are asked on forks: they see all that was ingested and leave no trace in it.

    Args:
        engine: runs the model; many sessions may share it.
        opening: text before the first chunk.
    """

    def __init__(self, engine: Engine, opening: str = OPENING) -> None:
        super().__init__(engine)
        self._opening = opening
        self._id: str | None = None
        self._position = 0
        # One row a chunk, or a remembered dialogue: first M-RoPE position, tokens, start and end in seconds.
        self._log: list[tuple[int, int, float, float]] = []
        self.index = ChunkIndex()
        """Vectors by which questions find the chunks."""

    def ingest(self, chunk: Chunk) -> None:
        """Let the model see ``chunk``, and compact the cache when that is due.

        Raises:
            EngineError: if the session was ended, by vLLM or by ``close``, or questions about it are
                still being answered.
        """
        self.engine.drive(self.ingesting(chunk))

    def ingesting(self, chunk: Chunk) -> Generator[None, None, None]:
        """As ``ingest``, but yields where the engine must step for it, so that several sessions share its steps."""
        yield from self._append(self.engine.text(chunk), chunk, chunk.start, chunk.end)
        self.chunks += 1
        self.frames += len(chunk.frames)
        self.end = chunk.end

    def remember(self, turns: Sequence[Turn]) -> None:
        """Let questions and answers become part of what the model has seen, after the chunks so far.

        Raises:
            EngineError: as ``ingest``.
        """
        self.engine.drive(self._append(dialogue_text(turns), None, self.end, self.end))

    def _append(self, text: str, chunk: Chunk | None, start: float, end: float) -> Generator[None, None, None]:
        """Compute ``text``, with the frames it refers to, as the next part of the stream."""
        from kvvideo.plugin.sampling import reading

        if not self.alive:
            raise EngineError("this session was ended; start a new one and feed it the video again")
        engine, scheduler = self.engine, self.engine.scheduler
        if self._id is not None and scheduler.has_forks(self._id):
            raise EngineError(
                "questions about this session are still being answered; read the answers to their end, or close "
                "the stream of answers, before the next chunk"
            )
        if self._id is None:
            text = self._opening + text
        request = engine.process(
            self._id or engine.new_id("video"), engine.prompt(text, *_given(chunk)), reading(), True
        )
        length = len(request.prompt_token_ids)
        self._check_part(length, chunk)
        self._id = request.request_id
        engine.append(request)
        while not scheduler.is_idle(self._id):
            try:
                yield
            except KvvideoError:
                self.close()
                raise
            if not self.alive:
                raise EngineError(
                    "the session lost its KV blocks to other requests (preemption) and cannot be recomputed; "
                    "start a new one, with fewer sessions at once or a larger pool (kv_bytes)"
                )
        started_at, self._position = self._position, scheduler.fold(self._id).position
        self._log.append((started_at, length, start, end))
        if chunk is not None and engine.config.index:
            self._note(chunk)
        limit = engine.position_limit
        if limit is not None and self._position > limit:
            self._rebase()

    def _note(self, chunk: Chunk) -> None:
        """Add ``chunk``, which was just computed, to the index."""
        from kvvideo.plugin.inspect import joined, take_sum

        engine = self.engine
        parts = engine.on_workers(take_sum, engine.scheduler.live_block_ids(self._id)[0])
        count, height, width = chunk.frames.shape[:3]
        mean = joined(parts, engine.scheduler.kv_heads, dim=1) / tokens(height, width, count)
        self.index.append(mean.to(engine.dtype), chunk.start, chunk.end)

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
        """Ask each of ``questions`` on a fork; yields None where the engine must step, else what came of one."""
        from kvvideo.plugin.sampling import answering

        self._check_asked(also)
        asked = time.perf_counter()
        shown = [Shown()] * len(questions)
        if recall is not None and recall.count and len(self.index) and self.stats().evicted:
            shown = yield from self._looking(questions, also, dialogue, system, recall, max_tokens)
        # One at a time, for the frames that they bring may be many.
        requests = (
            self._request(
                question,
                answering(self._id, max_tokens, temperature, seed, logprobs, self._streamed_at(again.chunks)),
                (*again.chunks, *_given(also)),
                dialogue,
                system,
            )
            for question, again in zip(questions, shown, strict=True)
        )
        yield from _Open(self.engine, questions, shown, asked, max_tokens).answers(requests)

    def finding(
        self, questions: Sequence[str], *, also: Chunk | None = None, dialogue: Sequence[Turn] = ()
    ) -> Generator[None, None, list[Iterator[Found]]]:
        """As ``find``, but yields where the engine must step for it, and gives events one by one."""
        from kvvideo.plugin.layout import LOOKS
        from kvvideo.plugin.sampling import looking

        self._check_asked(also)
        if self._id is None:
            return [iter(()) for _ in questions]
        of = self._id
        given = _given(also)
        requests = (self._request(question, looking(of), given, dialogue, marks=LOOKS) for question in questions)
        return (yield from self._found(requests))

    def _found(self, requests: Iterable[Any]) -> Generator[None, None, list[Iterator[Found]]]:
        """Return the events that questions attend to, which are asked as ``requests`` of ``sampling.looking``."""
        engine, names = self.engine, list[str]()
        try:
            for request in requests:
                while not engine.has_room(request):
                    yield
                names.append(engine.ask(request, looks=True))
            found = []
            for name in names:
                while engine.take(name) is None:
                    yield
                queries = engine.queries(name)
                if queries is None:
                    raise _ended()
                found.append(self.index.find(queries))
            return found
        finally:
            if names and not engine.closed:
                engine.abort(names)

    def find(self, questions: Sequence[str], count: int, **options: Any) -> list[list[Hit]]:
        """Return for each question the ``count`` stretches of the stream that it attends to most, best first.

        Neighbouring chunks that score alike are one stretch. What was evicted is found as what is held.

        Args:
            questions: what to look for, in words.
            count: how many.
            options: ``also`` and ``dialogue`` as of ``ask_all``.

        Raises:
            EngineError: if nothing was ingested, or vLLM ended the session or a question.
        """
        found = self.engine.drive(self.finding(questions, **options))
        return [[event.whole for event in islice(events, count)] for events in found]

    def _looking(
        self,
        questions: Sequence[str],
        also: Chunk | None,
        dialogue: Sequence[Turn],
        system: str,
        recall: Recall,
        max_tokens: int,
    ) -> Generator[None, None, list[Shown]]:
        """Return what each of ``questions`` is shown again. What it finds does not depend on ``system``."""
        from kvvideo.plugin.history import most_shown
        from kvvideo.plugin.sampling import looking

        requests = [self._request(question, looking(self._id or ""), _given(also), dialogue) for question in questions]
        left = self._room() - len(self.engine.tokenizer(system_text(system)).input_ids) - max_tokens
        rooms = [left - len(request.prompt_token_ids) for request in requests]
        # To look takes a block more than to ask.
        able = [room >= self.engine.block_size for room in rooms]
        found = yield from self._found(compress(requests, able))
        most = min(recall.count, CHUNKS - 1, most_shown(self.stats().live))
        hits = [wanted(events, most, self._whole_from()) for events in found]
        chunks = fetched(hits, recall.frames)
        size, best = self.engine.chunk_tokens, iter(hits)
        return [chosen(next(best) if can else (), chunks, size, room) for can, room in zip(able, rooms, strict=True)]

    def _streamed_at(self, chunks: Sequence[Chunk]) -> list[int]:
        """Return the M-RoPE position at which each of ``chunks`` was streamed; 0 before that of a rebase."""
        if not chunks:
            return []
        opening = len(self.engine.tokenizer(self._opening).input_ids)
        found = []
        for chunk in chunks:
            row = max(0, bisect_right(self._log, chunk.start + 1e-6, key=lambda row: row[2]) - 1)
            # The first one began with the opening.
            found.append(max(0, self._log[row][0] + (0 if row else opening)))
        return found

    def _whole_from(self) -> float:
        """Return the moment, in seconds, from which on all that was ingested is held in full."""
        schedule, stats = self.engine.config.cache.schedule(self.engine.block_size), self.stats()
        fresh = stats.live - (schedule.budget if schedule is not None and stats.evicted else 0)
        since = self.end
        for _, length, start, _ in reversed(self._log):
            if (fresh := fresh - length) < 0:
                break
            since = start
        return since

    def _room(self) -> int:
        """Return the tokens that a question and its answer may take beside the session."""
        engine, stats = self.engine, self.stats()
        size = engine.block_size
        blocks = min(engine.question_room, engine.blocks - stats.blocks - 1) - 2
        return min(blocks * size, engine.config.max_model_len - stats.live - size - 1)

    def _check_asked(self, also: Chunk | None) -> None:
        if not self.alive:
            raise EngineError("this session was ended; there is nothing left to ask about")
        if self._id is None and also is None and self._opening == OPENING:
            raise EngineError("nothing was ingested yet; there is nothing to ask about")

    def _request(
        self,
        question: str,
        params: Any,
        shown: Sequence[Chunk],
        dialogue: Sequence[Turn],
        system: str = "",
        marks: int = 1,
    ) -> Any:
        """Return the request that asks ``question`` after ``shown``, and after the opening if nothing was computed."""
        opening = self._opening if self._id is None else ""
        text = opening + "".join(map(self.engine.text, shown))
        asked = system_text(system) + dialogue_text(dialogue) + question_text(question)
        prompt = self.engine.prompt(text + asked, *shown)
        request = self.engine.process(self.engine.new_id("question"), prompt, params)
        self._check_question(len(request.prompt_token_ids), marks)
        return request

    @property
    def alive(self) -> bool:
        """True if the session can go on: it was neither closed nor ended by vLLM."""
        return not self.engine.closed and (self._id is None or self._id in self.engine.scheduler.requests)

    def stats(self) -> CacheStats:
        """Return what the cache holds now.

        Raises:
            EngineError: if the session has ended.
        """
        if self._id is None:
            return CacheStats(0, 0, 0, 0, 0, 0)
        if not self.alive:
            raise EngineError("the session was ended and holds nothing")
        stats: CacheStats = self.engine.scheduler.stats_of(self._id)
        return replace(stats, index_bytes=self.index.bytes)

    def timeline(self, layer: int | None = None) -> list[Span]:
        """Return, for each chunk ingested, the share of its tokens still held: mean over KV heads and layers.

        Args:
            layer: number of the only layer to look at; None for all.

        Raises:
            ConfigError: if the model has no such layer.
        """
        if not self._log:
            return []
        positions = self._live_positions()
        if layer is not None:
            if not 0 <= layer < len(positions):
                raise ConfigError(f"layer: there is no {layer}; the model has 0 to {len(positions) - 1}")
            positions = positions[layer : layer + 1]
        firsts = np.array([row[0] for row in self._log])
        tokens = np.array([row[1] for row in self._log])
        owner = np.searchsorted(firsts, positions, side="right") - 1
        held = np.bincount(owner.ravel(), minlength=len(firsts)) / (owner.shape[0] * owner.shape[1])
        share = np.minimum(held / tokens, 1.0)
        return [Span(row[2], row[3], float(s)) for row, s in zip(self._log, share, strict=True) if row[3] > row[2]]

    def save(self) -> Memory:
        """Return all that is held of the video, in host memory, for ``load``. The session stays as it is.

        Raises:
            EngineError: if nothing was ingested, or the session has ended or has questions open.
        """
        import torch

        from kvvideo.plugin import snapshot

        if self._id is None:
            raise EngineError("nothing was ingested yet; there is nothing to save")
        engine, scheduler = self.engine, self.engine.scheduler
        past = scheduler.fold(self._id)
        stats = self.stats()
        results = engine.on_workers(snapshot.read, scheduler.live_block_ids(self._id), stats.live)
        tensors = snapshot.joined(results, scheduler.kv_heads)
        return Memory(
            model=engine.config.model,
            fingerprint=engine.fingerprint,
            cache=engine.config.cache,
            opening=self._opening,
            position=past.position,
            live=stats.live,
            evicted=past.evicted,
            compactions=past.compactions,
            chunks=self.chunks,
            frames=self.frames,
            end=self.end,
            tensors={**tensors, "log": torch.tensor(self._log, dtype=torch.float64), **self.index.as_tensors()},
        )

    @classmethod
    def load(cls, engine: Engine, memory: Memory) -> Self:
        """Return the session that was saved as ``memory``: it answers and goes on as that one would have.

        Raises:
            ConfigError: if ``memory`` is of another model or of other settings than those of ``engine``.
            EngineError: if the engine has no room for it.
        """
        from kvvideo.plugin import snapshot
        from kvvideo.plugin.history import HEADER_LENGTH, History, encode
        from kvvideo.plugin.inputs import of_tokens
        from kvvideo.plugin.sampling import reading
        from kvvideo.plugin.scheduler import Past

        _check_memory(engine, memory)
        if memory.live < HEADER_LENGTH:
            raise ConfigError(f"the memory holds {memory.live} tokens, fewer than any chunk has; make it again")
        session = cls(engine, memory.opening)
        placeholders = of_tokens(encode(History(memory.live, memory.position)))
        request = engine.process(engine.new_id("video"), placeholders, reading(), True)
        blocks = engine.restore(request, Past(memory.position, memory.evicted, memory.compactions))
        session._id, session._position = request.request_id, memory.position
        session._log = [(int(row[0]), int(row[1]), row[2], row[3]) for row in memory.tensors["log"].tolist()]
        session.index = ChunkIndex.of_tensors(memory.tensors)
        session.chunks, session.frames, session.end = memory.chunks, memory.frames, memory.end
        held = {name: tensor for name, tensor in memory.tensors.items() if name not in INDEX}
        try:
            engine.on_workers(snapshot.write, blocks, held)
        except BaseException:
            session.close()
            raise
        return session

    def close(self) -> None:
        """End the session and give all its blocks back."""
        if self._id is not None and self.alive:
            self.engine.end(self._id)

    def _rebase(self) -> None:
        """Begin to count positions anew."""
        from kvvideo.plugin.rebase import rebase

        scheduler = self.engine.scheduler
        by = scheduler.rebase(self._id)
        blocks, live = scheduler.live_block_ids(self._id), self.stats().live
        self.engine.on_workers(rebase, blocks, live, by)
        self._position += by
        self._log = [(first + by, *rest) for first, *rest in self._log]

    def _live_positions(self) -> npt.NDArray[np.int32]:
        """Return temporal M-RoPE positions of the tokens held, ``[layers, kv_heads, live]``."""
        from kvvideo.plugin.inspect import live_positions

        blocks = self.engine.scheduler.live_block_ids(self._id)
        return np.concatenate(self.engine.on_workers(live_positions, blocks, self.stats().live), axis=1)

    def _check_part(self, tokens: int, chunk: Chunk | None) -> None:
        name = "the dialogue" if chunk is None else f"one chunk of {len(chunk.frames)} frames"
        limit = self.engine.config.step_tokens
        if tokens > limit:
            raise EngineError(
                f"{name} is {tokens} tokens, more than the {limit} that a step can take; "
                "use shorter chunks, fewer frames per second, or smaller frames"
            )
        self._check_length(name, tokens)

    def _check_question(self, tokens: int, marks: int) -> None:
        # A fork carries more blocks than the session: the marks of a fork.
        size = self.engine.block_size
        self._check_length("the question", tokens + (marks * size if self._id else 0))
        room = (self.engine.blocks - self.stats().blocks - 1) * size
        if tokens > room:
            raise EngineError(
                f"the question ({tokens} tokens, with what was said before) is longer than the {room} tokens that the "
                "pool has room for beside the video; ask in fewer words"
            )

    def _check_length(self, name: str, tokens: int) -> None:
        held, limit = self.stats().live, self.engine.config.max_model_len
        if held + tokens >= limit:
            raise FullError(
                f"{name} ({tokens} tokens) on top of the {held} tokens held exceeds max_model_len={limit}; "
                "use a larger max_model_len, or a smaller max_tokens for the cache"
            )


class _Open:
    """Questions of one ``asking``: those that wait for room in the pool, and those that are being answered.

    Args:
        engine: answers them.
        questions: what is asked.
        shown: what each is shown again.
        asked: when, by ``time.perf_counter``.
        max_tokens: longest answer.
    """

    def __init__(
        self, engine: Engine, questions: Sequence[str], shown: Sequence[Shown], asked: float, max_tokens: int
    ) -> None:
        self._engine, self._questions, self._shown = engine, questions, shown
        self._asked, self._max_tokens = asked, max_tokens
        self._first: dict[str, float] = {}

    def answers(self, requests: Iterator[Any]) -> Generator[tuple[int, Answer] | None, None, None]:
        """Yield answers as tokens come, and None where the engine must step; what is left at the end is dropped.

        Args:
            requests: one for each question, in order; the next is made when the one before was sent.
        """
        engine, waiting, sent = self._engine, dict[str, int](), 0
        pending = next(requests, None)
        try:
            while pending is not None or waiting:
                while pending is not None and engine.has_room(pending, self._max_tokens):
                    waiting[engine.ask(pending, self._max_tokens)] = sent
                    sent, pending = sent + 1, next(requests, None)
                # A chunk or other questions may have been waited for since, and stepped for these too.
                outputs = [output for name in waiting if (output := engine.take(name)) is not None]
                if not outputs:
                    yield None
                for output in outputs:
                    index = waiting[output.request_id]
                    if output.finished:
                        del waiting[output.request_id]
                        engine.forget(output.request_id)
                    yield index, self._answer(index, output)
        finally:
            if waiting and not engine.closed:
                engine.abort(waiting)

    def _answer(self, index: int, output: Any) -> Answer:
        now = time.perf_counter() - self._asked
        first = self._first.setdefault(output.request_id, now)
        return replace(_answer(self._questions[index], output, first, now), looked_at=self._shown[index].hits)


def _given(chunk: Chunk | None) -> tuple[Chunk, ...]:
    return () if chunk is None else (chunk,)


def _check_memory(engine: Engine, memory: Memory) -> None:
    """Check that ``engine`` can go on from ``memory``.

    Raises:
        ConfigError: if it was made with another model or other settings, or does not fit.
    """
    if memory.fingerprint != engine.fingerprint:
        raise ConfigError(
            f"the memory was made with another model, {memory.model!r}, or other weights of it, and "
            f"{engine.config.model!r} is loaded; a memory means nothing to another model"
        )
    made, used = memory.cache.as_dict(), engine.config.cache.as_dict()
    if other := [name for name in {**made, **used} if made.get(name) != used.get(name)]:
        differences = ", ".join(f"{name}={made.get(name)!r} instead of {used.get(name)!r}" for name in other)
        raise ConfigError(f"the memory was made with other settings: {differences}; use those")
    schedule = engine.config.cache.schedule(engine.block_size)
    if schedule is not None and memory.live >= schedule.max_tokens:
        raise ConfigError(f"the memory holds {memory.live} tokens, more than fit below {schedule.max_tokens} here")


def _answer(question: str, output: Any, first: float, now: float) -> Answer:
    """Return the answer so far, of which the ``first`` token came after so many seconds and the last after ``now``.

    Raises:
        EngineError: if vLLM ended the question.
    """
    from kvvideo.plugin.sampling import generated

    said = generated(output)
    if said.finish_reason in ("error", "abort"):
        raise _ended()
    return Answer(question, said.text.strip(), said.token_ids, said.logprobs, said.finish_reason, first, now)


def _ended() -> EngineError:
    return EngineError("a question was ended before its answer: the KV pool ran out of blocks; ask fewer at once")
