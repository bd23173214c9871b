"""``csv``: one row an answer, as RFC 4180 has it."""

import csv
import io
from collections.abc import Sequence

from kvvideo.outputs import clean
from kvvideo.outputs.writer import Record

_RECORD = ("video", "model", "strategy", "asked_at", "answered_at", "question", "answer", "finish_reason")
_CACHE = ("budget", "max_tokens", "seen", "live", "evicted", "blocks", "compactions", "bytes")
_REST = ("held", "first_token_seconds", "seconds", "task", "since")
COLUMNS = (*_RECORD, *_CACHE, *_REST)
"""Columns in order; new ones come at the end. ``held`` is ``0-12.5 20-30``, all else as in a record.

``looked_at`` is none of them, because the first line is written before it is known if anything is looked at again.
"""

# What spreadsheets take for the beginning of a formula, in wide forms too.
_FORMULA = tuple("=+-@＝＋－＠")


def row(record: Record) -> str:
    """Return the row of an answer; nothing for other records."""
    if record["type"] != "answer":
        return ""
    held = " ".join(f"{start:g}-{end:g}" for start, end in record["held"])
    values = {**record, **record["cache"], "held": held}
    return line([values.get(name) for name in COLUMNS])


def line(values: Sequence[object]) -> str:
    """Return one row."""
    target = io.StringIO()
    # Texts are always in quotes, so that no other delimiter can part them.
    csv.writer(target, quoting=csv.QUOTE_NONNUMERIC).writerow([_cell(value) for value in values])
    return target.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return "" if value is None else value
    shown = clean.text(value)
    return "'" + shown if shown.lstrip().startswith(_FORMULA) else shown


HEAD = line(COLUMNS)
"""The first line."""
