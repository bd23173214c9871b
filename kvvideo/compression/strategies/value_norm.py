"""Value norm: tokens with long values, which change most what attends to them."""

import torch
from torch import Tensor

from kvvideo.compression.policy import LiveCache, ScorePolicy


class ValueNorm(ScorePolicy):
    summary = "keeps sinks, recent, and the longest values"
    source = "the VaN half of InfiniPot-V, arXiv 2506.15745"
    heads_alike = True

    def score(self, live: LiveCache) -> Tensor:
        return live.values.norm(dim=-1, dtype=torch.float32)
