"""H2O: the most recent tokens, and the heavy hitters that have received most attention so far."""

import torch
from torch import Tensor

from kvvideo.compression.policy import LiveCache, ScorePolicy, attention_received

WATCHED = 16
"""Last queries of each step that are watched unless ``queries`` says how many."""


class H2o(ScorePolicy):
    """``mass`` is the attention a token has received, summed over its KV head's group; ``seen`` from how many queries.

    The paper watches every query (``queries`` 0). It has no sinks: here they are taken from the heavy part.
    """

    summary = "keeps sinks, recent (80 %), and what was attended to most"
    source = "H2O, arXiv 2306.14048"
    heads_alike = True
    state = ("mass", "seen")
    recent_share = 0.8

    def observe(self, queries: Tensor, live: LiveCache) -> None:
        count = min(WATCHED if self.config.queries is None else self.config.queries or len(queries), len(queries))
        live.state["mass"] += attention_received(queries[-count:], live)
        if self.config.score_norm == "mean":
            after = len(live) - torch.arange(len(live), device=queries.device)
            live.state["seen"] += after.clamp(0, count)

    def score(self, live: LiveCache) -> Tensor:
        mass, seen = live.state["mass"], live.state["seen"]
        return mass / seen.clamp(min=1) if self.config.score_norm == "mean" else mass
