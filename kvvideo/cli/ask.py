"""``kvvideo ask``: answer from a memory that ``kvvideo ingest`` wrote."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvvideo.cli import complete, options
from kvvideo.cli.download import ensure
from kvvideo.cli.stop import Stop, note, say
from kvvideo.errors import INTERRUPTED, ConfigError
from kvvideo.outputs import Stills
from kvvideo.runs.agenda import Question
from kvvideo.runs.analyze import Hooks
from kvvideo.runs.recall import Looking
from kvvideo.session import EngineConfig
from kvvideo.times import format_time
from kvvideo.video.address import local_path

if TYPE_CHECKING:
    from kvvideo.runs.records import Record
    from kvvideo.session import Recall
    from kvvideo.storage.file import MemoryFile
    from kvvideo.video import Source


VideoNow = Annotated[
    str | None,
    typer.Option("--video", metavar="FILE", help="Where the video is now. [as it was]", rich_help_panel=options.VIDEO),
]
ModelNow = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="Where the model is now. [as it was]",
        rich_help_panel=options.MODEL,
        autocompletion=complete.model,
    ),
]
DtypeNow = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="auto, float32, bfloat16 or float16. [as it was]",
        rich_help_panel=options.MODEL,
        autocompletion=complete.one_of(*options.DTYPES),
    ),
]


def command(
    memory: Annotated[Path, typer.Argument(help="The .kvv file that 'kvvideo ingest' wrote.", show_default=False)],
    *,
    asked: options.Questions,
    output: options.Output,
    video: VideoNow = None,
    max_answer_tokens: options.MaxAnswerTokens = options.MAX_ANSWER_TOKENS,
    own_engine: Annotated[
        bool,
        typer.Option("--own-engine", help="Load the model even if it is served.", rich_help_panel=options.MODEL),
    ] = False,
    model: ModelNow = None,
    dtype: DtypeNow = None,
    recall: options.Recall,
    seed: options.Seed = 0,
    max_model_len: options.MaxModelLen = options.MAX_MODEL_LEN,
) -> None:
    """Answer questions from MEMORY, without going through the video again.

    Examples:
        kvvideo ask movie.kvv -q "What happens?"
        kvvideo ask movie.kvv -q "@10:30 What just happened?" -f json

    A question at a moment is answered from the checkpoint before it, with the frames between shown again if the
    video is at hand; without it, from the checkpoint alone, and a note on stderr says of which moment that is. If
    'kvvideo serve' serves MEMORY, its engine is asked, and no model is loaded.
    """
    questions = asked.listed(str(memory))
    if not questions:
        raise ConfigError("there is nothing to ask; add -q 'What happens?' or -q '@10:30 What just happened?'")
    from kvvideo.storage.file import MemoryFile

    config = EngineConfig(max_model_len=max_model_len, seed=seed).with_system(asked.told)
    output.choice()  # what cannot be written is said before the file is read
    with MemoryFile(memory) as file:
        asking = Asking(
            file,
            questions,
            max_answer_tokens,
            config,
            recall.looking(),
            None if video is None else local_path(video),
            model,
            dtype,
        )
        _run(asking, output, own_engine)


@dataclass(frozen=True)
class Asking:
    """Questions of a memory, and the settings of their answers; see ``runs.ask.Saved.of``."""

    file: "MemoryFile"
    questions: list[Question]
    max_answer_tokens: int
    config: EngineConfig
    looking: Looking
    video: str | None
    model: str | None
    dtype: str | None

    def to_load(self) -> "Answers":
        """Return the answers of an engine of our own, whose model is at hand."""
        from kvvideo.runs.ask import Saved, answering

        saved = Saved.of(
            self.file, self.config, self.looking, say, video=self.video, model=self.model, dtype=self.dtype
        )
        saved.check(self.questions)
        ensure(saved.config.model)

        def records(hooks: Hooks) -> "Iterator[Record]":
            return answering(saved, self.questions, hooks=hooks, max_answer_tokens=self.max_answer_tokens)

        return Answers(saved.config.cache.strategy, saved.source, saved.recall, records)

    def served(self) -> "Answers | None":
        """Return the answers of an engine that serves the memory, and of one of our own if that fails; None without."""
        from kvvideo.serve.client import Client, Unreachable
        from kvvideo.serve.notice import found, settings
        from kvvideo.video import Source

        pair = found(self.file.path, settings(self.config, self.looking, self.model, self.dtype, self.video))
        if pair is None:
            return None
        notice, shown = pair
        client = Client(notice, shown.name, secrets.token_hex(8))

        def records(hooks: Hooks) -> "Iterator[Record]":
            count = 0
            try:
                for record in client.records(self.questions, self.max_answer_tokens):
                    if not count:
                        for line in shown.said:
                            say(line)
                        note(f"asked the engine that serves it at {notice.url}")
                    count += 1
                    yield record
            except Unreachable as error:
                say(f"the engine that serves it at {notice.url} cannot be asked: {error}")
                if count:  # and what was given would be lost
                    hooks = replace(hooks, loading=lambda _: None)
                # The same questions have the same answers, of which some were given.
                yield from islice(self.to_load().records(hooks), count, None)

        source = None if shown.source is None else Source.from_dict(shown.source)
        recall = self.looking.at(self.file.frames()) if source is None or not source.replayable else None
        return Answers(shown.strategy, source, recall, records, client.stop)


@dataclass(frozen=True)
class Answers:
    """Answers to come, and what reports of them need.

    Attributes:
        strategy: of the memory.
        source: its video; None if it is not at hand.
        recall: where frames are to be had without it.
        records: yields them.
        stop: has no more questions asked, where the hooks cannot.
    """

    strategy: str
    source: "Source | None"
    recall: "Recall | None"
    records: Callable[[Hooks], "Iterator[Record]"]
    stop: Callable[[], None] = lambda: None


class _Stop(Stop):
    """Also has the server stop."""

    def __init__(self, also: Callable[[], None]) -> None:
        super().__init__()
        self._also = also

    def _ask(self, *arguments: object) -> None:
        super()._ask(*arguments)
        self._also()


def _run(asking: Asking, output: options.Output, own_engine: bool) -> None:
    from kvvideo.cli import render
    from kvvideo.outputs.delivery import Delivery

    answers = (None if own_engine else asking.served()) or asking.to_load()
    path, source = asking.file.path, answers.source
    progress, status, unasked = render.Progress(), "", []
    with ExitStack() as stack:
        delivery = Delivery(
            output.choice(),
            render.Answers(),
            stem=path.stem,
            strategies=[answers.strategy],
            say=say,
            note=note,
            force=output.force,
            inputs=[path] if source is None else [path, Path(source.path)],
            frame=stack.enter_context(closing(Stills(source, answers.recall))),
            look=output.look(None if source is None else source.path),
        )
        stop = stack.enter_context(_Stop(answers.stop))
        hooks = Hooks(
            lambda: stop.asked, lambda model: progress.loading(model, stop), progress.chunk, loaded=stop.begun
        )
        records = answers.records(hooks)
        try:
            with progress:
                progress.wait(f"asking {path} …")
                for record in records:
                    if record["type"] == "answer":
                        _note(record)
                    else:
                        status, unasked = record["status"], record["unasked"]
                    delivery.write(record)
        finally:
            failure = delivery.close()
            for question in unasked:
                say(f"not asked: {question['question']}")
    if failure is not None:
        raise SystemExit(failure.exit_code)
    if status == "interrupted":
        raise SystemExit(INTERRUPTED)


def _note(record: dict[str, Any]) -> None:
    """Say of which moment an answer is, if it is not the one that was asked about."""
    if record["answered_at"] != record["asked_at"]:
        say(
            f"'@{format_time(record['asked_at'])} {record['question']}' is answered from "
            f"{format_time(record['answered_at'])}, as the video is not at hand"
        )
