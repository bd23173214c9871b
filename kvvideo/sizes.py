"""Sizes of files as people write them: ``500MB``, ``2GB``, ``1.5GiB``; one place parses and prints them."""

import math
import re

from kvvideo.errors import ConfigError

_SIZE = re.compile(r"(?P<count>\d+(?:\.\d+)?)\s*(?P<unit>[kmgt]i?b|b)", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int:
    """Return the bytes of a number with a unit: B, kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (of 1024).

    Raises:
        ConfigError: if ``text`` is not such a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r:.100} is not a size; write a number and its unit, such as 500MB, 2GB or 1GiB")
    unit = match["unit"].lower().removesuffix("b")
    factor: int = (1024 if unit.endswith("i") else 1000) ** _POWERS[unit.removesuffix("i")]
    count = float(match["count"]) * factor
    if not math.isfinite(count):
        raise ConfigError(f"{text!r:.100} is not a size of anything; it is too large")
    return round(count)


def format_size(count: float) -> str:
    """Return bytes as people read them: ``12.3 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
