"""The formats of ``kvvideo find``: moments that words were found at, as records, rows or a page."""

import os
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from kvvideo._version import __version__
from kvvideo.errors import ConfigError, KvvideoError
from kvvideo.outputs import clean, plots, table
from kvvideo.outputs.evidence import clock
from kvvideo.outputs.figures import short
from kvvideo.outputs.formats import TEXT
from kvvideo.outputs.jsons import line
from kvvideo.outputs.page import POLICY
from kvvideo.outputs.writer import Appended, AtEnd, Record, Writer
from kvvideo.times import format_time

FORMATS = (TEXT, "jsonl", "csv", "html")
"""All of them."""

STDOUT = "-"
"""Stands for stdout where a file may be named."""

COLUMNS = (
    "rank",
    "score",
    "share",
    "start",
    "end",
    "video",
    "memory",
    "words",
    "clip",
    "frame",
    "model",
    "strategy",
)
"""Columns of ``csv``, as in a record; new ones come at the end."""

Picture = Callable[[Record], bytes | None]
"""Fetches the picture of a moment, as JPEG; None if there is none."""


def choose(format: str | None, output: str | None) -> tuple[str, Path | None]:
    """Return the format, and the file it goes to; None for stdout.

    Args:
        format: one of ``FORMATS``; None: what the ending of ``output`` says, else text.
        output: a file, or ``-`` for stdout; None: stdout, but ``found.html`` for a page, which nobody reads there.

    Raises:
        ConfigError: if there is no such format, or it cannot go there.
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"format: no {format!r}; choose one of {', '.join(FORMATS)}")
    if output is None or output == STDOUT:
        return format or TEXT, Path("found.html") if format == "html" and output is None else None
    ending = os.path.splitext(output)[1].lower().removeprefix(".")
    found = ending if format is None else format
    if found not in FORMATS[1:]:
        raise ConfigError(f"output: {output!r} goes with one of the formats {', '.join(FORMATS[1:])}; name it with -f")
    return found, Path(output)


def open_writer(format: str, path: Path | None, force: bool = False, picture: Picture = lambda _: None) -> Writer:
    """Return a writer of records in one of ``FORMATS`` but text; ``path`` None is stdout.

    Args:
        format: its name.
        path: a file, which appears with the first record, or when the writer is closed.
        force: replace it if it is there.
        picture: of a moment, for ``html``.
    """
    match format:
        case "jsonl":
            return Appended(path, line, force=force)
        case "csv":
            return Appended(path, row, head=table.line(COLUMNS), force=force)
    return _Page(path, picture)


def row(record: Record) -> str:
    """Return the row of a moment; nothing for other records."""
    return table.line([record[name] for name in COLUMNS]) if record["type"] == "hit" else ""


def stretch(record: Record) -> str:
    """Return the beginning and the end of a moment in words."""
    return clock((record["start"], record["end"]))


class _Page:
    """Writes the page when it is closed, as ``AtEnd``."""

    def __init__(self, path: Path | None, picture: Picture) -> None:
        self._file = AtEnd(path, lambda records: render(records, self._pictures))
        self._picture = picture
        self._pictures: dict[int, bytes] = {}

    def write(self, record: Record) -> None:
        """Keep ``record`` for the end, with its picture."""
        self._file.write(record)
        # A page without a picture is better than none.
        with suppress(KvvideoError):
            if record["type"] == "hit" and (data := self._picture(record)) is not None:
                self._pictures[record["rank"]] = data

    def close(self) -> None:
        """Write the page."""
        self._file.close()


def render(records: Sequence[Record], pictures: dict[int, bytes] | None = None) -> str:
    """Return the page of all records of a search, with ``pictures`` as JPEG by rank."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("kvvideo.outputs"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"line": clean.line, "time": format_time, "stretch": stretch, "short": short}
    hits = [record for record in records if record["type"] == "hit"]
    done = next((record for record in records if record["type"] == "done"), None)
    searched = {} if done is None else {(one["video"], one["memory"]): one for one in done["searched"]}

    def bar(record: Record) -> str:
        """Draw where in its video a moment is; nothing if it is not known how much of that was searched."""
        whole = searched.get((record["video"], record["memory"]))
        if whole is None:
            return ""
        label = f"Where {stretch(record)} is in {format_time(whole['start'])} to {format_time(whole['end'])}"
        return plots.spot(record["start"], record["end"], whole["start"], whole["end"], label)

    return environment.get_template("find.html").render(
        words=clean.line(records[0]["words"]),
        hits=hits,
        done=done,
        bar=bar,
        pictures={rank: b64encode(picture).decode() for rank, picture in (pictures or {}).items()},
        policy=POLICY,
        version=__version__,
    )
