"""The README's picture shows what its first command prints, and is made by running that."""

import html
import re

import pyte
import pytest

from tests.helpers import ROOT, documents, picture

PICTURE = ROOT / "docs" / "run.svg"
ANSWERS = ["Q W T", "blue", "0:24"]
"""Answers of the first command, as the README gives them."""


def shown(svg: str) -> list[str]:
    """Return the lines of text in a picture of a screen, without its title."""
    rows: dict[float, list[tuple[float, str]]] = {}
    for x, y, text in re.findall(
        r'<text class="kvvideo-r\d+" [^>]*?x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', svg
    ):
        rows.setdefault(float(y), []).append((float(x), html.unescape(text).replace("\xa0", " ")))
    return ["".join(text for _, text in sorted(row)).rstrip() for _, row in sorted(rows.items())]


def check(svg: str) -> None:
    """See that a picture has the command as it stands in the README, its answers, and the live line."""
    (command,) = (text for text in documents.blocks(ROOT / "README.md")[0].commands if "kvvideo" in text)
    lines = [line.strip() for line in shown(svg) if line.strip()]
    typed = [line.strip() for line in command.split("\n")]
    assert [line.removeprefix("$ ").removeprefix("> ").strip() for line in lines[: len(typed)]] == typed
    told = [line for line in lines[len(typed) : -1] if not line.startswith("kvvideo: subtitles of ")]
    said = [line for line in told if not line.startswith("looked again at 0:")]
    assert said[1::2] == ANSWERS
    assert len(said) < len(told)
    assert picture.LIVE.match(lines[-1])


def test_the_picture_is_of_the_first_command_and_loads_nothing() -> None:
    svg = PICTURE.read_text()
    check(svg)
    assert len(svg) < 60_000
    assert not re.search(r"url\((?!#)|<script|<image|href=|@import", svg)


def test_a_screen_is_drawn_as_it_is() -> None:
    screen = pyte.Screen(20, 3)
    pyte.ByteStream(screen).feed(b"\x1b[1ma < b\x1b[0m & \x1b[36mc\x1b[0m\r\n  \x1b[90md\x1b[0m")
    svg = picture.svg(screen)
    assert [line.strip() for line in shown(svg)] == ["a < b & c", "d"]


@pytest.mark.slow
def test_the_program_makes_it_anew() -> None:
    """In a shell, in a terminal, with the bundled model; what it answers is what the README says."""
    check(picture.svg(picture.run()))
