"""Write what a folded stream stands for into the only channel that reaches every worker: token ids.

After a fold, the ids of a session begin with placeholders for tokens that are already in the cache and
will never be computed again. Their first few carry the number of placeholders, the M-RoPE position
that the next token gets, and those of chunks that a question is shown again. All ids stay below
``BASE``, inside any vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

BASE = 128
_DIGITS = 5  # numbers below 128 ** 5 = 34 billion
# Ids of control bytes or rare pieces in an order that no text has.
_MAGIC = (3, 1, 4, 1, 5, 9)

HEADER_LENGTH = len(_MAGIC) + 2 * _DIGITS + 1
"""Placeholders that it takes to carry a history in which nothing is shown again."""


class History(NamedTuple):
    """A past of ``length`` placeholder tokens, followed by a token at M-RoPE position ``position``.

    ``shown_at`` are positions at which the first videos after it were streamed, with the text before each; only what
    follows them is at ``position``. At most ``most_shown(length)``.
    """

    length: int
    position: int
    shown_at: tuple[int, ...] = ()


def most_shown(length: int) -> int:
    """Return for how many chunks a past of ``length`` placeholders can say where they were streamed."""
    return min(BASE - 1, (length - HEADER_LENGTH) // _DIGITS)


def encode(history: History) -> list[int]:
    """Return ``history.length`` token ids that ``decode`` reads back.

    Raises:
        ValueError: if the length is too short to carry the header.
    """
    header = [*_MAGIC, *_digits(history.length), *_digits(history.position), len(history.shown_at)]
    for position in history.shown_at:
        header += _digits(position)
    if history.length < len(header):
        raise ValueError(f"{history.length} placeholders cannot carry a header of {len(header)}")
    return header + [0] * (history.length - len(header))


def decode(token_ids: Sequence[int]) -> History | None:
    """Return the history that ``token_ids`` begins with; None if it begins with none."""
    start = len(_MAGIC)
    if len(token_ids) < HEADER_LENGTH or tuple(token_ids[:start]) != _MAGIC:
        return None
    length, position = (_number(token_ids[at : at + _DIGITS]) for at in (start, start + _DIGITS))
    end = HEADER_LENGTH + token_ids[HEADER_LENGTH - 1] * _DIGITS
    if not end <= length <= len(token_ids):
        return None
    shown_at = (_number(token_ids[at : at + _DIGITS]) for at in range(HEADER_LENGTH, end, _DIGITS))
    return History(length, position, tuple(shown_at))


def _digits(number: int) -> list[int]:
    return [number // BASE**place % BASE for place in range(_DIGITS)]


def _number(digits: Sequence[int]) -> int:
    return sum(digit * BASE**place for place, digit in enumerate(digits))
