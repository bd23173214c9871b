"""Strategies by name. Listing them imports no torch; loading one does.

Built-in strategies are the modules of ``kvvideo.compression.strategies``. Others come from the entry
point group ``kvvideo.strategies`` of any installed package, or from ``register``.
"""

import inspect
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

# Imported here, for importing it after the function of the same name would replace that by the module.
from kvvideo.compression import strategies as _package
from kvvideo.compression.options import Option
from kvvideo.errors import ConfigError, first_line

if TYPE_CHECKING:
    from kvvideo.compression.policy import Policy

GROUP = "kvvideo.strategies"
"""Entry point group of strategies: names and the ``module:Class`` of each."""

_registered: dict[str, "type[Policy]"] = {}


def register(name: str, policy: "type[Policy]") -> None:
    """Make ``policy`` selectable as ``name`` in this process."""
    _registered[name] = policy


@cache
def _built_in() -> dict[str, EntryPoint]:
    modules = [module.name for module in pkgutil.iter_modules(_package.__path__)]
    return {name.replace("_", "-"): EntryPoint(name, _class_path(name), GROUP) for name in modules}


def _class_path(module: str) -> str:
    return f"{_package.__name__}.{module}:{''.join(part.capitalize() for part in module.split('_'))}"


@cache
def _found() -> tuple[dict[str, EntryPoint], dict[str, str]]:
    """All strategies by name, ours first, and those whose name is taken, each with the reason in one line."""
    points, taken = dict(_built_in()), dict[str, str]()
    for point in entry_points(group=GROUP):
        if points.setdefault(point.name, point) is not point:
            owner = "kvvideo" if point.name in _built_in() else _package_of(points[point.name])
            taken[point.name] = f"{point.name!r} of {_package_of(point)} is not used: {owner} has one of that name"
    return points, taken


def _package_of(point: EntryPoint) -> str:
    return "a package" if point.dist is None else point.dist.name


def strategies() -> list[str]:
    """Names of all strategies that can be selected, sorted."""
    return sorted({*_found()[0], *_registered})


def load(name: str) -> "type[Policy]":
    """Return the class of the strategy called ``name``.

    Raises:
        ConfigError: if there is none, and the message lists those there are; or that of another package is broken.
    """
    if name in _registered:
        return _registered[name]
    points, _ = _found()
    if name not in points:
        raise ConfigError(f"strategy: no {name!r}; choose one of {', '.join(strategies())}")
    from kvvideo.compression.policy import Policy

    point = points[name]
    told = f"strategy: {name!r} of {_package_of(point)} cannot be used"
    try:
        policy: Any = point.load()
    except Exception as error:  # a package of others may fail in any way
        raise ConfigError(f"{told}: importing {point.value} failed: {first_line(error)}") from error
    if not isinstance(policy, type) or not issubclass(policy, Policy):
        raise ConfigError(f"{told}: {point.value} is no subclass of kvvideo.compression.policy.Policy")
    lacks = [attribute for attribute in ("summary", "source") if not hasattr(policy, attribute)]
    if lacks := lacks or sorted(policy.__abstractmethods__ if inspect.isabstract(policy) else ()):
        raise ConfigError(f"{told}: {point.value} does not define {lacks[0]}")
    return policy


def load_all() -> tuple[dict[str, "type[Policy]"], list[str]]:
    """Return all strategies by name, and a line for each of another package that cannot be used."""
    policies, unusable = {}, [*_found()[1].values()]
    for name in strategies():
        try:
            policies[name] = load(name)
        except ConfigError as error:
            unusable.append(str(error).removeprefix("strategy: "))
    return policies, unusable


def find_option(strategy: str, name: str) -> "Option[Any] | None":
    """Return option ``name`` of ``strategy`` or else of any other, so that one setting serves several strategies.

    Raises:
        ConfigError: as ``load``.
    """
    if (own := load(strategy).options().get(name)) is not None:
        return own
    options = (policy.options() for policy in load_all()[0].values())
    return next((known[name] for known in options if name in known), None)
