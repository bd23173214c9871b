"""Schedule sessions: fold their past, fork them for questions, and end lost ones.

*Fold*: at a chunk boundary a session is rewritten as a short one whose first tokens are placeholders
for what the cache still holds, so that time and host memory per chunk stay flat for ever.

*Fork*: a question is a request of its own that shares the session's blocks by reference count. Only
a half-filled last block is copied. The session never notices; a chunk that comes meanwhile waits.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus, StreamingUpdate

from kvvideo.compression import load
from kvvideo.compression.config import FORK_OF, LOOKS, SHOWN_AT
from kvvideo.compression.schedule import Schedule
from kvvideo.errors import EngineError
from kvvideo.plugin import history, layout, metrics
from kvvideo.plugin.history import History
from kvvideo.plugin.register import check_found
from kvvideo.plugin.settings import cache_config
from kvvideo.plugin.spec import BoundedManager
from kvvideo.types import CacheStats

logger = logging.getLogger("kvvideo.scheduler")


@dataclass(frozen=True)
class Past:
    """A session's counts that folds have taken out of its request.

    Attributes:
        position: M-RoPE position of its next token.
        evicted: tokens gone.
        compactions: times its cache was compacted.
    """

    position: int = 0
    evicted: int = 0
    compactions: int = 0


class SessionScheduler(Scheduler):
    """vLLM's scheduler, plus sessions over a bounded cache.

    Attributes:
        config: how the cache is bounded; None if it is not.
        manager: of the only group of layers.
        schedule_rule: when requests are compacted; None for never.
        scheduled_tokens: tokens of the latest step; 0 if nothing could run.

    Raises:
        ConfigError: if the settings cannot be used.
        EngineError: if the cache should be bounded, and is not.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config = cache_config(self.vllm_config)
        managers = self.kv_cache_manager.coordinator.single_type_managers
        if self.config is not None and not (len(managers) == 1 and isinstance(managers[0], BoundedManager)):
            check_found()
            raise EngineError(
                "kvvideo bounds models in which all layers use full attention; this one's caches are "
                + ", ".join(type(m.kv_cache_spec).__name__ for m in managers)
            )
        self.manager = managers[0]
        self.schedule_rule = self.manager.schedule if self.config is not None else None
        self.scheduled_tokens = 0
        self._compactions = 0  # since statistics were last made
        self._pasts: dict[str, Past] = {}
        self._forks: dict[str, str] = {}
        self._postponed: list[Request] = []
        self._refused: list[str] = []
        self._lost: list[Request] = []

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Choose what the next step computes, as vLLM does; end what was refused, and count compactions."""
        if self._refused:
            self._lost += self.finish_requests(self._refused, RequestStatus.FINISHED_ERROR)
            self._refused.clear()
        output = super().schedule(*args, **kwargs)
        self.scheduled_tokens = output.total_num_scheduled_tokens
        if self.log_stats and self.schedule_rule is not None:
            for request_id, count in output.num_scheduled_tokens.items():
                if not self.manager.is_fork(request_id):
                    n = self.requests[request_id].num_computed_tokens
                    self._compactions += self.schedule_rule.compactions(n) - self.schedule_rule.compactions(n - count)
        return output

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """Return vLLM's statistics with our figures; None if nobody wants any."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None and self.config is not None:
            metrics.put(
                stats,
                compactions=self._compactions,
                evicted_tokens=self._compactions * self.schedule_rule.interval if self.schedule_rule else 0,
                freed_blocks=self.manager.evicted_blocks,
                live_tokens=sum(map(self._held, self.requests.values())),
                sessions=self.num_waiting_for_streaming_input,
            )
            self._compactions = self.manager.evicted_blocks = 0
        return stats

    def _held(self, request: Request) -> int:
        """Return the tokens that a request holds in the cache; of a question, those that no session has."""
        n: int = request.num_computed_tokens
        if self.manager.is_fork(request.request_id):
            shared = history.decode(request.prompt_token_ids)
            return n - (shared.length if shared else 0)
        return self.schedule_rule.live(n) if self.schedule_rule else n

    # This hook has the last word on a step's size, for running and for waiting requests.
    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Return how many tokens a step may compute of a request: none crosses a compaction.

        So what is evicted depends on the tokens alone, never on how they were cut into steps.
        """
        allowed: int = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        if self.schedule_rule is None or self.manager.is_fork(request.request_id):
            return allowed
        rule: Schedule = self.schedule_rule
        return min(allowed, rule.next_compaction(num_computed_tokens) - num_computed_tokens)

    # Sessions ------------------------------------------------------------------------------------

    def _update_request_as_session(self, session: Request, update: StreamingUpdate) -> None:
        """Fold ``session``, then let it go on with ``update``."""
        if self.config is not None and self.model_uses_mrope:
            self._fold(session)
        super()._update_request_as_session(session, update)

    def fold(self, session_id: str) -> Past:
        """Fold an idle session now, which also lets go of its pixels; return what it has behind it.

        Raises:
            EngineError: if it has ended, or is not idle.
        """
        session = self._idle(session_id)
        self._fold(session)
        return self._pasts[session_id]

    def is_idle(self, session_id: str) -> bool:
        """Return True if the session has computed all it was given; False if it is gone."""
        session = self.requests.get(session_id)
        return session is not None and session.status == RequestStatus.WAITING_FOR_STREAMING_REQ

    def stats_of(self, request_id: str) -> CacheStats:
        """Return what the cache of a request holds now; evicted blocks count as gone before they are freed."""
        request, rule = self.requests[request_id], self.schedule_rule
        past, n = self._pasts.get(request_id, Past()), request.num_computed_tokens
        live, compactions = n, past.compactions
        if rule is not None and not self.manager.is_fork(request_id):
            self.manager.remove_skipped_blocks(request_id, n - request.num_in_flight_tokens)
            live, compactions = rule.live(n), compactions + rule.compactions(n)
        blocks = len(self.manager.live_blocks(request_id))
        evicted = past.evicted + n - live
        size = blocks * self.block_bytes + (0 if self.manager.is_fork(request_id) else self.stream_bytes)
        return CacheStats(past.evicted + n, live, evicted, blocks, compactions, size)

    @property
    def blocks(self) -> int:
        """Blocks in the pool; one of them, the null block, is never used."""
        return int(self.kv_cache_manager.block_pool.num_gpu_blocks)

    @property
    def free_blocks(self) -> int:
        """Blocks in the pool that nothing uses."""
        return int(self.kv_cache_manager.block_pool.get_num_free_blocks())

    @property
    def kv_heads(self) -> int:
        """KV heads of the model, of all ranks together."""
        return int(self.vllm_config.model_config.get_total_num_kv_heads())

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers and ranks, side state included."""
        group = self.kv_cache_config.kv_cache_groups[0]
        return int(group.kv_cache_spec.page_size_bytes) * len(group.layer_names) * self._ranks

    @property
    def _ranks(self) -> int:
        return int(self.vllm_config.parallel_config.tensor_parallel_size)

    @property
    def stream_bytes(self) -> int:
        """Bytes that the strategy remembers of each stream over all layers and ranks, besides its blocks."""
        if self.config is None:
            return 0
        model, group = self.vllm_config.model_config, self.kv_cache_config.kv_cache_groups[0]
        heads = model.get_num_attention_heads(self.vllm_config.parallel_config)
        bytes_ = load(self.config.strategy).stream_bytes(heads, model.get_head_size())
        return bytes_ * len(group.layer_names) * self._ranks

    def live_block_ids(self, request_id: str) -> list[int]:
        """Return the numbers of a request's live blocks in the workers' caches, oldest first."""
        return [block.block_id for block in self.manager.live_blocks(request_id)]

    def _idle(self, session_id: str) -> Request:
        """Return the session.

        Raises:
            EngineError: if it has ended, or is not idle.
        """
        session = self.requests.get(session_id)
        if session is None:
            raise EngineError(f"session {session_id} has ended; start a new one and feed it the video again")
        if session.status != RequestStatus.WAITING_FOR_STREAMING_REQ:
            raise EngineError(f"session {session_id} is still computing its last chunk; wait for it to finish")
        return session

    def _fold(self, session: Request) -> None:
        """Rewrite ``session`` as placeholders for its live tokens. A second time this changes nothing."""
        session_id, n = session.request_id, session.num_computed_tokens
        folded = history.decode(session.prompt_token_ids)
        if folded is not None and folded.length == n and session_id in self._pasts:
            return
        past = self._pasts.get(session_id, Past())
        position = _next_position(self.vllm_config, _token_ids(session)[:n], session.mm_features)
        stats = self.stats_of(session_id)
        self._pasts[session_id] = replace(past, position=position)
        if stats.live < history.HEADER_LENGTH:
            return  # too short to carry a header, and nothing is gained yet
        blocks = self.manager.req_to_blocks[session_id]
        blocks[:] = self.manager.live_blocks(session_id)
        ids = history.encode(History(stats.live, position))
        _token_ids(session)[:] = ids + _token_ids(session)[n:]
        session.prompt_token_ids[:] = ids
        session.num_prompt_tokens = session.num_computed_tokens = stats.live
        session.mm_features.clear()
        self._pasts[session_id] = replace(past, position=position, evicted=stats.evicted, compactions=stats.compactions)

    def rebase(self, session_id: str) -> int:
        """Let the next token of an idle session have position 0.

        Returns:
            Positions, not above 0, that the workers must move its cache by.

        Raises:
            EngineError: if it has ended, or is not idle.
        """
        session = self._idle(session_id)
        self._fold(session)
        past = self._pasts[session_id]
        if history.decode(_token_ids(session)) is None:
            return 0
        ids = history.encode(History(session.num_computed_tokens, 0))
        _token_ids(session)[: len(ids)] = ids
        session.prompt_token_ids[:] = ids
        self._pasts[session_id] = replace(past, position=0)
        return -past.position

    def restore(self, request: Request, past: Past) -> list[int]:
        """Open an idle session that stands for ``past``.

        Args:
            request: resumable, with no tokens but the placeholders for what is held.
            past: what the session has behind it.

        Returns:
            Numbers of the blocks to fill with what it holds.

        Raises:
            EngineError: if the pool has too few free blocks.
        """
        live, pool = request.num_prompt_tokens, self.kv_cache_manager.block_pool
        needed = cdiv(live, self.manager.block_size)
        if pool.get_num_free_blocks() < needed:
            raise EngineError(
                f"the memory needs {needed} KV blocks and {pool.get_num_free_blocks()} are free; close a session, or "
                "start the engine with room for more (sessions, kv_bytes)"
            )
        self.manager.adopt(request.request_id, pool.get_new_blocks(needed))
        request.num_computed_tokens = live
        request.status = RequestStatus.WAITING_FOR_STREAMING_REQ
        self.num_waiting_for_streaming_input += 1
        self._pasts[request.request_id] = past
        super().add_request(request)
        return self.live_block_ids(request.request_id)

    # Questions -----------------------------------------------------------------------------------

    def has_forks(self, session_id: str) -> bool:
        """Return True while questions about the session are answered, on blocks that it shares."""
        return session_id in self._forks.values()

    def add_request(self, request: Request) -> None:
        """Take a request as vLLM does; make it a fork if it names a session, or let it wait for the session's forks."""
        if request.request_id in self.requests and self.has_forks(request.request_id):
            # The next chunk may compact blocks that questions still read.
            self._postponed.append(request)
            return
        extra = (request.sampling_params.extra_args if request.sampling_params else None) or {}
        if self.config is not None and FORK_OF in extra and request.request_id not in self.requests:
            try:
                marks = layout.LOOKS if extra.get(LOOKS) else layout.FORK
                self._fork(request, self._idle(str(extra[FORK_OF])), marks, extra.get(SHOWN_AT, []))
            except EngineError as error:
                # Anyone may send such a request to a server; raising here would end the engine with it.
                logger.warning("question %s is refused: %s", request.request_id, error)
                self._refused.append(request.request_id)
        super().add_request(request)

    def _fork(self, request: Request, session: Request, marks: int, shown_at: Any) -> None:
        """Let ``request`` go on where ``session`` stands, on the session's own blocks, behind so many null blocks.

        Its first chunks get the positions ``shown_at``.

        Raises:
            EngineError: if no block is free for the half-filled last one, or ``shown_at`` are no positions of the past.
        """
        self._fold(session)
        live = session.num_computed_tokens
        past = self._pasts[session.request_id]
        if not isinstance(shown_at, list) or not all(type(at) is int and 0 <= at < past.position for at in shown_at):
            raise EngineError(f"{SHOWN_AT}: {shown_at!r} is no list of positions below {past.position}")
        self.manager.share(session.request_id, request.request_id, live, marks)
        self._forks[request.request_id] = session.request_id
        length = marks * self.manager.block_size + live
        ids = history.encode(History(length, past.position, tuple(shown_at[: history.most_shown(length)])))
        request.mm_features = [
            replace(f, mm_position=replace(f.mm_position, offset=f.mm_position.offset + len(ids)))
            for f in request.mm_features
        ]
        request.prompt_token_ids = ids + request.prompt_token_ids
        _token_ids(request)[:0] = ids
        request.num_prompt_tokens = len(request.prompt_token_ids)
        request.num_computed_tokens = len(ids)

    # Losses --------------------------------------------------------------------------------------

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Take a request's blocks, and end it if its past is folded and cannot be computed again."""
        super()._preempt_request(request, *args, **kwargs)
        if history.decode(request.prompt_token_ids or ()) is not None:
            self.finish_requests(request.request_id, RequestStatus.FINISHED_ERROR)
            self._lost.append(request)

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, EngineCoreOutputs]:
        """Return a step's outputs by client, and those of requests that were lost since."""
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(*args, **kwargs)
        for request in self._lost:
            mine = outputs.setdefault(request.client_index, EngineCoreOutputs())
            mine.outputs.append(EngineCoreOutput(request.request_id, [], finish_reason=FinishReason.ERROR))
        self._lost.clear()
        return outputs

    def _free_blocks(self, request: Request) -> None:
        """Let go of a request that has ended, and send the chunk that waited for the last fork of its session."""
        super()._free_blocks(request)
        self._pasts.pop(request.request_id, None)
        session_id = self._forks.pop(request.request_id, request.request_id)
        if self.has_forks(session_id):
            return
        due = [chunk for chunk in self._postponed if chunk.request_id == session_id]
        self._postponed = [chunk for chunk in self._postponed if chunk.request_id != session_id]
        for chunk in due if session_id != request.request_id else ():
            super().add_request(chunk)


def _token_ids(request: Request) -> list[int]:
    """Return all tokens of ``request``, its prompt's and its answer's, as the list that vLLM itself extends."""
    tokens: list[int] = request._all_token_ids  # noqa: SLF001
    return tokens


def _next_position(vllm_config: Any, token_ids: list[int], mm_features: list[Any]) -> int:
    from kvvideo.plugin.model import next_position  # the model's module is slow to import

    return next_position(vllm_config.model_config.hf_config, token_ids, mm_features)
