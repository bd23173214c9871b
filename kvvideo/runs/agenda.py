"""The agenda: questions in the order of their moments, of which some repeat and some wait for the end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvvideo import prompt
from kvvideo.errors import ConfigError
from kvvideo.prompt import well_formed
from kvvideo.times import format_time, is_time, parse_time

SHORTEST_EVERY = 0.01
"""Seconds between two times that a question is asked at, at least: each is a moment to keep in mind."""


@dataclass(frozen=True)
class Question:
    """A question and the moment of the source, in seconds, it is asked at; None for the end.

    Attributes:
        text: its words.
        at: its moment.
        task: the one of ``TASKS`` that asks it, if one does.
        since: start, in seconds, of the stretch it is about, which ends at its moment; None if it is about none.
        system: what the model is told before it; empty for nothing.
    """

    text: str
    at: float | None = None
    task: str | None = None
    since: float | None = None
    system: str = ""

    @property
    def prompt(self) -> str:
        """The text that the model is given."""
        return prompt.system_text(self.system) + prompt.question_text(self.text)

    @classmethod
    def of(cls, text: str, at: float | None) -> "Question":
        """Return the question with the words of ``text``, asked ``at`` seconds; None for the end."""
        return cls(well_formed(text).strip(), at)

    @classmethod
    def parse(cls, text: str) -> "Question":
        """Read what a person types: ``What happened?``, or ``@10:30 What just happened?``.

        Raises:
            ConfigError: if the time cannot be read or no words follow.
        """
        stripped = well_formed(text).strip()
        at: float | None = None
        if stripped.startswith("@"):
            time, stripped = (*stripped[1:].split(maxsplit=1), "", "")[:2]
            at = parse_time(time) if time else None
        if not stripped.strip():
            raise ConfigError(f"{text!r} asks nothing; write a question, or '@10:30 question'")
        return cls.of(stripped, at)


TASKS = {"caption": 10.0, "timeline": 30.0}
"""Tasks that run all along a video, and their default periods in seconds."""

REST = 0.1
"""Least share of a task's period that is left at the end for a last question about it."""


@dataclass(frozen=True)
class Task:
    """A question that is asked all along a video: every so often, and at its end about what is left.

    Args:
        name: ``caption``: what is shown at a moment; ``timeline``: what happened since the last one.
        every: seconds between two moments.
        start: first moment of the video that is read.
        system: what the model is told before each question.

    Raises:
        ConfigError: if there is no such task.
    """

    name: str
    every: float
    start: float = 0.0
    system: str = ""

    def __post_init__(self) -> None:
        if self.name not in TASKS:
            raise ConfigError(f"task: no {self.name!r}; choose one of {', '.join(TASKS)}")
        _check_period(self.every)

    def question(self, at: float) -> Question:
        """Return the question to ask at the moment ``at``, in seconds."""
        if self.name == "caption":
            return Question(prompt.DESCRIBE, at, self.name, system=self.system)
        since = self.since(at)
        return Question(prompt.happened(since, at), at, self.name, since, self.system)

    def since(self, at: float) -> float:
        """Return the latest moment of asking before ``at``, or the beginning, in seconds."""
        return self.start + self.every * max(math.ceil((at - self.start) / self.every - 1e-6) - 1, 0)

    def is_due(self, end: float) -> bool:
        """Return True if a video that ends at ``end`` leaves enough to ask about after the last whole period."""
        rest = end - self.since(end)
        return REST * self.every <= rest < self.every * (1 - 1e-6)


class Agenda:
    """The questions of one run, handed out in the order of their times.

    Args:
        questions: what to ask.
        every: if given, the questions without a time are asked every so many seconds, not at the end.
        start: first moment of the video that is read.
        end: last moment that is read, if it is known.
        task: what is asked besides, all along.

    Raises:
        ConfigError: if a question can never be asked.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        every: float | None = None,
        start: float = 0.0,
        end: float | None = None,
        task: Task | None = None,
    ) -> None:
        if every is not None:
            _check_period(every)
        for question in questions:
            at = question.at
            if at is not None and not is_time(abs(at)):
                raise ConfigError(f"at: {at} is not a moment of any video; give the seconds from its beginning")
            if at is not None and (at < start or (end is not None and at > end)):
                read = f"{format_time(start)} to {'the end' if end is None else format_time(end)}"
                raise ConfigError(f"{f'@{format_time(at)} {question.text}'!r} is outside of what is read, {read}")
        self._timed = sorted((q for q in questions if q.at is not None), key=lambda q: q.at or 0.0)
        untimed = [q for q in questions if q.at is None]
        self._repeated, self._last = (untimed, []) if every is not None else ([], untimed)
        self._every, self._start, self._repeats = every, start, 1
        self._task, self._turns = task, 1
        if every is not None and not untimed and task is None:
            raise ConfigError("every: there is no question without a time to repeat")

    def before(self, time: float) -> list[tuple[float, list[Question]]]:
        """Take out what is due before ``time``: moments in order, with the questions asked at each."""
        due: dict[float, list[Question]] = {}
        while self._timed and (self._timed[0].at or 0.0) < time:
            question = self._timed.pop(0)
            due.setdefault(question.at or 0.0, []).append(question)
        while (task := self._task) is not None and (at := task.start + task.every * self._turns) < time:
            due.setdefault(at, []).append(task.question(at))
            self._turns += 1
        while self._every is not None and (at := self._start + self._every * self._repeats) < time:
            due.setdefault(at, []).extend(self._repeated)
            self._repeats += 1
        return sorted(due.items())

    def at_end(self, end: float) -> list[Question]:
        """Take out what is asked when the video ends at ``end`` seconds."""
        last, self._last = self._last, []
        due = [q for _, questions in self.before(end + 1e-6) for q in questions]
        if self._task is not None and self._task.is_due(end):
            due.append(self._task.question(end))
        return due + last

    def put_back(self, questions: Sequence[Question]) -> None:
        """Take back questions that were handed out and could not be asked."""
        asked = [question for question in questions if question.task is None and question not in self._repeated]
        self._timed = [*(q for q in asked if q.at is not None), *self._timed]
        self._last = [*(q for q in asked if q.at is None), *self._last]

    def left(self) -> list[Question]:
        """Return the questions that were not asked (repeated ones not counted)."""
        return [*self._timed, *self._last]


def _check_period(every: float) -> None:
    if not every >= SHORTEST_EVERY:
        raise ConfigError(f"every: {every:g} seconds is not possible; it must be at least {SHORTEST_EVERY:g}")
