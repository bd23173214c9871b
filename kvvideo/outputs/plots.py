"""Pictures of a run as inline SVG that stretches to any width: what is held of the video, and the cache over time.

Nothing in them has a colour of its own: the page's style sheet decides.
"""

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from typing import Any

from kvvideo.times import format_time

COLUMNS = 200
"""Parts of a time axis that are told apart; finer detail would not show."""

FEW = 24
"""Up to so many points are drawn as dots."""

_LEAST_HEIGHT, _LEAST_WIDTH = 4, 0.25
"""Percent of a bar's height and of its width that can be seen."""

_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 18000, 36000, 72000, 180000)

Point = tuple[float, float]


def shares(held: Sequence[tuple[float, float, float]], start: float, end: float, columns: int) -> list[float]:
    """Return the share that is held of each of ``columns`` equal parts of ``start`` to ``end``.

    Args:
        held: stretches that do not overlap, and the share of each that is held: start and end in seconds, 0 to 1.
        start: in seconds.
        end: the same.
        columns: how many parts.
    """
    found = [0.0] * columns
    width = _length(start, end) / columns
    for first, last, share in held:
        left, right = ((min(max(t, start), end) - start) / width for t in (first, last))
        for column in range(int(left), min(int(right) + 1, columns)):
            found[column] += share * max(0.0, min(right, column + 1) - max(left, column))
    return [min(share, 1.0) for share in found]


def heights(remembered: dict[str, Any], start: float, end: float, label: str) -> str:
    """Draw the video from ``start`` to ``end``: each part that was seen is as high as the share of it that is held.

    Args:
        remembered: the field of an answer's record.
        start: of the bar, in seconds.
        end: the same.
        label: what it shows, in words.
    """
    first, last = (1000 * (remembered[name] - start) / _length(start, end) for name in ("start", "end"))
    parts, step = remembered["shares"], (last - first) / len(remembered["shares"])
    line, column = "", 0
    for share, same in groupby(parts):
        column += len([*same])
        top = 100 - max(100 * share, _LEAST_HEIGHT) if share else 100.0
        line += f"V{_number(top)}H{_number(first + step * column)}"
    return (
        f'<svg class="bar" viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<rect class="seen" x="{_number(first)}" width="{_number(last - first)}" height="100"/>'
        f'<path class="held" d="M{_number(first)} 100{line}V100Z"/></svg>'
    )


def spot(first: float, last: float, start: float, end: float, label: str) -> str:
    """Draw where the stretch from ``first`` to ``last`` is in the video from ``start`` to ``end``, in seconds."""
    left, right = (100 * (min(max(t, start), end) - start) / _length(start, end) for t in (first, last))
    return (
        f'<svg class="bar" role="img" aria-label="{escape(label)}"><rect class="seen" width="100%" height="100%"/>'
        f'<rect class="held" x="{_number(left)}%" width="{_number(max(right - left, _LEAST_WIDTH))}%" height="100%"/>'
        "</svg>"
    )


def marks(moments: Sequence[tuple[float, str]], start: float, end: float) -> str:
    """Draw marks at moments, each a link to an element of the page; of marks that would overlap only the first."""
    drawn: dict[int, str] = {}
    for at, target in moments:
        place = (min(max(at, start), end) - start) / _length(start, end)
        x = f"{_number(100 * place)}%"
        mark = (
            f'<circle cx="{x}" cy="50%" r="5"/>'
            if len(moments) <= FEW
            else f'<line x1="{x}" x2="{x}" y1="20%" y2="80%"/>'
        )
        link = f'<a href="#{escape(target)}" tabindex="-1"><title>{format_time(at)}</title>{mark}</a>'
        drawn.setdefault(round(place * COLUMNS), link)
    return f'<svg class="marks" aria-hidden="true">{"".join(drawn.values())}</svg>'


def ticks(start: float, end: float, most: int) -> str:
    """Draw times below a picture that is as wide as ``start`` to ``end``: round ones, ``most`` at most."""
    length = _length(start, end)
    step = next((s for s in _STEPS if length / s <= most - 1), 0.0)
    if not step:
        step = 360000.0
        while length / step > most - 1:
            step *= 10
    first = -int(-start // step)
    times = [first * step + step * index for index in range(int((end - first * step) / step + 1e-9) + 1)] or [start]
    parts = []
    for time in times:
        place = 100 * (time - start) / length
        side = ' class="first"' if place < 3 else ' class="last"' if place > 95 else ""
        parts.append(f'<span style="left:{_number(place)}%"{side}>{format_time(time)}</span>')
    return f'<div class="ticks" aria-hidden="true">{"".join(parts)}</div>'


def plot(
    points: Sequence[Point],
    start: float,
    end: float,
    label: str,
    show: Callable[[float], str],
    bound: float | None = None,
) -> str:
    """Draw a line through ``points`` of times and values, above an axis that begins at 0.

    Args:
        points: in the order of their times; one at least.
        start: of the time axis, in seconds.
        end: the same.
        label: what it shows, in words.
        show: prints a value.
        bound: a value that is never passed, drawn as a line.
    """
    top = _round_up(max([value for _, value in points] + ([] if bound is None else [bound])))

    def spots(some: Sequence[Point]) -> list[str]:
        return [
            f"{_number(1000 * (at - start) / _length(start, end))} {_number(100 - 100 * value / top)}"
            for at, value in some
        ]

    low, high = _outline(points, start, end)
    line, band = spots(high), [*spots(high), *spots(low)[::-1]]
    (left, _), (right, _) = line[0].split(), line[-1].split()
    dots = f'<path class="dot" d="{"".join(f"M{spot}h0" for spot in line)}"/>' if len(line) <= FEW else ""
    limit = "" if bound is None else f'<path class="bound" d="M0 {_number(100 - 100 * bound / top)}H1000"/>'
    scale = "".join(
        f'<span style="top:{_number(100 - 100 * part)}%">{escape(show(top * part))}</span>' for part in (0.0, 0.5, 1.0)
    )
    return (
        f'<div class="axes"><div class="scale" aria-hidden="true">{scale}</div>'
        f'<svg class="area" viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<path class="grid" d="M0 0H1000M0 50H1000M0 100H1000"/>'
        f'<path class="fill" d="M{left} 100L{" ".join(line)} {right} 100Z"/>'
        f'<path class="band" d="M{" ".join(band)}Z"/>{limit}<path class="line" d="M{" ".join(line)}"/>{dots}</svg>'
        f"{ticks(start, end, 4)}</div>"
    )


def _outline(points: Sequence[Point], start: float, end: float) -> tuple[list[Point], list[Point]]:
    """Return the lowest and the highest point of each part of the time axis in which there are any."""
    width = _length(start, end) / COLUMNS
    low, high = [], []
    for _, group in groupby(points, key=lambda point: int((point[0] - start) / width)):
        same = [*group]
        low.append(min(same, key=lambda point: point[1]))
        high.append(max(same, key=lambda point: point[1]))
    return low, high


def _round_up(value: float) -> float:
    """Return the next round number with a whole half."""
    power = 1.0
    while power * 10 < value:
        power *= 10
    return next(
        power * step for step in (1.2, 1.6, 2, 3, 4, 5, 6, 8, 10) if power * step >= value and power * step % 2 == 0
    )


def _length(start: float, end: float) -> float:
    return max(end - start, 1e-3)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
