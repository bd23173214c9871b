"""Commands, all with the options of ``everywhere`` and the help of ``help_text``.

The options of those that are added to an ``App`` may also be set by ``KVVIDEO_*`` variables and by files, see
``settings``; nothing has to be said at its options. Options that several commands share, or that belong together, are
the fields of a dataclass, and the command has a parameter of that type.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from kvvideo.cli import settings
from kvvideo.cli.everywhere import Everywhere
from kvvideo.cli.settings import Given, Option, Words
from kvvideo.cli.stop import say
from kvvideo.errors import ConfigError

_Function = TypeVar("_Function", bound=Callable[..., Any])
_GIVEN = "kvvideo.given"
VERBOSE = "kvvideo.verbose"
"""Key of a context's ``meta``: True if ``--verbose`` stands before the command."""
_LETTERS = {"-h": "--help", "-v": "--verbose"}

ALTERNATIVES: tuple[tuple[str, str], ...] = (("budget", "ratio"), ("max-tokens", "memory"))
"""Options of which one replaces the other: one that is set nearer to the command line puts the others out of force."""


@dataclass(frozen=True)
class Origin:
    """The origin of an option's value.

    Attributes:
        kind: ``command line``, ``variable``, ``file`` or ``default``.
        distance: 0 for the command line, more for what counts less.
        place: the variable, or file and key; None for the others.
    """

    kind: str
    distance: int
    place: str | None = None

    @property
    def is_set(self) -> bool:
        """True if the option was set without being typed."""
        return self.place is not None


class Plain(TyperCommand):
    """A command that nothing but its arguments sets."""

    def __init__(self, name: str | None, **about: Any) -> None:
        super().__init__(name, **about)
        # The letters of others' options, such as vLLM's -dph, must not be read as ours.
        self._others = bool((about.get("context_settings") or {}).get("ignore_unknown_options"))
        if self._others:
            self.context_settings["help_option_names"] = ["--help"]
            for _, option in options(self):
                option.opts = [name for name in option.opts if name not in _LETTERS]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse ``args``; what is not parsed is returned."""
        return super().parse_args(ctx, [_LETTERS.get(word, word) for word in args] if self._others else args)

    def invoke(self, context: Any) -> Any:
        """Run the command, with the options of every command in force."""
        context.params["verbose"] |= context.meta.get(VERBOSE, False)
        given = Everywhere.taken(context.params)
        with given.in_force():
            if given.verbose:
                for name, reason in settings.unused_variables(commands(context.find_root().command)).items():
                    say(f"{name} sets nothing: {reason}")
            return super().invoke(context)

    def collect_usage_pieces(self, _: Any) -> list[str]:
        """Return the words of the line on usage after the command's own."""
        from kvvideo.cli import help_text

        return ["[OPTIONS]", *map(help_text.argument, self.params)] if self.params else []

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        from kvvideo.cli import help_text

        formatter.write(help_text.of_command(self, ctx))


class Group(TyperGroup):
    """A group of commands."""

    def invoke(self, context: Any) -> Any:
        """Run the group; one that is a command itself has the options of every command in force."""
        if "log_file" not in context.params:
            return super().invoke(context)
        context.params["verbose"] |= context.meta.get(VERBOSE, False)
        with Everywhere.taken(context.params).in_force():
            return super().invoke(context)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        from kvvideo.cli import help_text

        formatter.write(help_text.of_group(self, ctx))


class Command(Plain):
    """A command whose options may also be set by variables and files."""

    alternatives = ALTERNATIVES

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse ``args``; options that they leave open are taken from variables, then from files."""
        found: dict[str, Given] = {}
        if parent is not None:
            try:
                found = self.from_files(str(info_name), parent)
            except ConfigError:
                # Help and completion must work whatever the files say.
                if not extra.get("resilient_parsing") and not {*args} & {*parent.help_option_names}:
                    raise
        extra["default_map"] = {name: given.value for name, given in found.items()}
        try:
            context = super().make_context(info_name, args, parent, **extra)
        except typer.BadParameter as error:
            raise _at_its_place(error, found) from None
        context.meta[_GIVEN] = found
        self._settle(context, found)
        return context

    def invoke(self, context: Any) -> Any:
        """Run the command; an error about a value that nobody typed also says where that value stands."""
        try:
            return super().invoke(context)
        except ConfigError as error:
            if hint := "; ".join(self._blamed(str(error), context)):
                error.args = (f"{error} ({hint})",)
            raise

    def from_files(self, name: str, parent: Any) -> dict[str, Given]:
        """Name the variables of this command's options; return what files set for it, by parameter.

        Args:
            name: the last of the words that call the command.
            parent: context of the group that it belongs to.

        Raises:
            ConfigError: if a file cannot be read or sets what cannot be set.
        """
        words = (*words_of(parent), name)
        for about, (key, option) in zip(described(self), options(self), strict=True):
            if option.envvar is None and not about.refused and key not in settings.UNSHARED.get(words, ()):
                option.envvar = about.variable
                option.show_envvar = False  # the rule is the same for all
        found = settings.given(words, commands(parent.find_root().command))
        return {option.name: found[key] for key, option in options(self) if key in found}

    def _settle(self, context: Any, found: dict[str, Given]) -> None:
        """Reset options for which another one was set nearer to the command line."""
        for keys in self.alternatives:
            mine = [option for key, option in options(self) if key in keys]
            origins = [origin(context, option, found) for option in mine]
            nearest = min((one.distance for one in origins), default=0)
            for option, one in zip(mine, origins, strict=True):
                if one.is_set and one.distance > nearest:
                    context.params[option.name] = option.default
                    source = context.get_parameter_source(option.name)
                    context.set_parameter_source(option.name, type(source)["DEFAULT"])

    def _blamed(self, message: str, context: Any) -> Iterator[str]:
        """Yield the origin of each value from a variable or a file that ``message`` is about."""
        for key, option in options(self):
            value, set_by = context.params.get(option.name), origin(context, option, context.meta[_GIVEN])
            spelled = re.escape(key).replace(r"\-", "[-_]")
            named = re.search(rf"(?<![\w-]){spelled}[:=]", message)
            if set_by.is_set and (named or (isinstance(value, str) and repr(value) in message)):
                yield f"--{key} is set by {set_by.place}"


class App(typer.Typer):
    """A ``typer.Typer`` of such commands."""

    def __init__(self, **about: Any) -> None:
        # Brackets in messages and in the help are no markup.
        super().__init__(**{"cls": Group, "rich_markup_mode": None, "no_args_is_help": True} | about)

    def command(self, name: str | None = None, **about: Any) -> Callable[[_Function], _Function]:
        """Add a command; ``cls=Plain`` makes it one that nothing but its arguments sets."""
        about.setdefault("cls", Command)
        add = super().command(name, **about)

        def added(function: _Function) -> _Function:
            add(flat(function))
            return function

        return added


def flat(function: Callable[..., None]) -> Callable[..., None]:
    """Return ``function`` with the fields of its parameters that are dataclasses as parameters of their own.

    So are those of every command, which the function does not get.
    """
    groups: dict[str, Any] = {}
    parameters: list[Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if is_dataclass(kind := parameter.annotation):
            groups[name] = kind
            parameters += _fields(kind)
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
    parameters += (everywhere := _fields(Everywhere))

    @wraps(function)
    def command(**given: Any) -> None:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)}) for name, kind in groups.items()
        }
        for parameter in everywhere:
            del given[parameter.name]
        function(**given, **made)

    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(command)["__signature__"] = inspect.Signature(parameters)
    return command


def _fields(kind: Any) -> list[Parameter]:
    """Return the fields of a dataclass as parameters."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in fields(kind)
    ]


def words_of(context: Any) -> Words:
    """Return the words that lead to ``context``, without the program's name."""
    return () if context.parent is None else (*words_of(context.parent), context.info_name)


def options(command: Any) -> Iterator[tuple[str, Any]]:
    """Yield the options of a command with their keys."""
    for parameter in command.params:
        longest = max(parameter.opts, key=len, default="")
        if parameter.param_type_name == "option" and longest.startswith("--"):
            yield longest.removeprefix("--"), parameter


def leaves(group: Any, words: Words = ()) -> Iterator[tuple[Words, Command]]:
    """Yield the commands whose options files and variables may set, with the words that call them."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from leaves(command, (*words, name))
        elif isinstance(command, Command):
            yield (*words, name), command


def described(command: Command) -> list[Option]:
    """Describe the options of ``command``."""
    return [
        Option(key, bool(option.is_flag), bool(option.multiple), _is_path(command, option.name))
        for key, option in options(command)
    ]


def commands(group: Any) -> dict[Words, list[Option]]:
    """Describe the options of all commands of ``leaves``."""
    return {words: described(command) for words, command in leaves(group)}


@dataclass(frozen=True)
class Value:
    """The value of a command's option when nothing is typed.

    Attributes:
        command: the words that call the command.
        option: the option itself.
        key: its name without dashes before it.
        value: as the command gets it.
        origin: where the value comes from.
        settable: whether variables and files may set the option.
    """

    command: Words
    option: Any
    key: str
    value: Any
    origin: Origin
    settable: bool


def values(root: Any, words: Words) -> list[Value]:
    """Return the values that the options of a command have when nothing is typed.

    Args:
        root: the program's context.
        words: those that call the command.

    Raises:
        ConfigError: naming file or variable, if one sets what cannot be.
    """
    parent = root
    for word in words[:-1]:
        parent = type(parent)(parent.command.commands[word], info_name=word, parent=parent)
    command: Command = parent.command.commands[words[-1]]
    found = command.from_files(words[-1], parent)
    context = command.make_context(words[-1], [], parent, resilient_parsing=True)
    context.resilient_parsing = False
    listed = []
    for about, (key, option) in zip(described(command), options(command), strict=True):
        set_by = origin(context, option, found)
        if set_by.is_set:
            try:
                option.process_value(context, option.consume_value(context, {})[0])
            except typer.BadParameter as error:
                raise _at_its_place(error, found) from None
        listed.append(Value(words, option, key, context.params.get(option.name), set_by, not about.refused))
    return listed


def origin(context: Any, option: Any, found: dict[str, Given]) -> Origin:
    """Return where the value of ``option`` in ``context`` comes from; ``found`` holds the values of files."""
    source = context.get_parameter_source(option.name)
    kind = "DEFAULT" if source is None else source.name
    if kind == "ENVIRONMENT":
        return Origin("variable", 1, str(option.envvar))
    if kind == "DEFAULT_MAP":
        given = found[option.name]
        return Origin("file", 2 + given.distance, f"{given.file}: {given.place}")
    return Origin("command line", 0) if kind == "COMMANDLINE" else Origin("default", 99)


def _at_its_place(error: typer.BadParameter, found: dict[str, Given]) -> Exception:
    """Return ``error`` as one line that says where the value stands; unchanged if the value was typed."""
    if error.param is None or error.ctx is None:
        return error
    set_by = origin(error.ctx, error.param, found)
    if not set_by.is_set:
        return error
    value = error.param.consume_value(error.ctx, {})[0]
    return ConfigError(f"{set_by.place}: {value!r} cannot be used: {error.message}")


def _is_path(command: Any, name: str) -> bool:
    parameter = inspect.signature(command.callback).parameters.get(name)
    annotation = None if parameter is None else parameter.annotation
    kinds = [annotation, *get_args(annotation)]
    return any(kind is Path for one in kinds for kind in (one, *get_args(one)))
