"""vLLM's engine in this process: start it, hand it requests, step it, and end it while others go on.

In-process means direct access to the scheduler for live statistics, and no serialisation of pixels.
"""

import gc
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMClientError
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.request import RequestStatus

from kvvideo.errors import EngineError, first_line
from kvvideo.plugin.inspect import release

_open: set[int] = set()
"""Engines of this process that are open: the last one to close also ends what vLLM shares between them."""


class LocalEngine:
    """One engine of vLLM, closed at the latest when nobody holds it any more.

    Args:
        arguments: keyword arguments of vLLM's ``EngineArgs``.

    Attributes:
        llm: vLLM's ``LLMEngine``.
        core: its ``EngineCore``.
        scheduler: the core's; a ``SessionScheduler`` if ``arguments`` ask for one.

    Raises:
        Exception: whatever vLLM raises if it cannot start.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.llm = LLMEngine.from_engine_args(EngineArgs(**arguments))
        client = self.llm.engine_core
        self.core = client.engine_core
        self.scheduler = self.core.scheduler
        # vLLM's own finalizer would tear down what all engines of this process share.
        client._finalizer.detach()  # noqa: SLF001
        _open.add(id(self.core))
        self._end = weakref.finalize(self, _shut_down, self.core)

    @property
    def closed(self) -> bool:
        """True once ``close`` was called."""
        return not self._end.alive

    @property
    def hf_config(self) -> Any:
        """The model's configuration, of Hugging Face's kind."""
        return self.llm.model_config.hf_config

    @property
    def text_config(self) -> Any:
        """The part of ``hf_config`` that describes the language model."""
        return self.llm.model_config.hf_text_config

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the model is computed in."""
        dtype: torch.dtype = self.llm.model_config.dtype
        return dtype

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.llm.get_tokenizer()

    def request(self, request_id: str, prompt: Any, params: Any, resumable: bool = False) -> Any:
        """Return vLLM's ``EngineCoreRequest``, not yet sent.

        Args:
            request_id: its name; that of a session for the session's next part.
            prompt: as ``Inputs`` makes it, or any prompt of vLLM's.
            params: ``SamplingParams`` for this request alone, which is not copied.
            resumable: True if more will follow under the same name.

        Raises:
            EngineError: if vLLM refuses it.
        """
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

    def append(self, request: Any) -> None:
        """Send ``request``, of which no output is wanted: a part of a stream."""
        # The core extends its list of tokens; sharing it would let others do so, too.
        request.prompt_token_ids = list(request.prompt_token_ids)
        self.llm.engine_core.add_request(request)

    def ask(self, request: Any) -> str:
        """Send ``request``; return the name under which ``step`` gives its outputs."""
        self.llm.input_processor.assign_request_id(request)
        self.llm.output_processor.add_request(request, None, None, 0)
        name = str(request.external_req_id)
        try:
            self.append(request)
        except BaseException:
            self.abort_questions([name])
            raise
        return name

    def is_computing(self, request_id: str) -> bool:
        """Return True until ``request_id`` has computed all it was given, be it a session's part or a whole request."""
        request = self.scheduler.requests.get(request_id)
        return request is not None and request.status != RequestStatus.WAITING_FOR_STREAMING_REQ

    def restore(self, request: Any, past: Any) -> list[int]:
        """Open a session from ``request``, whose tokens are placeholders; see ``SessionScheduler.restore``."""
        core_request, _ = self.core.preprocess_add_request(request)
        blocks: list[int] = self.scheduler.restore(core_request, past)
        return blocks

    def abort_questions(self, names: Iterable[str]) -> None:
        """End requests by the names that ``ask`` returned."""
        self.llm.abort_request(list(names))

    def abort(self, request_ids: Iterable[str]) -> None:
        """End requests that ``append`` has sent."""
        self.llm.engine_core.abort_requests(list(request_ids))

    def on_workers(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Run ``function(worker, *arguments)`` in each worker; return what each returned, in the order of ranks."""
        results: list[Any] = self.llm.collective_rpc(function, args=arguments)
        return results

    def step(self) -> Sequence[Any]:
        """Run one step of the scheduler and the model; return the outputs of requests that ``ask`` has sent."""
        outputs: Sequence[Any] = self.llm.step()
        return outputs

    def close(self) -> None:
        """Give the model's memory back. Other engines in this process go on."""
        if self._end.alive:
            self._end()
            del self.llm, self.core, self.scheduler


def _shut_down(core: Any) -> None:
    _open.discard(id(core))
    core.model_executor.collective_rpc(release)
    if not _open:
        core.shutdown()
        return
    # What core.shutdown() does, less what would pull the rug from under the engines still open.
    core.structured_output_manager.clear_backend()
    core.scheduler.shutdown()
    gc.unfreeze()
