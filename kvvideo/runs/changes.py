"""Answers that say something new, of those to what is asked again and again."""

from collections.abc import Iterable, Iterator, Sequence

from kvvideo.runs.agenda import Question
from kvvideo.runs.records import Record


def plain(words: str) -> str:
    """Return ``words`` without what makes no difference: case, space around and in a row, a full stop at the end."""
    return " ".join(words.split()).casefold().rstrip(".!")


def only_changes(records: Iterable[Record], questions: Sequence[Question]) -> Iterator[Record]:
    """Yield ``records`` without answers that say what the one before said to the same question, under each strategy.

    The last record of a strategy counts the answers that are left.

    Args:
        records: of a run, in order.
        questions: of the run; those with a moment are asked once there, and all their answers are yielded.
    """
    timed = {(question.text, question.at) for question in questions if question.at is not None}
    once, count, last = {*timed}, 0, dict[tuple[str, str], str]()
    for record in records:
        if record["type"] != "answer":
            yield {**record, "answers": count}
            once, count = {*timed}, 0
            continue
        # Those with a moment come before the ones that are asked again there.
        if (asked := (record["question"], record["asked_at"])) in once and not record.get("task"):
            once.remove(asked)
        else:
            # The words of a timeline's question have its stretch in them.
            name, said = (record["strategy"], record.get("task") or record["question"]), plain(record["answer"])
            if last.get(name) == said:
                continue
            last[name] = said
        count += 1
        yield record
