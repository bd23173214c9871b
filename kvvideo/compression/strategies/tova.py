"""TOVA: what the last token attends to."""

import torch
from torch import Tensor

from kvvideo.compression.policy import LiveCache, Policy, attention_received, keep_all_heads


class Tova(Policy):
    """Score ``s_t = mean_heads softmax(q K^T / sqrt(d))_t`` of the last query alone (arXiv 2401.06104).

    The same in each KV head. The last token is kept whatever it attends to, as in kvpress.

    Side state ``float32 [kv_heads, n]``: ``attention``, which is ``s_t``.
    """

    summary = "keeps what the last token attends to, the same in all heads"
    source = "TOVA, arXiv 2401.06104"
    state = ("attention",)

    def watches(self, left: int) -> bool:
        """Return True for the step that ends at the compaction."""
        return left == 0

    def observe(self, queries: Tensor, live: LiveCache) -> None:
        """Note what the last of ``queries`` (``[q, q_heads, head_dim]``) attends to."""
        live.state["attention"].copy_(attention_received(queries[-1:], live).sum(dim=0) / queries.shape[1])

    def select(self, live: LiveCache) -> Tensor:
        """Return the best-scored tokens and the last, ``int64 [kv_heads, budget]``."""
        scores = live.state["attention"][0].clone()
        scores[-1] = torch.inf
        return keep_all_heads(live, scores.topk(self.budget).indices.sort().values)
