"""Value norm: tokens with long values, which change most what attends to them."""

from torch import Tensor

from kvvideo.compression.policy import LiveCache, ScorePolicy, lengths


class ValueNorm(ScorePolicy):
    """Score ``s_t = ||v_t||``, VaN of arXiv 2506.15745. Reads ``values`` (``[kv_heads, n, head_dim]``)."""

    summary = "keeps sinks, recent, and the longest values"
    source = "the VaN half of InfiniPot-V, arXiv 2506.15745"
    heads_alike = True

    def score(self, live: LiveCache) -> Tensor:
        """Return the length of each value, ``float32 [kv_heads, n]``."""
        return lengths(live.values)
