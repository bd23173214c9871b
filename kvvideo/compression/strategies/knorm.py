"""Key norm: tokens with short keys, which tend to be attended to most."""

import torch
from torch import Tensor

from kvvideo.compression.policy import LiveCache, ScorePolicy


class Knorm(ScorePolicy):
    summary = "keeps sinks, recent, and the shortest keys"
    source = "L2 norm of keys, arXiv 2406.11430"
    heads_alike = True

    def score(self, live: LiveCache) -> Tensor:
        return -live.keys.norm(dim=-1, dtype=torch.float32)
