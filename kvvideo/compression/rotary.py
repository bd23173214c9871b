"""M-RoPE as Qwen2.5-VL applies it (arXiv 2409.12191), to take it off keys and queries or to move them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotary:
    """Angle by which each pair of a head's dimensions is rotated per position. ``i`` is paired with ``i + d / 2``.

    Attributes:
        frequencies: ``float32 [head_dim / 2]``, radians per position.
        axis: ``int64 [head_dim / 2]``, which of M-RoPE's three axes (t, h, w) a pair follows; all zero
            for models with one axis.
    """

    frequencies: Tensor
    axis: Tensor

    @classmethod
    def of(cls, head_dim: int, theta: float, sections: list[int] | None = None) -> "Rotary":
        """Return a model's rotation: base ``theta``; ``sections`` pairs follow each axis, by default all the first."""
        frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        counts = torch.tensor(sections or [head_dim // 2])
        return cls(frequencies.float(), torch.repeat_interleave(torch.arange(len(counts)), counts))

    def to(self, device: torch.device) -> "Rotary":
        """Return the same on ``device``."""
        return Rotary(self.frequencies.to(device), self.axis.to(device))

    def angles(self, axes: Tensor) -> Tensor:
        """Return the angles ``float32 [..., head_dim / 2]``, in radians, at positions ``[3, ...]``."""
        # In float64 it is the rounded product of two float32 numbers on every device, whatever is allowed it there.
        return (axes.movedim(0, -1).double() @ self._by_axis[: len(axes)]).float()

    @cached_property
    def _by_axis(self) -> Tensor:
        """``float64 [3, head_dim / 2]``: each pair's frequency on its own axis, and 0 on the others.

        A product with it takes a third of the time that indexing does.
        """
        own = self.axis == torch.arange(3, device=self.axis.device)[:, None]
        return own * self.frequencies.double()

    def unrotate(self, x: Tensor, axes: Tensor) -> Tensor:
        """Return ``x`` (``[..., head_dim]``), rotated at positions ``[3, ...]``, without its rotation, in float32.

        As ``rotate`` by ``-angles(axes)``, to the last bit. Many tokens share few positions, so on a CPU each
        position's sines are taken once; elsewhere the host would have to wait to know how many there are.
        """
        if x.device.type != "cpu":
            return self.rotate(x, -self.angles(axes))
        there, index = torch.unique(axes.int(), return_inverse=True)
        parts = torch.split(self.frequencies, torch.bincount(self.axis, minlength=len(axes)).tolist())
        cos, sin = [], []
        for part, own in zip(parts, index.flatten(1), strict=True):
            angles = there.float()[:, None] * part
            cos.append(angles.cos().index_select(0, own))
            sin.append(angles.sin().index_select(0, own))
        shape = (*axes.shape[1:], -1)
        return _rotated(x, torch.cat(cos, dim=-1).view(shape), torch.cat(sin, dim=-1).neg_().view(shape))

    def angles64(self, moves: Tensor) -> Tensor:
        """Return the angles ``float64 [..., head_dim / 2]`` of moves by many positions (``[...]``).

        float32 has too few digits for them. All pairs move, whatever their axis.
        """
        return moves.double()[..., None] * self.frequencies.double()

    def rotate(self, x: Tensor, angles: Tensor) -> Tensor:
        """Return ``x`` (``[..., head_dim]``) rotated by ``angles`` (``[..., head_dim / 2]``), in float32."""
        return _rotated(x, angles.cos().float(), angles.sin().float())


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.float().chunk(2, dim=-1)
    rotated = torch.empty(x.shape, device=x.device)  # broadcast_shapes takes longer than all that is computed here
    first, second = rotated.chunk(2, dim=-1)
    torch.mul(low, cos, out=first).addcmul_(high, sin, value=-1)
    torch.mul(high, cos, out=second).addcmul_(low, sin)
    return rotated
