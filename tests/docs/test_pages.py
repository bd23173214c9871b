"""Facts of pages that can be looked up: links, files, strategies, kinds of records; and the length of the README."""

import importlib
import re

from kvvideo.chat import commands
from kvvideo.compression import strategies
from tests.helpers import ROOT, documents

FILE = re.compile(r"[\w./-]+\.(py|md|toml|json|svg|mp4|jsonl|css|sh)|[\w-]+(/[\w-]+)*/")
"""Code within text that is the name of a file or folder."""

PLACES = (
    "",
    "kvvideo",
    "kvvideo/compression/strategies",
    "kvvideo/outputs/schema",
    "docs",
    "samples",
    "kvvideo/tiny/weights",
    "tests/plugin",
    "tests/compression",
)
"""Folders that files are named as seen from."""

NOT_OURS = {
    *("kvvideo.toml", "config.json", "manifest.json", "results.jsonl", "failed.jsonl", "summary.json", "jobs.jsonl"),
    "pace.json",
    *("results/results.jsonl", "results/failed.jsonl", "results/summary.json", "runs/", "movie.mp4", "recording.ts"),
    *("kvvideo/compression/strategies/key_frames.py", "a.mp4", "01-movie-0-12.mp4"),
}
"""Files that commands read or write, and examples of names."""


def test_links_lead_somewhere() -> None:
    for page in documents.PAGES:
        for where, target in documents.links(page):
            if "://" not in target:
                path, _, anchor = target.partition("#")
                led = (page.parent / path).resolve() if path else page
                assert led.exists(), f"{where}: there is no {target}"
                assert not anchor or anchor in documents.anchors(led), f"{where}: {led.name} has no heading {anchor}"


def test_files_that_are_named_exist() -> None:
    for page in documents.PAGES:
        for where, text in documents.spans(page):
            if FILE.fullmatch(text) and text not in NOT_OURS:
                assert any((ROOT / place / text).exists() for place in PLACES), f"{where}: there is no {text}"


def test_names_of_python_exist() -> None:
    """Dotted names of modules, and of what is in them; only the list of changes names what is gone."""
    for page in documents.PAGES:
        if page.name == "CHANGELOG.md":
            continue
        for where, text in documents.spans(page):
            found = re.fullmatch(r"(kvvideo(?:\.\w+)+)(?:\(…\))?(?:\.\w+\(\))?", text)
            if found and text not in NOT_OURS:
                owner, _, name = found[1].rpartition(".")
                try:
                    importlib.import_module(found[1])
                except ModuleNotFoundError:
                    while True:
                        try:
                            value = importlib.import_module(owner)
                            break
                        except ModuleNotFoundError:
                            owner, _, more = owner.rpartition(".")
                            name = f"{more}.{name}"
                    for part in name.split("."):
                        assert hasattr(value, part), f"{where}: there is no {text}"
                        value = getattr(value, part)


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= 250
    first, second = [block for block in documents.blocks(readme) if block.language == "sh"][:2]
    assert re.match(r"pip install -e \S+\nkvvideo analyze samples/", first.text)
    assert second.text.startswith("pytest")


def test_every_page_is_in_the_readme() -> None:
    linked = {(ROOT / target.partition("#")[0]).resolve() for _, target in documents.links(ROOT / "README.md")}
    assert {*documents.PAGES} - linked <= {ROOT / "README.md"}


def test_every_strategy_is_listed() -> None:
    table = [text for _, text in documents.spans(ROOT / "docs/strategies.md")]
    assert {*strategies()} - {"half-norm", "heavy", "wrong"} <= {*table}


def test_every_command_of_the_chat_is_listed() -> None:
    listed = " ".join(text for _, text in documents.spans(ROOT / "docs/chat.md") if text.startswith("/"))
    named = {word for word in listed.split() if word.startswith("/")}
    assert named == {"/f", *(f"/{name}" for name in (*commands.LEAVING, *(one.name for one in commands.COMMANDS)))}


def test_the_glossary_has_at_most_fifteen_words() -> None:
    words = (ROOT / "docs/design.md").read_text().partition("## Words")[2].partition("\n## ")[0]
    assert 0 < len(re.findall(r"^\| (?!word )\w", words, re.MULTILINE)) <= 15
