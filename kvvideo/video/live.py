"""Settings, state and time of videos that come as they happen.

Pure: knows neither FFmpeg nor threads.
"""

import math
from dataclasses import dataclass

from kvvideo.errors import ConfigError

MODES = ("lag", "drop")
BACK_SECONDS = 5.0
"""A packet this long before the one read before it: the source's clock was set back."""
AHEAD_SECONDS = 60.0
"""A packet this much further ahead than the time that was waited for it: the clock was set forward."""


@dataclass(frozen=True)
class Live:
    """Settings of a live source.

    Attributes:
        retry_seconds: how long a source that stalls or breaks off is waited for and tried again, from its last
            packet on, before it is given up; 0 gives up when it breaks off. For a growing file: how long
            it may not grow before it counts as complete.
        when_behind: what happens when chunks are not taken as fast as they come. ``lag``: all are kept in
            order, and the delay grows. ``drop``: the oldest are dropped, so that what comes is recent.
        follow: True if a file is still being written: then reading goes on at its end.
    """

    retry_seconds: float = 30.0
    when_behind: str = "lag"
    follow: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.retry_seconds) and self.retry_seconds >= 0):
            raise ConfigError(f"retry_seconds {self.retry_seconds:g} is not possible; it must be 0 or more")
        if self.when_behind not in MODES:
            raise ConfigError(f"when_behind {self.when_behind!r} is not possible; use {' or '.join(MODES)}")


@dataclass(frozen=True)
class LiveStatus:
    """State of a live source.

    Attributes:
        behind: seconds of video that have arrived and were not taken.
        dropped: seconds of video dropped so far.
        reconnects: how often the source came back after it had broken off.
        message: the latest about the connection, for people; empty if there was none.
    """

    behind: float = 0.0
    dropped: float = 0.0
    reconnects: int = 0
    message: str = ""


class Clock:
    """One line of time for a source that may break off: seconds since its first frame.

    The source's own times count as long as they are sane. Where they are not - after a reconnect, or when they
    jump - time goes on from the newest frame by as long as nothing came; it is never set back.

    Args:
        ahead: seconds that a packet may be further ahead than the time that was waited for it.

    Attributes:
        newest: when the newest frame is shown, in seconds.
        begun: True if there was one.
    """

    def __init__(self, ahead: float = AHEAD_SECONDS) -> None:
        self.newest = 0.0
        self._ahead = ahead
        self._shift: float | None = None  # None: the source's times mean nothing yet
        self._at = -math.inf  # when the packet before was decoded, by the source's clock
        self.begun = False

    def reconnect(self, at: float, repeats: float) -> None:
        """Take note that the source is back, with a packet decoded ``at``, and may repeat up to ``repeats`` seconds.

        Only a source that may repeat itself, and is within reach of where it was, is trusted to have its old clock.
        """
        if not repeats or not self._at - repeats <= at <= self._at + self._ahead:
            self._shift, self._at = None, -math.inf

    def is_repeated(self, at: float) -> bool:
        """Return True if a packet decoded ``at``, after a reconnect, was there before."""
        return at <= self._at

    def shift(self, at: float, shown: float, span: float, waited: float) -> tuple[float, tuple[float, float] | None]:
        """Return what to add to the times of a packet, and the gap before it, ``(begin, end)``, if there is one.

        Args:
            at: when it is decoded, by the source's clock; grows from packet to packet.
            shown: when it is shown, by the same clock.
            span: how long one frame lasts.
            waited: seconds that passed while nothing came.
        """
        gap = None
        if self._shift is None or not -BACK_SECONDS <= at - self._at <= waited + self._ahead:
            begin = self.newest + max(span, waited) if self.begun else 0.0
            gap = (self.newest, begin) if self.begun else None
            self._shift = begin - shown
        self._at, self.begun = at, True
        self.newest = max(self.newest, shown + self._shift)
        return self._shift, gap
