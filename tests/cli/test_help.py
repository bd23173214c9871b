"""The help of every command, held against what it promises: short, in groups, and with examples that work."""

import inspect
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.main import get_command

from kvvideo.cli import app, help_text
from kvvideo.cli.panels import EVERYWHERE, EXPERT, PANELS
from tests.helpers import SAMPLES, commands

ROOT: Any = get_command(app)
SCREENS, COLUMNS = 3 * 24, 80
EXPERTS = {"ratio", "budget", "sink", "window", "queries", "score-norm", "positions", "max-tokens", "max-model-len"}


def walked(command: Any, context: Any) -> Iterator[tuple[Any, Any]]:
    """Yield a group or command and all below it, each with its context."""
    yield command, context
    for name, one in getattr(command, "commands", {}).items():
        yield from walked(one, type(context)(one, info_name=name, parent=context, **one.context_settings))


EVERY = [
    pytest.param(command, context, id=context.command_path)
    for command, context in walked(ROOT, ROOT.make_context("kvvideo", ["strategies"]))
]
LEAVES = [one for one in EVERY if not hasattr(one.values[0], "commands")]


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))


def all_options(command: Any, context: Any) -> list[Any]:
    return [one for one in command.get_params(context) if one.param_type_name == "option"]


@pytest.mark.parametrize(("command", "context"), EVERY)
def test_the_help_fits_three_screens(command: Any, context: Any) -> None:
    lines = command.get_help(context).splitlines()
    assert len(lines) <= SCREENS, f"{len(lines)} lines: shorten what options say, to one line of {COLUMNS} columns each"
    assert [line for line in lines if len(line) > COLUMNS] == []


@pytest.mark.parametrize(("command", "context"), EVERY)
def test_types_are_named_as_people_do(command: Any, context: Any) -> None:
    found = re.findall(r"<\w+>|<list.*?>|range|\{\w+\}(?=\s|$)", command.get_help(context))
    assert found == [], "name what it takes with metavar="


@pytest.mark.parametrize(("command", "context"), EVERY)
def test_nothing_that_is_said_is_lost(command: Any, context: Any) -> None:
    """Neither brackets nor a word: all of a docstring, and of what options say, is there."""
    shown = " ".join(command.get_help(context).split())
    parts = [part for part in inspect.cleandoc(command.help).split("\n\n") if not part.startswith(help_text.EXAMPLES)]
    for text in [*parts, *(one.help for one in command.params if not getattr(one, "hidden", False))]:
        assert " ".join(text.split()) in shown
    assert not re.search(r"\\\[", shown)


@pytest.mark.parametrize(("command", "context"), EVERY)
def test_it_begins_with_two_examples_that_can_be_parsed(command: Any, context: Any) -> None:
    """By the real command line; nothing of them is run."""
    examples = help_text.examples(command)
    assert len(examples) == 2
    lines = command.get_help(context).splitlines()
    assert lines.index(f"  {examples[0]}") + 1 == lines.index(f"  {examples[1]}") < 8
    for example in examples:
        program, *words = shlex.split(example)
        assert example.startswith(context.command_path)
        assert program == "kvvideo"
        parsed: Any = ROOT.make_context("kvvideo", words)
        while words and hasattr(parsed.command, "commands"):
            name, found, rest = parsed.command.resolve_command(parsed, words)
            words, parsed = rest, found.make_context(name, [*rest], parent=parsed)
        assert getattr(parsed.command, "invoke_without_command", True)


@pytest.mark.parametrize(("command", "context"), LEAVES)
def test_every_option_has_its_group_and_experts_come_last(command: Any, context: Any) -> None:
    options = all_options(command, context)
    for option in options:
        assert option.name == "help" or option.rich_help_panel in PANELS, (
            f"{context.command_path} {option.opts[0]} has no group: give it rich_help_panel=, one of kvvideo.cli.panels"
        )
    for option in options:
        if option.opts[0].removeprefix("--") in EXPERTS:
            assert option.rich_help_panel == EXPERT
    titles = [line for line in command.get_help(context).splitlines() if line in PANELS]
    assert titles == sorted(titles, key=PANELS.index)
    assert titles[-1] == EVERYWHERE
    assert EXPERT not in titles[:-2]


@pytest.mark.parametrize(("command", "context"), LEAVES)
def test_every_command_has_the_options_of_every_command(command: Any, context: Any) -> None:
    """The letters, too, but for a command that takes options of others, where these are read as words of their own."""
    found = {name for option in all_options(command, context) for name in option.opts}
    assert {"--progress", "--quiet", "--verbose", "--log-file", "--help"} <= found
    assert ({"-v", "-h"} <= found) is not context.ignore_unknown_options
    for word in ("-h", "--help"):
        with pytest.raises(typer.Exit):
            command.make_context(context.info_name, [word], parent=context.parent)


def test_letters_of_others_are_not_ours() -> None:
    """They are vLLM's, to which ``serve`` hands them on."""
    words = ["tiny", "-dph", "-v", "-sc", "4"]
    context = ROOT.commands["serve"].make_context("serve", words, parent=ROOT.make_context("kvvideo", ["serve"]))
    assert (context.args, context.params["verbose"]) == (["-dph", "-sc", "4"], True)


def test_what_is_set_is_the_default_and_narrow_terminals_have_room(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KVVIDEO_FPS", "3")
    monkeypatch.setenv("COLUMNS", "40")
    shown = commands.run(capfd, "analyze", "-h").stdout
    assert max(map(len, shown.splitlines())) <= 80  # of an example; all else is within 40
    assert "  --fps N\n      Frames per second to look at.\n      [" in shown
    monkeypatch.setenv("COLUMNS", "200")
    assert max(map(len, commands.run(capfd, "analyze", "-h").stdout.splitlines())) <= 100
    nothing = commands.run(capfd, "analyze")
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert nothing.stderr.startswith("Usage: kvvideo analyze [OPTIONS] VIDEO\n")


def test_a_wrong_option_is_two_lines_and_where_help_is(capfd: pytest.CaptureFixture[str]) -> None:
    wrong = commands.run(capfd, "analyze", SAMPLES / "letters-1m.mp4", "--fsp", "[1]")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[:2] == [
        "Usage: kvvideo analyze [OPTIONS] VIDEO",
        "Try 'kvvideo analyze --help' for help.",
    ]
    assert "--fsp" in wrong.stderr
