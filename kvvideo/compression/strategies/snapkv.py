"""SnapKV: the most recent tokens, and those that the latest queries attended to, with their neighbours."""

from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from kvvideo.compression.options import Option
from kvvideo.compression.policy import LiveCache, ScorePolicy, attention_received

WATCHED = 64
"""Observation window in queries: the default of kvpress's SnapKVPress."""

KERNEL = 5
"""Tokens that a score is averaged over, so that a detail stays with its neighbours: also kvpress's default."""


class Snapkv(ScorePolicy):
    """Score ``s_t``: mean attention on token ``t`` from an observation window, pooled (arXiv 2404.14469).

    ``s = avg_pool(mean_q softmax(q K^T / sqrt(d)), KERNEL)`` over the last ``queries`` queries and their heads.
    The paper has no sinks: ``sink`` 0.

    Only the steps that end within a window before the compaction are watched. A step may be cut
    anywhere: one shorter than the window replaces only its share of what was seen before, so a window
    that spans several steps is not lost.

    Side state ``float32 [kv_heads, n]``: ``attention``, the mean before pooling.
    """

    summary = "keeps sinks, recent, and what the latest queries looked at"
    source = "SnapKV, arXiv 2404.14469"
    heads_alike = True
    state = ("attention",)

    queries = Option(WATCHED, f"Observation window in queries; 0: {WATCHED}.", source="kvpress, SnapKVPress")

    @property
    def recent(self) -> int:
        """Last tokens that are kept: the observation window, but at most a quarter of the budget (our choice)."""
        return min(WATCHED, self.budget // 4) if self.config.window is None else super().recent

    def watches(self, left: int) -> bool:
        """Return True if the step ends within a window before the compaction."""
        return left < (self.queries or WATCHED)

    def observe(self, queries: Tensor, live: LiveCache) -> None:
        """Mix in what the last of ``queries`` (``[q, q_heads, head_dim]``) attend to."""
        window = self.queries or WATCHED
        last = queries[-window:]
        heads = last.shape[0] * last.shape[1] // len(live.keys)
        live.state["attention"].lerp_(attention_received(last, live) / heads, len(last) / window)

    def score(self, live: LiveCache) -> Tensor:
        """Return the pooled attention, ``float32 [kv_heads, n]``; 0 for the recent tokens."""
        older = live.state["attention"][:, : len(live) - self.recent]
        return pad(avg_pool1d(older[:, None], KERNEL, stride=1, padding=KERNEL // 2)[:, 0], (0, self.recent))
