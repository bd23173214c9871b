"""Note in the workers what finds a stream's chunks again: sums of un-rotated keys, and the queries of those who look.

The index itself is the session's (``kvvideo.session.index``). Workers hold the sums of the chunk at hand alone, so
nothing here is saved, moved or rotated again with a session.
"""

from collections.abc import Sequence

import torch

from kvvideo.compression import places
from kvvideo.compression.rotary import Rotary


class Notes:
    """Sums of each stream's chunk at hand, and the last queries of the latest step's questions that look for chunks.

    Attributes:
        queries: of the latest step, ``[asking, heads * head_dim]`` or ``[asking, heads, head_dim]`` by layer.
    """

    def __init__(self) -> None:
        self._sums: dict[int, torch.Tensor] = {}
        self.queries: list[torch.Tensor] = []
        self._asking: dict[int, int] = {}
        self._positions: torch.Tensor | None = None

    def sums(self, name: int, shape: tuple[int, int, int], device: torch.device) -> torch.Tensor:
        """Return the sums of the stream whose first block is ``name``, to add to.

        Args:
            name: number of the stream's first block.
            shape: layers, KV heads and size of a head.
            device: of the keys.

        Returns:
            ``float32 [layers, kv_heads, head_dim]``.
        """
        if name not in self._sums:
            self._sums[name] = torch.zeros(shape, device=device)
        return self._sums[name]

    def forget(self, name: int) -> None:
        """Forget the chunk at hand of a stream that has ended, or begins."""
        self._sums.pop(name, None)

    def take(self, name: int) -> torch.Tensor | None:
        """Return the sum of un-rotated keys ``float32 [layers, kv_heads, head_dim]`` since this was last called."""
        return self._sums.pop(name, None)

    def listen(self, rows: Sequence[int]) -> None:
        """Expect the queries of a step in which the requests at ``rows`` of the batch look for chunks."""
        self._asking = {row: number for number, row in enumerate(rows)}
        self.queries, self._positions = [], None

    def hear(self, queries: torch.Tensor, last: torch.Tensor, positions: torch.Tensor) -> None:
        """Keep the queries of one layer after the other.

        Args:
            queries: ``[tokens, heads * head_dim]`` or ``[tokens, heads, head_dim]``, rotated.
            last: ``int64 [asking]``, the last token of each request that looks.
            positions: ``int32 [tokens]``, temporal M-RoPE positions, which are those of all axes for text.
        """
        self.queries.append(queries.index_select(0, last))
        if self._positions is None:
            self._positions = positions.index_select(0, last)

    def heard(self, row: int, rotary: Rotary) -> torch.Tensor:
        """Return the un-rotated query ``float32 [layers, heads, head_dim]`` of the request at ``row`` of the batch."""
        assert self._positions is not None
        number = self._asking[row]
        size = 2 * len(rotary.frequencies)
        queries = torch.stack([layer[number].view(-1, size) for layer in self.queries])
        position = self._positions[number].expand(3, 1, 1)
        return rotary.rotate(queries, -rotary.angles(position))


def turns(rotary: Rotary, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines ``float32 [tokens, head_dim / 2]`` of the turns of video tokens; 0 for text.

    Args:
        rotary: the model's.
        rows: ``int32 [tokens, 2]``, temporal M-RoPE positions and places.
    """
    angles = rotary.angles(places.axes(rows[:, 0], rows[:, 1]))
    video = (rows[:, 1:2] > 0).float()
    return angles.cos() * video, angles.sin() * video
