"""KeyDiff: tokens whose keys are unlike the average key."""

from torch import Tensor
from torch.nn.functional import normalize

from kvvideo.compression.policy import LiveCache, ScorePolicy


class Keydiff(ScorePolicy):
    """Score ``s_t = -cos(k_t, a)`` with ``a = mean(k / ||k||)`` (arXiv 2504.15364).

    Reads ``keys`` (``[kv_heads, n, head_dim]``), rotated as they lie in the cache.
    """

    summary = "keeps sinks, recent, and keys that differ from the average"
    source = "KeyDiff, arXiv 2504.15364"
    heads_alike = True

    def score(self, live: LiveCache) -> Tensor:
        """Return minus the cosine of each key to the mean direction, ``float32 [kv_heads, n]``."""
        units = normalize(live.keys.float(), dim=-1)
        anchor = normalize(units.mean(dim=1), dim=-1)
        return -(units @ anchor[..., None])[..., 0]
