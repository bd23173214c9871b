"""Options that a strategy declares in its own class, each with a default and the source of that. No torch here."""

import math
from typing import Any, Generic, TypeVar, overload

from kvvideo.errors import ConfigError

Value = TypeVar("Value", bool, int, float, str)


class Option(Generic[Value]):
    """An option of a strategy: an attribute of its class, whose value the strategy's objects read by the same name.

    >>> class Mine(ScorePolicy):
    ...     power = Option(0.5, "Exponent of the score.", source="our choice")

    Args:
        default: value where none is given; its type is the option's.
        help: one line that says what it does.
        source: where the default comes from: a paper and its place there, a measurement, or "our choice".
        least: smallest number allowed.
        choices: texts allowed; empty for any.
    """

    def __init__(
        self, default: Value, help: str, *, source: str, least: float = 0, choices: tuple[Value, ...] = ()
    ) -> None:
        self.name = ""
        self.default: Value = default
        self.help, self.source, self.least = help, source, least
        self.choices: tuple[Value, ...] = choices

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, policy: None, owner: type) -> "Option[Value]": ...
    @overload
    def __get__(self, policy: object, owner: type) -> Value: ...
    def __get__(self, policy: Any, owner: type) -> "Option[Value] | Value":
        if policy is None:
            return self
        value: Value = dict(policy.config.options).get(self.name, self.default)
        return value

    def check(self, value: object) -> None:
        """Check that ``value`` is allowed.

        Raises:
            ConfigError: naming the option and what is allowed.
        """
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise ConfigError(f"{self.name}: {value!r} is neither true nor false")
        elif isinstance(self.default, int):
            check_whole(self.name, value, int(self.least))
        elif isinstance(self.default, float):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not self.least <= value < math.inf:  # type: ignore[operator]
                raise ConfigError(f"{self.name}: {value!r} is not a number of at least {self.least:g}")
        elif self.choices:
            check_choice(self.name, value, self.choices)
        elif not isinstance(value, str):
            raise ConfigError(f"{self.name}: {value!r} is not a text")

    def parse(self, text: str) -> object:
        """Return the value that ``text``, typed by a person, stands for; ``text`` itself if it stands for none."""
        if isinstance(self.default, bool):
            return {"true": True, "false": False}.get(text, text)
        try:
            return type(self.default)(text)
        except ValueError:
            return text

    def as_dict(self) -> dict[str, Any]:
        """Return the option as JSON has it."""
        about = {"name": self.name, "default": self.default, "help": self.help, "source": self.source}
        if isinstance(self.default, str):
            return {**about, "choices": list(self.choices)}
        return about if isinstance(self.default, bool) else {**about, "least": self.least}


def check_whole(name: str, value: object, least: int) -> None:
    """Check that ``value`` is a whole number of at least ``least``.

    Raises:
        ConfigError: naming the setting ``name`` and what is allowed.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}: {value!r} is not a whole number of at least {least}")


def check_choice(name: str, value: object, allowed: tuple[Any, ...]) -> None:
    """Check that ``value`` is one of ``allowed``.

    Raises:
        ConfigError: naming the setting ``name`` and what is allowed.
    """
    if value not in allowed:
        raise ConfigError(f"{name}: no {value!r}; choose one of {', '.join(allowed)}")
