"""Tell vLLM's allocator how much a request can hold at most, and which blocks are free again."""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec

from kvvideo.compression.schedule import Schedule
from kvvideo.errors import EngineError

_ALIGNMENT = 256  # bytes; keeps every block's keys aligned for vector and bulk loads


@dataclass(frozen=True, kw_only=True)
class BoundedSpec(FullAttentionSpec):
    """Full attention over a cache that is compacted by schedule.

    Each page carries ``state_rows`` rows of side state behind its keys and values, four bytes per KV
    head and slot, so that vLLM accounts for it and moves it as it does the rest.

    Attributes:
        budget, max_tokens: the schedule, in tokens; both 0 if the strategy never evicts.
        state_rows: side-state rows per page; the first hold positions and places (``kvvideo.compression.rows``).
    """

    budget: int
    max_tokens: int
    state_rows: int

    @classmethod
    def extend(cls, spec: FullAttentionSpec, schedule: Schedule | None, state_rows: int) -> Self:
        """Return ``spec`` with the schedule, and its pages padded to hold the side state.

        Args:
            spec: vLLM's own, of one layer.
            schedule: when to compact; None for never.
            state_rows: rows of side state in each page.
        """
        own = {f.name: getattr(spec, f.name) for f in fields(spec)}
        state = 4 * state_rows * spec.num_kv_heads * spec.block_size
        own["page_size_padded"] = cdiv(spec.page_size_bytes + state, _ALIGNMENT) * _ALIGNMENT
        return cls(**own, budget=0, max_tokens=0, state_rows=state_rows).scheduled(schedule)

    def scheduled(self, schedule: Schedule | None) -> Self:
        """Return a spec of the same pages, compacted by ``schedule``; None for never."""
        budget, max_tokens = (schedule.budget, schedule.max_tokens) if schedule else (0, 0)
        return replace(self, budget=budget, max_tokens=max_tokens)

    @property
    def schedule(self) -> Schedule | None:
        """The schedule of compactions; None for never."""
        return Schedule(self.budget, self.max_tokens) if self.max_tokens else None

    @property
    def state_offset(self) -> int:
        """Bytes from a page's beginning to its side state."""
        return int(self.unpadded_page_size_bytes)

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        """Return the bytes that one request holds at most, so that vLLM admits any ``max_model_len`` in them."""
        unbounded: int = super().max_memory_usage_bytes(vllm_config)
        bound = (self.max_tokens // self.block_size + 1) * self.page_size_bytes
        return min(unbounded, bound) if self.max_tokens else unbounded

    @classmethod
    def merge(cls, specs: list[Self]) -> Self:
        """Return one spec for a group of layers.

        Raises:
            AssertionError: if they are not alike, as vLLM's own specs raise it.
        """
        if any(spec != specs[0] for spec in specs):
            raise AssertionError("all layers of a bounded cache must have the same spec")
        return specs[0]


class BoundedManager(FullAttentionManager):
    """Frees evicted blocks by the same schedule that the workers compact by."""

    kv_cache_spec: BoundedSpec
    max_admission_blocks_per_request: int | None

    def __init__(self, kv_cache_spec: BoundedSpec, **kwargs: Any) -> None:
        super().__init__(kv_cache_spec, **kwargs)
        self._unbounded_admission: int | None = self.max_admission_blocks_per_request
        self.evicted_blocks = 0
        """Blocks that evictions gave back to the pool since the scheduler last read this."""
        self.configure(kv_cache_spec)

    def configure(self, kv_cache_spec: BoundedSpec) -> None:
        """Free blocks by the schedule of ``kv_cache_spec`` from now on."""
        self.kv_cache_spec = kv_cache_spec
        self.schedule = kv_cache_spec.schedule
        self.max_admission_blocks_per_request = (
            self.schedule.max_tokens // self.block_size if self.schedule else self._unbounded_admission
        )

    def is_fork(self, request_id: str) -> bool:
        """Return True if the request shares a session's blocks: its first block is the null block."""
        blocks = self.req_to_blocks.get(request_id)
        return bool(blocks) and blocks[0].is_null

    def adopt(self, request_id: str, blocks: list[KVCacheBlock]) -> None:
        """Let a request that has computed nothing here go on with ``blocks``, which are taken from the pool already."""
        self.req_to_blocks[request_id] = blocks
        self.num_cached_block[request_id] = 0

    def share(self, session_id: str, request_id: str, tokens: int, marks: int) -> None:
        """Let a request go on where a session stands, on the session's blocks, behind null blocks that mark a fork.

        Args:
            session_id: session whose blocks are shared; a half-filled last one is copied.
            request_id: request that has computed nothing yet.
            tokens: tokens that the session has in its blocks.
            marks: null blocks; see ``kvvideo.plugin.layout``.

        Raises:
            EngineError: if no block is free for the copy.
        """
        size, pool = self.block_size, self.block_pool
        blocks = self.req_to_blocks[session_id]
        shared = blocks[: tokens // size]
        if tokens % size and pool.get_num_free_blocks() < 1:
            raise EngineError("no free KV block to ask a question with; ask fewer at once or enlarge the pool")
        pool.touch(shared)
        own = [*[pool.null_block] * marks, *shared]
        if tokens % size:
            (copy,) = pool.get_new_blocks(1)
            source = blocks[tokens // size]
            # Both ends stay retained until the workers have copied, as vLLM's own copy-on-write does.
            pool.touch([source, copy])
            self._pending_cow_copies.append((source, copy))
            own.append(copy)
        self.adopt(request_id, own)

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Give back the blocks that the compactions so far have emptied.

        Args:
            request_id: request whose blocks are looked at.
            processed_computed_tokens: tokens that it has surely computed.
            num_prompt_tokens: not needed.
        """
        del num_prompt_tokens
        if self.schedule is None or self.is_fork(request_id):
            return
        first = self.schedule.budget // self.block_size
        last = self.schedule.compacted_upto(processed_computed_tokens) // self.block_size
        free = self.block_pool.get_num_free_blocks()
        self._remove_blocks_in_range(request_id, first, last)
        self.evicted_blocks += self.block_pool.get_num_free_blocks() - free

    def live_blocks(self, request_id: str) -> list[KVCacheBlock]:
        """Return the request's blocks that hold live tokens, oldest first."""
        return [block for block in self.req_to_blocks.get(request_id, ()) if not block.is_null]
