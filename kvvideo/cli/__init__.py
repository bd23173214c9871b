"""The command line: thin, one module per command. Everything it does can be done from Python."""

import logging
import os
import sys
import warnings

import typer

from kvvideo import __version__
from kvvideo.cli import analyze, ask, batch, bench, chat, ingest, samples, strategies
from kvvideo.errors import INTERRUPTED, KvvideoError
from kvvideo.outputs import clean

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Ask questions of very long videos, with a KV cache that never grows.",
    epilog="Exit codes: 0 done · 1 failed · 2 wrong usage · 3 video cannot be decoded · "
    "4 out of memory · 5 vLLM failed · 130 interrupted (what there was is printed)",
)
app.command("analyze", no_args_is_help=True)(analyze.command)
app.command("chat", no_args_is_help=True)(chat.command)
app.command("ingest", no_args_is_help=True)(ingest.command)
app.command("ask", no_args_is_help=True)(ask.command)
app.command("batch", no_args_is_help=True)(batch.command)
app.add_typer(samples.app, name="samples")
app.add_typer(bench.app, name="bench")
app.command("strategies")(strategies.command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kvvideo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show vLLM's and kvvideo's own log on stderr."),
) -> None:
    if verbose:
        os.environ["VLLM_LOGGING_LEVEL"] = "INFO"
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
        logging.getLogger("kvvideo").setLevel(logging.DEBUG)
    else:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def main() -> None:
    """Entry point of the ``kvvideo`` command: errors become one line on stderr and an exit code."""
    try:
        app()
    except KvvideoError as error:
        print(f"kvvideo: {clean.text(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read our output has gone; a second failure while flushing would only add noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
