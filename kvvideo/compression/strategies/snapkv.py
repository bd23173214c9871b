"""SnapKV: the most recent tokens, and those that the latest queries attended to, with their neighbours."""

from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from kvvideo.compression.policy import LiveCache, ScorePolicy, attention_received

WATCHED = 64
KERNEL = 5  # neighbours are kept together, for a detail without what stands around it says little


class Snapkv(ScorePolicy):
    """``attention`` is what a token receives on average from the last ``queries`` queries and their group.

    Only the steps that end within a window before the compaction are watched. A step may be cut
    anywhere: one shorter than the window replaces only its share of what was seen before, so a window
    that spans several steps is not lost. The paper has no sinks: ``sink`` 0.
    """

    summary = "keeps sinks, recent, and what the latest queries looked at"
    source = "SnapKV, arXiv 2404.14469"
    heads_alike = True
    state = ("attention",)

    @property
    def recent(self) -> int:
        return min(WATCHED, self.budget // 4) if self.config.window is None else super().recent

    def watches(self, left: int) -> bool:
        return left < (self.config.queries or WATCHED)

    def observe(self, queries: Tensor, live: LiveCache) -> None:
        window = self.config.queries or WATCHED
        last = queries[-window:]
        heads = last.shape[0] * last.shape[1] // len(live.keys)
        live.state["attention"].lerp_(attention_received(last, live) / heads, len(last) / window)

    def score(self, live: LiveCache) -> Tensor:
        older = live.state["attention"][:, : len(live) - self.recent]
        return pad(avg_pool1d(older[:, None], KERNEL, stride=1, padding=KERNEL // 2)[:, 0], (0, self.recent))
