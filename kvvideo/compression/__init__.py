"""Strategies by name. Listing them imports no torch; loading one does.

Built-in strategies are the modules of ``kvvideo.compression.strategies``. Others come from the entry
point group ``kvvideo.strategies`` of any installed package, or from ``register``.
"""

import ast
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

# Imported here, for importing it after the function of the same name would replace that by the module.
from kvvideo.compression import strategies as _package
from kvvideo.compression.options import Option
from kvvideo.errors import ConfigError, first_line

if TYPE_CHECKING:
    from kvvideo.compression.policy import Policy

GROUP = "kvvideo.strategies"
"""Entry point group of strategies: names and the ``module:Class`` of each."""

_Found = TypeVar("_Found")
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
    return _each(load)


def described() -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Return the summary and the source of all strategies by name, and a line for each that cannot be used.

    Built-in ones are read and not imported, for that takes torch, and seconds.
    """
    return _each(_described)


def _described(name: str) -> tuple[str, str]:
    point = _built_in().get(name)
    if point is None or name in _registered:
        policy = load(name)
        return policy.summary, policy.source
    text = pkgutil.get_data(_package.__name__, f"{point.name}.py") or b""
    (body,) = (node.body for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == point.attr)
    told = {ast.unparse(line.targets[0]): line.value for line in body if isinstance(line, ast.Assign)}
    summary, source = (str(ast.literal_eval(told[attribute])) for attribute in ("summary", "source"))
    return summary, source


def _each(get: Callable[[str], _Found]) -> tuple[dict[str, _Found], list[str]]:
    """Return what ``get`` makes of each name, and a line for each strategy that cannot be used."""
    found, unusable = {}, [*_found()[1].values()]
    for name in strategies():
        try:
            found[name] = get(name)
        except ConfigError as error:
            unusable.append(str(error).removeprefix("strategy: "))
    return found, unusable


def find_option(strategy: str, name: str) -> "Option[Any] | None":
    """Return option ``name`` of ``strategy`` or else of any other, so that one setting serves several strategies.

    Raises:
        ConfigError: as ``load``.
    """
    if (own := load(strategy).options().get(name)) is not None:
        return own
    options = (policy.options() for policy in load_all()[0].values())
    return next((known[name] for known in options if name in known), None)
