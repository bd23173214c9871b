"""The questions and answers about a video, told to the model again or written to a file."""

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kvvideo.errors import ConfigError
from kvvideo.outputs import clean
from kvvideo.outputs.evidence import words
from kvvideo.outputs.subtitles import as_srt, cues
from kvvideo.prompt import Turn, dialogue_text
from kvvideo.runs.records import SCHEMA, looked_at, system
from kvvideo.times import format_time
from kvvideo.types import Hit

if TYPE_CHECKING:
    from kvvideo.runs.events import Event

KINDS = ("md", "json", "srt")
"""Formats that a dialogue can be exported in."""


@dataclass(frozen=True)
class Said:
    """One question and its answer.

    Attributes:
        at: moment of the video it was asked at, in seconds.
        question: in words.
        answer: in words; empty if there was none.
        since: the way to the moment, in words; empty if the video stood there.
        seconds: from asking to the last token.
        remembered: it became part of what the model has seen.
        looked_at: stretches that were shown once more for it.
        system: what the model was told before it.
    """

    at: float
    question: str
    answer: str
    since: str = ""
    seconds: float = 0.0
    remembered: bool = False
    looked_at: tuple[Hit, ...] = ()
    system: str = ""

    @property
    def again(self) -> str:
        """Words about what was shown once more; empty if nothing was."""
        return words((hit.start, hit.end) for hit in self.looked_at)


@dataclass(frozen=True)
class Happened:
    """An event of the playback as the dialogue has it: ``said`` was remembered; if that is empty, a switch.

    ``after`` is how many exchanges had been said then.
    """

    said: tuple[Said, ...]
    after: int


class Dialogue:
    """Everything that was said, in order, and which of it the stream has in it.

    Attributes:
        said: all exchanges.
        events: what was remembered or switched; as many as the playback has events.
    """

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.events: list[Happened] = []

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

    def note_event(self, *said: Said) -> None:
        """Note that ``said`` was remembered; without any, that another strategy was switched to."""
        self.events.append(Happened(said, len(self.said)))

    def keep_events(self, kept: int) -> None:
        """Note that events after the first ``kept`` have not happened."""
        self.forget(self.remembered(since=kept))
        self.events = self.events[:kept]

    def adopt(self, events: "Iterable[Event]") -> None:
        """Note that ``events``, those of a memory, have happened, and no others."""
        self.keep_events(0)
        after = 0
        for event in events:
            which = [self.recall(turn, event.end) for turn in event.turns]
            after = max([after, *(index + 1 for index in which)])
            self.events.append(Happened(tuple(self.said[index] for index in which), after))

    def remembered(self, until: int | None = None, since: int = 0) -> list[Said]:
        """Return what was remembered in the events ``since`` to ``until``."""
        return [said for happened in self.events[since:until] for said in happened.said]

    def turns(self, limit: int, cost: Callable[[str], int] = len, without: Collection[Said] = ()) -> list[Turn]:
        """Return the latest exchanges to tell the model again, in order: as many as cost ``limit`` together at most.

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
        """Return the dialogue as a file has it.

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
                return as_srt(cues((said.at, said.question, said.answer) for said in self.said))
        raise ConfigError(f"export: no {kind!r}; choose one of {', '.join(KINDS)}")

    def _markdown(self, title: str) -> str:
        parts = [f"# {clean.line(title)}\n"]
        for said in self.said:
            answer = "\n".join(f"> {line}".rstrip() for line in clean.lines(said.answer)) or "> (no answer)"
            again = f"\n({said.again})\n" if said.looked_at else ""
            parts.append(f"## {format_time(said.at)} {clean.line(said.question)}\n\n{answer}\n{again}")
        return "\n".join(parts)


def _record(said: Said) -> dict[str, object]:
    record = {
        "type": "answer",
        "schema": SCHEMA,
        "asked_at": round(said.at, 3),
        "question": said.question,
        "answer": said.answer,
        "remembered": said.remembered,
        "seconds": round(said.seconds, 4),
    }
    return record | system(said.system) | looked_at(said.looked_at)
