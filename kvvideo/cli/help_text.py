"""The help of commands: examples first, options in their groups, each in a line of its own where it fits."""

import inspect
import textwrap
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

from rich.console import Console
from rich.text import Text

from kvvideo.cli.panels import PANELS

EXAMPLES = "Examples:"
"""First line of the part of a docstring that has them."""

_WIDEST, _NARROWEST = 100, 30
"""Columns of the help at most, and of what is said of options at least, beside their names: easily read so."""
_COLUMN = 27
"""Columns of the names of options at most."""


def of_command(command: Any, context: Any) -> str:
    """Return the help of a command."""
    groups: dict[str, list[tuple[str, str]]] = {}
    arguments = [(argument(one), _said(one, context)) for one in command.params if one.param_type_name == "argument"]
    for option in command.get_params(context):
        if option.param_type_name == "option" and not option.hidden:
            panel = option.rich_help_panel if option.rich_help_panel in PANELS else PANELS[-1]
            groups.setdefault(panel, []).append((_names(option), _said(option, context)))
    rows = [*arguments, *(row for group in groups.values() for row in group)]
    column = min(max(len(name) for name, _ in rows) + 4, _COLUMN)
    lines = [*_head(command, context), *_list("", arguments, column)]
    for panel in sorted(groups, key=PANELS.index):
        lines += _list(panel, groups[panel], column)
    return _drawn([*lines, Text("In [brackets] is the default; 'kvvideo config show' says where it comes from.")])


def of_group(group: Any, context: Any) -> str:
    """Return the help of a group of commands."""
    commands = [(name, (one.help or "").partition("\n\n")[0]) for name, one in group.commands.items()]
    options = [(_names(one), _said(one, context)) for one in group.get_params(context) if not one.hidden]
    column = max(len(name) for name, _ in (*commands, *options)) + 4
    lines = [*_head(group, context), *_list("Commands", commands, column), *_list("Options", options, column)]
    return _drawn([*lines, *(Text(line) for line in _wrapped(group.epilog or "", "", ""))])


def argument(parameter: Any) -> str:
    """Return an argument as it stands in the usage: a word in capitals; empty for an option."""
    if parameter.param_type_name != "argument":
        return ""
    word = parameter.name.upper() + ("…" if parameter.nargs != 1 else "")
    return word if parameter.required else f"[{word}]"


def examples(command: Any) -> list[str]:
    """Return the command lines that the help of ``command`` begins with."""
    parts = (command.help or "").split("\n\n")
    return [line.strip() for part in parts if part.startswith(EXAMPLES) for line in part.splitlines()[1:]]


def _head(command: Any, context: Any) -> Iterator[Text]:
    """Yield usage, what it is for, the examples, and all else that is to be said of it."""
    for line in _wrapped(
        " ".join(["Usage:", context.command_path, *filter(None, command.collect_usage_pieces(context))]), "", "  "
    ):
        yield Text(line)
    first, *parts = inspect.cleandoc(command.help or "").split("\n\n")
    for part in (first, *sorted(parts, key=lambda part: not part.startswith(EXAMPLES))):
        if part.startswith(EXAMPLES):
            yield Text()
            yield from (Text(f"  {line.strip()}", "cyan") for line in part.splitlines()[1:])
            yield Text()
        else:
            yield from map(Text, _wrapped(part, "", ""))


def _list(title: str, rows: list[tuple[str, str]], column: int) -> Iterator[Text]:
    """Yield a line for each row under ``title``, or more where it does not fit."""
    if not rows:
        return
    yield Text(title, "bold")
    beside = _width() - column >= _NARROWEST
    for name, said in rows:
        begin = f"  {name:<{column - 2}}"
        if beside and len(begin) <= column:
            first, *more = _wrapped(said, begin, " " * column) or [begin]
        else:
            first, more = f"  {name}", _wrapped(said, " " * (column if beside else 6), " " * (column if beside else 6))
        text = Text(first)
        text.stylize("bold cyan", 0, len(name) + 2)
        yield text
        yield from map(Text, more)


def _names(option: Any) -> str:
    """Return an option's names, the short one first, and what it takes."""
    both = "/".join(", ".join(sorted(names, key=len)) for names in (option.opts, option.secondary_opts) if names)
    return f"{both} {_kind(option)}".rstrip()


def _kind(option: Any) -> str:
    """Return the name of what an option takes, as people have it; empty for what takes nothing."""
    if option.is_flag or option.name == "help":
        return ""
    if option.metavar is not None:
        return str(option.metavar)
    kinds = [kind for kind in _kinds(option.type_descriptor.annotation) if kind is not type(None)]
    if isinstance(kinds[0], type) and issubclass(kinds[0], Enum):
        return "|".join(str(one.value) for one in kinds[0])
    return "N" if {*kinds} <= {int, float} else "FILE" if kinds == [Path] else "TEXT"


def _kinds(annotation: Any) -> list[Any]:
    """Return the plain types in an annotation."""
    return [kind for one in get_args(annotation) for kind in _kinds(one)] if get_origin(annotation) else [annotation]


def _said(parameter: Any, context: Any) -> str:
    """Return what is said of an option or argument, and its default."""
    value = parameter.get_default(context, call=False) if parameter.show_default else None
    value = value.value if isinstance(value, Enum) else value
    default = "" if value is None or value == [] or getattr(parameter, "is_flag", False) else f" [{value}]"
    return f"{parameter.help or ''}{default}"


def _width() -> int:
    return min(Console().width, _WIDEST)


def _wrapped(text: str, first: str, others: str) -> list[str]:
    """Return the lines of ``text``, none of its words cut."""
    return textwrap.wrap(
        " ".join(text.split()),
        _width(),
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def _drawn(lines: list[Text]) -> str:
    console = Console(highlight=False, soft_wrap=True)
    with console.capture() as drawn:
        for line in lines:
            console.print(line)
    return drawn.get()
