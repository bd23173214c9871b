"""``kvvideo config``: show the settings in force, and the source of each."""

import json
import os
import sys
from collections.abc import Iterator
from enum import Enum
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import typer

from kvvideo.cli import settings
from kvvideo.cli.command import App, Origin, Plain, Value, commands, described, leaves, options, values
from kvvideo.cli.options import Json
from kvvideo.cli.panels import OUTPUT
from kvvideo.cli.settings import Words
from kvvideo.errors import ConfigError
from kvvideo.outputs import jsons
from kvvideo.outputs.writer import to_stdout

# Plain commands: they must work, and do the same, whatever is set.
app = App(
    help="""Show or begin the files that set options.

    Examples:
        kvvideo config show analyze
        kvvideo config init
    """
)


@app.command("show", cls=Plain)
def show(
    context: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(help="Of this one, such as analyze or bench memory. [of all]")
    ] = None,
    json_output: Json = False,
) -> None:
    """Show what each option is when it is not on the command line, and where that comes from.

    Examples:
        kvvideo config show
        kvvideo config show analyze --json

    The command line comes first, then KVVIDEO_* variables, then kvvideo.toml in this folder, then the user's file.
    """
    root = context.find_root()
    known = [words for words, _ in leaves(root.command)]
    asked = [words for words in known if words[: len(command or ())] == tuple(command or ())]
    if not asked:
        names = ", ".join(" ".join(words) for words in known)
        raise ConfigError(f"{' '.join(command or ())!r} is no command with settings; those are {names}")
    found = [value for words in asked for value in values(root, words) if value.settable]
    unused = settings.unused_variables(commands(root.command))
    if json_output:
        to_stdout(jsons.line(_record(found, unused)))
    else:
        _print(found, unused)


@app.command("path", cls=Plain)
def path() -> None:
    """Print where the user's own file is, or would be.

    Examples:
        kvvideo config path
        kvvideo config path -v
    """
    print(_user_path())


@app.command("init", cls=Plain)
def init(
    context: typer.Context,
    user: Annotated[
        bool, typer.Option("--user", help="The user's own, for all folders.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Write a kvvideo.toml into this folder that names every setting, all of them commented out.

    Examples:
        kvvideo config init
        kvvideo config init --user
    """
    file = _user_path() if user else Path(settings.NAME)
    text = "\n".join(_example(context.find_root())) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise ConfigError(f"{file} is there already; 'kvvideo config show' says what it sets") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror or error}") from None
    print(file)


def _user_path() -> Path:
    file = settings.user_path()
    if file is None:
        raise ConfigError("there is no home directory; name a folder in XDG_CONFIG_HOME")
    return file


def _record(found: list[Value], unused: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "settings",
        "schema": 1,
        "files": [{"path": str(file), "read": file.is_file()} for file in settings.paths()],
        "settings": [
            {
                "command": " ".join(one.command),
                "option": one.key,
                "value": _plain(one.value),
                "source": one.origin.kind,
                "place": one.origin.place,
            }
            for one in found
        ],
        "unused": [{"variable": name, "reason": reason} for name, reason in unused.items()],
    }


def _print(found: list[Value], unused: dict[str, str]) -> None:
    from rich.text import Text

    from kvvideo.cli import render

    single = len({one.command for one in found}) == 1
    rows = []
    for row in _rows(found):
        first = row[0]
        texts = [f"--{first.key}", _shown(first.value), _place(first.origin, sys.stdout.isatty())]
        texts += [] if single else [", ".join(" ".join(one.command) for one in row)]
        style = "" if first.origin.is_set else "dim"
        rows.append([Text(render.clean(text), style=style) for text in texts])
    render.listing(("option", "value", "from", *(() if single else ("in",))), rows, least=20)
    for file in settings.paths():
        render.err.print(
            Text(render.clean(f"{file}{'' if file.is_file() else ': not there'}"), style="dim"), soft_wrap=True
        )
    for name, reason in unused.items():
        render.err.print(Text(render.clean(f"{name} sets nothing: {reason}")), soft_wrap=True)


def _place(origin: Origin, short: bool) -> str:
    """Return where a value comes from; if ``short``, without the folder one is in, which all lines would begin with."""
    place = origin.place or origin.kind
    return place.removeprefix(f"{Path.cwd()}{os.sep}") if short else place


def _rows(found: list[Value]) -> Iterator[list[Value]]:
    """Yield values that are the same in several commands, together, in the order of options."""
    groups: dict[str, dict[Any, list[Value]]] = {}
    for one in found:
        groups.setdefault(one.key, {}).setdefault((repr(one.value), one.origin), []).append(one)
    for same in groups.values():
        yield from same.values()


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.value if isinstance(value, Enum) else str(value) if isinstance(value, Path) else value


def _shown(value: Any) -> str:
    plain = _plain(value)
    if isinstance(plain, bool):
        return "yes" if plain else "no"
    return "" if plain is None else ",".join(plain) if isinstance(plain, list) else str(plain)


def _example(root: Any) -> Iterator[str]:
    """Yield the lines of a file that sets nothing yet."""
    yield "# What options are when they are not on the command line; take the # away before a setting."
    yield "# KVVIDEO_* variables come before this file, and a command's own table before what is at the top."
    yield '# An empty text, "", sets nothing.\n'
    having: dict[str, dict[Words, Any]] = {}
    for words, command in leaves(root.command):
        for about, (key, option) in zip(described(command), options(command), strict=True):
            if not about.refused:
                having.setdefault(key, {})[words] = option
    tables: dict[Words, list[str]] = {(): []}
    for key, options_of in having.items():
        home, shared = _home(options_of)
        if shared is not None:
            tables.setdefault(home, []).append(_setting(key, shared))
        for words, option in options_of.items():
            if shared is None or option.default != shared.default:
                tables.setdefault(words, []).append(_setting(key, option))
    order = [words for words, _ in leaves(root.command)]
    for table in sorted(
        tables, key=lambda table: next(n for n, words in enumerate(order) if words[: len(table)] == table)
    ):
        if table:
            yield f"\n[{'.'.join(table)}]"
        yield from tables[table]


def _home(having: dict[Words, Any]) -> tuple[Words, Any]:
    """Return the smallest table for all commands that have an option, and the first one that two have alike, or None.

    Args:
        having: the option of each of these commands.
    """
    defaults = [option.default for option in having.values()]
    alike = (option for option in having.values() if defaults.count(option.default) > 1)
    shared = zip(*having, strict=False)
    return tuple(words[0] for words in takewhile(lambda words: len({*words}) == 1, shared)), next(alike, None)


def _setting(key: str, option: Any) -> str:
    default = _plain(option.default)
    # JSON's texts, numbers and truths are TOML's, too; an empty text sets nothing.
    return f"# {key} = {json.dumps('' if default is None else default)}  # {option.help}"
