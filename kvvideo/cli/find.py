"""``kvvideo find``: list the moments of memories and videos that words are found at, and cut them out."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvvideo.cli import complete, options
from kvvideo.cli.download import ensure
from kvvideo.cli.stop import Stop, note, say
from kvvideo.errors import INTERRUPTED, ConfigError
from kvvideo.outputs import clean, find, jsons
from kvvideo.outputs.formats import TEXT
from kvvideo.outputs.paths import check
from kvvideo.outputs.writer import Outputs, Record, Shown, Writer, to_stdout
from kvvideo.runs.analyze import Hooks
from kvvideo.times import format_time
from kvvideo.video.address import is_live, local_path

if TYPE_CHECKING:
    from kvvideo.runs.find import Cuts, Search, Subject
    from kvvideo.session import EngineConfig
    from kvvideo.video import Source

_OF_A_VIDEO = {field.name for group in (options.Memory, options.LiveVideo) for field in fields(group)}
"""Options that say how a video is looked at and remembered, which a memory already says."""


def command(
    context: typer.Context,
    source: Annotated[
        list[str], typer.Argument(help="Memories (.kvv), and videos, which are ingested first.", show_default=False)
    ],
    words: Annotated[str, typer.Argument(help='What to find: "the letter K".', show_default=False)],
    *,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="Moments to list.", rich_help_panel=options.ASK)
    ] = 5,
    clips: Annotated[
        Path | None,
        typer.Option(
            "--clips", metavar="DIR", help="Cut the moments out, as mp4 files.", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option(
            "--frames", metavar="DIR", help="Write a picture of each, as JPEG files.", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            metavar="NAME",
            help=f"{', '.join(find.FORMATS)}; html goes to a file.",
            autocompletion=complete.one_of(*find.FORMATS),
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="NAME", help="The file to write; '-' is stdout.", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    force: options.Force = False,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--save", metavar="FILE", help="Write the memory of the video, too.", rich_help_panel=options.OUTPUT
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            "--video", metavar="FILE", help="Where the video of a memory is now.", rich_help_panel=options.VIDEO
        ),
    ] = None,
    dry_run: options.DryRun = False,
    cache: options.Memory,
    engine: options.Engine,
    watching: options.LiveVideo,
) -> None:
    """Find WORDS in memories and videos: the moments that the model would look at, best first.

    Examples:
        kvvideo find movie.kvv "the letter K"
        kvvideo find movie.kvv holiday.mp4 "a red letter" --clips clips

    Each has a score: 1 if all of the model's attention goes there, 0 if no more than to any other moment.
    """
    from kvvideo.runs.find import Cuts, Search, question_of
    from kvvideo.storage.file import is_memory_file

    question_of(words)
    names = [local_path(name) for name in source]
    memories = [name for name in names if is_memory_file(name)]
    videos = [name for name in names if name not in memories]
    _check_options(context, memories, videos, keep, beside)
    chosen = find.choose(format, output)
    if chosen[1] is not None:
        check(chosen[1], force=force, inputs=[Path(name) for name in names])
    if keep is not None:
        check(keep, force=force, inputs=[Path(name) for name in names])
    config = engine.config(cache.config())
    sources: dict[str, Source] = {}
    if videos:
        with watching.looked_for(videos[0]):
            reading = watching.reading(config)
        sources = {name: watching.source(name, reading) for name in videos}
        if any(one.subtitles is not None for one in sources.values()):
            config = config.with_words(watching.chunk)
        config, _ = cache.settle(config, [config.cache], reading, engine.max_model_len)
    if dry_run:
        if not videos:
            raise ConfigError("dry-run: nothing is ingested for memories; name a video")
        _dry_run(sources, watching, config, chosen[0])
        return
    typed = {name: vars(engine)[name] if options.is_typed(context, name) else None for name in ("model", "dtype")}
    subjects = [
        _memory(name, config, beside, typed) if name in memories else _video(sources[name], config, watching)
        for name in names
    ]
    cuts = Cuts(clips, frames, force)
    cuts.check(subjects)
    _run(Search(subjects, words, count, keep), cuts, *chosen, force)


def _check_options(
    context: typer.Context, memories: list[str], videos: list[str], keep: Path | None, beside: str | None
) -> None:
    """Check that what is given goes with the sources.

    Raises:
        ConfigError: naming the option that does not.
        VideoError: if there is no such video.
    """
    for number, name in enumerate(videos):
        # The shell may have taken the words apart.
        if number and not is_live(name) and not Path(name).exists():
            raise ConfigError(f'there is no file {name!r}; several words are one with quotes around: "the letter K"')
    given = [one for one in context.command.params if one.name in _OF_A_VIDEO]
    flags = ", ".join(one.opts[0] for one in given if options.is_typed(context, str(one.name)))
    if flags and not videos:
        raise ConfigError(f"{flags}: {memories[0]!r} is a memory, which stays as it was made; leave that out")
    if keep is not None and (memories or len(videos) > 1):
        raise ConfigError("--save: it is for the memory of one video; leave it out, or name one video")
    if beside is not None and (videos or len(memories) > 1):
        raise ConfigError("--video: it is for the video of one memory; leave it out, or name one memory")


def _memory(name: str, config: "EngineConfig", beside: str | None, typed: dict[str, str | None]) -> "Subject":
    from kvvideo.runs.find import of_memory

    subject, note = of_memory(Path(name), config, video=None if beside is None else local_path(beside), **typed)
    if note:
        say(note)
    ensure(subject.config.model)
    return subject


def _video(source: "Source", config: "EngineConfig", watching: options.LiveVideo) -> "Subject":
    from kvvideo.runs.find import of_video

    with watching.looked_for(source.path):
        ensure(config.model, source)
    return of_video(source, config)


def _run(search: "Search", cuts: "Cuts", format: str, path: Path | None, force: bool) -> None:
    from kvvideo.cli import render
    from kvvideo.outputs.stills import jpeg
    from kvvideo.runs.find import picture_of, recorded

    progress, failure = render.Progress(), None

    def picture(record: Record) -> bytes | None:
        found = picture_of(search.found[record["rank"] - 1])
        return None if found is None else jpeg(found)

    with Stop() as stop:
        shown: Writer = _Moments()
        files = [] if format == TEXT else [find.open_writer(format, path, force, picture)]
        if files and path is None:
            shown, files = files[0], []
        # Outputs takes the writers of files first: their paths go with them.
        outputs = Outputs([*files, Shown(shown)], say, [path] if path is not None else [])

        def loading(model: str) -> None:
            if search.searched:  # and what was found would be lost
                progress.wait(f"loading {model} …")
            else:
                progress.loading(model, stop)

        search.hooks = Hooks(lambda: stop.asked, loading, progress.chunk)
        made: list[str] = []
        try:
            with progress:
                for record in recorded(search, cuts):
                    outputs.write(record)
                    made += [record[name] for name in ("clip", "frame") if record.get(name)]
        finally:
            try:
                outputs.close()
            except ConfigError as error:
                failure = error
    _conclude(search, [*map(str, outputs.written), *made], failure)


def _conclude(search: "Search", written: list[str], failure: ConfigError | None) -> None:
    """Say which files there are, and end with the exit code of what went wrong, if anything did."""
    if written:
        note(f"wrote {', '.join(written)}")
    if search.failure is not None:
        raise search.failure
    if failure is not None:
        raise SystemExit(failure.exit_code)
    if not search.complete:
        raise SystemExit(INTERRUPTED)


class _Moments:
    """Prints moments as a table, and a line about the search on stderr."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, ...]] = []
        self._done: Record | None = None

    def write(self, record: Record) -> None:
        """Keep ``record`` for the end."""
        if record["type"] == "done":
            self._done = record
        else:
            video = clean.line(record["memory"] or record["video"])
            self._rows.append((str(record["rank"]), find.stretch(record), f"{record['score']:.2f}", video))

    def close(self) -> None:
        """Print the table."""
        from kvvideo.cli import render

        if self._rows:
            render.listing(("", "moment", "score", "found in"), self._rows)
        if self._done is not None:
            length = sum(one["end"] - one["start"] for one in self._done["searched"])
            took = f"{format_time(length)} of video searched in {self._done['seconds']:.1f} s"
            render.aside(took)
        self._rows, self._done = [], None


def _dry_run(sources: "dict[str, Source]", watching: options.LiveVideo, config: "EngineConfig", format: str) -> None:
    from kvvideo.cli import render
    from kvvideo.cli.predict import looked_at, prediction

    for name, source in sources.items():
        with watching.looked_for(name):
            record = prediction(source, looked_at(source), config)
        if format == "jsonl":
            to_stdout(jsons.line(record))
        else:
            render.prediction(record)
