"""Times as people write them: ``90``, ``1:30``, ``1:02:03.5``; one place parses and prints them."""

import re

from kvvideo.errors import ConfigError

LATEST = 1e11
"""Times are below this many seconds, more than since any epoch."""

_CLOCK = re.compile(r"(?:(?:(?P<h>\d+):)?(?P<m>\d{1,2}):(?P<s>\d{1,2}(?:\.\d+)?)|(?P<only>\d+(?:\.\d+)?)s?)", re.ASCII)


def parse_time(text: str) -> float:
    """Seconds from ``S``, ``M:SS`` or ``H:MM:SS``, each with an optional fraction.

    Raises:
        ConfigError: if ``text`` is not such a time.
    """
    match = _CLOCK.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r:.100} is not a time; write seconds (90, 2.5) or a clock (1:30, 1:02:03)")
    hours, minutes, seconds = float(match["h"] or 0), int(match["m"] or 0), float(match["s"] or match["only"])
    if not match["only"] and (seconds >= 60 or (match["h"] and minutes >= 60)):
        raise ConfigError(f"{text!r:.100} is not a time; minutes and seconds go up to 59")
    time = hours * 3600 + minutes * 60 + seconds
    if not is_time(time):
        raise ConfigError(f"{text!r:.100} is not a time of any video; it is too late")
    return time


def format_time(seconds: float) -> str:
    """``M:SS`` below an hour, ``H:MM:SS`` from there, with a fraction only where there is one.

    Times are rounded to milliseconds, so that binary fractions never show.
    """
    millis = round(seconds * 1000)
    whole, fraction = divmod(abs(millis), 1000)
    minutes, secs = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
    if fraction:
        text += f".{fraction:03d}".rstrip("0")
    return "-" + text if millis < 0 else text


def is_time(value: float) -> bool:
    """Whether ``value`` is a number of seconds from 0 to ``LATEST``."""
    return 0 <= value < LATEST
