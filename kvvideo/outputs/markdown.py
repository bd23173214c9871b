"""``md``: a report to read as it is, or rendered."""

import re
from collections.abc import Sequence

from kvvideo.outputs import clean
from kvvideo.outputs.evidence import looked_again
from kvvideo.outputs.figures import count, size
from kvvideo.outputs.report import Moment, Report, asked, cut, earlier, held
from kvvideo.outputs.writer import Record
from kvvideo.times import format_time

_INLINE = re.compile(r"([\\`*_\[\]<>|#~$&])")
# Lists, and lines that would make headings or rules of what is above them.
_BEGINNING = re.compile(r"^(\d*)([-+=.)])")


def render(records: Sequence[Record]) -> str:
    """Return the records of one strategy as a report."""
    report = Report.of(records)
    parts = [f"# {_line(report.title)}"]
    if report.notice:
        parts.append(f"**{_line(report.notice)}**")
    facts = [("Video", report.video), *report.facts]
    parts.append("\n".join(["| | |", "|---|---|", *(f"| {name} | {_line(value)} |" for name, value in facts)]))
    for moment in report.moments:
        parts.append(f"## {format_time(moment.at)}")
        for record in moment.answers:
            parts += [f"**{_line(words)}**"] if (words := asked(record)) else []
            parts.append(_quote(record["answer"]))
            told = _line(report.told(record))
            notes = [note for note in (told, cut(record), earlier(record), looked_again(record)) if note]
            parts += [f"({'; '.join(notes)})"] if notes else []
        parts.append(_cache(moment))
    if report.unasked:
        parts.append("## Not asked")
        parts.append("\n".join(f"- {when}: {_line(question)}" for when, question in report.unasked))
    return "\n\n".join(parts) + "\n"


def _cache(moment: Moment) -> str:
    cache = moment.cache
    limit = "" if cache["max_tokens"] is None else f"; at most {count(cache['max_tokens'])} are"
    return f"*Then {held(cache)}, {size(cache['bytes'])}{limit}.*"


def _line(value: str) -> str:
    """Return ``value`` as one line in which nothing is markup."""
    return _BEGINNING.sub(r"\1\\\2", _INLINE.sub(r"\\\1", clean.line(value)))


def _quote(answer: str) -> str:
    lines = [_line(part) for part in clean.lines(answer)] or ["(no answer)"]
    # A backslash at its end keeps the next line from being joined to a line.
    ends = ["\\" if line and after else "" for line, after in zip(lines, [*lines[1:], ""], strict=True)]
    return "\n".join(f"> {line}{end}".rstrip() for line, end in zip(lines, ends, strict=True))
