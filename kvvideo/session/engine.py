"""A model loaded in vLLM, configured for sessions: one engine serves many of them."""

import gc
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kvvideo.compression.config import SPARE, CacheConfig
from kvvideo.errors import ConfigError, EngineError, KvvideoError, OutOfMemoryError, first_line
from kvvideo.plugin import surface
from kvvideo.plugin.platform import is_cpu
from kvvideo.plugin.register import check_installed
from kvvideo.plugin.settings import INDEX
from kvvideo.prompt import bounded, chunk_text
from kvvideo.session import model_files
from kvvideo.session.arguments import common_arguments, engine_args, is_elsewhere
from kvvideo.session.config import EngineConfig
from kvvideo.session.environment import set_environment
from kvvideo.session.hub import model_path
from kvvideo.session.model_config import text_config
from kvvideo.session.pool import moved_to, other_blocks, pool_bytes, question_blocks, session_blocks
from kvvideo.types import Chunk
from kvvideo.video.geometry import tokens

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHUNKS = 32
"""Most chunks that one question may be shown."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine:
    """A model loaded in vLLM, ready for sessions.

    Attributes:
        config: how the model runs; ``use`` changes its cache.
        llm, core, scheduler: as of ``kvvideo.plugin.engine.LocalEngine``.

    Raises:
        ConfigError: a model or setting that cannot be used.
        OutOfMemoryError: the model or the pool its sessions need does not fit.
        EngineError: anything else that keeps vLLM from starting.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        set_environment()
        check_installed()
        _check_model(config)
        surface.check()
        from kvvideo.plugin.engine import LocalEngine
        from kvvideo.plugin.inputs import Inputs

        arguments = _arguments(config)
        try:
            self._local = LocalEngine(arguments)
        except Exception as error:
            raise _start_error(error, config) from error
        self.llm, self.core, self.scheduler = self._local.llm, self._local.core, self._local.scheduler
        self._inputs = Inputs(self._local.hf_config, self._local.tokenizer)
        self._count = 0
        self._fruitless = 0
        self._latest: dict[str, Any] = {}
        self._room: dict[str, int] = {}
        self._looking: dict[str, str] = {}
        self._queries: dict[str, Tensor] = {}

    @property
    def closed(self) -> bool:
        """True once ``close`` was called."""
        return self._local.closed

    @property
    def block_size(self) -> int:
        """Tokens in one KV block."""
        return int(self.scheduler.manager.block_size)

    @property
    def blocks(self) -> int:
        """Blocks in vLLM's pool; one of them is never used."""
        return int(self.scheduler.blocks)

    @property
    def free_blocks(self) -> int:
        """Blocks in vLLM's pool that nothing uses."""
        return int(self.scheduler.free_blocks)

    @property
    def capacity(self) -> int:
        """Sessions that can surely be open at once, with all questions: what they can hold at most fits the pool."""
        schedule = self.config.cache.schedule(self.block_size)
        if schedule is None:
            return 1
        room = self.blocks - other_blocks(self.config, self.block_size)
        return min(self.config.sessions, room // session_blocks(schedule, self.block_size))

    @property
    def position_limit(self) -> int | None:
        """M-RoPE position from which on a session is moved back: what the model was trained for. None: never."""
        from kvvideo.plugin.settings import rotates_plainly

        text = self._local.text_config
        return int(text.max_position_embeddings) if rotates_plainly(text) else None

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the model's configuration and weights: memories fit only the model that made them."""
        path = Path(model_path(self.config.model))
        return model_files.of_model(path, "" if self.config.load_format != "dummy" else "dummy")

    @property
    def knows_dialogue(self) -> bool:
        """True if the model makes sense of earlier questions and answers: all do that do not deny it."""
        return bool(getattr(self._local.hf_config, "kvvideo_dialogue", True))

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._local.tokenizer

    @property
    def dtype(self) -> "torch.dtype":
        """Dtype that the model is computed in."""
        return self._local.dtype

    def chunk_tokens(self, chunk: Chunk) -> int:
        """Return the tokens of ``chunk``, its clock time included, after others."""
        count, height, width = chunk.frames.shape[:3]
        # The frames stand for one token, the video pad, in the text.
        return self._tokens(self.text(chunk)) - 1 + tokens(height, width, count)

    def text(self, chunk: Chunk) -> str:
        """Return the text of ``chunk``, with as much of its words as there is room for."""
        words = bounded(chunk.words, chunk.end - chunk.start, self._tokens) if chunk.words else ""
        return chunk_text(chunk.start, words)

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer(text).input_ids)

    def use(self, cache: CacheConfig) -> None:
        """Bound the cache of all coming sessions by ``cache`` instead; the model and its pool stay.

        Raises:
            ConfigError: if a session is open, the pool is too small for one, or its pages have no room
                for the strategy's side state (``EngineConfig.spare_rows``).
        """
        from kvvideo.plugin.switch import switch_scheduler, switch_worker

        schedule = cache.schedule(self.block_size)
        if schedule is not None and schedule.max_tokens // self.block_size + 2 > self.blocks:
            raise ConfigError(
                f"max_tokens: {schedule.max_tokens} tokens do not fit the pool of {self.blocks} blocks of "
                f"{self.block_size}; start the engine with a larger kv_bytes"
            )
        switch_scheduler(self.scheduler, cache)
        self.on_workers(switch_worker, cache.as_dict())
        self.config = moved_to(self.config, cache)

    def new_id(self, kind: str) -> str:
        """Return a request id that was not used before."""
        self._count += 1
        return f"{kind}-{self._count}"

    def prompt(self, text: str, *chunks: Chunk) -> Any:
        """Return what ``process`` takes, of ``text`` and the chunks whose frames it has places for.

        Raises:
            EngineError: if the frames cannot be cut into patches.
        """
        return self._inputs(text, *chunks)

    def process(self, request_id: str, prompt: Any, params: Any, resumable: bool = False) -> Any:
        """Return the request that ``prompt`` makes, not yet sent; see ``LocalEngine.request``.

        Raises:
            EngineError: if vLLM refuses it.
        """
        return self._local.request(request_id, prompt, params, resumable)

    def append(self, request: Any) -> None:
        """Send ``request``, a part of a session."""
        self._local.append(request)

    def ask(self, request: Any, answer_tokens: int = 1, looks: bool = False) -> str:
        """Send ``request``, a question; return the name by which ``take`` gives its outputs, until ``forget``.

        Args:
            request: as ``process`` returned it.
            answer_tokens: most tokens of its answer.
            looks: True if it is of ``sampling.looking``; ``queries`` gives what came of it.
        """
        name = self._local.ask(request)
        self._latest[name], self._room[name] = None, self._needed(request, answer_tokens)
        if looks:
            self._looking[name] = str(request.request_id)
        return name

    @property
    def question_room(self) -> int:
        """Blocks of the pool that questions may take beside sessions."""
        return other_blocks(self.config, self.block_size) - 1

    def has_room(self, request: Any, answer_tokens: int = 1) -> bool:
        """Return True if a question can be sent beside those that are open, or none is."""
        taken = [self._room[name] for name, output in self._latest.items() if output is None or not output.finished]
        enough = sum(taken) + self._needed(request, answer_tokens) <= self.question_room
        return not taken or (len(taken) < self.config.questions and enough)

    def _needed(self, request: Any, answer_tokens: int) -> int:
        return question_blocks(len(request.prompt_token_ids) + answer_tokens, self.block_size)

    def abort(self, names: Collection[str]) -> None:
        """Forget questions and end them, by the names that ``ask`` returned."""
        for name in names:
            self.forget(name)
        self._local.abort_questions(names)

    def end(self, session_id: str) -> None:
        """End a session and let the workers forget what they know of its stream."""
        from kvvideo.plugin.inspect import forget

        blocks = self.scheduler.live_block_ids(session_id)
        self._local.abort([session_id])
        self.on_workers(forget, blocks[0] if blocks else -1)

    def restore(self, request: Any, past: Any) -> list[int]:
        """Open a session that stands for ``past``; return the blocks to fill with what it holds.

        Raises:
            EngineError: if the pool has too few free blocks.
        """
        return self._local.restore(request, past)

    def on_workers(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run ``function(worker, *arguments)`` in each worker; return what each returned, in the order of ranks."""
        return self._local.on_workers(function, *arguments)

    def step(self) -> Sequence[Any]:
        """Run one step of the scheduler and the model; return what was generated for questions.

        The latest output of each question is also kept until ``take`` fetches it, for whoever asked
        may not be the one who steps.

        Raises:
            EngineError: if vLLM failed.
        """
        try:
            outputs = self._local.step()
        except Exception as error:
            if _is_out_of_memory(error):
                raise OutOfMemoryError(f"out of memory while computing: {first_line(error)}") from error
            raise EngineError(f"vLLM failed: {first_line(error)}") from error
        self._fruitless = 0 if self.scheduler.scheduled_tokens else self._fruitless + 1
        self._latest.update((o.request_id, o) for o in outputs if o.request_id in self._latest)
        # One that vLLM ended before was not in the step.
        ended = [o.request_id for o in outputs if o.finished and o.outputs[0].finish_reason not in ("error", "abort")]
        self._hear([name for name in ended if name in self._looking])
        return outputs

    def _hear(self, names: Sequence[str]) -> None:
        """Fetch the queries of the questions that have looked in this step, for the next one overwrites them."""
        from kvvideo.plugin.inspect import heard_queries, joined

        if names:
            ids = [self._looking.pop(name) for name in names]
            heads = int(self._local.text_config.num_attention_heads)
            queries = joined(self.on_workers(heard_queries, ids), heads, dim=2)
            self._queries.update(zip(names, queries, strict=True))

    def queries(self, name: str) -> "Tensor | None":
        """Return what a question that looks asks with, un-rotated: ``float32 [layers, heads, head_dim]``.

        None if vLLM ended it before.
        """
        return self._queries.pop(name, None)

    def driven(self, work: Generator[Item | None, None, Result]) -> Generator[Item, None, Result]:
        """Yield what ``work`` yields, and make a step wherever it yields None because it waits for one.

        Raises:
            EngineError: if vLLM failed, or nothing can go on; ``work`` was told and has tidied up.
        """
        with closing(work):
            try:
                item = next(work)
                while True:
                    if item is not None:
                        yield item
                        item = next(work)
                        continue
                    try:
                        self.step()
                        self.check_progress()
                    except KvvideoError as error:
                        item = work.throw(error)
                    else:
                        item = next(work)
            except StopIteration as done:
                result: Result = done.value
                return result

    def drive(self, work: Generator[None, None, Result]) -> Result:
        """Do all of ``work``, as ``driven``; return what it returns."""
        steps: Generator[Any, None, Result] = self.driven(work)
        try:
            while True:
                next(steps)
        except StopIteration as done:
            result: Result = done.value
            return result

    @property
    def open_questions(self) -> int:
        """Questions that were asked and not answered to their end."""
        return sum(output is None or not output.finished for output in self._latest.values())

    def take(self, name: str) -> Any:
        """Return the latest output of a question since the last call; None if there is none."""
        output, self._latest[name] = self._latest[name], None
        return output

    def forget(self, name: str) -> None:
        """Keep no more outputs of a question."""
        for kept in (self._latest, self._room, self._looking, self._queries):
            kept.pop(name, None)

    def check_progress(self) -> None:
        """Check, between steps while waiting for a request, that something can still run.

        Raises:
            EngineError: if nothing can run, now or later, because idle sessions and waiting questions
                hold all blocks or places.
        """
        # One step without work may still have returned blocks.
        if self._fruitless < 3:
            return
        self._fruitless = 0
        raise EngineError(
            f"nothing can go on: {self.free_blocks} KV blocks are free and the other sessions hold the rest, or more "
            f"than {self.config.sessions} sessions and {self.config.questions} questions are open; close some, or "
            "start the engine with room for more (sessions, questions, kv_bytes)"
        )

    def close(self) -> None:
        """Give the model's memory back. Other engines in this process go on."""
        if not self._local.closed:
            del self.llm, self.core, self.scheduler
            self._local.close()
            gc.collect()


def _check_model(config: EngineConfig) -> None:
    """Check that the files of the model are whole, as far as vLLM will read them, and of the kind that sessions run.

    Raises:
        ConfigError: naming what is wrong.
    """
    weights = config.load_format != "dummy" and not is_elsewhere(config)
    path = model_path(config.model, weights=weights)
    model_files.check(path, weights=weights)
    text_config(path)


def _arguments(config: EngineConfig) -> dict[str, Any]:
    """Return all arguments of vLLM's ``EngineArgs`` for an engine of sessions."""
    arguments = {
        **common_arguments(config),
        "limit_mm_per_prompt": {"video": CHUNKS, "image": 0},
        "mm_processor_cache_gb": 0,
        **engine_args(**{**config.cache.as_dict(), SPARE: config.spare_rows}),
        **config.options,
        # Frames are handed over as bytes.
        "mm_device_do_normalize": True,
    }
    arguments["additional_config"] = {**arguments["additional_config"], INDEX: config.index}
    # Without a bound vLLM takes what there is; on the CPU it cannot tell how much that is.
    unbounded = 1 << 30 if is_cpu() else None
    arguments["kv_cache_memory_bytes"] = config.kv_bytes or pool_bytes(config, arguments["block_size"]) or unbounded
    if arguments["kv_cache_memory_bytes"] and not is_cpu():
        # Even with the pool's size settled, vLLM would not start unless this share of the GPU, 92 %, were free.
        arguments.setdefault("gpu_memory_utilization", 0.01)
    return arguments


def _start_error(error: Exception, config: EngineConfig) -> Exception:
    """Return the error that tells the person who asked for an engine why it did not start."""
    if isinstance(error, ConfigError):
        return error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (ConfigError, EngineError)):
            return cause
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    blocks = "memory" in text.lower() and any(word in text.lower() for word in ("kv", "cache blocks", "cuda"))
    if blocks or _is_out_of_memory(error):
        return OutOfMemoryError(f"{config.model} does not fit: {first_line(error)}")
    damaged = type(error).__name__ == "SafetensorError"
    if isinstance(error, OSError) or damaged or "is not a local folder" in text or "Repo id" in text:
        return ConfigError(f"cannot load model {config.model!r}: {first_line(error)}")
    return EngineError(f"vLLM could not start with {config.model!r}: {first_line(error)}")


def _is_out_of_memory(error: BaseException) -> bool:
    """Return True if an allocation failed: Python's, torch's on a GPU or on the host, or the system's."""
    signs = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in signs)
