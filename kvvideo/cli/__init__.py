"""The command line: thin, one module per command. Everything it does can be done from Python."""

import logging
import os
import sys
import warnings

import typer
from typer.core import TyperCommand

from kvvideo import __version__, settings
from kvvideo.cli import analyze, ask, batch, bench, chat, config, doctor, ingest, samples, serve, strategies
from kvvideo.cli.command import App, commands
from kvvideo.cli.stop import say
from kvvideo.errors import INTERRUPTED, KvvideoError

app = App(
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
app.command("serve", no_args_is_help=True, context_settings=serve.SETTINGS)(serve.command)
app.add_typer(samples.app, name="samples")
app.add_typer(bench.app, name="bench")
app.add_typer(config.app, name="config")
# It must work whatever is set.
app.command("doctor", cls=TyperCommand)(doctor.command)
app.command("strategies")(strategies.command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kvvideo {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show vLLM's and kvvideo's own log on stderr."),
) -> None:
    if verbose:
        os.environ["VLLM_LOGGING_LEVEL"] = "INFO"
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
        logging.getLogger("kvvideo").setLevel(logging.DEBUG)
        for name, reason in settings.unused_variables(commands(context.command)).items():
            say(f"{name} sets nothing: {reason}")
    else:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def main() -> None:
    """Entry point of the ``kvvideo`` command: errors become one line on stderr and an exit code."""
    try:
        app(prog_name="kvvideo")
    except KvvideoError as error:
        say(str(error))
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # Whoever read our output has gone; a second failure while flushing would only add noise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
