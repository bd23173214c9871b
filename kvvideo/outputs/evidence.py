"""Stretches of video that were shown once more for an answer, as people read them."""

from collections.abc import Iterable

from kvvideo.outputs.writer import Record
from kvvideo.times import format_time

Stretch = tuple[float, float]
"""Start and end, in seconds of the source."""


def joined(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Return ``stretches`` in order of time, neighbours that touch or overlap as one."""
    found: list[Stretch] = []
    for start, end in sorted(stretches):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def shown_again(record: Record) -> list[Stretch]:
    """Return the stretches that the answer of ``record`` looked at again; none if it looked at nothing."""
    return [(hit["start"], hit["end"]) for hit in record.get("looked_at", ())]


def clock(stretch: Stretch) -> str:
    """Return a stretch as ``0:12–0:16``."""
    return "–".join(map(format_time, stretch))


def words(stretches: Iterable[Stretch]) -> str:
    """Return ``looked again at 0:12–0:16, 1:40–1:44``; empty if there are none."""
    found = ", ".join(map(clock, joined(stretches)))
    return f"looked again at {found}" if found else ""


def looked_again(record: Record) -> str:
    """Return a word about what the answer of ``record`` looked at again; empty if it looked at nothing."""
    return words(shown_again(record))
