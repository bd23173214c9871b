"""No compression: what every other strategy is measured against."""

import torch
from torch import Tensor

from kvvideo.compression.policy import LiveCache, Policy, keep_all_heads


class Full(Policy):
    summary = "keeps everything; memory grows with the video"
    source = "vLLM itself"
    bounded = False

    def select(self, live: LiveCache) -> Tensor:
        return keep_all_heads(live, torch.arange(len(live)))
