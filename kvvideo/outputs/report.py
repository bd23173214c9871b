"""The content of the reports in Markdown and HTML: the facts of a run, and its answers by moment."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any

from kvvideo.outputs import clean
from kvvideo.outputs.figures import count, percent, short, size
from kvvideo.outputs.writer import Record
from kvvideo.times import format_time


@dataclass(frozen=True)
class Moment:
    """A moment, in seconds, and the answers given then: one at least."""

    at: float
    answers: list[Record]

    @property
    def cache(self) -> dict[str, Any]:
        """The cache's part of the record."""
        found: dict[str, Any] = self.answers[0]["cache"]
        return found

    @property
    def remembered(self) -> dict[str, Any] | None:
        """The share that was held then of each part of the video; None if that is not known."""
        return self.answers[0].get("remembered")


@dataclass(frozen=True)
class Report:
    """The content of a run's report.

    Attributes:
        title: the video's name, without folders.
        video: the video as it was given, without a password.
        notice: why there is less than was asked for; empty if there is not.
        facts: names and values, in words.
        moments: in order.
        unasked: questions that were not asked, each with when it was meant to be, in words.
        start, end: the part of the video that all this is about, in seconds.
        brief: the facts that matter most, in one line.
        system: what the model was told before each question; empty if that was nothing, or not always the same.
    """

    title: str
    video: str
    notice: str
    facts: list[tuple[str, str]]
    moments: list[Moment]
    unasked: list[tuple[str, str]]
    start: float
    end: float
    brief: str
    system: str

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Report":
        """Return the report of one strategy's records, of which the last may be missing."""
        from kvvideo.video.address import Address

        answers = [record for record in records if record["type"] == "answer"]
        done = next((record for record in records if record["type"] == "done"), None)
        any_record = records[0]
        answers.sort(key=lambda record: float(record["asked_at"]))
        moments = [Moment(at, [*same]) for at, same in groupby(answers, key=lambda record: float(record["asked_at"]))]
        start = 0.0 if done is None else done["start"]
        end = max([*(m.at for m in moments), *([] if done is None else [done["end"]])])
        name = clean.line(Address.of(any_record["video"]).name)
        told = {_system(record) for record in answers}
        system = told.pop() if len(told) == 1 else ""
        return cls(
            title=name.rstrip("/").rsplit("/", 1)[-1] or name or "video",
            video=name,
            notice=_notice(done, end),
            facts=_facts(any_record, done, moments, start, end, system),
            moments=moments,
            unasked=[(_when(q["asked_at"]), q["question"]) for q in (done["unasked"] if done else [])],
            start=start,
            end=end,
            brief=_brief(any_record, len(answers), start, end),
            system=system,
        )

    def told(self, record: Record) -> str:
        """Return a word about what the model was told before a question; empty for nothing, or the same as always."""
        system = _system(record)
        return "" if system == self.system else f"told before: {system}"


def asked(record: Record) -> str:
    """Return the question of an answer, or a task's stretch of the video; empty if the moment says it all."""
    if not record.get("task"):
        return clean.line(record["question"]) or "(no question)"
    return "" if record["since"] is None else f"{format_time(record['since'])} to {format_time(record['asked_at'])}"


def _system(record: Record) -> str:
    return clean.line(record.get("system", ""))


def cut(record: Record) -> str:
    """Return a word about an answer that was cut; empty if it was not."""
    return "cut here; --max-answer-tokens allows longer answers" if record["finish_reason"] == "length" else ""


def earlier(record: Record) -> str:
    """Return a word about an answer from an earlier moment; empty if it is not."""
    if record["answered_at"] == record["asked_at"]:
        return ""
    return f"answered from what was held at {format_time(record['answered_at'])}"


def held(cache: dict[str, Any]) -> str:
    """Return the share of the tokens that a cache holds, of those it has seen, in words."""
    if not cache["seen"]:
        return "nothing was held yet"
    share = percent(cache["live"] / cache["seen"])
    return f"{count(cache['live'])} of the {count(cache['seen'])} tokens seen were held: {share}"


def bound(cache: dict[str, Any]) -> str:
    """Return the bound of a cache in words."""
    if cache["max_tokens"] is None:
        return "none: nothing is evicted"
    return f"{count(cache['max_tokens'])} tokens, compacted to {count(cache['budget'])}"


def _notice(done: Record | None, end: float) -> str:
    if done is None:
        return f"The run did not come to its end; this is what there was up to {format_time(end)}."
    if done["status"] == "interrupted":
        return f"Interrupted at {format_time(done['end'])}; this is what there was."
    if done["status"] == "error":
        return f"Ended early, at {format_time(done['end'])}: {clean.line(done['error'] or 'no reason is known')}"
    return ""


def _facts(
    record: Record, done: Record | None, moments: Sequence[Moment], start: float, end: float, system: str
) -> list[tuple[str, str]]:
    cache = (moments[-1].cache if moments else None) if done is None else done["cache"]
    known = cache if cache is not None else moments[-1].cache if moments else None
    facts = [
        ("Watched", f"{format_time(start)} to {format_time(end)}"),
        ("Model", clean.line(record["model"])),
        ("Strategy", clean.line(record["strategy"])),
        ("Cache bound", "not known" if known is None else bound(known)),
        ("Cache at the end", "lost" if cache is None else f"{count(cache['live'])} tokens, {size(cache['bytes'])}"),
        ("Answers", _answers([record for moment in moments for record in moment.answers])),
    ]
    if system:
        facts.append(("Told before each question", system))
    if done is not None:
        facts.append(("Frames", f"{count(done['frames'])} in {count(done['chunks'])} chunks"))
        facts.append(("Took", short(done["seconds"])))
    return facts


def _answers(answers: Sequence[Record]) -> str:
    if not answers:
        return "none"
    took = short(median(record["seconds"] for record in answers))
    return f"{count(len(answers))}, {'in' if len(answers) == 1 else 'median'} {took}"


def _brief(record: Record, answers: int, start: float, end: float) -> str:
    number = f"{count(answers)} answer{'' if answers == 1 else 's'}"
    return f"{number} about {format_time(start)} to {format_time(end)}, by {clean.line(record['model'])}"


def _when(at: float | None) -> str:
    return "at the end" if at is None else format_time(at)
