"""Compact the cache inside the attention layers, by mixins over whichever backend the platform runs.

The builder shows the unmodified kernel a block table of live tokens only, closed up. Order does not
matter to attention, for RoPE is baked into the keys, as long as the step's own tokens stay last: the
causal mask is aligned to the end. After the kernel, each layer scores and compacts its own cache.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from vllm.config import get_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.kv_cache_interface import FullAttentionSpec

from kvvideo.compression import load
from kvvideo.compression.config import CacheConfig
from kvvideo.compression.gaps import close_gaps
from kvvideo.compression.policy import AT_ONCE, LiveCache, Policy
from kvvideo.compression.rotary import Rotary
from kvvideo.compression.rows import ROWS, own_rows, state_rows
from kvvideo.errors import KvvideoError
from kvvideo.plugin.index import Notes
from kvvideo.plugin.layout import LOOKS, lay_out
from kvvideo.plugin.pages import Pages, PlainPages, put_rows, side_state, slots_of
from kvvideo.plugin.settings import cache_config, is_indexed, spare_rows
from kvvideo.plugin.spec import BoundedSpec


@dataclass(frozen=True)
class RequestStep:
    """One request that a layer has work for after this step's attention.

    Attributes:
        queries: rows of the batch that hold its tokens.
        blocks: ``int64 [n]``, its live blocks in order.
        name: number of its first block, which is its own until it ends.
        fresh: True if these are its first tokens.
        length, evictable: as in ``Layout``.
        left: tokens until the next compaction; 0 if it follows this step.
        indexed: True if it is a stream whose chunks are indexed.
    """

    queries: slice
    blocks: torch.Tensor
    name: int
    fresh: bool
    length: int
    evictable: int
    left: int
    indexed: bool


@dataclass
class Step:
    """A step as the layers need to know it beyond the kernel's own metadata, of which this is an attribute.

    The builder makes it, the model adds ``tokens`` (``tell_tokens``), the layers read it.

    Attributes:
        spec: of the layers' pages.
        slots: ``int64 [tokens]``, the slot that each token is written to.
        ordinals: ``int32 [tokens]``, how many tokens of its request come before each.
        requests: those that layers have work for.
        layers: names of the layers, from the first to the last.
        pages: those of all layers.
        notes: takes what finds chunks again.
        last: ``int64 [n]``, the last token of each request that looks for chunks; None if none does.
        keys: of the layers so far, ``[tokens, kv_heads, head_dim]`` each, where pages do not add them up themselves.
        tokens: ``int64 [2, >= tokens]``, temporal M-RoPE positions and places; None if the model has no M-RoPE.
    """

    spec: BoundedSpec
    slots: torch.Tensor
    ordinals: torch.Tensor
    requests: tuple[RequestStep, ...]
    layers: tuple[str, ...]
    pages: Pages
    notes: Notes
    last: torch.Tensor | None = None
    keys: list[torch.Tensor] = field(default_factory=list)
    tokens: torch.Tensor | None = None

    # All layers write the same, so it is worked out once a step: on a GPU each launch costs more than its work.

    @cached_property
    def rows(self) -> torch.Tensor:
        """The step's tokens' first rows of side state, ``int32 [tokens, ROWS]``: positions and places."""
        if self.tokens is None:
            return torch.stack([self.ordinals, torch.zeros_like(self.ordinals)], dim=1)
        return self.tokens[:, : len(self.slots)].T.to(torch.int32)

    @cached_property
    def indexed(self) -> bool:
        """True if a request is a stream whose chunks are indexed."""
        return any(request.indexed for request in self.requests)


def tell_tokens(tokens: torch.Tensor) -> None:
    """Hand what the model knows of this step's tokens to its attention layers, by way of vLLM's forward context.

    Args:
        tokens: ``int64 [2, tokens]``, temporal M-RoPE positions and places.
    """
    by_layer = get_forward_context().attn_metadata
    # It is None while graphs are captured, and a list where tokens are drafted, which no bounded cache allows.
    for metadata in by_layer.values() if isinstance(by_layer, dict) else ():
        step: Step | None = getattr(metadata, "kvvideo", None)
        if step is not None:
            step.tokens = tokens


class BoundedBuilder:
    """Mixin over an ``AttentionMetadataBuilder``."""

    kv_cache_spec: Any
    vllm_config: Any
    layer_names: list[str]
    _found: tuple[int, Pages] | None = None

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """Return that no graph may hold the attention of a bounded cache: it would skip compaction, which is Python."""
        if isinstance(kv_cache_spec, BoundedSpec):
            return AttentionCGSupport.NEVER
        return super().get_cudagraph_support(vllm_config, kv_cache_spec)  # type: ignore[misc]

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        """Return the kernel's metadata of a batch whose block tables are closed up, with a ``Step`` as ``kvvideo``."""
        spec = self.kv_cache_spec
        if not isinstance(spec, BoundedSpec):
            return super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]
        packed, step = _pack(common_attn_metadata, spec, self)
        metadata = super().build(common_prefix_len, packed, fast_build)  # type: ignore[misc]
        metadata.kvvideo = step
        return metadata

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, from the first to the last."""
        return tuple(sorted(self.layer_names, key=extract_layer_index))

    @property
    def pages(self) -> Pages:
        """Pages of all layers."""
        context = self.vllm_config.compilation_config.static_forward_context
        where = context[self.layers[0]].kv_cache.data_ptr()
        if self._found is None or self._found[0] != where:
            self._found = where, _pages_of([context[name] for name in self.layers], self.kv_cache_spec)
        return self._found[1]

    @cached_property
    def notes(self) -> Notes:
        """Notes that find the chunks of streams again."""
        return Notes()

    def release(self) -> None:
        """Let go of the cache."""
        self._found = None

    @cached_property
    def observes(self) -> bool:
        """True if the strategy looks at queries."""
        config = cache_config(self.vllm_config)
        return config is not None and load(config.strategy).observes()

    @cached_property
    def indexes(self) -> bool:
        """True if chunks of streams are indexed."""
        return is_indexed(self.vllm_config)

    def configure(self, spec: BoundedSpec, config: CacheConfig) -> None:
        """Work by ``config`` from now on."""
        self.kv_cache_spec = spec
        self.observes = load(config.strategy).observes()


def _pages_of(layers: list[Any], spec: BoundedSpec) -> Pages:
    """Return what reads and writes the pages of ``layers``: kernels on a GPU, if heads' size is a power of two."""
    caches = [layer.kv_cache for layer in layers]
    if not caches[0].is_cuda or spec.head_size & (spec.head_size - 1):
        return PlainPages(layers, spec)
    from kvvideo.plugin.kernels import KernelPages

    return KernelPages(caches, [side_state(cache, spec) for cache in caches])


def _pack(batch: Any, spec: BoundedSpec, builder: BoundedBuilder) -> tuple[Any, Step]:
    """Close up the block tables of a batch; return its metadata as the kernel should see it, and the layers' work."""
    lengths = batch.seq_lens if batch.seq_lens_cpu_upper_bound is None else batch.seq_lens_cpu_upper_bound
    ends, starts = lengths.tolist(), batch.query_start_loc_cpu.tolist()
    table = batch.block_table_tensor
    first = table[:, :2].tolist()
    schedule = spec.schedule
    packed, seq_lens, longest = table, batch.seq_lens, 0
    requests, ordinals, asking = [], [], []
    for row in range(batch.num_reqs):
        n1, queries = ends[row], slice(starts[row], starts[row + 1])
        n0 = n1 - (queries.stop - queries.start)
        ordinals.append(torch.arange(n0, n1))
        if n0 == n1:
            continue
        marks = _marks(first[row])
        if marks == LOOKS:
            asking.append(row)
        layout = lay_out(n0, n1, schedule, spec.block_size, marks)
        if layout.length != n1:
            if packed is table:
                packed, seq_lens = table.clone(), batch.seq_lens.clone()
            at = 0
            for blocks in layout.blocks:
                packed[row, at : at + len(blocks)] = table[row, blocks.start : blocks.stop]
                at += len(blocks)
            seq_lens[row] = layout.length
        longest = max(longest, layout.length)
        noted = not marks and (builder.observes or builder.indexes)
        if layout.evictable or n0 == 0 or noted:
            live = packed[row, : -(-layout.length // spec.block_size)].long()
            left = schedule.next_compaction(n1) - n1 if schedule and not layout.evictable else 0
            of_stream = layout.length, layout.evictable, left, builder.indexes and not marks
            requests.append(RequestStep(queries, live, first[row][0], n0 == 0, *of_stream))
    builder.notes.listen(asking)
    step = Step(
        spec,
        batch.slot_mapping[: starts[batch.num_reqs]],
        torch.cat(ordinals).to(table.device, torch.int32),
        tuple(requests),
        builder.layers,
        builder.pages,
        builder.notes,
        torch.tensor([starts[row + 1] - 1 for row in asking], device=table.device) if asking else None,
    )
    return batch.replace(block_table_tensor=packed, seq_lens=seq_lens, max_seq_len=longest), step


def _marks(first: list[int]) -> int:
    """Return the null blocks, which are number 0, that a request's table begins with: it is a fork if there are any."""
    return next((count for count, block in enumerate(first) if block), len(first))


class BoundedImpl(ABC):
    """Mixin over an ``AttentionImpl``; an adapter adds how its backend lays out keys and values."""

    settings: ClassVar[CacheConfig | None] = None
    """Settings of the engine that is starting: vLLM calls ``customize_spec`` without any."""
    spare_rows: ClassVar[int] = 0
    """Rows of side state that its pages have beyond those in use."""

    scale: float
    head_size: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        vllm_config = get_current_vllm_config()
        BoundedImpl.settings = cache_config(vllm_config)
        BoundedImpl.spare_rows = 0 if BoundedImpl.settings is None else spare_rows(vllm_config)
        self.configure(BoundedImpl.settings)
        self.rotary = None if self.config is None else _rotary(vllm_config.model_config.hf_text_config, self.head_size)

    def configure(self, config: CacheConfig | None) -> None:
        """Work by ``config`` from now on, and forget what earlier requests left behind."""
        self.config = config
        self._contiguous = config is not None and config.positions == "contiguous"
        self._own_rows = ROWS if config is None else own_rows(config)
        self.policy: Policy | None = None
        # What the policy remembers of each stream.
        self.streams: dict[int, dict[str, torch.Tensor]] = {}

    @abstractmethod
    def read_blocks(self, layer: Any, kv_cache: torch.Tensor, blocks: torch.Tensor, side: int) -> torch.Tensor:
        """Return keys or values out of the paged cache, ``[kv_heads, n * block_size, head_dim]``.

        Args:
            layer: vLLM's attention layer.
            kv_cache: its cache.
            blocks: ``int64 [n]``, in the order to read them in.
            side: 0 for keys, 1 for values.
        """

    @abstractmethod
    def write_slots(
        self,
        layer: Any,
        kv_cache: torch.Tensor,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """Store keys and values in the paged cache.

        Args:
            layer: vLLM's attention layer.
            kv_cache: its cache.
            slots: ``int64 [n]``, block number times block size plus the place in the block.
            keys: ``[n, kv_heads, head_dim]``, rotated as attention needs them.
            values: ``[n, kv_heads, head_dim]``.
        """

    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attend as the backend does, then do what is due in this layer after the step."""
        result: torch.Tensor = super().forward(  # type: ignore[misc]
            layer, query, key, value, kv_cache, attn_metadata, *args, **kwargs
        )
        step: Step | None = getattr(attn_metadata, "kvvideo", None)
        if step is not None:
            self.after_attention(layer, query, key, kv_cache, step)
        return result

    def after_attention(
        self, layer: Any, query: torch.Tensor, key: torch.Tensor, kv_cache: torch.Tensor, step: Step
    ) -> None:
        """Note the step's tokens in the side state, and do what is due for its requests."""
        number, count = step.layers.index(layer.layer_name), len(step.layers)
        if number == 0:
            step.pages.note(step.slots, step.rows)
        if step.last is not None:
            step.notes.hear(query, step.last, step.rows[:, 0])
        if not step.requests:
            return
        if step.indexed and not step.pages.reads_keys:
            # Graphs on a GPU use their memory again.
            step.keys.append(key if key.device.type == "cpu" else key.clone())
        policy = self._policy(step.spec)
        for request in step.requests:
            if request.fresh:
                self.streams[request.name] = {}
                if number == 0:
                    step.notes.forget(request.name)
            # All layers have their keys in the pages until the last one is through, or until they are compacted.
            at_once = not step.pages.reads_keys or policy.heads_alike or not request.evictable
            if request.indexed and (number == count - 1 or not at_once):
                self.index(range(0 if at_once else number, number + 1), step, request)
            if policy.observes() and policy.watches(request.left):
                self.watch(number, query[request.queries], kv_cache, step, request, policy)
            if request.evictable and not policy.heads_alike:
                self.compact(range(number, number + 1), step, request, policy)
            elif request.evictable and number == count - 1:
                for layers in step.pages.parts(request.evictable):
                    self.compact(layers, step, request, policy)

    def index(self, layers: range, step: Step, request: RequestStep) -> None:
        """Add a request's keys of this step to the sums of its chunk.

        Args:
            layers: numbers of layers.
            step: the step.
            request: one of its requests.
        """
        device, shape = step.slots.device, (len(step.layers), step.spec.num_kv_heads, step.spec.head_size)
        sums = step.notes.sums(request.name, shape, device)[layers.start : layers.stop]
        step.pages.add_up(layers, request.queries, step.slots, step.rows, step.keys, self.rotary_on(device), sums)

    def watch(
        self,
        number: int,
        queries: torch.Tensor,
        kv_cache: torch.Tensor,
        step: Step,
        request: RequestStep,
        policy: Policy,
    ) -> None:
        """Show the strategy a request's queries of this step, and keep what it notes of its tokens.

        Args:
            number: the layer's, from 0.
            queries: ``[tokens, heads * head_dim]`` or ``[tokens, heads, head_dim]``, as the backend has them.
            kv_cache: the layer's.
            step: the step.
            request: one of its requests.
            policy: the strategy.
        """
        layers = range(number, number + 1)
        live = self._live(layers, step, request, *step.pages.read(layers, request.blocks, request.length, values=False))
        policy.observe(queries, live)
        if live.state:
            own = side_state(kv_cache, step.spec)[:, self._own_rows :]
            put_rows(own, request.blocks, torch.stack(_words(live)))

    def compact(self, layers: range, step: Step, request: RequestStep, policy: Policy) -> None:
        """Move the survivors of the first ``evictable`` tokens to the front of the request's blocks.

        Args:
            layers: numbers of layers, whose heads are chosen for as if they were those of one.
            step: the step.
            request: one of its requests.
            policy: chooses them.

        Raises:
            KvvideoError: if the strategy does not return as many tokens as it must.
        """
        size = step.spec.block_size
        blocks = request.blocks[: request.evictable // size]
        read = step.pages.read(layers, blocks, request.evictable)
        live = self._live(layers, step, request, *read)
        kept, moves = self._choose(policy, live)
        step.pages.write(layers, blocks[: policy.budget // size], kept, *read, moves, live.rotary, ROWS)

    def _choose(self, policy: Policy, live: LiveCache) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the tokens to keep and by how many positions each moves, both ``[kv_heads, budget]``.

        None for the moves if no token does.
        """
        kept = torch.cat([policy.select(part) for part in (live.parts() if policy.heads_alike else [live])])
        if kept.shape != (live.keys.shape[0], policy.budget):
            raise KvvideoError(
                f"strategy {type(policy).__name__} selected {tuple(kept.shape)} tokens instead of "
                f"(kv_heads, budget) = {(live.keys.shape[0], policy.budget)}"
            )
        return kept, close_gaps(live.positions, kept, slack=policy.budget) if self._contiguous else None

    def _policy(self, spec: BoundedSpec) -> Policy:
        if self.policy is None:
            assert self.config is not None
            self.policy = load(self.config.strategy)(self.config, spec.budget)
        return self.policy

    def _live(
        self,
        layers: range,
        step: Step,
        request: RequestStep,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: torch.Tensor,
    ) -> LiveCache:
        """Return tokens and their side state (``int32 [rows, heads, n]``) as a strategy sees them."""
        names = load(self.config.strategy).state if self.config else ()
        own = rows[self._own_rows :]
        scores = {name: row.view(torch.float32).clone() for name, row in zip(names, own, strict=False)}
        positions = rows[0] + rows[ROWS] if self._contiguous else rows[0]
        stream = self.streams.setdefault(request.name, {}) if len(layers) == 1 else {}
        return LiveCache(
            keys,
            values,
            positions,
            rows[1],
            scores,
            extract_layer_index(step.layers[layers.start]),
            self.scale,
            self.rotary_on(keys.device),
            stream,
        )

    def rotary_on(self, device: torch.device) -> Rotary:
        """Return the rotation of the model's keys, for tensors on ``device``."""
        assert self.rotary is not None
        if self.rotary.frequencies.device != device:
            self.rotary = self.rotary.to(device)
        return self.rotary

    def move(
        self, layer: Any, kv_cache: torch.Tensor, spec: BoundedSpec, blocks: torch.Tensor, length: int, by: int
    ) -> None:
        """Move all tokens of a request along the positions: turn their keys, and note it.

        Args:
            layer: vLLM's attention layer.
            kv_cache: its cache.
            spec: of its pages.
            blocks: ``int64 [n]``, the request's live blocks in order.
            length: tokens in them.
            by: positions to move each by, backwards if negative.
        """
        size = spec.block_size
        rotary = self.rotary_on(blocks.device)
        turn = rotary.angles64(torch.tensor(by, device=blocks.device))
        # A few blocks at a time: the keys of a long cache in float32 would take as much memory as several layers.
        count = max(1, AT_ONCE // (spec.num_kv_heads * size * spec.head_size * kv_cache.element_size()))
        for part in torch.split(blocks[: -(-length // size)], count):
            slots = slots_of(part, size)[:length]
            length -= len(slots)
            keys, values = (
                self.read_blocks(layer, kv_cache, part, side)[:, : len(slots)].transpose(0, 1).contiguous()
                for side in (0, 1)
            )
            self.write_slots(layer, kv_cache, slots, rotary.rotate(keys, turn).to(keys.dtype), values)
        side_state(kv_cache, spec)[blocks, 0] += by


def _rotary(text_config: Any, head_dim: int) -> Rotary:
    """Return how the language model of ``text_config`` rotates keys."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    return Rotary.of(head_dim, float(rope.get("rope_theta", 10000.0)), rope.get("mrope_section"))


def _words(live: LiveCache) -> list[torch.Tensor]:
    """Return the strategy's notes of each token, ``float32 [heads, n]`` each, as the ``int32`` of their bits."""
    return [row.contiguous().view(torch.int32) for row in live.state.values()]


class BoundedBackend:
    """Mixin over an ``AttentionBackend``. Its name is inherited, for vLLM looks it up in an enum."""

    impl: ClassVar[type]
    builder: ClassVar[type]

    @classmethod
    def get_impl_cls(cls) -> type:
        """Return the class that attends in a layer."""
        return cls.impl

    @classmethod
    def get_builder_cls(cls) -> type:
        """Return the class that makes a step's metadata."""
        return cls.builder

    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        """Return ``spec`` with a bound, if it is of full attention and the engine that is starting asks for one."""
        spec = super().customize_spec(spec)  # type: ignore[misc]
        config = BoundedImpl.settings
        if config is None or type(spec) is not FullAttentionSpec:
            return spec
        return BoundedSpec.extend(spec, config.schedule(spec.block_size), state_rows(config) + BoundedImpl.spare_rows)
