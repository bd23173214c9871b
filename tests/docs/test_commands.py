"""Every command on every page: parsed by the program that it is for, and run where it can run here.

The four tables below say which commands of shell blocks are treated how; one that is in none of them, or in two, fails.
A command within text is only parsed; what it does, a block or another test runs.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import av
import pytest
from typer.main import get_command
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

from kvvideo.cli import app
from kvvideo.doctor.checks import CHECKS
from tests.helpers import ROOT, SAMPLES, commands, documents
from tests.helpers.documents import Command

WITH_AN_ENGINE = (
    r"kvvideo analyze (samples/film-2m|movie)\.mp4 (?!.*--resume)(?!.*--dry-run)(?!.*--model DIR).*",
    r"kvvideo ingest movie\.mp4 -o movie\.kvv",
    r"kvvideo ask movie\.kvv .*",
    r"kvvideo find movie\.(kvv|mp4) .*",
)
"""Run in this process, with the bundled model in an engine that other tests use too; ``movie.mp4`` is a stand-in."""

ALONE = (
    r"kvvideo analyze movie\.mp4 .*--dry-run",
    r"kvvideo strategies.*",
    r"kvvideo config .*",
    r"kvvideo runs.*",
    r"kvvideo samples make .*-1m.*",
    r"kvvideo bench memory --from .*",
)
"""Run in this process; they need no engine."""

BY_A_SHELL = {
    r"kvvideo chat samples/letters-2m\.mp4 .*": r"^ *green$",
    r"kvvideo batch samples/jobs\.jsonl --model tiny": r"\b48 \(100\.0%\)",
}
"""Run by a shell, with all that it is fed, in processes of their own: they end their engine. And what they print."""

ONLY_PARSED = {
    r"kvvideo analyze .*--resume": "needs a run that was interrupted: tests/cli/test_outputs.py",
    r"kvvideo analyze (rtsp:\S+|recording\.ts) .*": "needs a camera or a sender: tests/video/test_live.py",
    r"kvvideo chat (movie\.mp4|movie\.kvv|0)": "is a dialogue: tests/chat",
    r"kvvideo batch jobs\.jsonl -o results/": "is the other batch, with the job that tests/docs/test_snippets.py reads",
    r"kvvideo batch .*--executor ray.*": "needs a Ray cluster: tests/batch/test_ray.py",
    r"kvvideo serve .*|vllm serve .*": "is a server: examples/serve.py, tests/serve; vLLM's parser reads its arguments",
    r"kvvideo doctor.*": "looks at this machine for seconds: tests/doctor; the names of checks are looked up",
    r"kvvideo bench memory (?!--from).*": "measures for an hour: tests/bench/test_memory.py",
    r"kvvideo samples make .*-[24]m.*": "as the clip of one minute, only longer",
    r"python -m kvvideo\.tiny\.training\.train .*": "trains for minutes; its own parser reads its arguments",
    r"printf .*": "is the shell's own; kvvideo chat is fed with what it prints",
    r"(pip|pytest|ruff|mypy|lint-imports)( .*)?": "is what installs kvvideo and runs or checks this very code",
}
"""Not run here, and why."""

EVERY = documents.commands()
BLOCKS = list({str(command): command for command in EVERY if not command.within}.values())


def treated(command: Command) -> list[str]:
    """Return how a command of a shell block is treated, as the tables say."""
    tables = {"engine": WITH_AN_ENGINE, "alone": ALONE, "shell": [*BY_A_SHELL], "parsed": [*ONLY_PARSED]}
    return [name for name, table in tables.items() if any(re.fullmatch(one, plain(command)) for one in table)]


def plain(command: Command) -> str:
    """Return the words of a command with blanks between."""
    return " ".join(command.words)


def which(way: str) -> list[Any]:
    """Return the commands that are treated this way; those of other pages than the README are for the slow tests."""
    return [
        pytest.param(one, id=f"{one.where} {one}", marks=[] if one.where.startswith("README") else pytest.mark.slow)
        for one in BLOCKS
        if treated(one) == [way]
    ]


@pytest.mark.parametrize("command", [pytest.param(one, id=f"{one.where} {one}") for one in BLOCKS])
def test_it_is_said_how_each_command_is_treated(command: Command) -> None:
    assert len(treated(command)) == 1


@pytest.mark.parametrize("pattern", [*WITH_AN_ENGINE, *ALONE, *BY_A_SHELL, *ONLY_PARSED])
def test_no_entry_is_there_for_nothing(pattern: str) -> None:
    assert any(re.fullmatch(pattern, plain(command)) for command in BLOCKS)


# Parsing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [pytest.param(one, id=f"{one.where} {one}") for one in EVERY])
def test_every_command_can_be_parsed(command: Command) -> None:
    program, *arguments = command.words
    match program:
        case "kvvideo":
            parse_kvvideo(arguments, command.within)
        case "vllm":
            assert arguments[:1] == ["serve"] or command.within
            parse_vllm(arguments[1:])
        case "python":
            assert arguments[0] == "-m"
            parse_module(arguments[1], arguments[2:])
        case "pip":
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            named = re.search(r"\[(.+)\]$", arguments[-1])
            assert named
            assert {*named[1].split(",")} <= extras.keys()
        case "pytest":
            # After -n and -m comes a value.
            paths = [word for before, word in zip(command.words, arguments, strict=False) if before not in ("-n", "-m")]
            assert all((ROOT / path).exists() for path in paths if not path.startswith("-"))
        case "printf" | "ruff" | "mypy" | "lint-imports" | "chromium":
            assert command.within or treated(command) == ["parsed"]
        case _:
            raise AssertionError(f"{command.where}: say here how {program} is checked")


def parse_kvvideo(words: list[str], within: bool) -> None:
    """Have the real command line parse ``words``; those within text may lack arguments."""
    command: Any = get_command(app)
    if not words or words[0].startswith("--"):
        assert {*words} <= {option for parameter in command.params for option in parameter.opts}
        return
    context = command.make_context("kvvideo", [*words])
    while hasattr(command, "commands") and words:
        name, words = words[0], words[1:]
        command = command.commands[name]
        try:
            context = command.make_context(name, [*words], context)
        except Exception as error:
            if within and type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError"):
                return
            raise
    if context.info_name == "serve":
        parse_vllm([context.params["model"], *context.args])
    if context.info_name == "doctor":
        assert {*(context.params["checks"] or ())} <= {*CHECKS, "settings"}


def vllm_parser() -> tuple[Any, Any]:
    """Return vLLM's own parser, and the one that has the options of ``vllm serve``."""
    parser = FlexibleArgumentParser(prog="vllm")
    return parser, ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))


def parse_vllm(arguments: list[str]) -> None:
    """Have vLLM's own parser of ``vllm serve`` parse ``arguments``."""
    if "--help=all" not in arguments and arguments:
        assert vllm_parser()[0].parse_args(["serve", *arguments]).model_tag == arguments[0]


def parse_module(name: str, arguments: list[str]) -> None:
    """Look a program of ours up, and the options that it is given in its own source."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin
    if name == "kvvideo.launch":
        parse_vllm(arguments)
    source = Path(spec.origin).read_text()
    for word in arguments:
        assert not word.startswith("--") or word == "--help=all" or f'"{word}"' in source, f"{name} has no {word}"


def test_every_option_that_is_named_exists() -> None:
    """Also those without their command."""
    known = {"--blink-settings", "--device", "--help"}  # of the browser, of the bundled model's training, of all

    def collect(command: Any) -> None:
        for parameter in command.params:
            known.update([*parameter.opts, *parameter.secondary_opts])
        for inner in getattr(command, "commands", {}).values():
            collect(inner)

    collect(get_command(app))
    known |= {option for action in vllm_parser()[1]._actions for option in action.option_strings}
    for page in documents.PAGES:
        for where, text in documents.spans(page):
            if text.startswith("--") and not text.startswith("--kvvideo="):
                for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", text):
                    assert option in known, f"{where}: there is no {option}"


# Running -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a film of fourteen minutes: the bundled clip of two, shown seven times as slowly."""
    path = tmp_path_factory.mktemp("movies") / "movie.mp4"
    with av.open(str(SAMPLES / "letters-2m.mp4")) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                assert packet.pts is not None
                assert packet.dts is not None
                packet.pts, packet.dts, packet.duration = packet.pts * 7, packet.dts * 7, packet.duration * 7
                packet.stream = stream
                new.mux(packet)
    return path


@pytest.fixture
def folder(movie: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that commands run in: it has what they name, and settings as people may have them."""
    (tmp_path / "movie.mp4").symlink_to(movie)
    shutil.copytree(SAMPLES, tmp_path / "samples")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    listed = re.search(r"```\n(# The kitchen\n.*?)```", (ROOT / "docs/analyze.md").read_text(), re.DOTALL)
    assert listed
    (tmp_path / "questions.txt").write_text(listed[1])
    (tmp_path / "english.srt").write_text("1\n00:00:01,000 --> 00:00:03,000\nI waited all night.\n")
    (tmp_path / "kvvideo.toml").write_text(
        'model = "tiny"\nmax-tokens = 512\nmax-answer-tokens = 4\nfps = 0.125\nchunk = 64\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


@pytest.mark.parametrize("command", which("alone"))
def test_what_needs_no_engine_runs(command: Command, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if "config init" in plain(command):
        (folder / "kvvideo.toml").unlink()
    if made_anew := "samples make" in plain(command):
        for clip in (folder / "samples").glob("*"):
            clip.unlink()
    done = commands.run(capfd, *command.words[1:])
    assert done.returncode == 0, done.stderr
    if made_anew:
        made = json.loads((folder / "samples/jobs.jsonl").read_text())
        assert made == json.loads((SAMPLES / "jobs.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize("command", which("engine"))
@pytest.mark.usefixtures("one_engine")
def test_what_an_engine_can_do_here_is_done(command: Command, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if command.words[2] == "movie.kvv":
        assert commands.run(capfd, "ingest", "movie.mp4", "-o", "movie.kvv").returncode == 0
    done = commands.run(capfd, *command.words[1:])
    assert done.returncode == 0, done.stderr
    for number, word in enumerate(command.words):
        if word == "-q" and "-f" not in command.words:
            assert re.sub(r"^@\S+ ", "", command.words[number + 1]) in done.stdout
        if word == "-o":
            assert (folder / command.words[number + 1]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", which("shell"))
def test_what_a_shell_starts_prints_what_the_page_says(command: Command, tmp_path: Path) -> None:
    """As it stands on the page; ``kvvideo`` is this one."""
    (tmp_path / "samples").symlink_to(SAMPLES)
    (tmp_path / "kvvideo").write_text(f'#!/bin/sh\nexec {sys.executable} -m kvvideo "$@"\n')
    (tmp_path / "kvvideo").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    imported = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        ["bash", "-c", f"{command.fed} | {command}" if command.fed else str(command)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": imported},
    )
    assert done.returncode == 0, done.stderr
    (printed,) = (said for pattern, said in BY_A_SHELL.items() if re.fullmatch(pattern, plain(command)))
    assert re.search(printed, done.stdout, re.MULTILINE), done.stdout
