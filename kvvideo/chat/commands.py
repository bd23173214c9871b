"""The commands that can be typed, and the parsing and completion of lines, arguments and settings."""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kvvideo.chat.dialogue import KINDS
from kvvideo.errors import ConfigError
from kvvideo.times import format_time, is_time, parse_time

Value = bool | int | float


@dataclass(frozen=True)
class Command:
    """One command: its name without the slash, what may follow it, and what it does in one line."""

    name: str
    arguments: str
    help: str

    @property
    def usage(self) -> str:
        """The command as it is typed: ``/at TIME question``."""
        return f"/{self.name} {self.arguments}".rstrip()


COMMANDS = (
    Command("play", "[2x|max]", "let the video go on, at this speed"),
    Command("pause", "", "stop the video where it is"),
    Command("step", "[n]", "take in the next chunk, or the next n"),
    Command("at", "TIME question", "ask as of another moment, and come back"),
    Command("find", "WORDS", "list the moments that show something, best first"),
    Command("seek", "TIME", "go to another moment and pause there"),
    Command("stats", "[layer N]", "show what the cache holds, in one layer or all"),
    Command("dash", "[layer N | off]", "keep that on screen, or take it away"),
    Command("strategy", "[NAME]", "show the strategies, or let another decide"),
    Command("compare", "NAME … [-- question]", "ask several strategies this or the last question"),
    Command("budget", "[TOKENS]", "show what a compaction keeps, or change it"),
    Command("frame", "[TIME]", "show a frame of the video"),
    Command("watch", '["question"|off [N]]', "ask again as the video plays; stop asking"),
    Command("undo", "", "take back the last question, or the last switch"),
    Command("history", "", "show what was said"),
    Command("set", "[NAME VALUE]", "show the settings, or change one"),
    Command("show", "", "show model, video and the bound of the cache"),
    Command("save", "[FILE]", "save what the model remembers"),
    Command("load", "FILE", "go on from what was saved"),
    Command("export", "md|json|srt [FILE]", "write what was said to a file; '-' shows it here"),
    Command("help", "[command]", "show the commands, or one of them"),
    Command("bye", "", "leave; so do /exit, /quit, exit, quit and Ctrl-D"),
)

LEAVING = ("exit", "quit")
"""Other names of /bye, also without a slash: what people type elsewhere."""


@dataclass(frozen=True)
class Parsed:
    """A command that was typed: its full name, and the rest of the line."""

    name: str
    arguments: str


def parse(line: str) -> Parsed | None:
    """Return the command that ``line`` gives; None if it is a question, see ``question_in``.

    Raises:
        ConfigError: if there is no such command, its name is short for several, or it takes no arguments.
    """
    line = line.strip()
    if line.lower() in LEAVING:
        return Parsed("bye", "")
    if not line.startswith("/") or line.startswith("//"):
        return None
    name, *rest = re.split(r"\s+", line[1:], maxsplit=1)
    if name.lower() == "f":
        # Short for /frame since before there was /find; after that come words, which are no moment.
        name = "find" if rest and not _is_moment(rest[0]) else "frame"
    command = find(name)
    if rest and not command.arguments:
        raise ConfigError(f"/{command.name} takes nothing else; leave out {rest[0]!r}")
    return Parsed(command.name, rest[0] if rest else "")


def find(name: str) -> Command:
    """Return the command called ``name``, or the only one that begins like it.

    Raises:
        ConfigError: if there is none, or more than one.
    """
    name = name.lower()
    matches = [c for c in COMMANDS if c.name == name] or [c for c in COMMANDS if name and c.name.startswith(name)]
    if name in LEAVING or (name and not matches and any(other.startswith(name) for other in LEAVING)):
        name, matches = "bye", [c for c in COMMANDS if c.name == "bye"]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(f"/{name} may be {_either([f'/{command.name}' for command in matches])}")
    near = _nearest(name, [*(command.name for command in COMMANDS), *LEAVING], "/")
    raise ConfigError(f"no command {'/' + name!r}{near}; /help lists them, and '//…' asks what begins with a slash")


def question_in(line: str) -> str:
    """Return the words of a line that is a question: ``//why?`` asks ``/why?``."""
    line = line.strip()
    return line[1:] if line.startswith("//") else line


# Arguments ---------------------------------------------------------------------------------------


def parse_speed(text: str) -> float:
    """Return seconds of video a second: ``2x``, ``0.5``; infinite for ``max``, as fast as it goes.

    Raises:
        ConfigError: if it is no such speed.
    """
    if text.strip().lower() == "max":
        return math.inf
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?|\.\d{1,6})x?", text.strip().lower(), re.ASCII)
    speed = float(match[1]) if match else 0.0
    if speed <= 0:
        raise ConfigError(f"{text!r} is not a speed; write 1x, 2x, 0.5x or max")
    return speed


def format_speed(speed: float) -> str:
    """Return a speed as it is typed: ``2x``, ``max``."""
    return "max" if math.isinf(speed) else f"{speed:g}x"


def parse_count(text: str, default: int = 1) -> int:
    """Return a whole number of at least 1; ``default`` if nothing is given.

    Raises:
        ConfigError: if it is none.
    """
    if not text.strip():
        return default
    count = _number(text)
    if count < 1:
        raise ConfigError(f"{text!r} is not possible; write a whole number of at least 1")
    return count


def parse_moment(text: str) -> float:
    """Return a moment of the video in seconds.

    Raises:
        ConfigError: if it is none.
    """
    try:
        time = parse_time(text)
    except ValueError:  # more digits than Python reads
        time = math.inf
    if not is_time(time):
        raise ConfigError(f"{text!r} is too late a moment for any video")
    return time


def _is_moment(text: str) -> bool:
    try:
        parse_moment(text)
    except ConfigError:
        return False
    return True


def split_at(text: str) -> tuple[float, str]:
    """Return moment and question of ``/at``: ``8:00 what happens?``.

    Raises:
        ConfigError: if one of them is missing.
    """
    words = text.strip().split(maxsplit=1)
    if len(words) < 2:
        raise ConfigError("write a moment and a question: /at 8:00 what happens?")
    return parse_moment(words[0]), words[1]


def parse_layer(text: str) -> int | None:
    """Return the layer of ``layer 3``; None for all.

    Raises:
        ConfigError: if it names none.
    """
    match text.split():
        case []:
            return None
        case ["layer", number]:
            return _number(number)
    raise ConfigError(f"{text!r} is no part of the cache; write 'layer 3', or nothing for all layers")


def parse_dash(text: str) -> tuple[bool, int | None]:
    """Return True if ``/dash`` shows the panel, False if it takes it away; and the layer to show, None for all.

    Raises:
        ConfigError: if it says neither.
    """
    if text.split(maxsplit=1)[:1] in ([], ["layer"]):
        return True, parse_layer(text)
    return _switch(text), None


@dataclass(frozen=True)
class WatchOrder:
    """An order of ``/watch``: to repeat ``question``, to stop (``off``) number ``number`` or all, or to list all."""

    question: str | None = None
    off: bool = False
    number: int | None = None


def parse_watch(text: str) -> WatchOrder:
    """Return the order of ``/watch``: ``"who is there?"``, with or without quotes; ``off``; ``off 2``; or nothing.

    Raises:
        ConfigError: if the quotes are empty.
    """
    text = text.strip()
    if not text:
        return WatchOrder()
    if match := re.fullmatch(r"off(?:\s+(\d{1,9}))?", text, re.ASCII):
        return WatchOrder(off=True, number=None if match[1] is None else int(match[1]))
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1].strip()
    if not text:
        raise ConfigError('write what to ask again and again: /watch "who is there?"')
    return WatchOrder(text)


def parse_compare(text: str) -> tuple[tuple[str, ...], str | None]:
    """Return strategies and question of ``/compare h2o full -- what happened?``; None asks the last one again.

    Raises:
        ConfigError: if there are less than two strategies, one is there twice, or no question follows the dashes.
    """
    before, *after = re.split(r"(?:^|\s)--(?:\s|$)", text, maxsplit=1)
    names = tuple(before.replace(",", " ").split())
    if len(names) < 2:
        raise ConfigError("write two strategies or more: /compare h2o streaming -- what happened?")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"{', '.join(twice)}: given more than once")
    question = after[0].strip() if after else None
    if question == "":
        raise ConfigError("no question follows '--'; leave it out to ask the last one again")
    return names, question


def parse_export(text: str) -> tuple[str, str | None]:
    """Return kind and file of ``/export``; None if no file is given.

    Raises:
        ConfigError: if there is no such kind.
    """
    kind, *file = text.strip().split(maxsplit=1) or [""]
    if kind not in KINDS:
        raise ConfigError(f"export: no {kind!r}; choose one of {', '.join(KINDS)}")
    return kind, file[0] if file else None


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII):
        raise ConfigError(f"{text!r} is not a whole number")
    return int(text)


def _switch(text: str) -> bool:
    if text.strip().lower() not in ("on", "off"):
        raise ConfigError(f"{text!r} is neither on nor off")
    return text.strip().lower() == "on"


def _period(text: str) -> float:
    time = parse_moment(text)
    if time < 1:
        raise ConfigError(f"{text!r} is not possible; write at least 1 second")
    return time


def _temperature(text: str) -> float:
    if not re.fullmatch(r"\d{1,3}(\.\d{1,9})?|\.\d{1,9}", text.strip(), re.ASCII) or float(text) > 2:
        raise ConfigError(f"{text!r} is not a number from 0 to 2")
    return float(text)


# Settings ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One thing that ``/set`` changes: what reads its value, what it is at first, and what it does in one line."""

    name: str
    type: Callable[[str], Value]
    default: Value
    help: str


SETTINGS = (
    Setting("temperature", _temperature, 0.0, "of the sampling; 0 is greedy"),
    Setting("max-answer-tokens", parse_count, 128, "longest answer"),
    Setting("watch-every", _period, 10.0, "seconds of video between the questions of /watch"),
    Setting("hints", _switch, True, "warn when little is held of a moment that is mentioned"),
    Setting("dialogue", _switch, True, "tell the model what was said before"),
)


def parse_setting(name: str, value: str) -> Value:
    """Return the value that ``/set name value`` gives.

    Raises:
        ConfigError: if there is no such setting, or it cannot have that value.
    """
    for setting in SETTINGS:
        if setting.name == name:
            if not value.strip():
                raise ConfigError(f"{name}: no value is given")
            try:
                return setting.type(value)
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from None
    names = [setting.name for setting in SETTINGS]
    raise ConfigError(f"set: no {name!r}{_nearest(name, names)}; there are {', '.join(names)}")


def parse_set(text: str) -> tuple[str, Value] | None:
    """Return name and value of ``/set temperature 0.5``; None if nothing follows.

    Raises:
        ConfigError: see ``parse_setting``.
    """
    if not text.strip():
        return None
    name, *value = text.strip().split(maxsplit=1)
    return name, parse_setting(name, value[0] if value else "")


def format_setting(setting: Setting, value: Value) -> str:
    """Return ``value`` as ``/set`` reads it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if setting.type is _period:
        return f"{value:g}s" if value < 60 else format_time(value)
    return str(value) if isinstance(value, int) else f"{value:g}"


# Completion --------------------------------------------------------------------------------------


def completed_part(line: str) -> str:
    """Return the end of ``line`` that one of ``completions`` takes the place of."""
    name, space, arguments = line.partition(" ")
    if not space or not name.startswith("/"):
        return line
    arguments = arguments.lstrip(" ")
    match _name_of(name):
        case "load" | "save":  # names of files may have spaces in them
            return arguments
        case "export":
            kind, space, file = arguments.partition(" ")
            return file.lstrip(" ") if space else kind
    return arguments.rpartition(" ")[2]


def completions(line: str, strategies: Iterable[str], files: Iterable[str]) -> list[str]:
    """Return what could take the place of the end of ``line``, see ``completed_part``; empty in a question.

    Args:
        line: as typed so far.
        strategies: names of those there are.
        files: names of files that could be loaded, saved or written.
    """
    line = line.lstrip()
    if not line.startswith("/") or line.startswith("//"):
        return []
    part = completed_part(line)
    name, space, _ = line.partition(" ")
    if not space:
        choices: Iterable[str] = [f"/{name}" for name in (*(command.name for command in COMMANDS), *LEAVING)]
        part = part.lower()
    else:
        before = line[len(name) : len(line) - len(part)].split()
        choices = _arguments(_name_of(name), before, strategies, files)
    return [choice for choice in choices if choice.startswith(part)]


def _arguments(name: str, before: Sequence[str], strategies: Iterable[str], files: Iterable[str]) -> Iterable[str]:
    """Return what could come next after the words ``before`` of a command's arguments."""
    if name == "compare":
        return [] if "--" in before else [s for s in strategies if s not in before]
    if name == "set" and len(before) == 1:
        return ["on", "off"] if any(s.name == before[0] and s.type is _switch for s in SETTINGS) else []
    if name == "export" and len(before) == 1:
        return files
    first: dict[str, Iterable[str]] = {
        "play": ["1x", "2x", "max"],
        "stats": ["layer"],
        "dash": ["layer", "off"],
        "strategy": strategies,
        "watch": ["off"],
        "set": [setting.name for setting in SETTINGS],
        "save": files,
        "load": files,
        "export": KINDS,
        "help": [command.name for command in COMMANDS],
    }
    return [] if before else first.get(name, [])


def _name_of(word: str) -> str:
    """Return the full name of the command typed as ``word``; empty if there is none."""
    try:
        return find(word[1:]).name
    except ConfigError:
        return ""


def _nearest(name: str, names: Sequence[str], mark: str = "") -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {mark}{near[0]}?" if near else ""


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
