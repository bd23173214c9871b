"""Two strategies that only tests select: one scores keys, one carries side state and watches queries."""

import torch
from torch import Tensor

from kvvideo import compression
from kvvideo.compression.policy import LiveCache, Policy, ScorePolicy


class HalfNorm(ScorePolicy):
    """Differs per layer and KV head, and never ties: half of a rotated key depends on its position."""

    summary = "keeps keys whose first half is long"
    source = "these tests"

    def score(self, live: LiveCache) -> Tensor:
        return live.keys[..., : live.keys.shape[-1] // 2].norm(dim=-1)


class Heavy(ScorePolicy):
    """H2O: keeps the tokens that have received most attention so far."""

    summary = "keeps what was attended to most"
    source = "H2O, arXiv 2306.14048"
    state = ("unused", "mass")

    def observe(self, queries: Tensor, live: LiveCache) -> None:
        heads, n = live.keys.shape[:2]
        q = queries.unflatten(1, (heads, -1)).permute(1, 2, 0, 3)
        logits = q @ live.keys[:, None].transpose(-1, -2) * live.scale
        future = torch.ones(len(queries), n, dtype=torch.bool).triu(n - len(queries) + 1)
        live.state["mass"] += logits.masked_fill(future, -torch.inf).softmax(dim=-1).sum(dim=(1, 2))

    def score(self, live: LiveCache) -> Tensor:
        return live.state["mass"]


class Wrong(Policy):
    """Breaks its contract."""

    summary = "selects one token too few"
    source = "these tests"

    def select(self, live: LiveCache) -> Tensor:
        return torch.arange(self.budget - 1).expand(live.keys.shape[0], -1)


def register() -> None:
    compression.register("half-norm", HalfNorm)
    compression.register("heavy", Heavy)
    compression.register("wrong", Wrong)
