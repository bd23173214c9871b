"""Options set by variables and files: through the real command line, against a model of what comes before what."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.core import TyperGroup

from kvvideo.cli import app, command
from kvvideo.cli.settings import MAX_BYTES, PREFIX, read
from kvvideo.errors import ConfigError
from tests.helpers import SAMPLES
from tests.helpers.commands import Done, Run, kvvideo, records
from tests.helpers.places import Places

CLIP = SAMPLES / "letters-1m.mp4"
ROOT: Any = typer.main.get_command(app)
COMMANDS = command.commands(ROOT)


def shown(ended: Done) -> dict[tuple[str, str], tuple[Any, str, str | None]]:
    """Return what ``config show --json`` says: value, source and place by command and option."""
    assert ended.returncode == 0, ended.stderr
    return {
        (one["command"], one["option"]): (one["value"], one["source"], one["place"])
        for one in json.loads(ended.stdout)["settings"]
    }


def passed(*arguments: str) -> dict[str, Any]:
    """Return what a command is called with."""
    parent = ROOT.make_context("kvvideo", list(arguments))
    name, found, rest = ROOT.resolve_command(parent, [*arguments])
    return dict(found.make_context(name, rest, parent=parent).params)


# What is set where: each option as typed, as a variable says it, and as TOML has it.
VALUES = {
    "max-tokens": ("max_tokens", st.integers(2, 9999), str),
    "fps": ("fps", st.sampled_from([0.5, 1.0, 2.5, 8.0]), str),
    "decoder": ("decoder", st.sampled_from(["pyav", "nvdec", "decord", "other one"]), json.dumps),
    "retry": ("retry", st.sampled_from(["30s", "1:30"]), json.dumps),
    "follow": ("follow", st.booleans(), lambda value: str(value).lower()),
}
SOURCES = ("flag", "variable", "folder's table", "folder's top", "user's table", "user's top")


@st.composite
def settings_everywhere(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """For each source, the options that it sets."""
    found: dict[str, dict[str, Any]] = {}
    for source in SOURCES:
        keys = draw(st.sets(st.sampled_from(sorted(VALUES))))
        found[source] = {key: draw(VALUES[key][1]) for key in sorted(keys)}
    found["flag"].pop("follow", None) if not found["flag"].get("follow") else None  # there is no --no-follow
    return found


def toml(top: dict[str, Any], table: dict[str, Any], spell: Callable[[str], str]) -> str:
    lines = [f"{spell(key)} = {VALUES[key][2](value)}" for key, value in top.items()]
    return "\n".join(
        [*lines, "[chat]", "fps = 77", "[analyze]"]
        + [f"{spell(key)} = {VALUES[key][2](value)}" for key, value in table.items()]
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=settings_everywhere(), underscores=st.booleans())
def test_the_nearest_source_counts(
    places: Places, run: Run, said: dict[str, dict[str, Any]], underscores: bool
) -> None:
    """For any mixture of sources; another command's table says nothing, and ``config show`` tells the truth."""
    places.clear()

    def spell(key: str) -> str:
        return key.replace("-", "_") if underscores else key

    places.write(toml(said["folder's top"], said["folder's table"], spell))
    places.user.write_text(toml(said["user's top"], said["user's table"], spell))
    for key, value in said["variable"].items():
        places.environment.setenv(PREFIX + key.upper().replace("-", "_"), str(value))
    typed = []
    for key, value in said["flag"].items():
        typed += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    defaults = {"max-tokens": None, "fps": 2.0, "decoder": "pyav", "retry": "30s", "follow": False}
    params, listed = passed("analyze", "v.mp4", *typed), shown(run("config", "show", "analyze", "--json"))
    for key, default in defaults.items():
        setters = [source for source in SOURCES if key in said[source]]
        assert params[VALUES[key][0]] == (said[setters[0]][key] if setters else default)
        untyped = [source for source in setters if source != "flag"]
        value, source, place = listed["analyze", key]
        assert value == (said[untyped[0]][key] if untyped else default)
        file = places.folder / "kvvideo.toml" if untyped and untyped[0].startswith("folder") else places.user
        where = f"{'[analyze] ' if untyped and untyped[0].endswith('table') else ''}{spell(key)}"
        assert (source, place) == (
            ("default", None)
            if not untyped
            else ("variable", PREFIX + key.upper().replace("-", "_"))
            if untyped[0] == "variable"
            else ("file", f"{file}: {where.replace('_', '-')}")
        )


def test_a_run_does_what_file_variable_and_flag_say(places: Places) -> None:
    """Through processes of their own, to what comes out: 60 s of video at so many frames each."""
    places.write('model = "tiny"\nstrategy = "streaming"\nformat = "jsonl"\n[analyze]\nfps = 1\n')

    def dry(*arguments: str) -> list[tuple[str, int]]:
        result = kvvideo("analyze", str(CLIP), "--dry-run", *arguments)
        assert result.returncode == 0, result.stderr
        return [(record["strategy"], record["frames"]) for record in records(result.stdout)]

    places.environment.setenv("KVVIDEO_FPS", "4")
    assert dry() == [("streaming", 240)]
    # A strategy that is set for all runs is not one that was named beside --compare.
    places.environment.setenv("KVVIDEO_STRATEGY", "h2o")
    assert dry("--compare", "keydiff,window", "--fps", "0.5") == [("keydiff", 30), ("window", 30)]


def test_of_options_that_replace_each_other_the_nearest_counts(places: Places) -> None:
    places.write("budget = 600\n")
    assert passed("analyze", "v.mp4")["budget"] == 600
    assert passed("analyze", "v.mp4", "--ratio", "0.25")["budget"] is None
    assert passed("analyze", "v.mp4", "--ratio", "0.25", "--budget", "9")["budget"] == 9
    places.environment.setenv("KVVIDEO_RATIO", "0.75")
    assert (passed("chat", "v.mp4")["budget"], passed("chat", "v.mp4")["ratio"]) == (None, 0.75)
    assert passed("chat", "v.mp4", "--budget", "7")["budget"] == 7
    places.environment.delenv("KVVIDEO_RATIO")
    places.user.write_text("ratio = 0.9")
    assert (passed("chat", "v.mp4")["budget"], passed("chat", "v.mp4")["ratio"]) == (600, 0.5)


def test_a_memory_knows_its_model_better_than_what_is_set_for_all(places: Places) -> None:
    places.write('model = "elsewhere"\ndtype = "float16"\nseed = 5\n')
    places.environment.setenv("KVVIDEO_MODEL", "nowhere")
    asked = passed("ask", "m.kvv")
    assert (asked["model"], asked["dtype"], asked["seed"]) == (None, None, 5)
    assert passed("analyze", "v.mp4")["model"] == "nowhere"
    places.write('model = "elsewhere"\n[ask]\nmodel = "moved/here"\n')
    assert passed("ask", "m.kvv")["model"] == "moved/here"
    assert passed("ask", "m.kvv", "--model", "typed")["model"] == "typed"


def served(run: Run, *words: str) -> tuple[dict[str, Any], list[str], str | None]:
    """Return the settings, the further words and the key of the server that ``kvvideo serve`` becomes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_API_KEY", "")
        patch.setattr(signal, "pthread_sigmask", lambda *_: None)
        patch.setattr(os, "execv", lambda _, line: found.append((line, os.environ["VLLM_API_KEY"])))
        found: list[tuple[list[str], str]] = []
        assert run("serve", "tiny", *words).returncode == 0
    ((line, key),) = found
    assert line[:3] == [sys.executable, "-m", "kvvideo.launch"]
    return json.loads(line[3].removeprefix("--kvvideo=")), line[5:], key or None


def test_what_is_set_of_a_server_counts_whatever_it_serves(places: Places, run: Run) -> None:
    """Its key is nowhere that other users of the machine could read."""
    found, words, key = served(run, "--port", "7", "--api-key", "typed")
    # What is typed is vLLM's to read.
    assert (found["port"], words, key) == (8000, ["--port", "7", "--api-key", "typed"], None)
    places.write('port = 9001\napi-key = "secret"\n[serve]\nmemory = "2GB"\n')
    found, words, key = served(run, "--port", "7")
    assert (found["port"], found["memory"], words, key) == (9001, 2 * 10**9, ["--port", "7"], "secret")
    # The room of all requests and the bound of each are two things.
    places.write("max-tokens = 640\n")
    found, _, _ = served(run, "--memory", "1GB")
    assert (found["memory"], found["cache"]["max_tokens"]) == (10**9, 640)
    assert served(run)[0]["memory"] is None
    places.environment.setenv("KVVIDEO_PORT", "x")
    ended = run("serve", "tiny")
    assert ended.returncode == 2
    assert ended.stderr.startswith("kvvideo: KVVIDEO_PORT: 'x' cannot be used: ")


WRONG = {
    "max-token = 3": "max-token is no setting; did you mean max-tokens?",
    "zzz = 3": "zzz is no setting; keys are",
    "[analyse]\nfps = 1": "analyse is no command; did you mean analyze?",
    "[analyze]\nspeed = 2": "[analyze] speed is no setting",
    "[analyze.fps]\na = 1": "[analyze] fps is no command; it has none",
    "analyze = 3": "analyze is a command; write [analyze]",
    "[bench.memory]\nclip = 3": "[bench.memory] clip is no setting; did you mean clips?",
    "fps = [1, 2]": 'fps is a list; write a number or a text in "quotes"',
    "fps = true": "fps is true; write a number",
    "fps = 1979-05-27": "fps is datetime.date(1979, 5, 27); write a number",
    "follow = 1": "follow is 1; write true or false",
    'follow = "yes"': "follow is 'yes'; write true or false",
    f"follow = '{'y' * 500}'": "yyy…; write true or false",
    f"max-tokens = 0x{'f' * 9000}": "max-tokens is a number too large",
    "max-tokens = " + "9" * 9000: "is no valid TOML",
    'max-tokens = "lots"': "max-tokens: 'lots' cannot be used: ",
    "max-tokens = 1.5": "max-tokens: '1.5' cannot be used",
    "max-answer-tokens = 0": "max-answer-tokens: '0' cannot be used: ",
    'format = "docx"': "format: ",
    "max-tokens = 1\nmax_tokens = 2": "max_tokens is there twice",
    "max-tokens = 1\nmax-tokens = 2": "is no valid TOML",
    "fps = = 1": "is no valid TOML: Invalid value (at line 1, column 7)",
    'question = "why?"': "question can be given on the command line only: it says what a single run is to do",
    'system = "Say yes."': "system can be given on the command line only: it is a part of each question",
    "resume = true": "resume can be given on the command line only",
    "[ingest]\nforce = true": "[ingest] force can be given on the command line only",
    "dry_run = true": "dry_run can be given on the command line only",
    'output = "/etc/passwd"': "output can be given on the command line only: it names a file of a single run",
    'truth = "x"': "truth can be given on the command line only",
    '"\\u001b[2J" = 1': r"'\x1b[2J' is no setting",
    "a = " + "[" * 5000 + "]" * 5000: "nested too deep",
    "#" * (MAX_BYTES + 1): f"is longer than {MAX_BYTES} bytes",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:30])
def test_what_is_wrong_in_a_file_is_one_line_and_code_2(places: Places, run: Run, text: str) -> None:
    places.write(text)
    ended = run("analyze", "v.mp4", "-q", "why?")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith(f"kvvideo: {places.folder / 'kvvideo.toml'}")
    assert WRONG[text] in line
    assert "\x1b" not in line
    # A value that cannot be is known where it is used, all else is wrong for every command.
    assert run("strategies").stderr == ("" if "cannot be used" in line else ended.stderr)


def test_files_that_cannot_be_read_are_named(places: Places, run: Run) -> None:
    local = places.folder / "kvvideo.toml"
    local.mkdir()
    assert f"{local} is no file" in run("strategies").stderr
    local.rmdir()
    os.mkfifo(local)  # which would wait for someone to write
    assert f"{local} is no file" in run("strategies").stderr
    local.unlink()
    local.write_bytes(b"fps = '\xff'")
    assert f"{local} is no UTF-8 text (byte 7)" in run("strategies").stderr
    local.unlink()
    local.symlink_to(local)
    assert f"{local} cannot be read" in run("strategies").stderr
    local.unlink()
    local.symlink_to("/proc/self/mem")
    assert f"{local} cannot be read" in run("strategies").stderr
    local.unlink()
    places.user.write_text("fps = x")
    assert f"{places.user} is no valid TOML" in run("strategies").stderr
    places.environment.setenv("XDG_CONFIG_HOME", "relative")
    assert run("strategies").returncode == 0


def test_wrong_variables_are_named(places: Places, run: Run) -> None:
    places.environment.setenv("KVVIDEO_FPS", "fast")
    ended = run("analyze", "v.mp4", "-q", "why?")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("kvvideo: KVVIDEO_FPS: 'fast' cannot be used: ")
    assert len(ended.stderr.splitlines()) == 1
    assert passed("analyze", "v.mp4", "--fps", "3")["fps"] == 3.0
    places.environment.setenv("KVVIDEO_FPS", "")
    assert passed("analyze", "v.mp4")["fps"] == 2.0
    places.environment.setenv("KVVIDEO_FOLLOW", "1")
    assert passed("analyze", "v.mp4")["follow"] is True


def test_an_error_about_a_value_nobody_typed_says_where_it_stands(places: Places, run: Run) -> None:
    places.write('budget = 3000\nmax-disk = "lots"\n')
    places.environment.setenv("KVVIDEO_STRATEGY", "psychic")
    local = places.folder / "kvvideo.toml"
    err = run("analyze", str(CLIP), "--dry-run").stderr
    assert "strategy: no 'psychic'; choose one of" in err
    assert err.endswith("(--strategy is set by KVVIDEO_STRATEGY)\n")
    err = run("analyze", str(CLIP), "--dry-run", "-s", "window", "--max-tokens", "1000").stderr
    assert err.endswith(f"(--budget is set by {local}: budget)\n")
    err = run("ingest", str(CLIP), "--dry-run", "-s", "window").stderr
    assert "'lots' is not a size" in err
    assert err.endswith(f"(--max-disk is set by {local}: max-disk)\n")
    assert "is set by" not in run("analyze", str(CLIP), "--dry-run", "-s", "psychic").stderr


def test_help_works_whatever_the_files_say(places: Places, run: Run) -> None:
    places.write("nonsense")
    assert run("analyze", "--help").returncode == 0
    assert run("--help").returncode == 0
    assert run("strategies").returncode == 2
    places.write("fps = 12.5")
    assert "Frames per second to look at. [12.5]" in run("analyze", "--help").stdout
    assert run("analyze", "-h").stdout == run("analyze", "--help").stdout


def test_every_command_is_one_that_can_be_set_and_no_variable_means_two_things() -> None:
    def plain(group: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
        for name, one in group.commands.items():
            if isinstance(one, TyperGroup):
                yield from plain(one, (*words, name))
            elif not isinstance(one, command.Command):
                yield " ".join((*words, name))

    assert {*plain(ROOT)} == {"config show", "config path", "config init", "doctor", "runs clear"}
    for words, described in COMMANDS.items():
        variables = [option.variable for option in described]
        assert len({*variables}) == len(variables), words
        assert not any(name.startswith(("KVVIDEO_STATE_DIR", "KVVIDEO_TEST_")) for name in variables)
        for option in described:
            assert re.fullmatch("[a-z][a-z0-9-]*", option.key)
            # No folder may choose what is written where, or what is run.
            assert option.refused or not option.path
            assert option.refused or not re.search(
                "trust|remote|address|host|output|exec(?!utor)|plugin", option.key
            ), option


def test_what_a_single_run_does_is_not_set_by_variables_either(places: Places, run: Run) -> None:
    for name in ("FORCE", "RESUME", "OUTPUT", "FROM", "TPS", "STATE_DIR", "TEST_MODEL"):
        places.environment.setenv(PREFIX + name, "1")
    params = passed("ingest", "v.mp4")
    assert (params["force"], params["resume"], params["output"], params["start"]) == (False, False, None, None)
    unused = json.loads(run("config", "show", "--json").stdout)["unused"]
    assert {one["variable"] for one in unused} == {
        PREFIX + name for name in ("FORCE", "RESUME", "OUTPUT", "FROM", "TPS")
    }
    assert any(one["reason"] == "no option has this name; did you mean KVVIDEO_FPS?" for one in unused)
    ended = run("-v", "strategies")
    assert "KVVIDEO_FORCE sets nothing: --force is for the command line only: it says what a single run" in ended.stderr
    assert run("strategies").stderr == ""
    assert "KVVIDEO_TPS sets nothing" in run("config", "show").stderr


def test_what_config_show_prints(places: Places, run: Run) -> None:
    places.write("max_tokens = 2222\n[bench.memory]\nclips = 5\n")
    ended = run("config", "show", "analyze")
    local = places.folder / "kvvideo.toml"
    rows = [line.split() for line in ended.stdout.splitlines()]
    assert ["--max-tokens", "2222", f"{local}:", "max-tokens"] in rows
    assert ["--fps", "2.0", "default"] in rows
    assert str(local) in ended.stderr
    assert f"{places.user}: not there" in ended.stderr
    rows = [line.split() for line in run("config", "show", "bench", "memory").stdout.splitlines()]
    assert ["--clips", "5", f"{local}:", "[bench.memory]", "clips"] in rows
    everything = run("config", "show").stdout
    assert re.search(r"--model +tiny +default +bench stream, bench start, bench checkpoint, .*bench memory", everything)
    assert run("config", "path").stdout.strip() == str(places.user)
    ended = run("config", "show", "analyse")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "'analyse' is no command with settings; those are analyze, chat" in ended.stderr


def test_the_file_that_config_init_writes_says_what_the_defaults_are(places: Places, run: Run) -> None:
    """With every # taken away, nothing changes but what is the same for all commands, and no key is wrong."""
    before = shown(run("config", "show", "--json"))
    ended = run("config", "init")
    assert (ended.returncode, ended.stdout) == (0, "kvvideo.toml\n")
    assert shown(run("config", "show", "--json")) == before
    local = places.folder / "kvvideo.toml"
    text = local.read_text()
    top, tables = text.split("\n[", 1)
    assert {*re.findall(r"^# (lengths|against|cycles|shape|minutes|clips|max-disk) = ", top, re.MULTILINE)} == set()
    assert re.search(r"^\[bench\]$[^\[]*^# lengths = ", f"[{tables}", re.MULTILINE)
    local.write_text(re.sub(r"^# (\S+ = .*)", r"\1", text, flags=re.MULTILINE))
    after = shown(run("config", "show", "--json"))
    assert {key: value for key, (value, _, _) in after.items()} == {
        key: before[key][0] if key != ("ask", "model") else None for key in before
    }
    assert sum(source == "file" for _, source, _ in after.values()) > 100
    ended = run("config", "init")
    assert (ended.returncode, local.read_text() != text) == (2, True)
    assert "is there already" in ended.stderr
    assert run("config", "init", "--user").stdout.strip() == str(places.user)
    assert places.user.read_text() == text


FRAGMENTS = st.sampled_from(
    [
        "fps",
        "max-tokens",
        "[analyze]",
        "[bench.memory]",
        "=",
        " = 1",
        '"',
        "'''",
        "[",
        "]",
        "{",
        "}",
        "\n",
        "\\u",
        "#",
        "\0",
        "\x1b[2J",
        "é",
        "true",
        "1e999",
        "nan",
        "0x" + "f" * 3000,
        "12:30:00",
        "follow = ",
        ",",
        ".",
        "clips = 5",
    ]
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.lists(FRAGMENTS, max_size=14).map("".join).map(str.encode), st.binary(max_size=60)))
def test_any_file_is_read_or_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "any.toml"
    file.write_bytes(data)
    refusal, tables = "", {}
    try:
        tables = read(file, COMMANDS)
    except ConfigError as error:
        refusal = str(error)
    assert not refusal or (refusal.startswith(str(file)) and len(refusal.splitlines()) == 1)
    for table, values in tables.items():
        known = {
            option.key: option
            for words, options in COMMANDS.items()
            if words[: len(table)] == table
            for option in options
        }
        assert all(not known[key].refused for key in values)


def script(shell: str) -> str:
    """Return what ``kvvideo`` gives ``shell`` to complete with."""
    result = complete("kvvideo", _KVVIDEO_COMPLETE=f"source_{shell}")
    assert result.returncode == 0, result.stderr
    return result.stdout


def complete(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = "import sys\nsys.argv[0] = 'kvvideo'\nfrom kvvideo.cli import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", program, *words[1:]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def offered(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Return what bash is told to offer after these words, the last of which is not complete."""

    def offered(line: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        monkeypatch.setenv("_KVVIDEO_COMPLETE", "complete_bash")
        ended = run()
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout.split()

    return offered


def test_tab_offers_values(places: Places, offered: Callable[[str], list[str]], tmp_path: Path) -> None:
    assert offered("kvvideo analyze --strategy s") == ["snapkv", "streaming", "summary"]
    assert offered("kvvideo chat -s key") == ["keydiff"]
    assert offered("kvvideo analyze --compare window,t") == ["window,tova"]
    assert "window,window" not in offered("kvvideo analyze --compare window,")
    assert offered("kvvideo bench memory --strategies kn") == ["knorm"]
    assert offered("kvvideo ingest --decoder ") == ["pyav", "nvdec", "decord"]
    assert offered("kvvideo ingest --positions c") == ["contiguous"]
    assert offered("kvvideo ingest --when-behind ") == ["lag", "drop"]
    assert offered("kvvideo analyze --dtype f") == ["float32", "float16"]
    assert "jsonl" in offered("kvvideo analyze --format ")
    assert {"analyze", "ask"} <= {*offered("kvvideo a")}
    assert offered("kvvideo config show --js") == ["--json"]
    for name in ("model-here", "no-model"):
        (places.folder / name).mkdir()
    (places.folder / "model-here" / "config.json").write_text("{}")
    places.environment.setenv("HF_HUB_CACHE", str(tmp_path))  # too late: it is read once, at import
    assert (
        {"tiny", "model-here"}
        <= {*offered("kvvideo analyze --model ")}
        < {"tiny", "model-here", "no-model"} | {name for name in offered("kvvideo analyze --model ") if "/" in name}
    )
    assert offered("kvvideo doctor --model t") == ["tiny"]
    places.write("nonsense")
    assert offered("kvvideo analyze --strategy wi") == ["window"]


def test_models_that_were_downloaded_are_offered(tmp_path: Path) -> None:
    (tmp_path / "models--Qwen--Qwen2.5-VL-7B-Instruct").mkdir()
    (tmp_path / "datasets--some--thing").mkdir()
    result = complete(
        "kvvideo",
        COMP_WORDS="kvvideo analyze --model ",
        COMP_CWORD="3",
        _KVVIDEO_COMPLETE="complete_bash",
        HF_HUB_CACHE=str(tmp_path),
    )
    assert "Qwen/Qwen2.5-VL-7B-Instruct" in result.stdout.split()
    assert "some/thing" not in result.stdout


def test_bash_completes_with_the_script_it_is_given(places: Places) -> None:
    """The script runs in bash, and what it starts loads nothing heavy."""
    program = places.folder / "kvvideo"
    heavy = "[m for m in ('torch', 'vllm', 'transformers', 'av') if m in sys.modules]"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.argv[0] = 'kvvideo'\nfrom kvvideo.cli import main\n"
        f"try:\n    main()\nfinally:\n    print({heavy}, file=sys.stderr)\n"
    )
    program.chmod(0o755)
    asked = (
        f"{script('bash')}\nCOMP_WORDS=(kvvideo analyze --strategy w) COMP_CWORD=3\n"
        f'_kvvideo_completion {program}\necho "${{COMPREPLY[@]}}"; complete -p kvvideo'
    )
    result = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split("\n")[0] == "window"
    assert "_kvvideo_completion kvvideo" in result.stdout
    assert result.stderr.strip() == "[]"


def test_zsh_and_fish_are_given_scripts_and_answers() -> None:
    assert "#compdef kvvideo" in script("zsh")
    assert script("fish").startswith("complete --command kvvideo")
    result = complete("kvvideo", _TYPER_COMPLETE_ARGS="kvvideo analyze -s wi", _KVVIDEO_COMPLETE="complete_zsh")
    assert '"window"' in result.stdout
    result = complete(
        "kvvideo",
        _TYPER_COMPLETE_ARGS="kvvideo analyze -s wi",
        _KVVIDEO_COMPLETE="complete_fish",
        _TYPER_COMPLETE_FISH_ACTION="get-args",
    )
    assert result.stdout.strip() == "window"


def test_completion_installs_itself_where_bash_looks(tmp_path: Path) -> None:
    result = complete(
        "kvvideo", "--install-completion", "bash", HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert result.returncode == 0, result.stderr
    assert "_kvvideo_completion" in (tmp_path / ".bash_completions" / "kvvideo.sh").read_text()
    assert "kvvideo.sh" in (tmp_path / ".bashrc").read_text()
