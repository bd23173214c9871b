"""Snippets of other languages on the pages: Python runs, with what is not here stood in for; the rest is parsed."""

import dataclasses
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import vllm
from typer.main import get_command
from vllm.engine.arg_utils import EngineArgs

from kvvideo.batch.jobs import parse_job
from kvvideo.cli import app, settings
from kvvideo.cli.command import commands
from kvvideo.session.engine import Engine
from tests.helpers import ROOT, documents
from tests.helpers import commands as cli

SNIPPETS = {block.text: block for page in documents.PAGES for block in documents.blocks(page)}
LANGUAGES = {"sh", "python", "toml", "json", ""}


def of(language: str) -> list[Any]:
    """Return the snippets of a language; Python of other pages than the README is for the slow tests."""
    return [
        pytest.param(
            block,
            id=block.where,
            marks=pytest.mark.slow if language == "python" and block.page.name != "README.md" else [],
        )
        for block in SNIPPETS.values()
        if block.language == language
    ]


def test_every_snippet_says_its_language() -> None:
    assert {block.language for block in SNIPPETS.values()} == LANGUAGES


@pytest.mark.parametrize("snippet", of("python"))
@pytest.mark.usefixtures("one_engine")
def test_python_runs(
    snippet: documents.Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made, sent = list[dict[str, Any]](), list[dict[str, Any]]()
    answer = SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content="yellow"))])
    completions = SimpleNamespace(create=lambda **request: sent.append(request) or answer)
    monkeypatch.setattr(vllm, "LLM", lambda model, **options: made.append({"model": model, **options}))
    monkeypatch.setattr(openai, "OpenAI", lambda **_: SimpleNamespace(chat=SimpleNamespace(completions=completions)))
    # The engine is also that of other tests.
    monkeypatch.setattr(Engine, "close", lambda self: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    if "movie.kvv" in snippet.text:
        ingest = ("ingest", "samples/letters-1m.mp4", "-o", "movie.kvv", "--model", "tiny", "--to", "0:20")
        assert cli.run(capfd, *ingest).returncode == 0
    exec(compile(snippet.text, snippet.where, "exec"), {})
    assert ("print" in snippet.text) == bool(capfd.readouterr().out)
    assert ("vllm.LLM" in snippet.text) == bool(made)
    assert all(options.keys() <= {field.name for field in dataclasses.fields(EngineArgs)} for options in made)
    assert ("openai" in snippet.text) == bool(sent)
    for request in sent:
        (message,) = request["messages"]
        # A memory is asked in words alone.
        assert request["model"] == "movie" or "video_url" in {part["type"] for part in message["content"]}


@pytest.mark.parametrize("snippet", of("json"))
def test_json_is_a_job(snippet: documents.Block) -> None:
    job = parse_job(snippet.text, ROOT)
    assert job.settings == {"budget": 2048}


@pytest.mark.parametrize("snippet", of("toml"))
def test_toml_is_what_settings_or_packages_may_say(snippet: documents.Block, tmp_path: Path) -> None:
    (tmp_path / settings.NAME).write_text(snippet.text)
    if "entry-points" in snippet.text:
        assert "kvvideo.strategies" in tomllib.loads(snippet.text)["project"]["entry-points"]
    else:
        assert settings.read(tmp_path / settings.NAME, commands(get_command(app)))
