"""``jsonl`` and ``json``: the records as they are."""

import json
import re
from collections.abc import Sequence

from kvvideo.outputs.writer import Record

# JSON leaves these as they are, but a terminal may obey them, and half a character cannot be encoded.
_ESCAPED = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def dumps(value: object, indent: int | None = None) -> str:
    """Return ``value`` as JSON that people can read and any terminal can show."""
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False, indent=indent))


def line(record: Record) -> str:
    """Return one record as a line."""
    return dumps(record) + "\n"


def document(records: Sequence[Record]) -> str:
    """Return all records as an array, each field on a line of its own."""
    return "[\n" + ",\n".join(map(_spread, records)) + "\n]\n"


def _spread(record: Record) -> str:
    fields = ",\n".join(f"    {dumps(name)}: {dumps(value)}" for name, value in record.items())
    return f"  {{\n{fields}\n  }}"
