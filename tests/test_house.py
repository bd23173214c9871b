"""The rules of the house that no linter knows: what a newcomer finds in the tree, and in what words."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import ROOT

PACKAGE = ROOT / "kvvideo"
LONGEST = 60
"""Lines of a function. Signatures of commands are long, as they are what is typed."""
PROSE = re.compile(r"(What|Whether|How|Where|Which|That|Of|When|Who)\b")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def files(*roots: str) -> list[Path]:
    return sorted(path for root in roots for path in (ROOT / root).rglob("*.py"))


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def test_at_most_nine_modules_stand_beside_the_packages() -> None:
    assert len([*PACKAGE.glob("*.py")]) <= 9


def test_every_package_says_what_it_is_for() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_functions_are_short() -> None:
    def length(function: Function) -> int:
        is_command = bool(function.decorator_list) or function.name == "command"
        return (function.end_lineno or 0) - (function.body[0] if is_command else function).lineno + 1

    found = [
        f"{path.relative_to(ROOT)}:{node.name} has {length(node)} lines"
        for path in files("kvvideo")
        for node in nodes(path)
        if isinstance(node, Function) and length(node) > LONGEST
    ]
    assert found == []


def test_the_formatter_alone_breaks_lines() -> None:
    mark = "fmt: " + "skip"
    assert [path for path in files("kvvideo", "tests", "examples") if mark in path.read_text(encoding="utf-8")] == []


def test_docstrings_begin_with_what_is_done() -> None:
    """A question word is how an explanation begins, not what a function does."""
    found = []
    for path in files("kvvideo", "examples"):
        for node in nodes(path):
            if isinstance(node, Function | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                if PROSE.match(text):
                    found.append(f"{path.relative_to(ROOT)}: {text.splitlines()[0]}")
    assert found == []


def test_tests_lie_as_the_packages_do() -> None:
    """A test of a package is found in the folder of its name; all else is for the whole."""
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert packages <= folders
    assert folders - packages <= {"docs", "examples"}
