"""KeyDiff: tokens whose keys are unlike the average key."""

from torch import Tensor
from torch.nn.functional import normalize

from kvvideo.compression.policy import LiveCache, ScorePolicy


class Keydiff(ScorePolicy):
    summary = "keeps sinks, recent, and keys that differ from the average"
    source = "KeyDiff, arXiv 2504.15364"
    heads_alike = True

    def score(self, live: LiveCache) -> Tensor:
        units = normalize(live.keys.float(), dim=-1)
        anchor = normalize(units.mean(dim=1), dim=-1)
        return -(units @ anchor[..., None])[..., 0]
