"""Questions from a file or stdin: one a line, as people type them after ``-q``, or as a JSON object."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kvvideo.errors import ConfigError
from kvvideo.runs.agenda import Question
from kvvideo.times import is_time, parse_time

STDIN = "-"
"""Name that stands for standard input."""

_KEYS = {"question": "question", "at": "at", "q": "question", "t": "at"}
"""Fields of a JSON line. Job files of a batch call them q and t."""


def read_questions(name: str) -> list[Question]:
    """Return the questions in the file ``name``; blank lines, and lines that begin with ``#``, are none.

    Raises:
        ConfigError: if it cannot be read, a line cannot be used, or there is no question in it.
    """
    try:
        data = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(f"questions: {name!r} cannot be read: {error.strerror}; name a file of questions") from error
    where = "stdin" if name == STDIN else name
    found = list(_questions(data.decode("utf-8-sig", "surrogateescape").splitlines(), where))
    if not found:
        raise ConfigError(f"questions: there are none in {where!r}; write one a line, such as '@10:30 What happened?'")
    return found


def _questions(lines: Iterable[str], where: str) -> Iterable[Question]:
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            yield _of_json(text) if text.startswith("{") else Question.parse(text)
        except ConfigError as error:
            raise ConfigError(f"questions: {where}:{number}: {error}") from None


def _of_json(text: str) -> Question:
    try:
        line: dict[str, Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"it is not JSON: {error}") from None
    if unknown := [key for key in line if key not in _KEYS]:
        raise ConfigError(f"{unknown[0]!r:.60} is not known; allowed are 'question' and 'at'")
    made = {_KEYS[key]: value for key, value in line.items()}
    words, at = made.get("question"), made.get("at")
    if not isinstance(words, str) or not words.strip():
        raise ConfigError('there is no question; write {"question": "What happened?", "at": "10:30"}')
    if isinstance(at, str):
        return Question.of(words, parse_time(at))
    if at is not None and (isinstance(at, bool) or not isinstance(at, int | float) or not is_time(at)):
        raise ConfigError(f"at: {at!r:.60} is not a number of seconds")
    return Question.of(words, None if at is None else float(at))
