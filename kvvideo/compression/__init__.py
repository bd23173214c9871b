"""Strategies by name. Listing them imports no torch; loading one does.

Built-in strategies are the modules of ``kvvideo.compression.strategies``. Others come from the entry
point group ``kvvideo.strategies`` of any installed package, or from ``register``.
"""

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

# Imported here, for importing it after the function of the same name would replace that by the module.
from kvvideo.compression import strategies as _package
from kvvideo.errors import ConfigError

if TYPE_CHECKING:
    from kvvideo.compression.policy import Policy

_registered: dict[str, "type[Policy]"] = {}


def register(name: str, policy: "type[Policy]") -> None:
    """Make ``policy`` selectable as ``name`` in this process."""
    _registered[name] = policy


@cache
def _installed() -> dict[str, str]:
    built_in = {m.name.replace("_", "-"): m.name for m in pkgutil.iter_modules(_package.__path__)}
    names = {name: f"{_package.__name__}.{module}:{_class_name(module)}" for name, module in built_in.items()}
    return {**{e.name: e.value for e in entry_points(group="kvvideo.strategies")}, **names}


def _class_name(module: str) -> str:
    return "".join(part.capitalize() for part in module.split("_"))


def strategies() -> list[str]:
    """Names of all strategies that can be selected, sorted."""
    return sorted({*_installed(), *_registered})


def load(name: str) -> "type[Policy]":
    """The strategy called ``name``.

    Raises:
        ConfigError: if there is none; the message lists those there are.
    """
    if name in _registered:
        return _registered[name]
    if name not in _installed():
        raise ConfigError(f"strategy: no {name!r}; choose one of {', '.join(strategies())}")
    module, _, attribute = _installed()[name].partition(":")
    policy: type[Policy] = getattr(importlib.import_module(module), attribute)
    return policy
