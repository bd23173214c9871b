"""Two strategies that only tests select: one scores keys, one carries side state and watches queries."""

import torch
from torch import Tensor

from kvvideo import compression
from kvvideo.compression.policy import LiveCache, Policy, ScorePolicy, attention


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
        live.state["mass"] += attention(queries, live).sum(dim=(1, 2))

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
