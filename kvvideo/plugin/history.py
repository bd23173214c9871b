"""Write what a folded stream stands for into the only channel that reaches every worker: token ids.

After a fold, the ids of a session begin with placeholders for tokens that are already in the cache and
will never be computed again. Their first few carry the number of placeholders and the M-RoPE position
that the next token gets. All ids stay below ``BASE``, inside any vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

BASE = 128
_DIGITS = 5  # numbers below 128 ** 5 = 34 billion
# Ids of control bytes or rare pieces in an order that no text has.
_MAGIC = (3, 1, 4, 1, 5, 9)

HEADER_LENGTH = len(_MAGIC) + 2 * _DIGITS


class History(NamedTuple):
    """A past of ``length`` placeholder tokens, followed by a token at M-RoPE position ``position``."""

    length: int
    position: int


def encode(history: History) -> list[int]:
    """Return ``history.length`` token ids that ``decode`` reads back.

    Raises:
        ValueError: if the length is too short to carry the header.
    """
    if history.length < HEADER_LENGTH:
        raise ValueError(f"{history.length} placeholders cannot carry a header of {HEADER_LENGTH}")
    header = [*_MAGIC, *_digits(history.length), *_digits(history.position)]
    return header + [0] * (history.length - len(header))


def decode(token_ids: Sequence[int]) -> History | None:
    """Return the history that ``token_ids`` begins with; None if it begins with none."""
    start = len(_MAGIC)
    if len(token_ids) < HEADER_LENGTH or tuple(token_ids[:start]) != _MAGIC:
        return None
    middle = start + _DIGITS
    history = History(_number(token_ids[start:middle]), _number(token_ids[middle:HEADER_LENGTH]))
    return history if HEADER_LENGTH <= history.length <= len(token_ids) else None


def _digits(number: int) -> list[int]:
    return [number // BASE**place % BASE for place in range(_DIGITS)]


def _number(digits: Sequence[int]) -> int:
    return sum(digit * BASE**place for place, digit in enumerate(digits))
