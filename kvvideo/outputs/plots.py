"""Pictures of a run as inline SVG that stretches to any width: what is held of the video, and the cache over time.

Nothing in them has a colour of its own: the page's style sheet decides.
"""

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby

from kvvideo.outputs.report import Stretches
from kvvideo.times import format_time

COLUMNS = 800
"""Parts that a whole video is drawn in; finer detail would not show."""

FEW = 24
"""Up to so many points are drawn as dots."""

_LEVELS = 8
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 18000, 36000, 72000, 180000)

Point = tuple[float, float]


def shares(held: Stretches, start: float, end: float, columns: int = COLUMNS) -> list[float]:
    """Return the share that ``held`` covers of each of ``columns`` equal parts of ``start`` to ``end``."""
    covered = [0.0] * columns
    width = _length(start, end) / columns
    for first, last in held:
        left, right = ((min(max(t, start), end) - start) / width for t in (first, last))
        for column in range(int(left), min(int(right) + 1, columns)):
            covered[column] += max(0.0, min(right, column + 1) - max(left, column))
    return [min(share, 1.0) for share in covered]


def bar(held: Stretches, start: float, end: float, at: float, label: str) -> str:
    """Draw the video from ``start`` to ``end`` as a bar: what is held at ``at``, what is not, and what is to come."""
    seen = 100 * (min(max(at, start), end) - start) / _length(start, end) if end > start else 100.0
    parts = [f'<rect class="seen" width="{_number(seen)}%" height="100%"/>']
    levels = [round(share * _LEVELS) or int(share > 0) for share in shares(held, start, end)]
    column = 0
    for level, run in groupby(levels):
        width = len([*run])
        if level:
            x, wide = (_number(100 * count / COLUMNS) for count in (column, width))
            opacity = "" if level == _LEVELS else f' opacity="{_number(0.25 + 0.75 * level / _LEVELS)}"'
            parts.append(f'<rect class="held" x="{x}%" width="{wide}%" height="100%"{opacity}/>')
        column += width
    return f'<svg class="bar" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


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
        drawn.setdefault(round(place * COLUMNS / 4), link)
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
    width = _length(start, end) / COLUMNS * 4
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
