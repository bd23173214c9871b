"""The line of a stream's position: where it is, a bar, the share that is done, the time that is left."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from rich.cells import cell_len
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.text import Text

from kvvideo.times import format_time

GAP = "  "
_PACE_SECONDS = 2.0
"""Seconds that a stream must have gone on before its pace says anything."""
_BEYOND_SECONDS = 10.0
"""Seconds that the last frame may reach beyond the end of a video."""
_BAR_COLUMNS, _LEAST_BAR_COLUMNS = 20, 4

_console = Console(stderr=True, highlight=False)


class Rest:
    """The time that the rest of a stream takes, at its pace since this was made."""

    def __init__(self) -> None:
        self._since: tuple[float, float] | None = None
        self._at = 0.0

    def seconds(self, at: float, end: float | None) -> float | None:
        """Return it for a stream that is ``at`` seconds now and ends at ``end``; None if that is not known."""
        now = time.monotonic()
        if self._since is None or at < self._at:
            self._since = at, now  # it begins anew, under another strategy
        (since, began), self._at = self._since, at
        if end is None or now - began < _PACE_SECONDS or at <= since:
            return None
        return max(end - at, 0.0) * (now - began) / (at - since)


@dataclass(frozen=True)
class Line:
    """The line of a stream's position.

    Attributes:
        start, at, end: in seconds; ``end`` is None if nobody knows it.
        left: seconds that the rest will take; None if that is not known.
        details: texts after that, of which the first that fit are shown.
    """

    start: float
    at: float
    end: float | None
    left: float | None
    details: Sequence[str] = ()

    @classmethod
    def of(cls, start: float, at: float, end: float | None, left: float | None, details: Sequence[str] = ()) -> Self:
        """Return the line of a stream whose video says that it ends at ``end``."""
        # The last frame stands for a while after the end; but some files go on after the end that they give.
        known = end if end is not None and start < end and at <= end + _BEYOND_SECONDS else None
        return cls(start, at if known is None else min(at, known), known, left, details)

    @property
    def share(self) -> float | None:
        """Share of the part that is read; None if nobody knows its end."""
        return None if self.end is None else min(max((self.at - self.start) / (self.end - self.start), 0.0), 1.0)

    @property
    def record(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "start": self.start,
            "position": self.at,
            "end": self.end,
            "share": None if self.share is None else round(self.share, 4),
            "left_seconds": None if self.left is None else round(self.left, 1),
        }

    def drawn(self, width: int | None) -> Text:
        """Return the line for so many columns, or without a bar and as long as it is."""
        at, share = format_time(math.floor(self.at)), self.share
        line = Text(at, "bold")
        left = "" if self.left is None else f"{format_time(round(self.left))} left"
        if self.end is not None and share is not None:
            percent, total = f"{math.floor(share * 100 + 1e-6):4d}%", f" / {format_time(math.floor(self.end))}"
            needed = cell_len(at + percent) + (len(GAP + left) if left else 0)
            # Time left is worth more than the end, which goes first where there is no room for both.
            if width is None or width - needed - len(total) >= _LEAST_BAR_COLUMNS + 1:
                line.append(total)
                needed += len(total)
            if width is not None and width - needed > _LEAST_BAR_COLUMNS:
                line.append(" ").append_text(_bar(share, min(_BAR_COLUMNS, width - needed - 1)))
            if width is None or width >= line.cell_len + len(percent):
                line.append(percent)
        for text in filter(None, (left, *self.details)):
            if width is not None and line.cell_len + len(GAP) + cell_len(text) > width:
                break
            line.append(f"{GAP}{text}")
        return line


def _bar(share: float, columns: int) -> Text:
    """Return a bar of so many columns, filled to ``share``."""
    drawn = ProgressBar(1.0, share, width=columns, style="bright_black", complete_style="cyan", finished_style="cyan")
    bar = Text()
    for part in _console.render(drawn, _console.options):
        bar.append(part.text.strip("\n"), part.style)
    bar.pad_right(columns - bar.cell_len)  # without colours, what is to come is not drawn
    return bar
