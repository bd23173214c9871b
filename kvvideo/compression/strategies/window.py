"""Sliding window: the most recent tokens and nothing else."""

import torch
from torch import Tensor

from kvvideo.compression.policy import LiveCache, Policy, keep_all_heads


class Window(Policy):
    """The last ``budget`` tokens. Reads only the number of live tokens."""

    summary = "keeps the most recent; forgets the prompt, and degrades so"
    source = "window attention, the baseline of arXiv 2309.17453"
    heads_alike = True

    def select(self, live: LiveCache) -> Tensor:
        """Return the most recent tokens, ``int64 [kv_heads, budget]``."""
        return keep_all_heads(live, torch.arange(len(live) - self.budget, len(live), device=live.keys.device))
