"""Read job files: JSON Lines of videos and the questions to them, as ``outputs.schema.jobs`` describes them.

Whoever wrote one is not trusted: it names files to read and nothing else, neither addresses nor devices.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvvideo.errors import ConfigError
from kvvideo.outputs import clean
from kvvideo.outputs.schema import jobs as models
from kvvideo.runs.agenda import Question
from kvvideo.runs.changes import plain
from kvvideo.runs.messages import reading_of
from kvvideo.times import format_time, parse_time
from kvvideo.video.address import local_path
from kvvideo.video.subtitles import AUTO, OFF

SHOWN = 20
"""Findings of one file that are told; more would hide the first."""


@dataclass(frozen=True)
class Asking:
    """A question of a job.

    Attributes:
        question: what is asked, and when.
        expected: the right answer, if it is known.
    """

    question: Question
    expected: str | None = None


@dataclass(frozen=True)
class Job:
    """One line of a job file.

    Attributes:
        id: no two jobs of a file have the same.
        video: path of the video.
        askings: its questions, in order; no two ask the same at the same moment.
        settings: what it has instead of the settings of the command, named as in ``SETTINGS``.
        reading: the same, named as in ``Source``: what the message says that describes its video, if one does.
        meta: handed through to the records.
        where: file and line, for messages.
    """

    id: str
    video: str
    askings: tuple[Asking, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    reading: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] | None = None
    where: str = ""


class JobsError(ConfigError):
    """A job file is wrong; the message has a line for each finding."""

    def __init__(self, findings: list[str]) -> None:
        more = [f"and {len(findings) - SHOWN} more"] if len(findings) > SHOWN else []
        super().__init__("\n".join([*findings[:SHOWN], *more]))
        self.findings = findings


class _Wrong(Exception):
    """A line is wrong in one way."""


def read_jobs(path: Path) -> list[Job]:
    """Return the jobs in the file at ``path``; videos are relative to where it lies.

    Raises:
        JobsError: with all that is wrong, each with file, line, and what is allowed.
        ConfigError: if the file cannot be read.
    """
    findings: list[str] = []
    jobs: dict[str, Job] = {}
    for where, text in _lines(path):
        try:
            job = parse_job(text, path.parent, where)
            if job.id in jobs:
                raise _Wrong(f"id: {job.id!r} was taken by {jobs[job.id].where}; every job needs its own")
        except _Wrong as wrong:
            findings.append(f"{where}: {wrong}")
            continue
        jobs[job.id] = job
    if findings:
        raise JobsError(findings)
    if not jobs:
        raise ConfigError(f"{str(path)!r} has no jobs; write one a line: {EXAMPLE}")
    return list(jobs.values())


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines that are not blank, each with its place."""
    try:
        with open(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape")
                if text.strip():
                    yield f"{path}:{number}", text
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be read: {error.strerror}; name a file of jobs") from error


def parse_job(text: str, directory: Path, where: str = "") -> Job:
    """Return the job that ``text``, a line, describes; its video is relative to ``directory``."""
    line = _object(_json(text), "the line", _JOB)
    for name in ("id", "video", "questions"):
        if name not in line:
            raise _Wrong(f"there is no {name!r}; a job needs 'id', 'video' and 'questions': {EXAMPLE}")
    made = {name: _JOB[name](name, value) for name, value in line.items()}
    told = made.get("system", "")
    askings = tuple(replace(one, question=replace(one.question, system=told)) for one in made["questions"])
    seen: dict[Question, int] = {}
    for index, asking in enumerate(askings):
        if (first := seen.setdefault(asking.question, index)) != index:
            at = "the end" if asking.question.at is None else format_time(asking.question.at)
            raise _Wrong(f"questions: {_ordinal(index)} asks the same at {at} as {_ordinal(first)}; leave one out")
    settings = {name: made[name] for name in SETTINGS if name in made}
    if settings.get("subtitles") not in (None, AUTO, OFF):
        settings["subtitles"] = str(directory / settings["subtitles"])
    begin, end = settings.get("from"), settings.get("to")
    if begin is not None and end is not None and not begin < end:
        raise _Wrong(f"to: {format_time(end)} is not after from, {format_time(begin)}")
    reading = dict(made["video"])
    video = str(directory / reading.pop("path"))
    # Standard input is what that name stands for elsewhere.
    video = "./-" if video == "-" else video
    for name in ("fps", "from", "to"):
        if settings.get(name) is not None and READING[name] in reading:
            raise _Wrong(f"{name}: the message under 'video' says that too; leave one out")
    return Job(made["id"], video, askings, settings, reading, made.get("meta"), where)


def _json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise _Wrong(f"{twice[0]!r} is there twice; leave one out")
        return dict(pairs)

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise _Wrong(f"{text} is no number that JSON has")
        return value

    try:
        text.encode()
        return json.loads(text, object_pairs_hook=unique, parse_constant=number, parse_float=number)
    except UnicodeError:
        raise _Wrong("it is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise _Wrong(f"it is not JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError):
        raise _Wrong("it is not JSON that can be read: too deep, or a number too long") from None


def _object(value: Any, name: str, allowed: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong(f"{name} is {_shown(value)} and must be an object, as in {EXAMPLE}")
    if unknown := [key for key in value if key not in allowed]:
        raise _Wrong(f"{_shown(unknown[0])} is not known; allowed are {', '.join(allowed)}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(f"{name}: {_shown(value)} must be a non-empty string")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise _Wrong(f"{name}: {_shown(value)} has half a character in it, which no text can have")
    return value


def _video(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        try:
            reading = reading_of(value)
        except ConfigError as error:
            raise _Wrong(f"{name}: {error}") from None
        return reading | {"path": _path(name, value["video"])}
    return {"path": _path(name, value)}


def _path(name: str, value: Any) -> str:
    text = local_path(_text(name, value))
    if "\0" in text:
        raise _Wrong(f"{name}: {_shown(value)} cannot be the name of a file")
    if "://" in text:
        raise _Wrong(f"{name}: {_shown(value)} is an address; a batch reads files, which can be read again: record it")
    return text


def _subtitles(name: str, value: Any) -> str:
    return _text(name, value) if value in (AUTO, OFF) else _path(name, value)


def _time(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # JSON has numbers of any size, and a float holds not all of them.
        if not 0 <= value <= 1e9:
            raise _Wrong(f"{name}: {_shown(value)} is no number of seconds of a video")
        return float(value)
    try:
        return parse_time(_text(name, value))
    except ConfigError as error:
        raise _Wrong(f"{name}: {error}") from None


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 40:
        raise _Wrong(f"{name}: {_shown(value)} is not a whole number above 0")
    return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e9:
        raise _Wrong(f"{name}: {_shown(value)} is not a number above 0")
    return float(value)


def _meta(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Wrong(f"{name}: {_shown(value)} must be an object; it is handed through to the results")
    return value


def _questions(name: str, value: Any) -> tuple[Asking, ...]:
    if not isinstance(value, list) or not value:
        raise _Wrong(f'{name}: {_shown(value)} must be a list of questions, as in [{{"t": "1:30", "q": "…"}}]')
    return tuple(_asking(index, entry) for index, entry in enumerate(value))


def _asking(index: int, value: Any) -> Asking:
    try:
        entry = _object(value, "it", _ASKING)
        if "q" not in entry:
            raise _Wrong("there is no 'q', the question")
        at = _time("t", entry.get("t"))
        expected = entry.get("answer")
        return Asking(
            Question(_text("q", entry["q"]).strip(), at), None if expected is None else _text("answer", expected)
        )
    except _Wrong as wrong:
        raise _Wrong(f"questions: in {_ordinal(index)}: {wrong}") from None


SETTINGS: dict[str, Callable[[str, Any], Any]] = {
    "strategy": _text,
    "budget": _whole,
    "max_tokens": _whole,
    "fps": _number,
    "from": _time,
    "to": _time,
    "subtitles": _subtitles,
}
"""What a job may have instead of the command's settings, and how it is read."""

READING = {"fps": "fps", "from": "start", "to": "end"}
"""Those of them that a ``Source`` has, and what it calls them."""

_READERS = {"id": _text, "video": _video, "questions": _questions, **SETTINGS, "system": _text, "meta": _meta}
_JOB = {name: _READERS[name] for name in models.Job.__annotations__}
_ASKING = models.Question.__annotations__

EXAMPLE = '{"id": "a1", "video": "a.mp4", "questions": [{"t": "1:30", "q": "What just happened?"}]}'


def _ordinal(index: int) -> str:
    return f"question {index + 1}"


def _shown(value: Any) -> str:
    """Return ``value`` as a message can have it: short, on one line."""
    text = clean.line(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 60 else text[:59] + "…"


def is_right(said: str, expected: str) -> bool:
    """Return True if ``said`` is the answer that was expected: the same words, or the same time of the video.

    Case, surrounding space and a full stop make no difference.
    """
    one, other = (plain(text) for text in (said, expected))
    if one == other:
        return True
    try:
        return ":" in one and ":" in other and parse_time(one) == parse_time(other)
    except ConfigError:
        return False
