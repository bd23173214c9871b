"""What was said about a video, told to the model again or written to a file."""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from kvvideo.errors import ConfigError
from kvvideo.prompt import Turn, dialogue_text
from kvvideo.records import SCHEMA
from kvvideo.times import format_time

KINDS = ("md", "json", "srt")
"""What a dialogue can be exported as."""

# How long a subtitle stays, in milliseconds; at 15 characters a second it can be read.
_SHORTEST, _LONGEST, _PER_CHARACTER = 3000, 7000, 1000 / 15
# What it gets where others leave it no room.
_LEAST = 1000

# No "-->", and nothing that players take for markup.
_SRT_SAFE = str.maketrans({"<": "‹", ">": "›", "{": "(", "}": ")"})


@dataclass(frozen=True)
class Said:
    """One question and its answer.

    Attributes:
        at: moment of the video it was asked at, in seconds.
        question: in words.
        answer: in words; empty if there was none.
        since: how the moment was reached, in words; empty if the video stood there.
        seconds: from asking to the last token.
        remembered: whether it became part of what the model has seen.
    """

    at: float
    question: str
    answer: str
    since: str = ""
    seconds: float = 0.0
    remembered: bool = False


class Dialogue:
    """What was said, in the order it was said.

    Attributes:
        said: all of it.
    """

    def __init__(self) -> None:
        self.said: list[Said] = []

    def add(self, said: Said) -> None:
        """Note what was said last."""
        self.said.append(said)

    def undo(self) -> Said:
        """Take back what was said last.

        Raises:
            ConfigError: if nothing was.
        """
        if not self.said:
            raise ConfigError("nothing was said that could be taken back")
        return self.said.pop()

    def recall(self, turn: Turn, at: float) -> int:
        """Note that the stream has ``turn``, remembered ``at`` seconds, in it; returns which of ``said`` that is."""
        for index, said in enumerate(self.said):
            if (said.question, said.answer) == turn and not said.remembered:
                self.said[index] = replace(said, remembered=True)
                return index
        self.said.append(Said(at, *turn, remembered=True))
        return len(self.said) - 1

    def forget(self, gone: Collection[Said]) -> None:
        """Note that the stream has none of ``gone`` in it any more."""
        self.said = [replace(s, remembered=False) if any(s is one for one in gone) else s for s in self.said]

    def turns(self, limit: int, cost: Callable[[str], int] = len, without: Collection[Said] = ()) -> list[Turn]:
        """The latest exchanges to tell the model again, in order: as many as cost no more than ``limit`` together.

        Args:
            limit: largest sum of costs.
            cost: of the text that the model gets for an exchange: its characters, or its tokens.
            without: those that are not told: what the model has seen as part of the stream.
        """
        turns: list[Turn] = []
        for said in reversed(self.said):
            if any(said is one for one in without):
                continue
            turn = (said.question, said.answer)
            limit -= cost(dialogue_text([turn]))
            if limit < 0:
                break
            turns.append(turn)
        return turns[::-1]

    def export(self, kind: str, title: str) -> str:
        """The dialogue as a file has it.

        Args:
            kind: ``md``, ``json`` (a list of records, see ``docs/records.md``) or ``srt`` (subtitles).
            title: what it is about; the heading in ``md``.

        Raises:
            ConfigError: if there is no such kind.
        """
        match kind:
            case "md":
                return self._markdown(title)
            case "json":
                return json.dumps([_record(said) for said in self.said], indent=2) + "\n"
            case "srt":
                return "".join(_cues(self.said))
        raise ConfigError(f"export: no {kind!r}; choose one of {', '.join(KINDS)}")

    def _markdown(self, title: str) -> str:
        parts = [f"# {_line(title)}\n"]
        for said in self.said:
            answer = "\n".join(f"> {line}".rstrip() for line in _lines(said.answer)) or "> (no answer)"
            parts.append(f"## {format_time(said.at)} {_line(said.question)}\n\n{answer}\n")
        return "\n".join(parts)


def _record(said: Said) -> dict[str, object]:
    return {
        "type": "answer",
        "schema": SCHEMA,
        "asked_at": round(said.at, 3),
        "question": said.question,
        "answer": said.answer,
        "remembered": said.remembered,
        "seconds": round(said.seconds, 4),
    }


def _cues(all_said: list[Said]) -> Iterator[str]:
    """A subtitle for each exchange, in the order of their moments.

    It begins at its moment and ends before the next one. Those of one moment follow each other and share the time.
    One that would get less than a second gets it nevertheless, and what comes later waits for it.
    """
    ordered = sorted(all_said, key=_millis)
    moments = [(moment, [*same]) for moment, same in groupby(ordered, key=_millis)]
    number, free = 1, 0
    for index, (moment, same) in enumerate(moments):
        texts = [f"{_line(said.question)}\n{_line(said.answer) or '(no answer)'}".strip() for said in same]
        texts = [text.translate(_SRT_SAFE) for text in texts]
        lasting = [min(max(_SHORTEST, int(len(text) * _PER_CHARACTER)), _LONGEST) for text in texts]
        free = max(free, moment)
        room = moments[index + 1][0] - free if index + 1 < len(moments) else sum(lasting)
        shrink = min(1.0, room / sum(lasting))
        for text, natural in zip(texts, lasting, strict=True):
            end = free + max(int(natural * shrink), _LEAST)
            yield f"{number}\n{_srt_time(free)} --> {_srt_time(end)}\n{text}\n\n"
            number, free = number + 1, end


def _millis(said: Said) -> int:
    return max(round(said.at * 1000), 0)


def _srt_time(millis: int) -> str:
    seconds, millis = divmod(millis, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d},{millis:03d}"


def _line(text: str) -> str:
    """``text`` as one line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _lines(text: str) -> list[str]:
    """The lines of ``text`` without control characters, none of them empty at the beginning or the end."""
    return ["".join(c if c.isprintable() else " " for c in line) for line in text.strip().splitlines()]
