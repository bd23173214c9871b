"""``srt`` and ``vtt``: each answer below the picture, at its moment of the video."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from kvvideo.outputs import clean
from kvvideo.outputs.writer import Record

# How long a subtitle stays, in milliseconds; at 15 characters a second it can be read.
_SHORTEST, _LONGEST, _PER_CHARACTER = 3000, 7000, 1000 / 15
# What it gets where others leave it no room.
_LEAST = 1000

# No "-->", and nothing that players take for markup.
_SRT_SAFE = str.maketrans({"<": "‹", ">": "›", "{": "(", "}": ")"})
_VTT_SAFE = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})

Said = tuple[float, str, str]
"""A moment in seconds, what was asked then, and what was answered."""


@dataclass(frozen=True)
class Cue:
    """One subtitle: when it is shown, in milliseconds, and its lines."""

    start: int
    end: int
    text: str


def cues(all_said: Iterable[Said]) -> Iterator[Cue]:
    """A subtitle for each answer, in the order of their moments.

    It begins at its moment and ends before the next one. Those of one moment follow each other and share the time.
    One that would get less than a second gets it nevertheless, and what comes later waits for it.
    """
    ordered = sorted(all_said, key=_millis)
    moments = [(moment, [*same]) for moment, same in groupby(ordered, key=_millis)]
    free = 0
    for index, (moment, same) in enumerate(moments):
        texts = [f"{clean.line(asked)}\n{clean.line(answered) or '(no answer)'}".strip() for _, asked, answered in same]
        lasting = [min(max(_SHORTEST, int(len(text) * _PER_CHARACTER)), _LONGEST) for text in texts]
        free = max(free, moment)
        room = moments[index + 1][0] - free if index + 1 < len(moments) else sum(lasting)
        shrink = min(1.0, room / sum(lasting))
        for text, natural in zip(texts, lasting, strict=True):
            end = free + max(int(natural * shrink), _LEAST)
            yield Cue(free, end, text)
            free = end


def as_srt(all_cues: Iterable[Cue]) -> str:
    """SubRip."""
    return "".join(
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{cue.text.translate(_SRT_SAFE)}\n\n"
        for number, cue in enumerate(all_cues, 1)
    )


def as_vtt(all_cues: Iterable[Cue]) -> str:
    """WebVTT."""
    return "WEBVTT\n\n" + "".join(
        f"{number}\n{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{cue.text.translate(_VTT_SAFE)}\n\n"
        for number, cue in enumerate(all_cues, 1)
    )


def srt(records: Sequence[Record]) -> str:
    """The answers among ``records`` as SubRip."""
    return as_srt(cues(_said(records)))


def vtt(records: Sequence[Record]) -> str:
    """The answers among ``records`` as WebVTT."""
    return as_vtt(cues(_said(records)))


def _said(records: Sequence[Record]) -> list[Said]:
    return [(r["asked_at"], r["question"], r["answer"]) for r in records if r["type"] == "answer"]


def _millis(said: Said) -> int:
    return max(round(said[0] * 1000), 0)


def _time(millis: int, point: str) -> str:
    seconds, millis = divmod(millis, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{millis:03d}"
