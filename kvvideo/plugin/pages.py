"""Read and write what lies in pages: keys, values, and the side state behind them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from kvvideo.compression.rotary import Rotary
from kvvideo.plugin.index import turns
from kvvideo.plugin.spec import BoundedSpec


def side_words(kv_cache: torch.Tensor, spec: BoundedSpec) -> torch.Tensor:
    """Return ``kv_cache`` as ``int32 [n]``, from the first page's side state on; it shares the memory."""
    words = torch.empty(0, dtype=torch.int32, device=kv_cache.device).set_(kv_cache.untyped_storage())
    return words[(kv_cache.storage_offset() * kv_cache.element_size() + spec.state_offset) // 4 :]


def side_state(kv_cache: torch.Tensor, spec: BoundedSpec) -> torch.Tensor:
    """Return the side state behind each page, ``int32 [blocks, rows, kv_heads, block_size]``; it shares the memory."""
    words, heads, slots = side_words(kv_cache, spec), spec.num_kv_heads, spec.block_size
    return words.as_strided(
        (kv_cache.shape[0], spec.state_rows, heads, slots),
        (kv_cache.stride(0) * kv_cache.element_size() // 4, heads * slots, slots, 1),
        words.storage_offset(),
    )


def put_rows(state: torch.Tensor, blocks: torch.Tensor, rows: torch.Tensor) -> None:
    """Store the side state of a request's tokens; what is left of the last block becomes 0.

    Args:
        state: ``int32 [blocks, >= rows, kv_heads, block_size]``, of all pages.
        blocks: ``int64 [n]``, the request's, in order.
        rows: ``int32 [rows, kv_heads, length]``.
    """
    size = state.shape[-1]
    whole = pad(rows, (0, len(blocks) * size - rows.shape[-1]))
    state[blocks, : len(rows)] = whole.reshape(*rows.shape[:2], len(blocks), size).permute(2, 0, 1, 3)


def slots_of(blocks: torch.Tensor, size: int) -> torch.Tensor:
    """Return the slots of ``blocks`` (``int64 [n]``) of ``size`` slots each, ``int64 [n * size]``, in order."""
    return (blocks[:, None] * size + torch.arange(size, device=blocks.device)).flatten()


class Pages(ABC):
    """The pages of a model's layers, which are all alike.

    Several layers are worked on at once, their heads as if they were those of one: each operation takes some time to
    begin, whatever it works on.

    Attributes:
        layers: number of layers.
    """

    layers: int
    sums_at_once: bool
    """True if ``add_up`` reads keys of any number of layers from the pages; else it is given one layer's."""

    def parts(self, n: int) -> Iterator[range]:
        """Yield all layers, as many at a time as should be read at once if ``n`` tokens are read of each."""
        count = self._at_once(n)
        for first in range(0, self.layers, count):
            yield range(first, min(first + count, self.layers))

    @abstractmethod
    def _at_once(self, n: int) -> int:
        """Return how many layers should be read at once."""

    @abstractmethod
    def read(
        self, layers: range, blocks: torch.Tensor, n: int, values: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return keys, values and side state of a request's first tokens.

        Args:
            layers: numbers of the layers, whose heads follow each other.
            blocks: ``int64``, the request's, in order.
            n: tokens to read.
            values: False to read no values; they are then ``[heads, 0, d]``.

        Returns:
            Keys and values ``[heads, n, d]``, side state ``int32 [rows, heads, n]``.
        """

    @abstractmethod
    def write(
        self,
        layers: range,
        blocks: torch.Tensor,
        kept: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: torch.Tensor,
        moves: torch.Tensor | None,
        rotary: Rotary,
        moved_row: int,
    ) -> None:
        """Gather the tokens that are ``kept``, rotate their keys, and put them in order into ``blocks``.

        Args:
            layers: as of ``read``.
            blocks: ``int64``, to fill.
            kept: ``int64 [heads, budget]``, of the ``n`` tokens that were read.
            keys: ``[heads, n, d]``, as read.
            values: ``[heads, n, d]``, as read.
            rows: ``int32 [rows, heads, n]``, as read.
            moves: positions that each survivor moves by, ``[heads, budget]``; None if none does.
            rotary: rotates keys that move.
            moved_row: the row of side state that ``moves`` are added to.
        """

    @abstractmethod
    def add_up(
        self,
        layers: range,
        tokens: slice,
        slots: torch.Tensor,
        rows: torch.Tensor,
        keys: torch.Tensor,
        rotary: Rotary,
        sums: torch.Tensor,
    ) -> None:
        """Add the un-rotated keys of video tokens to ``sums``.

        Args:
            layers: numbers of the layers.
            tokens: those of the step to look at.
            slots: ``int64 [all tokens]``, where the step's keys are.
            rows: ``int32 [all tokens, 2]``, positions and places; the same object all through a step.
            keys: ``[all tokens, kv_heads, d]``, the step's keys in the last of ``layers``.
            rotary: the model's.
            sums: ``float32 [layers, kv_heads, d]``, changed in place.
        """

    @abstractmethod
    def note(self, slots: torch.Tensor, words: torch.Tensor) -> None:
        """Write the side state of new tokens, alike in all layers and heads.

        Args:
            slots: ``int64 [tokens]``; a kernel passes over those below 0.
            words: ``int32 [tokens, known]``, their first rows; the others become 0.
        """


_PART = 1 << 21
"""Bytes of keys that are read at a time, if it is more than one layer: what is made of them should fit a cache."""


class PlainPages(Pages):
    """Pages of any backend, in torch.

    Args:
        layers: vLLM's, with a ``BoundedImpl`` each.
        spec: of their pages.
    """

    def __init__(self, layers: Sequence[Any], spec: BoundedSpec) -> None:
        self._layers, self._spec, self.layers = layers, spec, len(layers)
        caches = [layer.kv_cache for layer in layers]
        self._words = [side_words(cache, spec) for cache in caches]
        self._states = [side_state(cache, spec) for cache in caches]
        _, rows, self._heads, self._slots = self._states[0].shape
        self._turned: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        # From the first word of a token's side state to all of them.
        self._lanes = torch.arange(rows * self._heads, device=caches[0].device) * self._slots

    sums_at_once = False

    def _at_once(self, n: int) -> int:
        size: int = self._heads * n * self._spec.head_size * self._layers[0].kv_cache.element_size()
        return max(1, _PART // size)

    def read(
        self, layers: range, blocks: torch.Tensor, n: int, values: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read layer by layer, as each backend unpacks its cache."""
        keys = self._side(layers, blocks, n, 0)
        held = self._side(layers, blocks, n, 1) if values else keys[:, :0]
        rows = [self._states[number][blocks].permute(1, 2, 0, 3).flatten(2)[..., :n] for number in layers]
        return keys, held, rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def _side(self, layers: range, blocks: torch.Tensor, n: int, side: int) -> torch.Tensor:
        parts = []
        for layer in self._layers[layers.start : layers.stop]:
            parts.append(layer.impl.read_blocks(layer, layer.kv_cache, blocks, side)[:, :n])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def write(
        self,
        layers: range,
        blocks: torch.Tensor,
        kept: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: torch.Tensor,
        moves: torch.Tensor | None,
        rotary: Rotary,
        moved_row: int,
    ) -> None:
        """Gather and rotate for all layers at once, then write layer by layer."""
        whole, n, size = keys.shape
        survivors = rows.gather(2, kept.expand(len(rows), -1, -1))
        if moves is not None:
            survivors[moved_row] += moves
        # Whole vectors of all heads, token by token: what lies together is copied together.
        index = (kept + torch.arange(0, whole * n, n, device=kept.device)[:, None]).T.flatten()
        slots = slots_of(blocks, self._slots)
        parts = [part.reshape(-1, size).index_select(0, index).view(-1, whole, size) for part in (keys, values)]
        if moves is not None:
            parts[0] = rotary.rotate(parts[0], rotary.angles64(moves.T)).to(keys.dtype)
        for number, heads in zip(layers, range(0, whole, self._heads), strict=True):
            layer = self._layers[number]
            own = (part[:, heads : heads + self._heads].contiguous() for part in parts)
            layer.impl.write_slots(layer, layer.kv_cache, slots, *own)
            put_rows(self._states[number], blocks, survivors[:, heads : heads + self._heads])

    def add_up(
        self,
        layers: range,
        tokens: slice,
        slots: torch.Tensor,
        rows: torch.Tensor,
        keys: torch.Tensor,
        rotary: Rotary,
        sums: torch.Tensor,
    ) -> None:
        """Add up the ``keys`` of the only layer, which need not be read."""
        del layers, slots
        if self._turned is None or self._turned[0] is not rows:
            # All layers turn alike.
            self._turned = rows, *turns(rotary, rows)
        _, cos, sin = self._turned
        halves = keys[tokens].view(-1, self._heads, 2, self._spec.head_size // 2)
        (low_cos, high_cos), (low_sin, high_sin) = (
            (halves * part[tokens, None, None]).sum(0).unbind(1) for part in (cos, sin)
        )
        sums[0] += torch.cat([low_cos + high_sin, high_cos - low_sin], dim=-1)

    def note(self, slots: torch.Tensor, words: torch.Tensor) -> None:
        """Write by one operation a layer; no slot may be below 0."""
        count, state = words.shape[1], self._states[0]
        # From one page to the next lies more than its slots.
        first = torch.add(slots, slots // self._slots, alpha=state.stride(0) - self._slots)
        where = (first[:, None] + self._lanes).view(len(slots), -1, self._heads)
        whole = words if count == where.shape[1] else pad(words, (0, where.shape[1] - count))
        for own in self._words:
            own.index_put_((where,), whole[..., None])
