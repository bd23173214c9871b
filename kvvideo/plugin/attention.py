"""Compaction inside the attention layers: mixins over whichever backend the platform runs.

The builder shows the unmodified kernel a block table of live tokens only, closed up. Order does not
matter to attention, for RoPE is baked into the keys, as long as the step's own tokens stay last: the
causal mask is aligned to the end. After the kernel, each layer scores and compacts its own cache.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn.functional import pad
from vllm.config import get_current_vllm_config
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.kv_cache_interface import FullAttentionSpec

from kvvideo.compression import load
from kvvideo.compression.gaps import close_gaps
from kvvideo.compression.policy import LiveCache, Policy
from kvvideo.compression.rotary import Rotary
from kvvideo.compression.rows import ROWS, own_rows, state_rows
from kvvideo.config import CacheConfig
from kvvideo.errors import KvvideoError
from kvvideo.plugin.layout import lay_out
from kvvideo.plugin.settings import cache_config
from kvvideo.plugin.spec import BoundedSpec

if TYPE_CHECKING:
    from kvvideo.plugin.kernels import Pages

current_tokens: torch.Tensor | None = None
"""Temporal M-RoPE positions and places of this step, ``int64 [2, tokens]``, left by the model's ``forward``."""


@dataclass(frozen=True)
class RequestStep:
    """One request that a layer has work for after this step's attention.

    Attributes:
        queries: where its tokens stand in the batch.
        blocks: ``int64``, its live blocks in order.
        name: the number of its first block, which is its own until it ends.
        fresh: whether these are its first tokens.
        length, evictable: as in ``Layout``.
        left: tokens until the next compaction; 0 if it follows this step.
    """

    queries: slice
    blocks: torch.Tensor
    name: int
    fresh: bool
    length: int
    evictable: int
    left: int


@dataclass(frozen=True)
class Caches:
    """What stays the same from step to step.

    Attributes:
        layers: names of the layers, from the first to the last.
        pages: what works on several layers at once; None where each must do its own.
        words: ``side_words`` of each layer, by its name.
        lanes: how many words each word of a token's side state lies after the first, ``int64 [rows * kv_heads]``.
    """

    layers: tuple[str, ...]
    pages: "Pages | None"
    words: dict[str, torch.Tensor]
    lanes: torch.Tensor

    @classmethod
    def of(cls, layers: tuple[str, ...], tensors: list[torch.Tensor], spec: BoundedSpec) -> "Caches":
        """Of ``layers``, whose keys and values are in ``tensors``."""
        pages, size = None, spec.head_size
        if tensors[0].is_cuda and not size & (size - 1):
            from kvvideo.plugin.kernels import Pages

            pages = Pages(tensors, [side_state(tensor, spec) for tensor in tensors])
        words = {name: side_words(tensor, spec) for name, tensor in zip(layers, tensors, strict=True)}
        lanes = torch.arange(spec.state_rows * spec.num_kv_heads, device=tensors[0].device) * spec.block_size
        return cls(layers, pages, words, lanes)


@dataclass(frozen=True)
class Step:
    """What the layers need to know of a step beyond the kernel's own metadata."""

    spec: BoundedSpec
    slots: torch.Tensor
    ordinals: torch.Tensor
    requests: tuple[RequestStep, ...]
    caches: Caches

    # All layers write the same, so it is worked out once a step: on a GPU each launch costs more than its work.

    @cached_property
    def rows(self) -> torch.Tensor:
        """The step's tokens' first rows of side state, ``int32 [tokens, ROWS]``: positions and places."""
        if current_tokens is None:
            return torch.stack([self.ordinals, torch.zeros_like(self.ordinals)], dim=1)
        return current_tokens[:, : len(self.slots)].T.to(torch.int32)

    @cached_property
    def words(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where ``side_words`` has the step's tokens' side state, ``int64 [tokens, rows, kv_heads]``, and that
        state, for one head."""
        spec, count = self.spec, len(self.slots)
        # From one page to the next lies more than its slots.
        apart = spec.page_size_bytes // 4 - spec.block_size
        first = torch.add(self.slots, self.slots // spec.block_size, alpha=apart)
        state = self.rows if spec.state_rows == ROWS else pad(self.rows, (0, spec.state_rows - ROWS))
        return (first[:, None] + self.caches.lanes).view(count, spec.state_rows, -1), state[..., None]


def side_words(kv_cache: torch.Tensor, spec: BoundedSpec) -> torch.Tensor:
    """``kv_cache`` as ``int32`` numbers, from the first page's side state on."""
    words = torch.empty(0, dtype=torch.int32, device=kv_cache.device).set_(kv_cache.untyped_storage())
    return words[(kv_cache.storage_offset() * kv_cache.element_size() + spec.state_offset) // 4 :]


def side_state(kv_cache: torch.Tensor, spec: BoundedSpec) -> torch.Tensor:
    """The side state behind each page of ``kv_cache``, ``int32 [blocks, rows, kv_heads, block_size]``."""
    words, heads, slots = side_words(kv_cache, spec), spec.num_kv_heads, spec.block_size
    return words.as_strided(
        (kv_cache.shape[0], spec.state_rows, heads, slots),
        (kv_cache.stride(0) * kv_cache.element_size() // 4, heads * slots, slots, 1),
        words.storage_offset(),
    )


def put_rows(state: torch.Tensor, blocks: torch.Tensor, rows: torch.Tensor) -> None:
    """Store side state ``int32 [rows, heads, length]`` at the front of ``blocks``."""
    size = state.shape[-1]
    whole = pad(rows, (0, len(blocks) * size - rows.shape[-1]))
    state[blocks, : len(rows)] = whole.unflatten(2, (len(blocks), size)).permute(2, 0, 1, 3)


def slots_of(blocks: torch.Tensor, size: int) -> torch.Tensor:
    """Physical slots of ``blocks`` (``int64 [n]``) of ``size`` slots each, in order."""
    return (blocks[:, None] * size + torch.arange(size, device=blocks.device)).flatten()


class BoundedBuilder:
    """Mixin over an ``AttentionMetadataBuilder``."""

    kv_cache_spec: Any
    vllm_config: Any
    layer_names: list[str]
    _found: tuple[int, Caches] | None = None

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """Compaction runs Python, which a captured graph of the whole step would skip."""
        if isinstance(kv_cache_spec, BoundedSpec):
            return AttentionCGSupport.NEVER
        return super().get_cudagraph_support(vllm_config, kv_cache_spec)  # type: ignore[misc]

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        spec = self.kv_cache_spec
        if not isinstance(spec, BoundedSpec):
            return super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]
        global current_tokens
        current_tokens = None
        packed, step = _pack(common_attn_metadata, spec, self._observes, self._caches)
        metadata = super().build(common_prefix_len, packed, fast_build)  # type: ignore[misc]
        metadata.kvvideo = step
        return metadata

    @cached_property
    def _layers(self) -> tuple[str, ...]:
        return tuple(sorted(self.layer_names, key=extract_layer_index))

    @property
    def _caches(self) -> Caches:
        context = self.vllm_config.compilation_config.static_forward_context
        where = context[self._layers[0]].kv_cache.data_ptr()
        if self._found is None or self._found[0] != where:
            tensors = [context[name].kv_cache for name in self._layers]
            self._found = where, Caches.of(self._layers, tensors, self.kv_cache_spec)
        return self._found[1]

    @cached_property
    def _observes(self) -> bool:
        config = cache_config(self.vllm_config)
        return config is not None and load(config.strategy).observes()

    def configure(self, spec: BoundedSpec, config: CacheConfig) -> None:
        """Work by ``config`` from now on."""
        self.kv_cache_spec = spec
        self._observes = load(config.strategy).observes()


def _pack(batch: Any, spec: BoundedSpec, observes: bool, caches: Caches) -> tuple[Any, Step]:
    """Close up the block tables of a batch; returns its metadata as the kernel should see it."""
    lengths = batch.seq_lens if batch.seq_lens_cpu_upper_bound is None else batch.seq_lens_cpu_upper_bound
    ends, starts = lengths.tolist(), batch.query_start_loc_cpu.tolist()
    table = batch.block_table_tensor
    marks = table[:, 0].tolist()  # the null block is number 0
    schedule = spec.schedule
    packed, seq_lens, longest = table, batch.seq_lens, 0
    requests, ordinals = [], []
    for row in range(batch.num_reqs):
        n1, queries = ends[row], slice(starts[row], starts[row + 1])
        n0 = n1 - (queries.stop - queries.start)
        ordinals.append(torch.arange(n0, n1))
        if n0 == n1:
            continue
        layout = lay_out(n0, n1, schedule, spec.block_size, fork=marks[row] == 0)
        if layout.length != n1:
            if packed is table:
                packed, seq_lens = table.clone(), batch.seq_lens.clone()
            at = 0
            for blocks in layout.blocks:
                packed[row, at : at + len(blocks)] = table[row, blocks.start : blocks.stop]
                at += len(blocks)
            seq_lens[row] = layout.length
        longest = max(longest, layout.length)
        if layout.evictable or n0 == 0 or (observes and marks[row] != 0):
            live = packed[row, : -(-layout.length // spec.block_size)].long()
            left = schedule.next_compaction(n1) - n1 if schedule and not layout.evictable else 0
            requests.append(RequestStep(queries, live, marks[row], n0 == 0, layout.length, layout.evictable, left))
    step = Step(
        spec,
        batch.slot_mapping[: starts[batch.num_reqs]],
        torch.cat(ordinals).to(table.device, torch.int32),
        tuple(requests),
        caches,
    )
    return batch.replace(block_table_tensor=packed, seq_lens=seq_lens, max_seq_len=longest), step


class BoundedImpl:
    """Mixin over an ``AttentionImpl``; an adapter adds how its backend lays out keys and values."""

    settings: ClassVar[CacheConfig | None] = None
    """Settings of the engine being built: ``customize_spec`` is called without its config."""

    scale: float
    head_size: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        vllm_config = get_current_vllm_config()
        BoundedImpl.settings = cache_config(vllm_config)
        self.configure(BoundedImpl.settings)
        self.rotary = None if self.config is None else _rotary(vllm_config.model_config.hf_text_config, self.head_size)

    def configure(self, config: CacheConfig | None) -> None:
        """Work by ``config`` from now on; what earlier requests left behind is forgotten."""
        self.config = config
        self._contiguous = config is not None and config.positions == "contiguous"
        self._own_rows = ROWS if config is None else own_rows(config)
        self.policy: Policy | None = None
        # What the policy remembers of each stream.
        self.streams: dict[int, dict[str, torch.Tensor]] = {}

    def read_blocks(self, layer: Any, kv_cache: torch.Tensor, blocks: torch.Tensor, side: int) -> torch.Tensor:
        """Keys (``side`` 0) or values (1) of ``blocks``, ``[kv_heads, len(blocks) * block_size, head_dim]``."""
        raise NotImplementedError

    def write_slots(
        self,
        layer: Any,
        kv_cache: torch.Tensor,
        slots: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> None:
        """Store ``keys`` and ``values``, each ``[len(slots), kv_heads, head_dim]``, in ``slots``."""
        raise NotImplementedError

    def forward(
        self, layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kv_cache: torch.Tensor,
        attn_metadata: Any, *args: Any, **kwargs: Any,
    ) -> torch.Tensor:  # fmt: skip
        result: torch.Tensor = super().forward(  # type: ignore[misc]
            layer, query, key, value, kv_cache, attn_metadata, *args, **kwargs
        )
        step: Step | None = getattr(attn_metadata, "kvvideo", None)
        if step is not None:
            self.after_attention(layer, query, kv_cache, step)
        return result

    def after_attention(self, layer: Any, query: torch.Tensor, kv_cache: torch.Tensor, step: Step) -> None:
        """Note the step's tokens in the side state, and do what is due for its requests."""
        if step.caches.pages is None:
            where, state = step.words
            step.caches.words[layer.layer_name].index_put_((where,), state)
        elif layer.layer_name == step.caches.layers[0]:
            step.caches.pages.note(step.slots, step.rows)
        if not step.requests:
            return
        state, policy = side_state(kv_cache, step.spec), self._policy(step.spec)
        together = step.caches.pages is not None and policy.heads_alike
        for request in step.requests:
            if request.fresh:
                self.streams[request.name] = {}
            if policy.observes() and policy.watches(request.left):
                self.watch(layer, query[request.queries], kv_cache, state, step, request, policy)
            if request.evictable and not together:
                self.compact(layer, kv_cache, state, step, request, policy)
            if request.evictable and together and layer.layer_name == step.caches.layers[-1]:
                self.compact_together(step, request, policy)

    def watch(
        self, layer: Any, queries: torch.Tensor, kv_cache: torch.Tensor, state: torch.Tensor, step: Step,
        request: RequestStep, policy: Policy,
    ) -> None:  # fmt: skip
        """Show the strategy a request's queries of this step, and keep what it notes of its tokens."""
        read = self._read(layer, kv_cache, state, step, request.blocks, request.length, values=False)
        live = self._live(*read, extract_layer_index(layer.layer_name), self._stream(request))
        policy.observe(queries, live)
        if live.state:
            put_rows(state[:, self._own_rows :], request.blocks, torch.stack(_words(live)))

    def _policy(self, spec: BoundedSpec) -> Policy:
        if self.policy is None:
            assert self.config is not None
            self.policy = load(self.config.strategy)(self.config, spec.budget)
        return self.policy

    def _stream(self, request: RequestStep) -> dict[str, torch.Tensor]:
        """What the strategy remembers of the request's stream in this layer."""
        return self.streams.setdefault(request.name, {})

    def _live(
        self, keys: torch.Tensor, values: torch.Tensor, rows: torch.Tensor, layer: int, stream: dict[str, torch.Tensor]
    ) -> LiveCache:
        """Tokens and their side state (``int32 [rows, heads, n]``) as a strategy sees them."""
        names = load(self.config.strategy).state if self.config else ()
        own = rows[self._own_rows :]
        scores = {name: row.view(torch.float32).clone() for name, row in zip(names, own, strict=False)}
        positions = rows[0] + rows[ROWS] if self._contiguous else rows[0]
        rotary = self._rotary_on(keys.device)
        return LiveCache(keys, values, positions, rows[1], scores, layer, self.scale, rotary, stream)

    def _rotary_on(self, device: torch.device) -> Rotary:
        assert self.rotary is not None
        if self.rotary.frequencies.device != device:
            self.rotary = self.rotary.to(device)
        return self.rotary

    def compact(
        self, layer: Any, kv_cache: torch.Tensor, state: torch.Tensor, step: Step, request: RequestStep, policy: Policy
    ) -> None:
        """Move the survivors of the first ``evictable`` tokens to the front of the request's blocks."""
        sources, targets = self._blocks(step, request, policy)
        read = self._read(layer, kv_cache, state, step, sources, request.evictable)
        live = self._live(*read, extract_layer_index(layer.layer_name), self._stream(request))
        self._write(layer, kv_cache, state, step, targets, live, read[2], *self._choose(policy, live))

    def compact_together(self, step: Step, request: RequestStep, policy: Policy) -> None:
        """``compact`` for all layers, a few at a time, the heads of these as if they were those of one."""
        assert step.caches.pages is not None
        sources, targets = self._blocks(step, request, policy)
        for layers in step.caches.pages.parts(request.evictable):
            read = step.caches.pages.read(layers, sources, request.evictable)
            live = self._live(*read, layers.start, {})
            kept, moves = self._choose(policy, live)
            step.caches.pages.write(layers, targets, kept, *read, moves, live.rotary.frequencies, ROWS)

    def _blocks(self, step: Step, request: RequestStep, policy: Policy) -> tuple[torch.Tensor, torch.Tensor]:
        """The blocks of the tokens to choose from, and those that the survivors go to."""
        size = step.spec.block_size
        sources = request.blocks[: request.evictable // size]
        return sources, sources[: policy.budget // size]

    def _choose(self, policy: Policy, live: LiveCache) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The tokens to keep, and by how many positions each moves; None if none does."""
        kept = policy.select(live)
        if kept.shape != (live.keys.shape[0], policy.budget):
            raise KvvideoError(
                f"strategy {type(policy).__name__} selected {tuple(kept.shape)} tokens instead of "
                f"(kv_heads, budget) = {(live.keys.shape[0], policy.budget)}"
            )
        return kept, close_gaps(live.positions, kept, slack=policy.budget) if self._contiguous else None

    def _read(
        self, layer: Any, kv_cache: torch.Tensor, state: torch.Tensor, step: Step, blocks: torch.Tensor, length: int,
        values: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
        """Keys, values (none unless they are wanted) and side state of the ``length`` live tokens in ``blocks``."""
        if step.caches.pages is not None:
            number = step.caches.layers.index(layer.layer_name)
            return step.caches.pages.read(range(number, number + 1), blocks, length, values)
        keys = self.read_blocks(layer, kv_cache, blocks, 0)[:, :length]
        held = self.read_blocks(layer, kv_cache, blocks, 1)[:, :length] if values else keys[:, :0]
        return keys, held, state[blocks].permute(1, 2, 0, 3).flatten(2)[..., :length]

    def _write(
        self, layer: Any, kv_cache: torch.Tensor, state: torch.Tensor, step: Step, blocks: torch.Tensor,
        live: LiveCache, rows: torch.Tensor, kept: torch.Tensor, moves: torch.Tensor | None,
    ) -> None:  # fmt: skip
        """Put the tokens that are ``kept`` of ``live`` into ``blocks``, moved by ``moves`` positions."""
        if step.caches.pages is not None:
            number, frequencies = step.caches.layers.index(layer.layer_name), live.rotary.frequencies
            layers = range(number, number + 1)
            step.caches.pages.write(layers, blocks, kept, live.keys, live.values, rows, moves, frequencies, ROWS)
            return
        places = kept[..., None].expand(-1, -1, self.head_size)
        keys, values = (part.gather(1, places).transpose(0, 1).contiguous() for part in (live.keys, live.values))
        survivors = rows.gather(2, kept.expand(len(rows), -1, -1))
        if moves is not None:
            keys = live.rotary.turn(keys, live.rotary.far(moves.T)).to(keys.dtype)
            survivors[ROWS] += moves
        self.write_slots(layer, kv_cache, slots_of(blocks, kv_cache.shape[2]), keys, values)
        put_rows(state, blocks, survivors)

    def move(
        self, layer: Any, kv_cache: torch.Tensor, spec: BoundedSpec, blocks: torch.Tensor, length: int, by: int
    ) -> None:
        """Move the ``length`` tokens in ``blocks`` by as many positions, all alike."""
        keys, values = (
            self.read_blocks(layer, kv_cache, blocks, side)[:, :length].transpose(0, 1).contiguous() for side in (0, 1)
        )
        rotary = self._rotary_on(keys.device)
        keys = rotary.turn(keys, rotary.far(torch.tensor(by, device=keys.device))).to(keys.dtype)
        self.write_slots(layer, kv_cache, slots_of(blocks, spec.block_size)[:length], keys, values)
        side_state(kv_cache, spec)[blocks, 0] += by


def _rotary(text_config: Any, head_dim: int) -> Rotary:
    """How the language model of ``text_config`` rotates keys."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    return Rotary.of(head_dim, float(rope.get("rope_theta", 10000.0)), rope.get("mrope_section"))


def _words(live: LiveCache) -> list[torch.Tensor]:
    return [row.contiguous().view(torch.int32) for row in live.state.values()]


class BoundedBackend:
    """Mixin over an ``AttentionBackend``. Its name is inherited, for vLLM looks it up in an enum."""

    impl: ClassVar[type]
    builder: ClassVar[type]

    @classmethod
    def get_impl_cls(cls) -> type:
        return cls.impl

    @classmethod
    def get_builder_cls(cls) -> type:
        return cls.builder

    @classmethod
    def customize_spec(cls, spec: Any) -> Any:
        spec = super().customize_spec(spec)  # type: ignore[misc]
        config = BoundedImpl.settings
        if config is None or type(spec) is not FullAttentionSpec:
            return spec
        return BoundedSpec.extend(spec, config.schedule(spec.block_size), state_rows(config))
