"""``Policy``, the base of all strategies: given one layer's cache and a budget, it returns the tokens to keep.

Pure torch. A strategy sees one layer of one request and knows nothing of blocks, batches or vLLM.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from kvvideo.compression.config import CacheConfig
from kvvideo.compression.kernels import usable
from kvvideo.compression.options import Option
from kvvideo.compression.rotary import Rotary

AT_ONCE = 1 << 25
"""Bytes of keys that a strategy works on at a time, or one head's: in float32, and in the several copies that a score
takes, they come to 100 to 300 MB. Our choice: at 4,096 tokens it is what was worked on at a time before."""


@dataclass(frozen=True)
class LiveCache:
    """The live tokens of one layer of one request, oldest first.

    Attributes:
        keys: ``[kv_heads, n, head_dim]``, rotated, in the cache's dtype.
        values: ``[kv_heads, n, head_dim]``; ``[kv_heads, 0, head_dim]`` in ``observe``, which has no use for them.
        positions: ``int32 [kv_heads, n]``, temporal M-RoPE position each token was computed at.
        places: ``int32 [kv_heads, n]``, where in its chunk's pictures each token stands; 0 for text
            (``kvvideo.compression.places``).
        state: the policy's own side state by name, ``float32 [kv_heads, n]``, zero for new tokens;
            it moves with the tokens at compaction.
        stream: what the policy remembers of the whole stream in this layer, by name; empty at its
            beginning. Forks never change it.
        layer: index of the layer, from 0.
        scale: factor of the attention logits, ``head_dim ** -0.5``.
        rotary: how the model rotates keys and queries.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    places: Tensor
    state: dict[str, Tensor]
    layer: int
    scale: float
    rotary: Rotary
    stream: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return int(self.keys.shape[1])

    def parts(self) -> Iterator["LiveCache"]:
        """Yield the same tokens of all KV heads, as many heads at a time as hold ``AT_ONCE`` bytes of keys."""
        heads, n, size = self.keys.shape
        count = max(1, AT_ONCE // max(1, n * size * self.keys.element_size()))
        if count >= heads:
            yield self
            return
        for first in range(0, heads, count):
            own = slice(first, first + count)
            yield replace(
                self,
                keys=self.keys[own],
                values=self.values[own],
                positions=self.positions[own],
                places=self.places[own],
                state={name: row[own] for name, row in self.state.items()},
            )


class Policy(ABC):
    """Base of all strategies. A strategy is one module: a subclass, its constants and its options.

    Ours are modules of ``kvvideo.compression.strategies``, each named as its class; those of another package are
    entry points of the group ``kvvideo.strategies``. An option is an attribute of the class::

        class Mine(ScorePolicy):
            power = Option(0.5, "Exponent of the score.", source="our choice")  # self.power

    Args:
        config: settings of the cache, with the values of the options.
        budget: tokens to keep, a whole number of blocks.
    """

    summary: ClassVar[str]
    """One line that says what it keeps."""
    source: ClassVar[str]
    """Paper or project the method comes from."""
    bounded: ClassVar[bool] = True
    """False only for the strategy that never evicts."""
    state: ClassVar[tuple[str, ...]] = ()
    """Names of per-token side state to carry: one float32 per KV head and token each."""

    heads_alike: ClassVar[bool] = False
    """True if ``select`` chooses for each KV head by itself, and looks at neither ``layer`` nor ``stream``. Then heads
    of several layers may be shown to it as those of one, which on a GPU takes little longer than one layer alone."""

    def __init__(self, config: CacheConfig, budget: int) -> None:
        self.config = config
        self.budget = budget

    @abstractmethod
    def select(self, live: LiveCache) -> Tensor:
        """Return the indices of the tokens to keep, ``int64 [kv_heads, budget]``, ascending in each row."""

    def observe(self, queries: Tensor, live: LiveCache) -> None:  # noqa: B027  (optional)
        """See the queries of a step, ``[q, q_heads, head_dim]``, and update ``live.state`` in place.

        They belong to the last ``q`` live tokens. Called after each step's attention and before any
        compaction, for strategies that override it.
        """

    def watches(self, left: int) -> bool:
        """Return True if ``observe`` should see the queries of a step that ends ``left`` tokens before a compaction."""
        return left >= 0

    @classmethod
    def observes(cls) -> bool:
        """Return True if this strategy wants to see queries."""
        return cls.observe is not Policy.observe

    @classmethod
    def stream_bytes(cls, q_heads: int, head_dim: int) -> int:
        """Return the bytes that ``LiveCache.stream`` takes in one layer."""
        del q_heads, head_dim
        return 0

    @classmethod
    def options(cls) -> dict[str, Option[Any]]:
        """Return the options that the strategy declares, by name."""
        declared = {name: one for base in reversed(cls.__mro__) for name, one in vars(base).items()}
        return {name: one for name, one in declared.items() if isinstance(one, Option)}


class ScorePolicy(Policy):
    """Base of strategies that keep sinks, the most recent tokens, and the best-scored of the rest, per KV head."""

    recent_share: ClassVar[float] = 0.25
    """Part of the budget that goes to the most recent tokens unless ``window`` gives it in tokens. A quarter is
    InfiniPot-V's (arXiv 2506.15745: the last 25 % of frames), and for other strategies our choice."""

    @abstractmethod
    def score(self, live: LiveCache) -> Tensor:
        """Return a score for each live token, ``[kv_heads, n]``; higher is kept."""

    @property
    def recent(self) -> int:
        """Last tokens that are kept whatever their score."""
        window = self.config.window
        return min(int(self.budget * self.recent_share) if window is None else window, self.budget)

    @property
    def sink(self) -> int:
        """First tokens that are kept whatever their score."""
        return min(self.config.sink, self.budget - self.recent)

    def select(self, live: LiveCache) -> Tensor:
        """Return sinks, recent and best-scored tokens, ``int64 [kv_heads, budget]``, ascending in each row."""
        scores = self.score(live)
        if usable(scores):
            from kvvideo.compression.kernels import selection

            if len(live) <= selection.LIMIT:
                return selection.choose(scores, self.budget, self.sink, self.recent)
        scores = scores.float().clone()  # it may be the side state itself
        scores[:, : self.sink] = torch.inf
        scores[:, len(live) - self.recent :] = torch.inf
        return scores.topk(self.budget, dim=-1, sorted=False).indices.sort(dim=-1).values


def keep_all_heads(live: LiveCache, index: Tensor) -> Tensor:
    """Return the same selection ``int64 [budget]`` for every KV head, as ``[kv_heads, budget]``."""
    return index.to(live.keys.device).expand(live.keys.shape[0], -1)


def lengths(x: Tensor) -> Tensor:
    """Return the Euclidean length of each vector of ``x`` (``[..., d]``), ``float32 [...]``."""
    found: Tensor = x.norm(dim=-1, dtype=torch.float32)
    return found


def attention(queries: Tensor, live: LiveCache, following: int = 0) -> Tensor:
    """Return the causal attention of the last ``q`` tokens' queries, ``float32 [kv_heads, group, q, n]``.

    Args:
        queries: ``[q, q_heads, head_dim]``, of the last ``q`` tokens before the ``following`` last ones.
        live: the tokens; a query sees no later one than its own.
        following: tokens after those of ``queries``.
    """
    heads, n = live.keys.shape[:2]
    count = len(queries)
    scaled = (queries.float() * live.scale).to(live.keys.dtype)
    grouped = torch.unflatten(scaled, 1, (heads, -1)).permute(1, 2, 0, 3)
    # One product a KV head: keys are not repeated for the heads of a group.
    logits = torch.unflatten((grouped.flatten(1, 2) @ live.keys.mT).float(), 1, grouped.shape[1:3])
    first = n - following - count
    future = torch.ones(count, n - first, dtype=torch.bool, device=logits.device).triu(1)
    logits[..., first:].masked_fill_(future, -torch.inf)
    return logits.softmax(dim=-1)


def attention_received(queries: Tensor, live: LiveCache, following: int = 0) -> Tensor:
    """Return what ``attention`` gives each token, summed over queries and their heads, ``float32 [kv_heads, n]``."""
    if usable(live.keys):
        from kvvideo.compression.kernels.attention import attention_received as received

        return received(queries, live.keys, live.scale, following)
    total = torch.zeros(live.keys.shape[:2], device=live.keys.device)
    # A few queries at a time: all of a long step against all tokens would take more memory than the cache.
    most = AT_ONCE // (4 * queries.shape[1] * len(live))
    for block in torch.split(queries, max(1, min(64, most))):
        following -= len(block)
        total += attention(block, live, following + len(queries)).sum(dim=(1, 2))
    return total
