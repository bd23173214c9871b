"""Key norm: tokens with short keys, which tend to be attended to most."""

from torch import Tensor

from kvvideo.compression.policy import LiveCache, ScorePolicy, lengths


class Knorm(ScorePolicy):
    """Score ``s_t = -||k_t||`` (arXiv 2406.11430). Reads ``keys`` (``[kv_heads, n, head_dim]``)."""

    summary = "keeps sinks, recent, and the shortest keys"
    source = "L2 norm of keys, arXiv 2406.11430"
    heads_alike = True

    def score(self, live: LiveCache) -> Tensor:
        """Return minus the length of each key, ``float32 [kv_heads, n]``."""
        return -lengths(live.keys)
