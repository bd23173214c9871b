"""InfiniPot-V: what the recent frames do not show again, and what has long values."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from kvvideo.compression import places
from kvvideo.compression.policy import LiveCache, ScorePolicy, lengths


class InfinipotV(ScorePolicy):
    """Two scores (arXiv 2506.15745), each for half of the budget that sinks and recent tokens leave.

    TaR: ``s_t = -mean over recent u of the same patch of cos(k_t, k_u)``. VaN: ``s_t = ||v_t||``. Recent is the last
    quarter of the budget, as the paper's last 25 % of frames.

    Temporal redundancy (TaR) chooses first, value norm (VaN) among the others, so none counts twice.
    Text has no patch: VaN alone decides on it. A patch that no recent token shows is not redundant at
    all; should there be too many of these, the longest values go first.

    Reads ``keys`` and ``values`` (``[kv_heads, n, head_dim]``) and ``places`` (``[kv_heads, n]``).
    """

    summary = "keeps sinks, recent, half by change, half by value length"
    source = "InfiniPot-V, arXiv 2506.15745"
    heads_alike = True

    def score(self, live: LiveCache) -> Tensor:
        """Return the value norms, infinite for what TaR chose, ``float32 [kv_heads, n]``."""
        norms = lengths(live.values)
        novelty = self._novelty(live, norms)
        novelty[:, : self.sink] = -torch.inf
        novelty[:, len(live) - self.recent :] = -torch.inf
        best = novelty.topk((self.budget - self.sink - self.recent) // 2, dim=-1)
        chosen = torch.where(best.values > -torch.inf, torch.inf, norms.gather(1, best.indices))
        return norms.scatter(1, best.indices, chosen)

    def _novelty(self, live: LiveCache, norms: Tensor) -> Tensor:
        """Return minus the mean cosine to the recent keys of the same patch, ``[kv_heads, n]``; -inf for text."""
        units, patches = normalize(live.keys.float(), dim=-1), places.patch(live.places)
        start = len(live) - self.recent
        recent, order = patches[:, start:].sort(dim=-1)
        # Of sorted tokens, those of one patch are neighbours: the difference of two running sums is their sum.
        rows = order[..., None].expand(-1, -1, units.shape[-1])
        sums = pad(units[:, start:].gather(1, rows).cumsum(dim=1), (0, 0, 1, 0))
        first, end = (torch.searchsorted(recent, patches.contiguous(), right=right) for right in (False, True))
        total, before = (sums.gather(1, at[..., None].expand_as(units)) for at in (end, first))
        likeness = (units * (total - before)).sum(dim=-1) / (end - first)
        novelty = torch.where(end > first, -likeness, 1 + norms)
        return novelty.masked_fill_(patches < 0, -torch.inf)
