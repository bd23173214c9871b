"""What answers are written as, besides text: one writer a format, all fed with the records of ``docs/records.md``.

jsonl and csv are appended to record by record, so that an interrupted run leaves what it had; the others are written
when they are closed, in place of what was there or not at all. Nothing that a video, a question or a model says can
drive a terminal, a spreadsheet or a browser.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvvideo.errors import ConfigError
from kvvideo.outputs import markdown, subtitles, table
from kvvideo.outputs.jsons import document, line
from kvvideo.outputs.page import Frame, Page, Sample
from kvvideo.outputs.paths import Names, check, output_paths
from kvvideo.outputs.writer import Appended, AtEnd, Outputs, Record, Writer

__all__ = ["FORMATS", "Format", "Frame", "Outputs", "Record", "Sample", "Writer", "open_files", "open_writer"]


@dataclass(frozen=True)
class Format:
    """One format: the ending of its files, and what it is for."""

    extension: str
    help: str


FORMATS = {
    "jsonl": Format("jsonl", "one JSON record a line, as answers are given"),
    "json": Format("json", "the same records as one JSON array"),
    "csv": Format("csv", "one row an answer, for spreadsheets"),
    "srt": Format("srt", "SubRip subtitles: each answer at its moment"),
    "vtt": Format("vtt", "WebVTT subtitles, for browsers"),
    "md": Format("md", "a report in Markdown"),
    "html": Format("html", "a report in one file, with frames, timeline and plots"),
}
"""All formats by name."""

_RENDERED: dict[str, Callable[[Sequence[Record]], str]] = {
    "json": document,
    "srt": subtitles.srt,
    "vtt": subtitles.vtt,
    "md": markdown.render,
}


def open_writer(
    name: str, path: Path | None, *, force: bool = False, frame: Frame | None = None, samples: Sequence[Sample] = ()
) -> Writer:
    """A writer for the records of one strategy. Its file appears with the first record, or when it is closed.

    Args:
        name: of the format, one of ``FORMATS``.
        path: where to; None for stdout.
        force: whether to replace a file that is there.
        frame: the frame shown at a moment, as JPEG; called once a moment, when its first answer is given. Of ``html``.
        samples: what the cache held at other moments, for plots; read when the writer is closed. Of ``html``.

    Raises:
        ConfigError: if there is no such format.
    """
    match name:
        case "jsonl":
            return Appended(path, line, force=force)
        case "csv":
            return Appended(path, table.row, head=table.HEAD, force=force)
        case "html":
            return Page(path, frame, samples)
    if name not in _RENDERED:
        raise ConfigError(f"format: no {name!r}; choose one of {', '.join(FORMATS)}")
    return AtEnd(path, _RENDERED[name])


def open_files(
    template: str, formats: Sequence[str], *, stem: str, strategies: Sequence[str], directory: Path | None = None,
    force: bool = False, inputs: Sequence[Path] = (), frame: Frame | None = None,
    samples: Mapping[str, Sequence[Sample]] | None = None,
) -> dict[str, Outputs]:  # fmt: skip
    """Writers for a run: for each strategy one that writes its records in all ``formats``. Nothing is written yet.

    Args:
        template: names the files; see ``output_path``.
        formats: of ``FORMATS``.
        stem: what ``{stem}`` stands for: the name of the video or the job, of which a safe one is made.
        strategies: of the run.
        directory: what a relative template begins in; by default the current one.
        force: whether to replace files that are there.
        inputs: files that are not replaced in any case.
        frame: see ``open_writer``.
        samples: the same, for each strategy.

    Raises:
        ConfigError: if there is no such format, or a file cannot or shall not be written.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ConfigError(f"format: no {unknown[0]!r}; choose of {', '.join(FORMATS)}")
    wanted = [(strategy, name) for strategy in strategies for name in formats]
    names = [Names(stem, strategy, FORMATS[name].extension) for strategy, name in wanted]
    paths = output_paths(template, names, Path() if directory is None else directory)
    for path in paths:
        check(path, force=force, inputs=inputs)
    writers: dict[str, list[Writer]] = {strategy: [] for strategy in strategies}
    for (strategy, name), path in zip(wanted, paths, strict=True):
        some = (samples or {}).get(strategy, ())
        writers[strategy].append(open_writer(name, path, force=force, frame=frame, samples=some))
    return {strategy: Outputs(some) for strategy, some in writers.items()}
