"""The words of a video in the order in which they are said: free of markup, each once, and shared out to its chunks."""

import hashlib
import html
import json
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from kvvideo.errors import ConfigError, VideoError
from kvvideo.prompt import well_formed
from kvvideo.types import Chunk

SLACK = 0.05
"""Seconds between two captions that follow each other at once: a frame, and what rounding adds."""

MOST_BYTES = 8 << 20
"""Bytes of JSON of all cues at most, three times those of a day of speech: the head of a memory has room for them."""
_AT_ONCE = 8
"""Captions shown at once that are compared with a new one."""

# Whatever a file holds, each takes time in proportion to it.
_DRAWING = re.compile(r"\{[^{}]*\\p[1-9][^{}]*\}.*?(?:\{[^{}]*\\p0[^{}]*\}|$)", re.DOTALL)
_OVERRIDE = re.compile(r"\{[^{}]*\}")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
LIT = re.compile(r"<\d+:[\d:.]+>")
"""Times of WebVTT at which a word lights up."""
_BREAKS = re.compile(r"\\[Nn]|\n")
# Joiners shape letters and faces; all else that cannot be seen is no word.
_JOINERS = ("\u200c", "\u200d")


class Caption(NamedTuple):
    """A caption as a file has it: when it is shown, in seconds of the source, and its text, markup included."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Subtitles:
    """Words spoken in a video.

    Attributes:
        name: what it was read from, for messages and records.
        cues: moments in seconds of the source, never decreasing, each with the words that begin there.
    """

    name: str
    cues: tuple[tuple[float, str], ...]

    @classmethod
    def of(cls, name: str, captions: Iterable[Caption]) -> Self:
        """Return what ``captions`` say; what begins before the source does is said at its beginning.

        Raises:
            VideoError: if that is more than anybody says in a day.
        """
        found = cls(name, tuple((max(start, 0.0), words) for start, words in said(captions)))
        if len(json.dumps(found.as_dict())) > MOST_BYTES:
            raise VideoError(f"{name!r} holds more words than days of speech; name a file of subtitles")
        return found

    def given(self, chunk: Chunk) -> Chunk:
        """Return ``chunk`` with the words that begin in it."""
        parts, marks, length = list[str](), list[tuple[float, int]](), 0
        for at, words in self.between(chunk.start, chunk.end):
            length += len(words) + bool(parts)
            parts.append(words)
            marks.append((at, length))
        return replace(chunk, words=" ".join(parts), said=tuple(marks)) if parts else chunk

    def between(self, start: float, end: float) -> tuple[tuple[float, str], ...]:
        """Return the cues that begin from ``start`` on and before ``end``, in seconds."""
        first, after = (bisect_left(self.cues, time, key=lambda cue: cue[0]) for time in (start, end))
        return self.cues[first:after]

    @property
    def digest(self) -> str:
        """Digest of all that is said, and when."""
        return hashlib.sha256(json.dumps(self.cues).encode()).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"name": self.name, "cues": [[at, words] for at, words in self.cues]}

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Return what ``as_dict`` gave ``data`` for.

        Raises:
            ConfigError: if it cannot have.
        """
        name, cues = (data.get("name"), data.get("cues")) if isinstance(data, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(cues, list) or not all(map(_is_cue, cues)):
            raise ConfigError(f"{data!s:.100} does not describe subtitles")
        return cls(name, tuple(sorted((float(at), words) for at, words in cues)))


def said(captions: Iterable[Caption]) -> Iterator[tuple[float, str]]:
    """Yield the words of ``captions`` at the moments at which they are first shown, in order.

    Lines that stay while others come in below them, as live captions roll, are said once; and so is a line that grows
    word by word.
    """
    shown: list[tuple[float, list[str]]] = []
    for start, end, text in sorted(captions, key=lambda caption: caption.start):
        lines = lines_of(text)
        if not lines:
            continue
        shown = [one for one in shown if one[0] >= start - SLACK][-_AT_ONCE:]
        new = min((_after(before, lines) for _, before in shown), key=len, default=" ".join(lines))
        shown.append((end, lines))
        if new:
            yield start, new


def lines_of(text: str) -> list[str]:
    """Return the lines of a caption without markup of SubRip, WebVTT or ASS; marks of sounds and music stay."""
    text = _OVERRIDE.sub("", _DRAWING.sub("", text)).replace(r"\h", " ")
    text = html.unescape(_TAG.sub("", LIT.sub("", text)))
    lines = (" ".join(_visible(line).split()) for line in _BREAKS.split(well_formed(text)))
    return [line for line in lines if line]


def _visible(text: str) -> str:
    """Return ``text`` without characters that only control what is around them."""
    return "".join(
        " " if unicodedata.category(c) == "Cc" else c for c in text if unicodedata.category(c) != "Cf" or c in _JOINERS
    )


def _after(before: list[str], lines: list[str]) -> str:
    """Return what ``lines`` add to the last lines of ``before``, if they begin with those; else all of them."""
    text = " ".join(lines)
    for first in range(len(before)):
        known = " ".join(before[first:])
        # That one word comes again, as "No" in "No way", says little.
        grows = text.startswith(f"{known} ") and (" " in known or before[first:] == lines[: len(before) - first])
        if text == known or grows:
            return text[len(known) :].lstrip()
    return text


def _is_cue(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], int | float)
        and not isinstance(value[0], bool)
        and 0 <= value[0] < 2**53
        and isinstance(value[1], str)
    )
