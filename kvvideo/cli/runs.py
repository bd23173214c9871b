"""``kvvideo runs``: interrupted runs that ``analyze --resume`` can go on with, listed and cleared."""

import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from kvvideo.cli import options
from kvvideo.cli.command import App, Plain, flat
from kvvideo.cli.stop import note, say
from kvvideo.errors import ConfigError
from kvvideo.outputs import jsons
from kvvideo.outputs.figures import counted
from kvvideo.outputs.writer import to_stdout
from kvvideo.sizes import format_size
from kvvideo.times import format_time, parse_time

if TYPE_CHECKING:
    from kvvideo.runs.interrupted import Kept

app = App(
    no_args_is_help=False,
    help="""List the interrupted runs that are kept for --resume, and clear them.

    Examples:
        kvvideo runs
        kvvideo runs clear --older 7d
    """,
)
_LONG = re.compile(r"(\d+)\s*([dw])", re.ASCII)
_DAY = 86400.0


@app.callback(invoke_without_command=True)
@flat
def show(
    context: typer.Context,
    json_output: options.Json = False,
) -> None:
    """List the interrupted runs of 'kvvideo analyze', the latest first, and how to go on with each.

    'ingest' and 'batch' keep theirs beside what they write; 'chat' keeps nothing but its history.
    """
    if context.invoked_subcommand is not None:
        return
    from kvvideo.cli import render
    from kvvideo.runs.interrupted import kept_runs
    from kvvideo.runs.journal import runs_directory

    runs, directory = kept_runs(), runs_directory()
    if json_output:
        size = sum(run.bytes for run in runs)
        record = {"type": "runs", "schema": 1, "directory": str(directory), "bytes": size}
        to_stdout(jsons.line({**record, "runs": [run.record for run in runs]}))
        return
    for run in runs:
        for line in _lines(run):
            render.out.print(render.clean(line), markup=False)
    note(f"{_sum(runs)}, in {str(directory)!r}" if runs else f"no interrupted runs are kept in {str(directory)!r}")


# A plain command: no file or variable may decide that something is removed.
@app.command("clear", cls=Plain)
def clear(
    names: Annotated[
        list[str] | None, typer.Argument(help="Runs, by their names or beginnings of these.", metavar="[NAME]...")
    ] = None,
    older: Annotated[
        str | None,
        typer.Option(
            "--older", metavar="TIME", help="All that are so old, e.g. 7d or 12h.", rich_help_panel=options.ASK
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.", rich_help_panel=options.ASK)] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.", rich_help_panel=options.ASK)] = False,
) -> None:
    """Delete interrupted runs, which cannot be resumed then. One that is running now stays.

    Examples:
        kvvideo runs clear --older 7d
        kvvideo runs clear --all --yes
    """
    from kvvideo.runs.interrupted import chosen, kept_runs

    if [bool(names), older is not None, everything].count(True) != 1:
        raise ConfigError("say which: names as 'kvvideo runs' lists them, --older 7d, or --all")
    runs = kept_runs()
    if names:
        meant = chosen(runs, names)
    else:
        latest = time.time() - (0.0 if older is None else _age(older))
        meant = [run for run in runs if everything or run.modified < latest]
    for run in meant:
        if run.running:
            say(f"{run.name} is running now, so it stays")
    if left := [run for run in meant if not run.running]:
        _confirm(left, yes)
        _remove(left)
    elif not meant:
        note("there is nothing to remove")
    if names and len(left) < len(meant):
        raise SystemExit(1)


def _confirm(runs: Sequence["Kept"], yes: bool) -> None:
    """Ask if ``runs`` are to be removed; end the command if not."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"nobody can be asked here if {_sum(runs)}, may go; add --yes")
    if not typer.confirm(f"Remove {_sum(runs)}?", err=True):
        raise SystemExit(1)


def _remove(runs: Sequence["Kept"]) -> None:
    from kvvideo.runs.interrupted import remove
    from kvvideo.storage.workspace import Busy

    gone = []
    for run in runs:
        try:
            remove(run)
            gone.append(run)
        except Busy:
            say(f"{run.name} is running now, so it stays")
        except OSError as error:
            say(f"{str(run.path)!r} cannot be removed: {error.strerror or error}")
    if gone:
        note(f"removed {_sum(gone)}")
    if len(gone) < len(runs):
        raise SystemExit(1)


def _lines(run: "Kept") -> list[str]:
    """Return what is known of a run, and how to go on with it."""
    got = f"got to {format_time(run.end)}, {counted(run.answers, 'answer')}"
    when = "running now" if run.running else time.strftime("%Y-%m-%d %H:%M", time.localtime(run.modified))
    about = [", ".join(run.strategies), got, format_size(run.bytes), when]
    lines = [f"{run.name}  {run.video or 'not begun'}", f"  {'; '.join(filter(None, about))}"]
    if going_on := run.going_on:
        there = run.folder and run.folder != os.getcwd()
        lines.append(f"  {f'cd {shlex.quote(run.folder)} && ' if there else ''}{going_on}")
    elif run.video:
        lines.append("  the same command with --resume goes on from there")
    return lines


def _sum(runs: Sequence["Kept"]) -> str:
    return f"{counted(len(runs), 'run')}, {format_size(sum(run.bytes for run in runs))}"


def _age(text: str) -> float:
    """Return the seconds of ``7d``, ``2w``, ``12h`` and other times.

    Raises:
        ConfigError: if ``text`` is no such time.
    """
    if match := _LONG.fullmatch(text.strip()):
        return int(match[1]) * _DAY * (7 if match[2] == "w" else 1)
    try:
        return parse_time(text)
    except ConfigError:
        raise ConfigError(f"older: {text!r:.100} is no time such as 7d, 2w or 12h") from None
