"""``ChunkIndex``: one vector a layer and KV head of every chunk of a stream, by which a question finds it again.

Retrieval by mean un-rotated keys is that of ReKV (arXiv 2503.00540); the softmax over chunks, the last token's query
alone and every layer's vote were chosen by measurement: see docs/recall.md.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

from kvvideo.types import Hit

if TYPE_CHECKING:
    from torch import Tensor

BYTES = 256_000_000
"""Size that an index stays below, in bytes: ten hours of Qwen2.5-VL-7B in chunks of four seconds take as much."""

_EVENT = 0.5
"""Share of an event's best score that a neighbour must have to be part of it: our choice."""
_STANDS_OUT = 2.0
"""Times the median score that it must have, too, or all that nobody asked about would be one event: our choice."""
_TREND_CHUNKS = 8
"""Fewest chunks in whose scores a trend in time can be told from what they show: our choice."""


def bytes_of(chunks: int, vector: int, limit: int = BYTES) -> int:
    """Return the bytes of an index of so many ``chunks``, with ``vector`` bytes for each."""
    entries = 0
    for _ in range(chunks):
        entries += 1
        if entries * vector > limit:
            entries = (entries + 1) // 2
    return entries * vector


class Found(NamedTuple):
    """An event: neighbouring entries of an index that score alike.

    Attributes:
        whole: all of it.
        best: the entry with the best score.
    """

    whole: Hit
    best: Hit


class ChunkIndex:
    """Vectors of the chunks of one stream, in host memory.

    Beyond ``limit`` bytes, entries are merged with their neighbours in pairs, and each stands for twice the time.

    Args:
        limit: bytes of vectors.
    """

    def __init__(self, limit: int = BYTES) -> None:
        self._limit = limit
        self._keys: Tensor | None = None
        # Start and end in seconds, and chunks, of each entry.
        self._spans: list[tuple[float, float, int]] = []

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def bytes(self) -> int:
        """Bytes of the vectors."""
        return 0 if self._keys is None else len(self) * self._keys[0].nbytes

    def append(self, key: "Tensor", start: float, end: float) -> None:
        """Add a chunk from ``start`` to ``end`` seconds.

        Args:
            key: mean un-rotated key ``[layers, kv_heads, head_dim]``, in the dtype to keep.
            start: of the chunk.
            end: of the chunk.
        """
        if self._keys is None or len(self) == len(self._keys):
            room = key.new_empty(max(64, 2 * len(self)), *key.shape)
            if self._keys is not None:
                room[: len(self)] = self._keys
            self._keys = room
        self._keys[len(self)] = key
        self._spans.append((start, end, 1))
        if self.bytes > self._limit:
            self._merge()

    def _merge(self) -> None:
        """Merge neighbours in pairs; an odd last entry stays."""
        import torch

        assert self._keys is not None
        spans, count = self._spans, len(self)
        weights = torch.tensor([float(span[2]) for span in spans])
        merged: list[tuple[float, float, int]] = []
        for first in range(0, count, 2):
            pair = slice(first, min(first + 2, count))
            weight = weights[pair] / weights[pair].sum()
            self._keys[len(merged)] = torch.tensordot(weight, self._keys[pair].float(), 1).to(self._keys.dtype)
            merged.append((spans[pair][0][0], spans[pair][-1][1], sum(span[2] for span in spans[pair])))
        self._spans = merged

    def scores(self, queries: "Tensor") -> "Tensor":
        """Return each entry's share of a question's attention over the index, ``float32 [entries]``; they add up to 1.

        Args:
            queries: un-rotated, of the question's last token, ``float32 [layers, heads, head_dim]``.
        """
        import torch

        assert self._keys is not None
        total = torch.zeros(len(self))
        for layer, query in enumerate(queries):
            keys = self._keys[: len(self), layer].float()
            grouped = query.view(keys.shape[1], -1, keys.shape[2])
            logits = torch.einsum("hgd,chd->hgc", grouped, keys).flatten(0, 1) / math.sqrt(keys.shape[-1])
            total += _without_trend(logits).softmax(-1).sum(0)
        return total / (queries.shape[0] * queries.shape[1])

    def find(self, queries: "Tensor") -> Iterator[Found]:
        """Yield the events that a question attends to, the best first.

        Args:
            queries: as of ``scores``.
        """
        if not self._spans:
            return
        scores = self.scores(queries).tolist()
        floor = _STANDS_OUT * statistics.median(scores)
        taken: set[int] = set()
        for best in sorted(range(len(scores)), key=lambda entry: (-scores[entry], entry)):
            if best in taken:
                continue
            first = last = best
            least = max(floor, _EVENT * scores[best])
            while self._goes_on(scores, first - 1, first, least, taken):
                first -= 1
            while self._goes_on(scores, last + 1, last, least, taken):
                last += 1
            taken.update(range(first, last + 1))
            whole = Hit(self._spans[first][0], self._spans[last][1], sum(scores[first : last + 1]))
            yield Found(whole, Hit(*self._spans[best][:2], scores[best]))

    def _goes_on(self, scores: Sequence[float], entry: int, beside: int, least: float, taken: set[int]) -> bool:
        """Return True if ``entry``, next to ``beside``, is part of the same event: its score is ``least`` or more."""
        if not 0 <= entry < len(scores) or entry in taken or scores[entry] < least:
            return False
        earlier, later = min(entry, beside), max(entry, beside)
        return abs(self._spans[earlier][1] - self._spans[later][0]) < 1e-6

    def as_tensors(self) -> "dict[str, Tensor]":
        """Return the index as tensors of a ``Memory``: its vectors, and start, end and chunks of each entry."""
        import torch

        if self._keys is None:
            return {}
        spans = torch.tensor(self._spans, dtype=torch.float64)
        return {"index": self._keys[: len(self)].clone(), "index_spans": spans}

    @classmethod
    def of_tensors(cls, tensors: "dict[str, Tensor]", limit: int = BYTES) -> Self:
        """Return the index that ``as_tensors`` made ``tensors`` of; an empty one if they have none."""
        index = cls(limit)
        if "index" in tensors:
            index._keys = tensors["index"].clone()
            index._spans = [(start, end, int(chunks)) for start, end, chunks in tensors["index_spans"].tolist()]
        return index


def _without_trend(logits: "Tensor") -> "Tensor":
    """Return ``logits`` (``[heads, entries]``) less a line in time, whose slope is the median over pairs half apart.

    The scores of real models rise in time whatever is shown (MemStream, arXiv 2602.18434). A median does not see the
    few entries that a question is about, and one of slopes leaves nothing of a line (after Theil and Sen).
    """
    import torch

    count = logits.shape[-1]
    if count < _TREND_CHUNKS:
        return logits
    half = count // 2
    apart = count - half
    slope = (logits[:, apart:] - logits[:, :half]).median(-1).values / apart
    return logits - slope[:, None] * torch.arange(count)
