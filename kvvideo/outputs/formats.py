"""The formats there are."""

from dataclasses import dataclass

TEXT = "text"
"""The format for people on a terminal; it is no file format."""


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        extension: ending of its files.
        help: what it is for.
        joins: one output can hold the records of several strategies.
    """

    extension: str
    help: str
    joins: bool = False


FORMATS = {
    "jsonl": Format("jsonl", "one JSON record a line, as answers are given", joins=True),
    "json": Format("json", "the same records as one JSON array", joins=True),
    "csv": Format("csv", "one row an answer, for spreadsheets", joins=True),
    "srt": Format("srt", "SubRip subtitles: each answer at its moment"),
    "vtt": Format("vtt", "WebVTT subtitles, for browsers"),
    "md": Format("md", "a report in Markdown"),
    "html": Format("html", "a report in one file, with frames, timeline and plots"),
}
"""All formats by name."""
