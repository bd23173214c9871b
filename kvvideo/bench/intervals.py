"""Intervals of shares of right answers."""

import math
from collections.abc import Sequence

T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""Student's t for 95 % and 1 to 10 degrees of freedom."""


def wilson(right: int, asked: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson's score."""
    if not asked:
        return 0.0, 1.0
    z, p = 1.96, right / asked
    centre = (p + z * z / (2 * asked)) / (1 + z * z / asked)
    half = z * math.sqrt(p * (1 - p) / asked + z * z / (4 * asked**2)) / (1 + z * z / asked)
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered(clips: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Return the 95 % interval of a share over ``clips``, the right and asked questions of each.

    Questions about one clip are not independent. So it is the wider of Wilson's interval and of that by the spread
    between clips: the standard error of a ratio of sums (Cochran, Sampling Techniques, 1977), times Student's t.
    """
    right, asked = sum(r for r, _ in clips), sum(n for _, n in clips)
    low, high = wilson(right, asked)
    if len(clips) < 2 or not asked:
        return low, high
    p = right / asked
    spread = sum((r - p * n) ** 2 for r, n in clips) * len(clips) / (len(clips) - 1)
    t = T_95[len(clips) - 2] if len(clips) - 2 < len(T_95) else 2.0
    half = t * math.sqrt(spread) / asked
    return max(0.0, min(low, p - half)), min(1.0, max(high, p + half))
