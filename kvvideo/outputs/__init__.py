"""The formats that answers are written in, besides text: one writer a format, all fed with the records of a run.

jsonl and csv are appended to record by record, so that an interrupted run leaves what it had; the others are written
when they are closed, in place of what was there or not at all. Nothing that a video, a question or a model says can
drive a terminal, a spreadsheet or a browser.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvvideo.errors import ConfigError
from kvvideo.outputs import markdown, subtitles, table
from kvvideo.outputs.choice import Choice, choose
from kvvideo.outputs.formats import FORMATS, TEXT, Format
from kvvideo.outputs.jsons import document, line
from kvvideo.outputs.look import PLAIN, Look
from kvvideo.outputs.page import Frame, Page
from kvvideo.outputs.paths import Names, check, output_paths
from kvvideo.outputs.samples import Sample, Samples
from kvvideo.outputs.stills import Stills
from kvvideo.outputs.writer import Appended, AtEnd, Outputs, Record, Writer

__all__ = [
    "FORMATS",
    "TEXT",
    "Choice",
    "Format",
    "Frame",
    "Look",
    "Outputs",
    "Record",
    "Sample",
    "Samples",
    "Stills",
    "Writer",
    "choose",
    "open_files",
    "open_writer",
]

_RENDERED: dict[str, Callable[[Sequence[Record]], str]] = {
    "json": document,
    "srt": subtitles.srt,
    "vtt": subtitles.vtt,
    "md": markdown.render,
}


def open_writer(
    name: str,
    path: Path | None,
    *,
    force: bool = False,
    resume: bool = False,
    frame: Frame | None = None,
    samples: Sequence[Sample] = (),
    look: Look = PLAIN,
) -> Writer:
    """Return a writer for the records of one strategy. Its file appears with the first record, or when it is closed.

    Args:
        name: of the format, one of ``FORMATS``.
        path: where to; None for stdout.
        force: replace a file that is there.
        resume: a file that is there was written by an earlier part of the same run.
        frame: the picture shown at a moment; called once a moment, when its first answer is given. Of ``html``.
        samples: what the cache held at other moments, for plots; read when the writer is closed. Of ``html``.
        look: pictures, and a player. Of ``html``.

    Raises:
        ConfigError: if there is no such format.
    """
    match name:
        case "jsonl":
            return Appended(path, line, force=force, resume=resume)
        case "csv":
            return Appended(path, table.row, head=table.HEAD, force=force, resume=resume)
        case "html":
            return Page(path, frame, samples, look)
    if name not in _RENDERED:
        raise ConfigError(f"format: no {name!r}; choose one of {', '.join(FORMATS)}")
    return AtEnd(path, _RENDERED[name])


def open_files(
    template: str,
    formats: Sequence[str],
    *,
    stem: str,
    strategies: Sequence[str],
    directory: Path | None = None,
    force: bool = False,
    own: Collection[str] = (),
    inputs: Sequence[Path] = (),
    frame: Frame | None = None,
    samples: Mapping[str, Sequence[Sample]] | None = None,
    look: Look = PLAIN,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Outputs]:
    """Return, for each strategy of a run, a writer of its records in all ``formats``. Nothing is written yet.

    Args:
        template: names the files; see ``output_path``.
        formats: of ``FORMATS``.
        stem: what ``{stem}`` stands for: the name of the video or the job, of which a safe one is made.
        strategies: of the run.
        directory: what a relative template begins in; by default the current one.
        force: replace files that are there.
        own: absolute names of files that an earlier part of the same run wrote; it goes on with them.
        inputs: files that are not replaced in any case.
        frame: see ``open_writer``.
        samples: the same, for each strategy.
        look: see ``open_writer``.
        say: takes a line, once for each file that cannot be written.

    Raises:
        ConfigError: if there is no such format, or a file cannot or shall not be written.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ConfigError(f"format: no {unknown[0]!r}; choose of {', '.join(FORMATS)}")
    wanted = [(strategy, name) for strategy in strategies for name in formats]
    names = [Names(stem, strategy, FORMATS[name].extension) for strategy, name in wanted]
    paths = output_paths(template, names, Path() if directory is None else directory)
    mine = [os.path.abspath(path) in own for path in paths]
    for path, resume in zip(paths, mine, strict=True):
        check(path, force=force or resume, inputs=inputs)
    writers: dict[str, list[Writer]] = {strategy: [] for strategy in strategies}
    files: dict[str, list[Path]] = {strategy: [] for strategy in strategies}
    for (strategy, name), path, resume in zip(wanted, paths, mine, strict=True):
        some = (samples or {}).get(strategy, ())
        page: Any = {"frame": frame, "samples": some, "look": look}
        writers[strategy].append(open_writer(name, path, force=force, resume=resume, **page))
        files[strategy].append(path)
    return {strategy: Outputs(some, say, files[strategy]) for strategy, some in writers.items()}
