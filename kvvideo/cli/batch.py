"""``kvvideo batch``: answer a file of jobs, several videos at once, and lose nothing."""

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvvideo.cli import options
from kvvideo.cli.download import ensure
from kvvideo.cli.panels import ASK, BATCH, OUTPUT, RAY
from kvvideo.cli.stop import Stop, note, say
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import INTERRUPTED, ConfigError, KvvideoError
from kvvideo.outputs import jsons
from kvvideo.outputs.figures import counted
from kvvideo.outputs.writer import to_stdout
from kvvideo.session import EngineConfig
from kvvideo.sizes import parse_size

if TYPE_CHECKING:
    from kvvideo.batch.results import Results
    from kvvideo.batch.run import Batch, Executor
    from kvvideo.batch.tasks import Defaults, Task

AT_ONCE = 8


class Where(StrEnum):
    """A place where engines run."""

    local = "local"
    ray = "ray"


@dataclass(frozen=True)
class Room:
    """The number of videos streamed at once."""

    at_once: Annotated[
        int | None,
        typer.Option(
            "--at-once",
            min=1,
            help=f"Videos at once, by each engine. [{AT_ONCE}, or fewer]",
            rich_help_panel=BATCH,
        ),
    ] = None
    kv_memory: Annotated[
        str | None,
        typer.Option(
            "--kv-memory",
            metavar="SIZE",
            help="Size of the KV pool: as many at once as it holds.",
            rich_help_panel=BATCH,
        ),
    ] = None

    def sized(
        self,
        config: EngineConfig,
        tasks: "Sequence[Task]",
        defaults: "Defaults",
        max_model_len: int | None,
        here: bool,
    ) -> EngineConfig:
        """Return ``config`` with room for as many sessions as are asked for, or fit.

        Args:
            config: of the engine.
            tasks: the videos.
            defaults: of the jobs.
            max_model_len: if it is exact.
            here: True if the engine runs on this machine.

        Raises:
            ConfigError: if there are no tasks, or the pool holds fewer sessions than are asked for.
        """
        from kvvideo.batch.run import question_tokens
        from kvvideo.prompt import words_tokens
        from kvvideo.session.allowance import CPU_SHARE, LEAST, Allowance, chunk_tokens, machine_bytes
        from kvvideo.session.pool import sessions_in

        if not tasks:
            raise ConfigError("shard: there are fewer videos than shards, and this one has none")
        sources = [task.source for task in tasks]
        chunk = max(chunk_tokens(one.fps, one.chunk_seconds, one.max_pixels) for one in sources)
        words = max((words_tokens(one.chunk_seconds) for one in sources if one.subtitles is not None), default=0)
        chunk += words
        config = replace(
            config,
            words_tokens=words,
            question_tokens=question_tokens(chunk, defaults.max_answer_tokens),
            step_tokens=max(config.step_tokens, chunk),
        )
        config = config.with_system(max((q.system for task in tasks for q in task.wants), key=len))
        rooms = [defaults.looking.room_in(config, s.fps, s.chunk_seconds, s.max_pixels) for s in sources]
        config = max(rooms, key=lambda room: room.again_tokens)
        largest = replace(config, cache=_largest(tasks))
        length = Allowance(max_model_len=max_model_len).length(config, [task.cache for task in tasks], chunk)
        config = replace(config, max_model_len=length)
        if self.kv_memory is None:
            there = machine_bytes(largest, CPU_SHARE) if here and self.at_once is None else None
            # Where nobody says what there is: no more in all than eight of the default size.
            blind = AT_ONCE * LEAST // max(LEAST, largest.cache.max_tokens)
            fit = max(1, min(AT_ONCE, blind if there is None else sessions_in(there, largest)))
            return replace(config, sessions=min(self.at_once or fit, len(tasks)))
        size = parse_size(self.kv_memory)
        fit = sessions_in(size, largest)
        if fit < (self.at_once or 1):
            raise ConfigError(
                f"kv-memory: {self.kv_memory} surely holds {counted(fit, 'video')} at once, with {config.questions} "
                "questions; use more, a smaller --max-tokens, or a smaller --at-once"
            )
        return replace(config, sessions=min(self.at_once or fit, len(tasks)), kv_bytes=size)


@dataclass(frozen=True)
class Engines:
    """The place of the engines, and their number."""

    where: Annotated[
        Where,
        typer.Option("--executor", help="One engine, here, or several on a Ray cluster.", rich_help_panel=RAY),
    ] = Where.local
    engines: Annotated[
        int | None,
        typer.Option(
            "--engines",
            min=1,
            help="How many. [one per GPU, or as there are CPUs]",
            rich_help_panel=RAY,
        ),
    ] = None
    cpus_per_engine: Annotated[
        int | None,
        typer.Option(
            "--cpus-per-engine", min=1, help="CPUs of each. [1 beside a GPU, else up to 4]", rich_help_panel=RAY
        ),
    ] = None
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="HOST:PORT",
            help="The cluster, or auto; all its machines have videos and model. [this machine alone]",
            rich_help_panel=RAY,
        ),
    ] = None

    def executor(self) -> "Callable[..., Executor]":
        """Return what makes the executor.

        Raises:
            ConfigError: if Ray is not installed, or options of a cluster are given without one.
        """
        if self.where is Where.ray:
            from kvvideo.batch.ray import Cluster, required

            required()
            return partial(Cluster, engines=self.engines, cpus=self.cpus_per_engine, address=self.ray_address, say=say)
        for name in ("engines", "cpus_per_engine", "ray_address"):
            if getattr(self, name) is not None:
                raise ConfigError(f"{name.replace('_', '-')}: only a Ray cluster has that; add --executor ray")
        from kvvideo.batch.run import Local

        return Local


def command(
    jobs: Annotated[Path, typer.Argument(help="The job file, JSON Lines.", show_default=False)],
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="For the results; it goes on from what is there.",
            rich_help_panel=OUTPUT,
        ),
    ] = Path("results"),
    check: Annotated[
        bool,
        typer.Option("--check", help="Look at jobs and videos, and say what it will take.", rich_help_panel=OUTPUT),
    ] = False,
    only_failed: Annotated[
        bool, typer.Option("--only-failed", help="Do again what failed, and nothing else.", rich_help_panel=ASK)
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away the results that are there.", rich_help_panel=OUTPUT)
    ] = False,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="Stop at the first failure.", rich_help_panel=BATCH)
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Only the first jobs, this many.", rich_help_panel=ASK)
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard", metavar="I/N", help="Only this part of the videos: several machines.", rich_help_panel=ASK
        ),
    ] = None,
    retries: Annotated[
        int,
        typer.Option("--retries", min=0, help="How often a failed video is tried again.", rich_help_panel=BATCH),
    ] = 0,
    json_output: options.Json = False,
    room: Room,
    engines: Engines,
    checkpoint_every: options.CheckpointEvery = options.CHECKPOINT_EVERY,
    max_answer_tokens: options.MaxAnswerTokens = options.MAX_ANSWER_TOKENS,
    cache: options.Memory,
    recall: options.Recall,
    engine: options.Engine,
    watching: options.Video,
) -> None:
    """Answer all questions in JOBS, several videos at once, each ingested once.

    Examples:
        kvvideo batch jobs.jsonl -o results
        kvvideo batch jobs.jsonl --check

    Every answer is in results.jsonl as soon as it is given, and is not asked again: after Ctrl-C, a crash or kill -9
    the same command goes on. What could not be answered is in failed.jsonl; the exit code is 1 then.
    """
    from kvvideo.batch.jobs import read_jobs
    from kvvideo.batch.tasks import Defaults, tasks_of
    from kvvideo.video.subtitles import AUTO, OFF

    executor = engines.executor()
    config = engine.config(cache.config())
    apart = options.period(checkpoint_every)
    part = None if shard is None else _part(shard)
    read = read_jobs(jobs)[:limit]
    reading = watching.reading(config) | {"decoder": watching.decoder}
    # The same on all machines and in all runs: what memory there is decides how many videos are streamed at once.
    config, _ = cache.settle(config, [config.cache], reading, engine.max_model_len, machine=False)
    if watching.subtitles not in (AUTO, OFF):
        raise ConfigError("subtitles: a file is of one video; name it in that video's job, or say auto or off here")
    defaults = Defaults(config, reading, max_answer_tokens, recall.looking(), watching.subtitles)
    tasks = tasks_of(read, defaults)
    if part is not None:
        tasks = tasks[part[0] - 1 :: part[1]]
    config = room.sized(config, tasks, defaults, engine.max_model_len, engines.where is Where.local)
    if check:
        _check(tasks, replace(defaults, engine=replace(config, cache=_largest(tasks))), json_output)
        return
    from kvvideo.batch.results import Results
    from kvvideo.batch.run import Batch

    if engines.where is Where.local:
        ensure(config.model)
    with Results(output, "" if part is None else f"{part[0]}-of-{part[1]}", restart=restart) as results:
        batch = Batch(tasks, results, defaults, retries=retries, fail_fast=fail_fast, only_failed=only_failed, say=say)
        _run(batch, results, config, executor, apart, json_output)


def _part(shard: str) -> tuple[int, int]:
    """Return the two numbers of ``I/N``."""
    first, _, count = shard.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise ConfigError(f"shard: {shard!r} is no part of a whole; write 1/4 to 4/4 for four machines")
    return int(first), int(count)


def _largest(tasks: "Sequence[Task]") -> CacheConfig:
    return max((task.cache for task in tasks), key=lambda cache: (cache.strategy != "full", cache.max_tokens))


def _run(
    batch: "Batch",
    results: "Results",
    config: EngineConfig,
    make: "Callable[..., Executor]",
    apart: float,
    json_output: bool,
) -> None:
    from kvvideo.batch.run import Local
    from kvvideo.cli.board import Board

    failure: KvvideoError | None = None
    with Stop() as stop:
        pending = batch.pending()
        done = batch.progress.questions - sum(len(wants) for task in pending for wants in task.wants.values())
        if done and pending:
            note(f"{done} of {batch.progress.questions} questions are done already")
        with Board(batch.progress, done, pending) as board:
            batch.on_event = board.show
            if pending and not (batch.failing or stop.asked):
                board.wait(f"loading {config.model} …")
                if make is Local:  # engines elsewhere have to be told
                    stop.at_once()
                executor = make(
                    config,
                    [*dict.fromkeys(task.cache for task in pending)],
                    batch.defaults.max_answer_tokens,
                    looking=batch.defaults.looking,
                    loaded=lambda engine: results.check_model(engine.fingerprint),
                    kept=lambda task: results.checkpoints(task) if apart else None,
                    every=apart,
                    stopped=lambda: stop.asked or batch.failing,
                )
                failure = _do(batch, executor, pending)
    status = "interrupted" if stop.asked else "error" if failure or batch.failing else "complete"
    _conclude(batch, results, status, failure, json_output)


def _do(batch: "Batch", executor: "Executor", tasks: "Sequence[Task]") -> KvvideoError | None:
    """Run ``tasks``; return the error that keeps it from going on, so that a summary can be written first."""
    try:
        batch.run(executor, tasks)
    except KvvideoError as error:
        return error
    return None


def _conclude(batch: "Batch", results: "Results", status: str, failure: KvvideoError | None, json_output: bool) -> None:
    from kvvideo.cli import board

    summary = batch.summary(status, None if failure is None else str(failure))
    try:
        results.summarise(summary)
    except ConfigError as error:
        failure = failure or error
    if json_output:
        print(json.dumps(summary, indent=2))
    else:
        board.summary(summary)
    if summary["left"] and failure is None:
        say("the same command goes on from there")
    if failure is not None:
        raise failure
    if status == "interrupted":
        raise SystemExit(INTERRUPTED)
    if summary["failed"]:
        failed, file = counted(summary["failed"], "question"), str(results.path("failed"))
        say(f"{failed} failed: {file!r} says why; --only-failed tries again")
        raise SystemExit(1)


def _check(tasks: "Sequence[Task]", defaults: "Defaults", json_output: bool) -> None:
    from kvvideo.batch.check import check, total
    from kvvideo.cli import board, render

    found: list[dict[str, Any]] = []
    with render.Transient() if not json_output else nullcontext() as shown:
        if shown is not None:
            shown.wait(f"looking at {counted(len(tasks), 'video')} …")
        for record in check(tasks, defaults):
            found.append(record)
            if json_output:
                to_stdout(jsons.line(record))
            if record["error"] is not None:
                say(f"{record['where']}: {record['error']}")
            for finding in record["findings"]:
                say(finding)
            if shown is not None:
                shown.wait(f"{len(found)} of {len(tasks)} videos looked at …")
    whole = total(found, defaults)
    if json_output:
        print(json.dumps(whole), flush=True)
    else:
        board.check(found, whole)
    if any(record["error"] is not None or record["findings"] for record in found):
        raise SystemExit(1)
