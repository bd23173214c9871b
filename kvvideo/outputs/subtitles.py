"""``srt`` and ``vtt``: each answer below the picture, at its moment of the video, or for the stretch it is about."""

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

Said = tuple[float, str, str] | tuple[float, str, str, float]
"""A moment in seconds, what was asked then, what was answered, and the end of the stretch from there, if it is one."""


@dataclass(frozen=True)
class Cue:
    """One subtitle: when it is shown, in milliseconds, and its lines."""

    start: int
    end: int
    text: str


def cues(all_said: Iterable[Said], end: float | None = None) -> Iterator[Cue]:
    """Yield a subtitle for each answer, in the order of their moments.

    It begins at its moment, or with the stretch that it is about and stays for, and ends before the next one. Those of
    one moment follow each other and share the time. One that would get less than a second gets it nevertheless, and
    what comes later waits for it. What is said at the ``end`` of the video, in seconds, is shown just before, since
    players show nothing afterwards.
    """
    ordered = sorted(all_said, key=_millis)
    moments = [(moment, [_timed(said) for said in same]) for moment, same in groupby(ordered, key=_millis)]
    starts = [moment for moment, _ in moments]
    until: int | None = None
    if end is not None and starts and starts[-1] >= round(end * 1000):
        until, before = starts[-1], starts[-2] if len(starts) > 1 else 0
        starts[-1] = max(until - sum(long for _, long in moments[-1][1]), (before + until) // 2)
    free = 0
    for index, (_, texts) in enumerate(moments):
        free = max(free, starts[index])
        following = starts[index + 1] if index + 1 < len(starts) else until
        shrink = 1.0 if following is None else min(1.0, (following - free) / sum(long for _, long in texts))
        for text, long in texts:
            stop = free + max(int(long * shrink), _LEAST)
            yield Cue(free, stop, text)
            free = stop


def _timed(said: Said) -> tuple[str, int]:
    """Return the text of a subtitle, and for how long it is shown if there is time, in milliseconds."""
    at, asked, answered, *until = said
    text = f"{clean.line(asked)}\n{clean.line(answered) or '(no answer)'}".strip()
    if until and until[0] > at:
        return text, round((until[0] - at) * 1000)
    return text, int(min(max(_SHORTEST, len(text) * _PER_CHARACTER), _LONGEST))


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


def _said(records: Sequence[Record]) -> Iterator[Said]:
    for record in records:
        if record["type"] == "answer":
            # What a task asks is the same all along, and no more than its answer is worth reading.
            asked = "" if record.get("task") else record["question"]
            if (since := record.get("since")) is None:
                yield record["asked_at"], asked, record["answer"]
            else:
                yield since, asked, record["answer"], record["asked_at"]


def _end(records: Sequence[Record]) -> float | None:
    return next((r["end"] for r in records if r["type"] == "done"), None)


def _millis(said: Said) -> int:
    return max(round(said[0] * 1000), 0)


def _time(millis: int, point: str) -> str:
    seconds, millis = divmod(millis, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{millis:03d}"
