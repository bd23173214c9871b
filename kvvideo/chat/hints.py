"""A word of warning when people talk about a moment of which hardly anything is held."""

import re
from collections.abc import Iterable, Sequence

from kvvideo.session import Span
from kvvideo.times import format_time

# How far around a moment, in seconds, it is looked what is held.
_AROUND = 2.0

# Hours and minutes are optional; two-digit seconds tell a clock from a ratio (16:9). Not the clock on a wall, and
# not a ratio such as 16:10 that is called one. ASCII, so that words of other scripts may stand close by.
_CLOCK = re.compile(
    r"(?<!\w)(?<!\d[.,:])(?:(?P<h>\d{1,2}):(?=\d\d:))?(?P<m>\d{1,2}):(?P<s>[0-5]\d(?:\.\d+)?)(?!\w|:\d)"
    r"(?!\s?[ap]\.?m\b)(?![\s-]?(?:aspect|ratio)\b)",
    re.ASCII | re.IGNORECASE,
)
_NUMBER = r"(?P<n{0}>\d{{1,5}}(?:\.\d+)?)"
_SECONDS = r"(?:s|secs?|seconds?)\b"
_UNIT = r"(?P<u{0}>s|secs?|seconds?|mins?|minutes?)\b"
# "at 90 s", "at about 2 minutes and 5 seconds", "the 90 second mark", "minute 8"; a bare "90 seconds" is a duration.
_WORDS = re.compile(
    rf"\bat\s+(?:about\s+|around\s+)?{_NUMBER.format(1)}\s?{_UNIT.format(1)}"
    rf"(?:\s+(?:and\s+)?(?P<more>\d{{1,2}})\s?{_SECONDS})?"
    rf"|(?<![\w.:]){_NUMBER.format(2)}[\s-]?{_UNIT.format(2)}\s+mark\b"
    rf"|(?<!per )(?<!each )(?<!every )\b(?P<u3>minute)\s+{_NUMBER.format(3)}(?![\w:])",
    re.ASCII | re.IGNORECASE,
)


def times_in(text: str) -> list[float]:
    """Return the moments of the video, in seconds, that ``text`` mentions, each once, in the order of the text.

    These are clock times with two digits of seconds (8:00, 1:02:03), and phrases such as "at 90 s", "the 2-minute
    mark" and "minute 8". A ratio (16:9), a time of day (8:00 pm) and a duration (90 seconds) are none.
    """
    found: list[tuple[int, float]] = []
    for match in _CLOCK.finditer(text):
        hours, minutes = int(match["h"] or 0), int(match["m"])
        if not (match["h"] and minutes >= 60):
            found.append((match.start(), hours * 3600 + minutes * 60 + float(match["s"])))
    for match in _WORDS.finditer(text):
        number = match["n1"] or match["n2"] or match["n3"]
        unit = match["u1"] or match["u2"] or match["u3"]
        time = float(number) * (60 if unit.lower().startswith("m") else 1) + float(match["more"] or 0)
        found.append((match.start(), time))
    return list(dict.fromkeys(time for _, time in sorted(found)))


def little_held(texts: Iterable[str], spans: Sequence[Span], end: float, threshold: float = 0.1) -> str | None:
    """Return a hint on the first moment in ``texts`` that was seen and is hardly held; None if there is none.

    Args:
        texts: a question and its answer.
        spans: the share held of each stretch of the video.
        end: moments after it, in seconds, are none.
        threshold: least share held of the seconds around a moment that calls for no hint.
    """
    seen = max((span.end for span in spans), default=0.0)
    for time in (time for text in texts for time in times_in(text)):
        share = _share_around(time, spans) if time <= min(end, seen) else None
        if share is not None and share < threshold:
            clock = format_time(time)
            percent = "nothing" if share <= 0 else "less than 1 %" if share < 0.01 else f"only {share * 100:.0f} %"
            return f"{percent} of {clock} is still held; '/at {clock} …' asks with all that was seen by then"
    return None


def _share_around(time: float, spans: Sequence[Span]) -> float | None:
    """Return the share held of the seconds around ``time``; None if none of them was seen."""
    covered = held = 0.0
    for span in spans:
        overlap = min(span.end, time + _AROUND) - max(span.start, time - _AROUND)
        if overlap > 0:
            covered += overlap
            held += overlap * span.share
    return held / covered if covered else None
