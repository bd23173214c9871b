"""The README and the pages beside it, taken apart: blocks of code, the commands in these, and code within text."""

import functools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.helpers import ROOT

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "samples/README.md", "kvvideo/tiny/weights/README.md")
    for path in ROOT.glob(pattern)
    if not path.stem.endswith("-draft")
)
"""All pages."""

PROGRAM = re.compile(r"([A-Z_]+=\S+ )*(kvvideo|vllm|python|pytest|pip|ruff|mypy|lint-imports|chromium)( |$)")
"""First words of commands within text."""


@dataclass(frozen=True)
class Block:
    """A block of code: the page and line where it begins, its language, and what it says."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        """Page and line, as editors take them."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The command lines of a shell block. One that goes on after a backslash is one, of several lines."""
        return [line.strip() for line in re.findall(r"(?:.*\\\n)*.+", self.text)]


@dataclass(frozen=True)
class Command:
    """A program with its arguments, as a shell would start it.

    Attributes:
        where: page and line.
        words: the program and its arguments.
        variables: set for it alone.
        fed: the command whose output it reads, if there is one.
        within: it stands within text, and may name a command without all of its arguments.
    """

    where: str
    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    fed: "Command | None" = None
    within: bool = False

    def __str__(self) -> str:
        return shlex.join(self.words)


@functools.cache
def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text())


def blocks(page: Path) -> list[Block]:
    """Return the blocks of code on a page that say their language; what is only indented is for a shell."""
    found = []
    for token in _tokens(page):
        if token.type in ("fence", "code_block") and token.map is not None:
            language = "sh" if token.type == "code_block" else token.info
            found.append(Block(page, token.map[0] + 1, language, token.content))
    return found


def spans(page: Path) -> Iterator[tuple[str, str]]:
    """Yield where code stands within the text of a page, and what it says."""
    for token in _tokens(page):
        for child in token.children or ():
            if child.type == "code_inline" and token.map is not None:
                yield f"{page.relative_to(ROOT)}:{token.map[0] + 1}", child.content


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield where links and pictures stand on a page, and what they lead to."""
    for token in _tokens(page):
        for child in token.children or ():
            if (target := child.attrGet("href") or child.attrGet("src")) and token.map is not None:
                yield f"{page.relative_to(ROOT)}:{token.map[0] + 1}", str(target)


def anchors(page: Path) -> set[str]:
    """Return what the headings of a page are called in links."""
    tokens = _tokens(page)
    heads = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", head.replace("`", "")).strip().lower().replace(" ", "-") for head in heads}


def commands() -> list[Command]:
    """Return every command of all pages: those of shell blocks, and code within text that names a program."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            if block.language == "sh":
                for text in block.commands:
                    found += _split(text, block.where)
        for where, text in spans(page):
            if PROGRAM.match(text):
                found += [Command(c.where, c.words, c.variables, c.fed, True) for c in _split(text, where)]
    return found


def _split(text: str, where: str) -> list[Command]:
    """Return the commands of one line, those before a pipe first."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    found, words = list[Command](), list[str]()
    for word in [*lexer, "|"]:
        if word != "|":
            words.append(word)
            continue
        count = next(i for i, one in enumerate(words) if not re.match(r"[A-Z_0-9]+=", one))
        variables = tuple((name, value) for name, _, value in (one.partition("=") for one in words[:count]))
        found.append(Command(where, tuple(words[count:]), variables, found[-1] if found else None))
        words = []
    return found
