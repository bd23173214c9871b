"""Closing the gaps that eviction leaves between positions (``positions="contiguous"``)."""

import torch
from torch import Tensor


def close_gaps(positions: Tensor, kept: Tensor, slack: int = 0) -> Tensor:
    """Return by how many positions each survivor moves towards the present, ``[heads, budget]``, to close all gaps.

    Nothing moves in a head whose gaps come to no more than ``slack`` positions: each move rounds the
    keys, and in bfloat16 many small ones would add up.

    Survivors end where all tokens ended, for the next token's position is not this function's to choose.
    Tokens of one frame share a position, which goes only if all of them are evicted; then what came
    before moves up by as much as that position was after the one before it.

    Args:
        positions: temporal positions ``[heads, n]``, never decreasing.
        kept: indices of the survivors ``[heads, budget]``, ascending.
        slack: positions that gaps may come to.
    """
    before = torch.cat([positions[:, :1], positions[:, :-1]], dim=1)
    # For each token the largest position below its own: that of the token before its frame.
    lowest = torch.full_like(positions, torch.iinfo(positions.dtype).min)
    lower = torch.where(positions > before, before, lowest).cummax(dim=1).values
    place, below = positions.gather(1, kept), lower.gather(1, kept)
    steps = torch.where(place[:, 1:] > place[:, :-1], place[:, 1:] - below[:, 1:], 0)
    moved = positions[:, -1:] - steps.flip(1).cumsum(dim=1).flip(1)
    moves = torch.cat([moved, positions[:, -1:]], dim=1) - place
    return torch.where(moves[:, :1] > slack, moves, 0)
