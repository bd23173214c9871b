"""H2O: the most recent tokens, and the heavy hitters that have received most attention so far."""

import torch
from torch import Tensor

from kvvideo.compression.options import Option
from kvvideo.compression.policy import LiveCache, ScorePolicy, attention_received


class H2o(ScorePolicy):
    """Score ``s_t``: the attention mass token ``t`` has received from all queries so far (arXiv 2306.14048).

    ``s_t = sum_q softmax(q K^T / sqrt(d))_t``, summed over the query heads of a KV head. Survivors keep their sums.
    The paper watches every query (``queries`` 0) and gives heavy hitters and recent tokens a half of the budget each.
    It has no sinks: here they are taken from the heavy half.

    Side state ``float32 [kv_heads, n]``: ``mass``, which is ``s_t``, and ``seen``, the number of queries it is from.
    """

    summary = "keeps sinks, recent (80 %), and what was attended to most"
    source = "H2O, arXiv 2306.14048"
    heads_alike = True
    state = ("mass", "seen")
    recent_share = 0.8  # our choice; the paper's is 0.5

    queries = Option(
        16,
        "Last queries of each step that are watched; 0: all.",
        source="our choice, for what watching costs (kvvideo bench compaction); the paper watches all",
    )
    score_norm = Option(
        "sum",
        "Attention received: its sum, or its mean over the queries that could see the token.",
        source="the paper",
        choices=("sum", "mean"),
    )

    def observe(self, queries: Tensor, live: LiveCache) -> None:
        """Add what the last of ``queries`` (``[q, q_heads, head_dim]``) attend to."""
        count = min(self.queries or len(queries), len(queries))
        live.state["mass"] += attention_received(queries[-count:], live)
        if self.score_norm == "mean":
            after = len(live) - torch.arange(len(live), device=queries.device)
            live.state["seen"] += after.clamp(0, count)

    def score(self, live: LiveCache) -> Tensor:
        """Return the attention received, ``float32 [kv_heads, n]``."""
        mass, seen = live.state["mass"], live.state["seen"]
        return mass / seen.clamp(min=1) if self.score_norm == "mean" else mass
