"""Value norm: tokens with long values, which change most what attends to them."""

import torch
from torch import Tensor

from kvvideo.compression.policy import LiveCache, ScorePolicy


class ValueNorm(ScorePolicy):
    """Score ``s_t = ||v_t||``, VaN of arXiv 2506.15745. Reads ``values`` (``[kv_heads, n, head_dim]``)."""

    summary = "keeps sinks, recent, and the longest values"
    source = "the VaN half of InfiniPot-V, arXiv 2506.15745"
    heads_alike = True

    def score(self, live: LiveCache) -> Tensor:
        """Return the length of each value, ``float32 [kv_heads, n]``."""
        return torch.linalg.vector_norm(live.values, dim=-1, dtype=torch.float32)
