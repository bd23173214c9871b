"""No compression: what every other strategy is measured against."""

import torch
from torch import Tensor

from kvvideo.compression.policy import LiveCache, Policy, keep_all_heads


class Full(Policy):
    """No token is evicted. Reads nothing."""

    summary = "keeps everything; memory grows with the video"
    source = "vLLM itself"
    bounded = False

    def select(self, live: LiveCache) -> Tensor:
        """Return all indices, ``int64 [kv_heads, n]``."""
        return keep_all_heads(live, torch.arange(len(live)))
