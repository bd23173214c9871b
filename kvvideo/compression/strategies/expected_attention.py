"""Expected Attention: what queries like those so far would attend to, asked at the positions to come."""

import torch
from torch import Tensor

from kvvideo.compression import places
from kvvideo.compression.policy import LiveCache, ScorePolicy, lengths

HORIZON = 512
"""Positions to come, over which the rotation of future queries is averaged: kvpress's default."""


class ExpectedAttention(ScorePolicy):
    """Score ``s_t = ||v_t|| * sum_heads softmax(z)_t`` with ``z_t = m k_t / sqrt(d) + k_t S k_t / 2d``.

    arXiv 2510.00636. ``m`` and ``S`` are the mean and covariance of queries to come. Those so far are taken for
    normally distributed before rotation, and the rotation is averaged over the next ``HORIZON`` positions. Covariances
    between two rotary pairs are taken for zero, other than in the paper.

    ``live.stream`` has, per query head, their ``mean`` (``[q_heads, head_dim]``) and ``spread``
    (``[q_heads, 3 * head_dim / 2]``: the (co)variances aa, ab, bb of each rotary pair (a, b)), of ``count`` queries.
    """

    summary = "keeps sinks, recent, and what queries are likely to seek"
    source = "Expected Attention, arXiv 2510.00636"

    @classmethod
    def stream_bytes(cls, q_heads: int, head_dim: int) -> int:
        """Return the bytes of ``count``, ``mean`` and ``spread`` in one layer."""
        return 4 * (1 + q_heads * (head_dim + 3 * head_dim // 2))

    def observe(self, queries: Tensor, live: LiveCache) -> None:
        """Add ``queries`` (``[q, q_heads, head_dim]``) to the mean and covariance of the stream."""
        own = slice(len(live) - len(queries), None)
        angles = live.rotary.angles(places.axes(live.positions[0, own], live.places[0, own]))
        plain = live.rotary.rotate(queries, -angles[:, None])
        mean = plain.mean(dim=0)
        spread = _products(plain - mean).mean(dim=0)
        old = live.stream
        if not old:
            old |= {"count": torch.zeros((), device=plain.device), "mean": mean, "spread": spread}
        # Chan's update: unlike running sums, it does not lose digits as the stream grows long.
        old["count"] = old["count"] + len(queries)
        share = len(queries) / old["count"]
        moved = mean - old["mean"]
        old["mean"] = old["mean"] + share * moved
        old["spread"] = torch.lerp(old["spread"], spread, share) + share * (1 - share) * _products(moved)

    def score(self, live: LiveCache) -> Tensor:
        """Return the logarithm of ``s_t``, ``float32 [kv_heads, n]``."""
        coming = live.positions[0, -1] + torch.arange(1, HORIZON + 1, device=live.positions.device)
        angles = live.rotary.angles(coming.expand(3, -1))
        cos, sin = angles.cos().mean(dim=0), angles.sin().mean(dim=0)
        mean, spread = (torch.unflatten(live.stream[name], 0, (len(live.keys), -1)).mT for name in ("mean", "spread"))
        parts, first = [], 0
        for part in live.parts():
            own = slice(first, first := first + len(part.keys))
            parts.append(self._expected(part, cos, sin, mean[own], spread[own]))
        return torch.cat(parts) + lengths(live.values).log()

    def _expected(self, live: LiveCache, cos: Tensor, sin: Tensor, mean: Tensor, spread: Tensor) -> Tensor:
        """Return the logarithm of the attention expected on each token, ``float32 [kv_heads, n]``."""
        # The mean rotation of queries, moved over to the keys.
        low, high = live.keys.float().chunk(2, dim=-1)
        keys = torch.cat([low * cos + high * sin, high * cos - low * sin], dim=-1)
        quadratic = _products(keys)
        quadratic[..., keys.shape[-1] // 2 : keys.shape[-1]] *= 2
        logits = live.scale * (keys @ mean) + live.scale**2 / 2 * (quadratic @ spread)
        # In logarithms, for most probabilities may be too small to tell apart.
        return logits.log_softmax(dim=1).logsumexp(dim=-1)


def _products(x: Tensor) -> Tensor:
    """Return ``aa``, ``ab`` and ``bb`` of each rotary pair (a, b) of ``x``, ``[..., 3 * head_dim / 2]``."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * a, a * b, b * b], dim=-1)
