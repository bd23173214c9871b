"""The command line: thin, one module per command. Everything it does can be done from Python."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from kvvideo._version import __version__
from kvvideo.cli import (
    analyze,
    ask,
    batch,
    bench,
    chat,
    config,
    doctor,
    find,
    ingest,
    runs,
    samples,
    serve,
    strategies,
)
from kvvideo.cli.command import VERBOSE, App, Group, Plain
from kvvideo.cli.screen import standard_streams
from kvvideo.cli.stop import say
from kvvideo.errors import INTERRUPTED, ConfigError, KvvideoError
from kvvideo.outputs import clean


class _Group(Group):
    """A group whose error messages are cleaned: names of files in them may come from strangers."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _cleaned():
            return super().make_context(*arguments, **options)

    def invoke(self, context: Any) -> Any:
        with _cleaned():
            return super().invoke(context)


@contextmanager
def _cleaned() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Typer's usage errors are Click's, or its own copy of them.
        if isinstance(message := getattr(error, "message", None), str):
            error.message = clean.text(message)  # type: ignore[attr-defined]
        raise


app = App(
    cls=_Group,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="""Ask questions of very long videos, with a KV cache that never grows.

    Examples:
        kvvideo analyze movie.mp4 -q "What happens?"
        kvvideo chat samples/letters-1m.mp4 --model tiny
    """,
    epilog="Exit codes: 0 done · 1 failed · 2 wrong usage · 3 video cannot be decoded · "
    "4 out of memory · 5 vLLM failed · 130 interrupted (what there was is printed)",
)
app.command("analyze", no_args_is_help=True)(analyze.command)
app.command("chat", no_args_is_help=True)(chat.command)
app.command("ingest", no_args_is_help=True)(ingest.command)
app.command("ask", no_args_is_help=True)(ask.command)
app.command("find", no_args_is_help=True)(find.command)
app.command("batch", no_args_is_help=True)(batch.command)
app.command("serve", no_args_is_help=True, cls=serve.Serve, context_settings=serve.SETTINGS)(serve.command)
app.add_typer(runs.app, name="runs")
app.add_typer(samples.app, name="samples")
app.add_typer(bench.app, name="bench")
app.add_typer(config.app, name="config")
# It must work whatever is set.
app.command("doctor", cls=Plain)(doctor.command)
app.command("strategies")(strategies.command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kvvideo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    _: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="As --verbose of each command."),
) -> None:
    context.meta[VERBOSE] = verbose


def main() -> None:
    """Run the ``kvvideo`` command; an error becomes one line on stderr and an exit code."""
    with standard_streams():
        _main()


def _main() -> None:
    try:
        try:
            app(prog_name="kvvideo")
        finally:
            sys.stdout.flush()  # at exit it would be too late to say that it cannot be written
    except KvvideoError as error:
        say(str(error))
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read our output has gone; a second failure while flushing would only add noise.
        _discard_output()
        raise SystemExit(1) from None
    except OSError as error:
        what = "standard output cannot be written" if error.filename is None else f"{error.filename!r} cannot be used"
        say(f"{what}: {error.strerror or error}")
        _discard_output()
        raise SystemExit(ConfigError.exit_code) from None


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
