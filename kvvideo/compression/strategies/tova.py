"""TOVA: what the last token attends to."""

import torch
from torch import Tensor

from kvvideo.compression.policy import LiveCache, Policy, attention_received, keep_all_heads


class Tova(Policy):
    """``attention`` is that of the last query, averaged over all query heads: the same in each KV head."""

    summary = "keeps what the last token attends to, the same in all heads"
    source = "TOVA, arXiv 2401.06104"
    state = ("attention",)

    def watches(self, left: int) -> bool:
        return left == 0

    def observe(self, queries: Tensor, live: LiveCache) -> None:
        live.state["attention"].copy_(attention_received(queries[-1:], live).sum(dim=0) / queries.shape[1])

    def select(self, live: LiveCache) -> Tensor:
        scores = live.state["attention"][0].clone()
        scores[-1] = torch.inf
        return keep_all_heads(live, scores.topk(self.budget).indices.sort().values)
