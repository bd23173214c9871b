"""``kvvideo doctor``: what is wrong on this machine, and how to mend it."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer

from kvvideo.cli import complete, settings
from kvvideo.cli.command import commands, leaves, values
from kvvideo.cli.options import DEFAULT_MODEL, Json
from kvvideo.cli.panels import MODEL
from kvvideo.doctor import Finding, examine
from kvvideo.doctor.finding import broken, ok, warning
from kvvideo.errors import ConfigError
from kvvideo.outputs import jsons
from kvvideo.outputs.writer import to_stdout

_STYLES = {"ok": "green", "warning": "yellow", "broken": "bold red"}
_RANKS = ["ok", "warning", "broken"]


def command(
    context: typer.Context,
    checks: Annotated[
        list[str] | None, typer.Argument(help="Only these, such as vllm or decoders.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="Whose files to look at. [what 'analyze' would use]",
            rich_help_panel=MODEL,
            autocompletion=complete.model,
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Check Python, GPU, vLLM, what comes with torch, the decoders, the disk and the model, and say how to mend them.

    Examples:
        kvvideo doctor
        kvvideo doctor vllm decoders

    Exits 1 if something is broken that every run needs; what only warns does not count.
    """
    from kvvideo.cli import render

    root, found = context.find_root(), []
    with render.Progress() as progress:
        progress.say("looking …")
        for finding in examine(model or _configured(root), {"settings": lambda: _settings(root)}, checks):
            found.append(finding)
            if not json_output:
                _print(finding)
    worst = max((finding.status for finding in found), key=_RANKS.index)
    if json_output:
        findings = [asdict(finding) for finding in found]
        to_stdout(jsons.line({"type": "doctor", "schema": 1, "status": worst, "findings": findings}))
    if worst == "broken":
        raise SystemExit(1)


def _configured(root: Any) -> str:
    """Return the model that ``analyze`` would use here."""
    try:
        return next(str(one.value) for one in values(root, ("analyze",)) if one.key == "model")
    except ConfigError:
        return DEFAULT_MODEL


def _settings(root: Any) -> Iterator[Finding]:
    """Check the files and variables that set options."""
    known, mend = (
        commands(root.command),
        "correct it: no command works before; 'kvvideo config show' says when all is well",
    )
    try:
        for file in settings.paths():
            count = sum(map(len, settings.read(file, known).values()))
            yield ok("settings", f"{file} sets {count} options" if file.exists() else f"{file}: not there")
        for words, _ in leaves(root.command):
            values(root, words)
    except ConfigError as error:
        yield broken("settings", str(error), mend)
    for name, reason in settings.unused_variables(known).items():
        yield warning("settings", f"{name} sets nothing: {reason}", f"unset {name}")


def _print(finding: Finding) -> None:
    from rich.text import Text

    from kvvideo.cli import render

    line = Text.assemble(
        (f"{finding.status:<8}", _STYLES[finding.status]), (f"{finding.check}: ", "bold"), render.clean(finding.says)
    )
    render.out.print(line)
    if finding.mend:
        render.out.print(Text(f"        → {render.clean(finding.mend)}", style="dim"))
