"""StreamingLLM: attention sinks at the beginning, and the most recent tokens."""

import torch
from torch import Tensor

from kvvideo.compression.policy import LiveCache, Policy, keep_all_heads


class Streaming(Policy):
    """The first ``sink`` tokens and the last ``budget - sink`` (arXiv 2309.17453). Reads the number of live tokens.

    Tokens keep their positions, where the paper counts them within the cache: ``positions`` says which.
    """

    summary = "keeps the first tokens (sinks) and the most recent"
    source = "StreamingLLM, arXiv 2309.17453"
    heads_alike = True

    def select(self, live: LiveCache) -> Tensor:
        """Return sinks and the most recent tokens, ``int64 [kv_heads, budget]``."""
        sink = min(self.config.sink, self.budget)
        index = torch.arange(self.budget, device=live.keys.device)
        return keep_all_heads(live, torch.where(index < sink, index, index + len(live) - self.budget))
