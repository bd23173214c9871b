"""The README's picture: its first command, run for real in a terminal, as SVG.

``python -m tests.helpers.picture docs/run.svg`` makes it. Nothing is drawn that the command did not print.
"""

import copy
import itertools
import os
import re
import sys
from pathlib import Path

import pexpect
import pyte
from rich.color import Color
from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.style import Style
from rich.text import Text

from tests.helpers import documents

COLUMNS, ROWS = 110, 40
SECONDS = 300
"""Longest time that the command may take, on a busy machine."""
LIVE = re.compile(r"\d+:\d\d / \d+:\d\d .* tokens .*")
"""The line at the bottom that shows where the stream is and what the cache holds."""
NAMES = {"brown": "yellow"}
"""Names of colours, as pyte has them, that rich has others for."""


def run() -> pyte.Screen:
    """Run the README's first kvvideo command in a shell; return the last screen that shows its live line."""
    (command,) = (text for text in documents.blocks(documents.ROOT / "README.md")[0].commands if "kvvideo" in text)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PS1": "$ ", "PS2": "> ", "TERM": "xterm-256color", "PATH": path}
    screen = pyte.Screen(COLUMNS, ROWS)
    stream, shown = pyte.ByteStream(screen), screen
    shell = pexpect.spawn("bash", ["--norc", "--noprofile"], env=environment, dimensions=(ROWS, COLUMNS))
    try:
        for line in command.split("\n"):
            shell.expect([r"\$ $", "> $"], timeout=SECONDS)
            stream.feed(shell.before + shell.after)
            shell.sendline(line)
        while not ends(screen):
            for part in re.split(rb"(?<=\x1b\[\?7h)", shell.read_nonblocking(65536, SECONDS)):
                stream.feed(part)
                if any(LIVE.match(line) for line in screen.display):
                    shown = copy.deepcopy(screen)
    finally:
        shell.close(force=True)
    return shown


def ends(screen: pyte.Screen) -> bool:
    """Return True if the shell asks for another command: the one before has ended."""
    return screen.cursor.y > 0 and screen.display[screen.cursor.y].rstrip() == "$" and "answers, " in text(screen)


def text(screen: pyte.Screen) -> str:
    """Return the lines of a screen, without what is empty at their ends."""
    return "\n".join(line.rstrip() for line in screen.display).rstrip()


def svg(screen: pyte.Screen) -> str:
    """Return a picture of the screen that loads nothing from elsewhere."""
    height = len(text(screen).split("\n"))
    console = Console(record=True, width=screen.columns, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    for row in range(height):
        line = Text()
        for look, cells in itertools.groupby((screen.buffer[row][column] for column in range(screen.columns)), style):
            line.append("".join(cell.data for cell in cells), look)
        line.rstrip()
        console.print(line, soft_wrap=True)
    bare = re.sub(r"\s*@font-face \{\{.*?\}\}|\s*<!--.*?-->", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    own = bare.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
    return console.export_svg(title="kvvideo", code_format=own, unique_id="kvvideo") + "\n"


def style(cell: pyte.screens.Char) -> Style:
    """Return how rich draws what pyte has in a cell."""
    return Style(color=colour(cell.fg), bgcolor=colour(cell.bg), bold=cell.bold, reverse=cell.reverse)


def colour(name: str) -> Color | None:
    """Return rich's colour of pyte's name, or of six hexadecimal digits; None for the default."""
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return Color.parse(f"#{name}")
    return Color.parse(NAMES.get(name, name.replace("bright", "bright_")))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(svg(run()))
