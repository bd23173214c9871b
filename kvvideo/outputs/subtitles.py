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


def cues(all_said: Iterable[Said], end: float | None = None) -> Iterator[Cue]:
    """Yield a subtitle for each answer, in the order of their moments.

    It begins at its moment and ends before the next one. Those of one moment follow each other and share the time.
    One that would get less than a second gets it nevertheless, and what comes later waits for it. What is said at the
    ``end`` of the video, in seconds, is shown just before, since players show nothing afterwards.
    """
    ordered = sorted(all_said, key=_millis)
    moments = [(moment, _texts(same)) for moment, same in groupby(ordered, key=_millis)]
    starts = [moment for moment, _ in moments]
    until: int | None = None
    if end is not None and starts and starts[-1] >= round(end * 1000):
        until, before = starts[-1], starts[-2] if len(starts) > 1 else 0
        starts[-1] = max(until - sum(map(_lasting, moments[-1][1])), (before + until) // 2)
    free = 0
    for index, (_, texts) in enumerate(moments):
        natural = [_lasting(text) for text in texts]
        free = max(free, starts[index])
        following = starts[index + 1] if index + 1 < len(starts) else until
        shrink = 1.0 if following is None else min(1.0, (following - free) / sum(natural))
        for text, long in zip(texts, natural, strict=True):
            stop = free + max(int(long * shrink), _LEAST)
            yield Cue(free, stop, text)
            free = stop


def _texts(same: Iterable[Said]) -> list[str]:
    return [f"{clean.line(asked)}\n{clean.line(answered) or '(no answer)'}".strip() for _, asked, answered in same]


def _lasting(text: str) -> int:
    return int(min(max(_SHORTEST, len(text) * _PER_CHARACTER), _LONGEST))


def as_srt(all_cues: Iterable[Cue]) -> str:
    """Return SubRip."""
    return "".join(
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{cue.text.translate(_SRT_SAFE)}\n\n"
        for number, cue in enumerate(all_cues, 1)
    )


def as_vtt(all_cues: Iterable[Cue]) -> str:
    """Return WebVTT."""
    return "WEBVTT\n\n" + "".join(
        f"{number}\n{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{cue.text.translate(_VTT_SAFE)}\n\n"
        for number, cue in enumerate(all_cues, 1)
    )


def srt(records: Sequence[Record]) -> str:
    """Return the answers among ``records`` as SubRip."""
    return as_srt(cues(_said(records), _end(records)))


def vtt(records: Sequence[Record]) -> str:
    """Return the answers among ``records`` as WebVTT."""
    return as_vtt(cues(_said(records), _end(records)))


def _said(records: Sequence[Record]) -> list[Said]:
    # What a task asks is the same all along, and no more than its answer is worth reading.
    return [
        (r["asked_at"], "" if r.get("task") else r["question"], r["answer"]) for r in records if r["type"] == "answer"
    ]


def _end(records: Sequence[Record]) -> float | None:
    return next((r["end"] for r in records if r["type"] == "done"), None)


def _millis(said: Said) -> int:
    return max(round(said[0] * 1000), 0)


def _time(millis: int, point: str) -> str:
    seconds, millis = divmod(millis, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{millis:03d}"
