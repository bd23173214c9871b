"""vLLM in this process, configured for sessions: one engine serves many of them.

In-process means direct access to the scheduler for live statistics, and no serialisation of pixels.
"""

import gc
import weakref
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from kvvideo.compression.config import SPARE, CacheConfig
from kvvideo.errors import ConfigError, EngineError, KvvideoError, OutOfMemoryError, first_line
from kvvideo.plugin import compat
from kvvideo.session.arguments import common_arguments, engine_args, is_cpu, is_elsewhere
from kvvideo.session.config import EngineConfig
from kvvideo.session.environment import set_environment
from kvvideo.session.hub import model_path
from kvvideo.session.pool import moved_to, other_blocks, pool_bytes, session_blocks
from kvvideo.types import Chunk

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine:
    """A model loaded in vLLM, ready for sessions.

    Raises:
        ConfigError: a model or setting that cannot be used.
        OutOfMemoryError: the model or the pool its sessions need does not fit.
        EngineError: anything else that keeps vLLM from starting.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        set_environment()
        compat.prepare()
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from kvvideo.plugin.inputs import Inputs
        from kvvideo.session import model_files
        from kvvideo.session.model_config import text_config

        weighty = config.load_format != "dummy" and not is_elsewhere(config)
        path = model_path(config.model, weights=weighty)
        model_files.check(path, weights=weighty)
        text_config(path)
        arguments = {
            **common_arguments(config),
            "limit_mm_per_prompt": {"video": 1, "image": 0},
            "mm_processor_cache_gb": 0,
            **engine_args(**{**config.cache.as_dict(), SPARE: config.spare_rows}),
            **config.options,
            # Frames are handed over as bytes.
            "mm_device_do_normalize": True,
        }
        # Without a bound vLLM takes what there is; on the CPU it cannot tell how much that is.
        unbounded = 1 << 30 if is_cpu() else None
        arguments["kv_cache_memory_bytes"] = config.kv_bytes or pool_bytes(config, arguments["block_size"]) or unbounded
        if arguments["kv_cache_memory_bytes"] and not is_cpu():
            # Even with the pool's size settled, vLLM would not start unless this share of the GPU, 92 %, were free.
            arguments.setdefault("gpu_memory_utilization", 0.01)
        try:
            self.llm = LLMEngine.from_engine_args(EngineArgs(**arguments))
        except Exception as error:
            raise _start_error(error, config) from error
        self.core = self.llm.engine_core.engine_core
        self.scheduler = self.core.scheduler
        self._inputs = Inputs(self.llm.model_config.hf_config, self.llm.get_tokenizer())
        # vLLM's own finalizer would tear down what all engines of this process share.
        self.llm.engine_core._finalizer.detach()
        _open.add(id(self.core))
        self._finalizer = weakref.finalize(self, _shut_down, self.core)
        self._count = 0
        self._fruitless = 0
        self._latest: dict[str, Any] = {}

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return not self._finalizer.alive

    @property
    def block_size(self) -> int:
        """Tokens in one KV block."""
        return int(self.scheduler.manager.block_size)

    @property
    def blocks(self) -> int:
        """Blocks in vLLM's pool; one of them is never used."""
        return int(self.scheduler.kv_cache_manager.block_pool.num_gpu_blocks)

    @property
    def capacity(self) -> int:
        """Sessions that can surely be open at once, with all questions: what they can hold at most fits the pool."""
        schedule = self.config.cache.schedule(self.block_size)
        if schedule is None:
            return 1
        room = self.blocks - other_blocks(self.config, self.block_size)
        return min(self.config.sessions, room // session_blocks(schedule, self.block_size))

    @property
    def free_blocks(self) -> int:
        """Blocks in vLLM's pool that nothing uses."""
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    @property
    def position_limit(self) -> int | None:
        """M-RoPE position from which on a session is moved back: what the model was trained for. None: never."""
        from kvvideo.plugin.settings import rotates_plainly

        text = self.scheduler.vllm_config.model_config.hf_text_config
        return int(text.max_position_embeddings) if rotates_plainly(text) else None

    @cached_property
    def fingerprint(self) -> str:
        """Of the model's configuration and weights: memories fit only the model that made them."""
        from kvvideo.session.model_files import of_model

        return of_model(Path(model_path(self.config.model)), "" if self.config.load_format != "dummy" else "dummy")

    @property
    def knows_dialogue(self) -> bool:
        """Whether the model makes sense of earlier questions and answers: all do that do not deny it."""
        return bool(getattr(self.scheduler.vllm_config.model_config.hf_config, "kvvideo_dialogue", True))

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.llm.get_tokenizer()

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
        self.llm.collective_rpc(switch_worker, args=(cache.as_dict(),))
        self.config = moved_to(self.config, cache)

    def new_id(self, kind: str) -> str:
        """A request id that was not used before."""
        self._count += 1
        return f"{kind}-{self._count}"

    def prompt(self, text: str, chunk: Chunk | None) -> Any:
        """What ``process`` takes, of ``text`` and the frames that it has a place for.

        Raises:
            EngineError: if the frames cannot be cut into patches.
        """
        return self._inputs(text, chunk)

    def process(self, request_id: str, prompt: Any, params: Any, resumable: bool = False) -> Any:
        """vLLM's ``EngineCoreRequest`` of what ``prompt`` made.

        Raises:
            EngineError: if vLLM refuses it.
        """
        from vllm.exceptions import VLLMClientError

        params.skip_clone = True
        try:
            return self.llm.input_processor.process_inputs(
                request_id=request_id,
                prompt=prompt,
                params=params,
                supported_tasks=self.llm.get_supported_tasks(),
                resumable=resumable,
            )
        except (ValueError, VLLMClientError) as error:
            raise EngineError(f"vLLM refuses this prompt: {first_line(error)}") from error

    def step(self) -> Sequence[Any]:
        """One step of the scheduler and the model; returns what was generated for questions.

        The latest output of each question is also kept until ``take`` fetches it, for whoever asked
        may not be the one who steps.

        Raises:
            EngineError: if vLLM failed.
        """
        try:
            outputs: Sequence[Any] = self.llm.step()
        except Exception as error:
            if _is_out_of_memory(error):
                raise OutOfMemoryError(f"out of memory while computing: {first_line(error)}") from error
            raise EngineError(f"vLLM failed: {first_line(error)}") from error
        self._fruitless = 0 if self.scheduler.scheduled_tokens else self._fruitless + 1
        self._latest.update((o.request_id, o) for o in outputs if o.request_id in self._latest)
        return outputs

    def driven(self, work: Generator[Item | None, None, Result]) -> Generator[Item, None, Result]:
        """``work``, with a step wherever it yields None because it waits for one; what else it yields.

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
        """All of ``work``, as ``driven``; returns what it returns."""
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
        return len(self._latest)

    def expect(self, request_id: str) -> None:
        """Keep the outputs of ``request_id`` for ``take``, until ``forget``."""
        self._latest[request_id] = None

    def take(self, request_id: str) -> Any:
        """The latest output of ``request_id`` since the last call; None if there is none."""
        output, self._latest[request_id] = self._latest[request_id], None
        return output

    def forget(self, request_id: str) -> None:
        """Undo ``expect``."""
        self._latest.pop(request_id, None)

    def check_progress(self) -> None:
        """Call between steps while waiting for a request.

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
        if self._finalizer.alive:
            self._finalizer()
            del self.llm, self.core, self.scheduler
            gc.collect()


_open: set[int] = set()
"""Engines of this process that are open, for vLLM keeps state that all of them share."""


def _shut_down(core: Any) -> None:
    from kvvideo.plugin.inspect import release

    _open.discard(id(core))
    core.model_executor.collective_rpc(release)
    if not _open:
        core.shutdown()
        return
    # What core.shutdown() does, less what would pull the rug from under the engines still open.
    core.structured_output_manager.clear_backend()
    core.scheduler.shutdown()
    gc.unfreeze()


def _start_error(error: Exception, config: EngineConfig) -> Exception:
    """What a failed start means to the person who asked for it."""
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
    """Whether an allocation failed: Python's, torch's on a GPU or on the host, or the system's."""
    signs = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in signs)
