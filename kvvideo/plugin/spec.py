"""What vLLM's allocator must know: how much a request can hold at most, and which blocks are free again."""

from dataclasses import dataclass, fields, replace
from typing import Any, Self

from vllm.utils.math_utils import cdiv
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec

from kvvideo.compression.schedule import Schedule

_ALIGNMENT = 256  # bytes; keeps every block's keys aligned for vector and bulk loads


@dataclass(frozen=True, kw_only=True)
class BoundedSpec(FullAttentionSpec):
    """Full attention over a cache that is compacted by schedule.

    Each page carries ``state_rows`` rows of side state behind its keys and values, four bytes per KV
    head and slot, so that vLLM accounts for it and moves it as it does the rest.

    Attributes:
        budget, max_tokens: the schedule, in tokens; both 0 if the strategy never evicts.
        state_rows: side-state rows per page; the first two hold positions and places.
    """

    budget: int
    max_tokens: int
    state_rows: int

    @classmethod
    def extend(cls, spec: FullAttentionSpec, schedule: Schedule | None, state_rows: int) -> Self:
        """``spec`` with the schedule, and its pages padded to hold the side state."""
        own = {f.name: getattr(spec, f.name) for f in fields(spec)}
        state = 4 * state_rows * spec.num_kv_heads * spec.block_size
        own["page_size_padded"] = cdiv(spec.page_size_bytes + state, _ALIGNMENT) * _ALIGNMENT
        return cls(**own, budget=0, max_tokens=0, state_rows=state_rows).scheduled(schedule)

    def scheduled(self, schedule: Schedule | None) -> Self:
        """The same pages, compacted by ``schedule``; None for never."""
        budget, max_tokens = (schedule.budget, schedule.max_tokens) if schedule else (0, 0)
        return replace(self, budget=budget, max_tokens=max_tokens)

    @property
    def schedule(self) -> Schedule | None:
        """When to compact; None for never."""
        return Schedule(self.budget, self.max_tokens) if self.max_tokens else None

    @property
    def state_offset(self) -> int:
        """Bytes from a page's beginning to its side state."""
        return int(self.unpadded_page_size_bytes)

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        """The bound, so that vLLM admits any ``max_model_len`` in the memory that one cache needs."""
        unbounded: int = super().max_memory_usage_bytes(vllm_config)
        bound = (self.max_tokens // self.block_size + 1) * self.page_size_bytes
        return min(unbounded, bound) if self.max_tokens else unbounded

    @classmethod
    def merge(cls, specs: list[Self]) -> Self:
        """One spec for a group of layers, which must all be alike."""
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
        """Blocks that evictions gave back to the pool since the scheduler last asked."""
        self.configure(kv_cache_spec)

    def configure(self, kv_cache_spec: BoundedSpec) -> None:
        """Free blocks by the schedule of ``kv_cache_spec`` from now on."""
        self.kv_cache_spec = kv_cache_spec
        self.schedule = kv_cache_spec.schedule
        self.max_admission_blocks_per_request = (
            self.schedule.max_tokens // self.block_size if self.schedule else self._unbounded_admission
        )

    def is_fork(self, request_id: str) -> bool:
        """Whether the request shares a session's blocks: its first block is the null block."""
        blocks = self.req_to_blocks.get(request_id)
        return bool(blocks) and blocks[0] is self._null_block

    def remove_skipped_blocks(
        self, request_id: str, processed_computed_tokens: int, num_prompt_tokens: int | None = None
    ) -> None:
        """Give back the blocks that the compactions so far have emptied."""
        if self.schedule is None or self.is_fork(request_id):
            return
        first = self.schedule.budget // self.block_size
        last = self.schedule.compacted_upto(processed_computed_tokens) // self.block_size
        free = self.block_pool.get_num_free_blocks()
        self._remove_blocks_in_range(request_id, first, last)
        self.evicted_blocks += self.block_pool.get_num_free_blocks() - free

    def live_blocks(self, request_id: str) -> list[Any]:
        """The request's blocks that hold live tokens, in order."""
        return [b for b in self.req_to_blocks.get(request_id, ()) if b is not self._null_block]
