"""The contents of a long report, and the classes by which its style sheet hides what a reader filters out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvvideo.outputs import clean
from kvvideo.outputs.report import Moment
from kvvideo.outputs.writer import Record

FEW = 20
"""Up to so many answers are found without contents."""

MOST_QUESTIONS = 8
"""Up to so many different questions can be chosen from."""


@dataclass(frozen=True)
class Entry:
    """An answer, and its classes: ``q1`` is the first question, ``same`` an answer that question got last."""

    record: Record
    classes: str


@dataclass(frozen=True)
class Contents:
    """The answers of a report.

    Attributes:
        moments: each with its answers.
        listed: True if they are so many that a list of them helps.
        questions: those that can be chosen from; none if there is no choice.
        repeats: True if an answer is the same as the last one to its question.
    """

    moments: list[tuple[Moment, list[Entry]]]
    listed: bool
    questions: list[str]
    repeats: bool

    @classmethod
    def of(cls, moments: Sequence[Moment]) -> "Contents":
        """Return the contents of ``moments``, which are in order."""
        questions = [*dict.fromkeys(_question(record) for moment in moments for record in moment.answers)]
        listed = sum(len(moment.answers) for moment in moments) > FEW
        chosen = questions if listed and 1 < len(questions) <= MOST_QUESTIONS else []
        last: dict[str, str] = {}

        def classes(record: Record) -> Iterator[str]:
            question, said = _question(record), clean.line(record["answer"]).casefold()
            if question in chosen:
                yield f"q{chosen.index(question) + 1}"
            if listed and last.get(question) == said:
                yield "same"
            last[question] = said

        entries = [[Entry(record, " ".join(classes(record))) for record in moment.answers] for moment in moments]
        repeats = any("same" in entry.classes for some in entries for entry in some)
        return cls([*zip(moments, entries, strict=True)], listed, chosen, repeats)


def _question(record: Record) -> str:
    """Return what an answer's question is chosen by: a task asks the same all along."""
    return record.get("task") or clean.line(record["question"]) or "(no question)"
