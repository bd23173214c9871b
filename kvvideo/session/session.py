"""One video's stream: ingest chunks, ask questions, see what is still remembered."""

import time
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Self

import numpy as np

from kvvideo.compression.config import FORK_OF
from kvvideo.errors import ConfigError, EngineError, KvvideoError
from kvvideo.prompt import OPENING, Turn, chunk_text, dialogue_text, question_text
from kvvideo.session.base import Answer, Session, Span
from kvvideo.session.engine import Engine
from kvvideo.session.memory import Memory
from kvvideo.types import CacheStats, Chunk


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

    def ingest(self, chunk: Chunk) -> None:
        """Let the model see ``chunk``, and compact the cache when that is due.

        Raises:
            EngineError: if the session was ended, by vLLM or by ``close``, or questions about it are
                still being answered.
        """
        self.engine.drive(self.ingesting(chunk))

    def ingesting(self, chunk: Chunk) -> Generator[None, None, None]:
        """As ``ingest``, but yields where the engine must step for it, so that several sessions share its steps."""
        yield from self._append(chunk_text(chunk.start), chunk, chunk.start, chunk.end)
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
        from vllm import SamplingParams

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
        # vLLM needs one token sampled to end a turn, and drops it again.
        params = SamplingParams(max_tokens=1, temperature=0, detokenize=False, ignore_eos=True)
        request = engine.process(self._id or engine.new_id("video"), engine.prompt(text, chunk), params, True)
        self._check_part(len(request.prompt_token_ids), chunk)
        self._id = request.request_id
        # The core changes its list; sharing ours would let both sides extend it.
        request.prompt_token_ids = list(request.prompt_token_ids)
        engine.llm.engine_core.add_request(request)
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
        self._log.append((started_at, len(request.prompt_token_ids), start, end))
        limit = engine.position_limit
        if limit is not None and self._position > limit:
            self._rebase()

    def stream(
        self,
        questions: Sequence[str],
        *,
        also: Chunk | None = None,
        dialogue: Sequence[Turn] = (),
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int | None = None,
        logprobs: bool = False,
    ) -> Generator[tuple[int, Answer], None, None]:
        """As ``ask_all``, yielding ``(index, answer so far)`` as tokens come. Closing it drops what is left."""
        yield from self.engine.driven(
            self._asking(
                questions,
                also=also,
                dialogue=dialogue,
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
            with closing(self._asking(batch, **options)) as asking:
                for answer in asking:
                    if answer is None:
                        yield
                    else:
                        answers[first + answer[0]] = answer[1]
        return [answers[index] for index in range(len(questions))]

    def _asking(
        self,
        questions: Sequence[str],
        *,
        also: Chunk | None = None,
        dialogue: Sequence[Turn] = (),
        max_tokens: int = 128,
        temperature: float = 0.0,
        seed: int | None = None,
        logprobs: bool = False,
    ) -> Generator[tuple[int, Answer] | None, None, None]:
        """``stream``, yielding None where the engine must step."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self.engine
        if not self.alive:
            raise EngineError("this session was ended; there is nothing left to ask about")
        if self._id is None and also is None and self._opening == OPENING:
            raise EngineError("nothing was ingested yet; there is nothing to ask about")
        asked = time.perf_counter()
        waiting: dict[str, int] = {}
        first_token: dict[str, float] = {}
        try:
            for index, question in enumerate(questions):
                shown = "" if also is None else chunk_text(also.start)
                if self._id is None:
                    shown = self._opening + shown
                try:
                    params = SamplingParams(
                        max_tokens=max_tokens,
                        temperature=temperature,
                        seed=seed,
                        logprobs=0 if logprobs else None,
                        output_kind=RequestOutputKind.CUMULATIVE,
                        extra_args={FORK_OF: self._id} if self._id else None,
                    )
                except ValueError as error:
                    raise ConfigError(f"vLLM refuses to sample like this: {error}") from error
                prompt = engine.prompt(shown + dialogue_text(dialogue) + question_text(question), also)
                request = engine.process(engine.new_id("question"), prompt, params)
                self._check_question(len(request.prompt_token_ids))
                engine.llm.input_processor.assign_request_id(request)
                engine.llm.output_processor.add_request(request, None, None, 0)
                waiting[request.external_req_id] = index
                engine.expect(request.external_req_id)
                request.prompt_token_ids = list(request.prompt_token_ids)
                engine.llm.engine_core.add_request(request)
            while waiting:
                # A chunk or other questions may have been waited for since, and stepped for these too.
                outputs = [output for name in waiting if (output := engine.take(name)) is not None]
                if not outputs:
                    yield None
                for output in outputs:
                    now = time.perf_counter() - asked
                    first_token.setdefault(output.request_id, now)
                    index = waiting[output.request_id]
                    if output.finished:
                        del waiting[output.request_id]
                        engine.forget(output.request_id)
                    yield index, _answer(questions[index], output, first_token[output.request_id], now)
        finally:
            if waiting and not engine.closed:
                for name in waiting:
                    engine.forget(name)
                engine.llm.abort_request(list(waiting))

    @property
    def alive(self) -> bool:
        """Whether the session can go on: it was neither closed nor ended by vLLM."""
        return not self.engine.closed and (self._id is None or self._id in self.engine.scheduler.requests)

    def stats(self) -> CacheStats:
        """What the cache holds now.

        Raises:
            EngineError: if the session has ended.
        """
        if self._id is None:
            return CacheStats(0, 0, 0, 0, 0, 0)
        if not self.alive:
            raise EngineError("the session was ended and holds nothing")
        return self.engine.scheduler.stats_of(self._id)  # type: ignore[no-any-return]

    def timeline(self, layer: int | None = None) -> list[Span]:
        """For each chunk ingested, the share of its tokens still held, mean over layers, or in one, and KV heads."""
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
        """All that is held of the video, in host memory; ``load`` goes on from there. The session is not changed.

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
        results = engine.llm.collective_rpc(snapshot.read, args=(scheduler.live_block_ids(self._id), stats.live))
        tensors = snapshot.joined(results, scheduler.vllm_config.model_config.get_total_num_kv_heads())
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
            tensors={**tensors, "log": torch.tensor(self._log, dtype=torch.float64)},
        )

    @classmethod
    def load(cls, engine: Engine, memory: Memory) -> Self:
        """The session that was saved as ``memory``: it answers and goes on as that one would have.

        Raises:
            ConfigError: if ``memory`` is of another model or of other settings than those of ``engine``.
            EngineError: if the engine has no room for it.
        """
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input

        from kvvideo.plugin import snapshot
        from kvvideo.plugin.history import HEADER_LENGTH, History, encode
        from kvvideo.plugin.scheduler import Past

        _check_memory(engine, memory)
        if memory.live < HEADER_LENGTH:
            raise ConfigError(f"the memory holds {memory.live} tokens, fewer than any chunk has; make it again")
        session = cls(engine, memory.opening)
        placeholders = encode(History(memory.live, memory.position))
        params = SamplingParams(max_tokens=1, temperature=0, detokenize=False, ignore_eos=True)
        request = engine.process(engine.new_id("video"), tokens_input(placeholders), params, True)
        core_request, _ = engine.core.preprocess_add_request(request)
        past = Past(memory.position, memory.evicted, memory.compactions)
        blocks = engine.scheduler.restore(core_request, past)
        session._id, session._position = request.request_id, memory.position
        session._log = [(int(row[0]), int(row[1]), row[2], row[3]) for row in memory.tensors["log"].tolist()]
        session.chunks, session.frames, session.end = memory.chunks, memory.frames, memory.end
        try:
            engine.llm.collective_rpc(snapshot.write, args=(blocks, memory.tensors))
        except BaseException:
            session.close()
            raise
        return session

    def close(self) -> None:
        """End the session and give all its blocks back."""
        if self._id is not None and self.alive:
            from kvvideo.plugin.inspect import forget

            blocks = self.engine.scheduler.live_block_ids(self._id)
            self.engine.llm.engine_core.abort_requests([self._id])
            self.engine.llm.collective_rpc(forget, args=(blocks[0] if blocks else -1,))

    def _rebase(self) -> None:
        """Begin to count positions anew."""
        from kvvideo.plugin.rebase import rebase

        scheduler = self.engine.scheduler
        by = scheduler.rebase(self._id)
        blocks, live = scheduler.live_block_ids(self._id), self.stats().live
        self.engine.llm.collective_rpc(rebase, args=(blocks, live, by))
        self._position += by
        self._log = [(first + by, *rest) for first, *rest in self._log]

    def _live_positions(self) -> np.ndarray[Any, Any]:
        from kvvideo.plugin.inspect import live_positions

        blocks = self.engine.scheduler.live_block_ids(self._id)
        arguments = (blocks, self.stats().live)
        return np.concatenate(self.engine.llm.collective_rpc(live_positions, args=arguments), axis=1)

    def _check_part(self, tokens: int, chunk: Chunk | None) -> None:
        name = "the dialogue" if chunk is None else f"one chunk of {len(chunk.frames)} frames"
        limit = self.engine.config.step_tokens
        if tokens > limit:
            raise EngineError(
                f"{name} is {tokens} tokens, more than the {limit} that a step can take; "
                "use shorter chunks, fewer frames per second, or smaller frames"
            )
        self._check_length(name, tokens)

    def _check_question(self, tokens: int) -> None:
        # A fork carries one block more than the session: the mark of a fork.
        size = self.engine.block_size
        self._check_length("the question", tokens + (size if self._id else 0))
        room = (self.engine.blocks - self.stats().blocks - 1) * size
        if tokens > room:
            raise EngineError(
                f"the question ({tokens} tokens, with what was said before) is longer than the {room} tokens that the "
                "pool has room for beside the video; ask in fewer words"
            )

    def _check_length(self, name: str, tokens: int) -> None:
        held, limit = self.stats().live, self.engine.config.max_model_len
        if held + tokens >= limit:
            raise EngineError(
                f"{name} ({tokens} tokens) on top of the {held} tokens held exceeds max_model_len={limit}; "
                "use a larger max_model_len, or a smaller max_tokens for the cache"
            )


def _check_memory(engine: Engine, memory: Memory) -> None:
    """Raises ConfigError unless ``engine`` can go on from ``memory``."""
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
    result = output.outputs[0]
    if result.finish_reason in ("error", "abort"):
        raise EngineError("a question was ended before its answer: the KV pool ran out of blocks; ask fewer at once")
    chosen = zip(result.token_ids, result.logprobs or (), strict=False)
    return Answer(
        question,
        result.text.strip(),
        tuple(result.token_ids),
        tuple(step[token].logprob for token, step in chosen),
        result.finish_reason or "",
        first,
        now,
    )
