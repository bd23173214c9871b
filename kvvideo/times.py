"""Times as people write them: ``90``, ``1:30``, ``1:02:03.5``, ``1h2m``; one place parses and prints them."""

import re

from kvvideo.errors import ConfigError

LATEST = 1e11
"""Times are below this many seconds, more than since any epoch."""

_CLOCK = re.compile(r"(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d{1,2}(?:\.\d+)?)", re.ASCII)
_UNITS = re.compile(r"(?=.)(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+(?:\.\d+)?)(?(h)s|(?(m)s|s?)))?", re.ASCII)


def parse_time(text: str) -> float:
    """Return the seconds of ``S``, ``M:SS`` or ``H:MM:SS``, each with an optional fraction; or of ``2m``, ``1h2m3s``.

    Raises:
        ConfigError: if ``text`` is not such a time.
    """
    match = _CLOCK.fullmatch(text.strip()) or _UNITS.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r:.100} is not a time; write seconds (90, 2.5), a clock (1:30, 1:02:03) or 1h2m3s")
    hours, minutes, seconds = (float(match[unit] or 0) for unit in "hms")
    # Only what comes first may be more than the next larger one has room for.
    if (seconds >= 60 and (match["m"] or match["h"])) or (minutes >= 60 and match["h"]):
        raise ConfigError(f"{text!r:.100} is not a time; minutes and seconds go up to 59")
    time = hours * 3600 + minutes * 60 + seconds
    if not is_time(time):
        raise ConfigError(f"{text!r:.100} is not a time of any video; it is too late")
    return time


def format_time(seconds: float) -> str:
    """Return ``M:SS`` below an hour, else ``H:MM:SS``, with a fraction only where there is one.

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
    """Return True if ``value`` is a number of seconds from 0 to ``LATEST``."""
    return 0 <= value < LATEST
