"""Files in TOML that set options: the list of them, the reading, and the check of what stands in them.

The keys of a file are the names of options, written with - or _. At the top they are for every command that has them,
in a table for the command of its name, which counts more::

    max-tokens = 4096
    [analyze]
    fps = 1
    [bench.memory]
    clips = 5
"""

import difflib
import os
import stat
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import time
from pathlib import Path
from typing import Any

from kvvideo.errors import ConfigError

NAME = "kvvideo.toml"
"""The file of a folder."""

PREFIX = "KVVIDEO_"
"""Prefix of the variables of options."""

MAX_BYTES = 1 << 20
"""Longest file that is read."""

_OTHERS = ("KVVIDEO_STATE_DIR", "KVVIDEO_TEST_")
"""Prefixes of variables that are ours and no option's."""

Words = tuple[str, ...]
"""The words that call a command: ``("bench", "memory")``."""

_ONE_RUN = "it says what a single run is to do"
_ONE_FILE = "it names a file of a single run"
_TRUST = "it lets others run code on this machine"
REFUSED = {
    **dict.fromkeys(
        (
            "question",
            "only-changes",
            "compare",
            "from",
            "to",
            "resume",
            "restart",
            "force",
            "dry-run",
            "check",
            "only-failed",
            "limit",
            "shard",
        ),
        _ONE_RUN,
    ),
    "system": "it is a part of each question",
    **dict.fromkeys(("output", "video", "plots", "truth"), _ONE_FILE),
    **dict.fromkeys(("trust-remote-code", "ray-address"), _TRUST),
    "host": "it decides who can reach this machine",
}
"""Options for the command line only, and why. A folder with videos may come from anyone, and its file with it."""

UNSHARED: dict[Words, set[str]] = {
    ("analyze",): {"questions"},
    ("ask",): {"model", "dtype", "questions"},
    ("serve",): {"model", "dtype"},
    ("find",): {"format"},
    ("ingest",): {"keep-frames"},
}
"""Options that only the command's own table sets: a memory knows these itself, better than what is set for all; and
what is found goes to fewer formats than answers do, frames are kept by ``ingest`` for good, not in a room, and the
questions of a benchmark are a number, not a file."""


@dataclass(frozen=True)
class Option:
    """An option of a command, as far as files and variables have to know it.

    Attributes:
        key: its name without dashes before it: ``max-tokens``.
        flag: it is said or not said, and takes no value.
        several: it may be given more than once.
        path: it takes the name of a file.
    """

    key: str
    flag: bool = False
    several: bool = False
    path: bool = False

    @property
    def refused(self) -> str | None:
        """The reason that only the command line may give it; None if it may be set elsewhere."""
        return REFUSED.get(self.key, _ONE_FILE if self.path else None)

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.key.upper().replace("-", "_")


Commands = Mapping[Words, Sequence[Option]]


@dataclass(frozen=True)
class Given:
    """A value in a file.

    Attributes:
        value: as it would be typed: text, a list of texts, or whether a flag is said.
        file: where it stands, and
        table: in which table; empty at the top.
        key: the option's name.
        distance: 0 for the nearest file.
    """

    value: str | bool | list[str]
    file: Path
    table: Words
    key: str
    distance: int

    @property
    def place(self) -> str:
        """Table and key, as people write them: ``[analyze] fps``."""
        return _place(self.table, self.key)


def paths() -> list[Path]:
    """Return the files that are read where they exist, the nearest first: this folder's, then the user's."""
    found = []
    with suppress(OSError):  # the folder may have been removed
        found.append(Path.cwd() / NAME)
    if (user := user_path()) is not None and user not in found:
        found.append(user)
    return found


def user_path() -> Path | None:
    """Return the user's own file, ``$XDG_CONFIG_HOME/kvvideo/config.toml``; None if there is no home directory."""
    # The specification has relative ones ignored.
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        base = Path(configured) if os.path.isabs(configured) else Path.home() / ".config"
    except RuntimeError:
        return None
    return base / "kvvideo" / "config.toml"


def given(command: Words, commands: Commands, files: Iterable[Path] | None = None) -> dict[str, Given]:
    """Return what files set for ``command``, by option; each file is checked whole, for all ``commands``.

    Raises:
        ConfigError: naming file and key, and what is allowed.
    """
    own = {option.key for option in commands[command]}
    found: dict[str, Given] = {}
    for distance, file in enumerate(paths() if files is None else files):
        tables = read(file, commands)
        # Of one file, the table that is nearest to the command counts.
        for depth in range(len(command), -1, -1):
            table = command[:depth]
            for key in tables.get(table, {}).keys() & own:
                if table == command or key not in UNSHARED.get(command, ()):
                    found.setdefault(key, Given(tables[table][key], file, table, key, distance))
    return found


def read(file: Path, commands: Commands) -> dict[Words, dict[str, str | bool | list[str]]]:
    """Return the tables of a file, the top one under ``()``; empty if there is no such file.

    Raises:
        ConfigError: if it cannot be read or says what cannot be said.
    """
    tables: dict[Words, dict[str, str | bool | list[str]]] = {}
    _collect(_parsed(file), (), file, commands, tables)
    return tables


def unused_variables(commands: Commands) -> dict[str, str]:
    """Return the ``KVVIDEO_*`` variables that set nothing, and why."""
    options = {option.variable: option for known in commands.values() for option in known}
    unused = {}
    for name in sorted(os.environ):
        if not name.startswith(PREFIX) or name.startswith(_OTHERS):
            continue
        if name not in options:
            close = difflib.get_close_matches(name, options, 1)
            unused[name] = "no option has this name" + (f"; did you mean {close[0]}?" if close else "")
        elif reason := options[name].refused:
            unused[name] = f"--{options[name].key} is for the command line only: {reason}"
    return unused


def _parsed(file: Path) -> dict[str, Any]:
    try:
        # A pipe in a folder from elsewhere would keep us waiting.
        if not stat.S_ISREG(file.stat().st_mode):
            raise ConfigError(f"{file} is no file; remove it, or put it elsewhere")
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{file} is longer than {MAX_BYTES} bytes, which no settings are")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is no UTF-8 text (byte {error.start})") from None
    except ValueError as error:
        raise ConfigError(f"{file} is no valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{file} is no settings: its values are nested too deep") from None


def _collect(
    raw: dict[str, Any],
    table: Words,
    file: Path,
    commands: Commands,
    tables: dict[Words, dict[str, str | bool | list[str]]],
) -> None:
    """Add what ``raw`` says to ``tables``, checked."""
    options = {
        option.key: option
        for path, known in commands.items()
        if path[: len(table)] == table
        for option in known
        if path == table or option.key not in UNSHARED.get(path, ())
    }
    groups = {path[len(table)] for path in commands if path[: len(table)] == table and len(path) > len(table)}
    mine = tables.setdefault(table, {})
    for written, value in raw.items():
        key = written.replace("_", "-")
        where = f"{file}: {_place(table, written)}"
        if isinstance(value, dict):
            if key not in groups:
                raise ConfigError(f"{where} {_unknown(key, groups, 'command', 'tables')}")
            _collect(value, (*table, key), file, commands, tables)
        elif key not in options:
            if key in groups:
                raise ConfigError(f"{where} is a command; write [{'.'.join((*table, key))}] and its settings below")
            raise ConfigError(f"{where} {_unknown(key, options, 'setting', 'keys')}")
        elif reason := options[key].refused:
            raise ConfigError(f"{where} can be given on the command line only: {reason}")
        elif key in mine:
            raise ConfigError(f"{where} is there twice, once with - and once with _")
        elif value != "":  # as of variables, an empty text sets nothing
            mine[key] = _typed(value, options[key], where)


def _typed(value: Any, option: Option, where: str) -> str | bool | list[str]:
    """Return ``value`` as it would be typed."""
    if option.flag:
        if not isinstance(value, bool):
            raise ConfigError(f"{where} is {_shown(value)}; write true or false")
        return value
    if option.several:
        return [_text(one, where) for one in (value if isinstance(value, list) else [value])]
    return _text(value, where)


def _text(value: Any, where: str) -> str:
    if isinstance(value, time):
        return value.isoformat()  # 00:01:30 without quotes
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or _is_huge(value):
        raise ConfigError(f'{where} is {_shown(value)}; write a number or a text in "quotes"')
    return str(value)


def _is_huge(value: object) -> bool:
    """True if it is a number beyond TOML's; Python reads it, but cannot print the longest."""
    return isinstance(value, int) and abs(value) >= 1 << 63


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "a list"
    text = "a number too large" if _is_huge(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _place(table: Words, key: str) -> str:
    shown = key if key.isascii() and key.replace("-", "").replace("_", "").isalnum() else repr(key)
    return f"[{'.'.join(table)}] {shown}" if table else shown


def _unknown(key: str, known: Iterable[str], what: str, plural: str) -> str:
    allowed = sorted(known)
    close = difflib.get_close_matches(key, allowed, 1)
    # A list of forty helps nobody who mistyped one of them.
    hint = f"did you mean {close[0]}?" if close else f"{plural} are {', '.join(allowed)}" if allowed else "it has none"
    return f"is no {what}; {hint}"
