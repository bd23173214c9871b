"""Ctrl-C: ends a command at once while there is nothing to lose, and after the chunk at hand from then on."""

import subprocess
import sys

import pytest

ENDS = """
import os, signal, sys
from kvvideo.cli.stop import Stop

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

with Stop() as stop:
    for step in sys.argv[1:]:
        {"ctrl-c": interrupt, "load": lambda: stop.at_once(lambda: print("tidied")), "begun": stop.begun}[step]()
    print("asked" if stop.asked else "not asked")
"""


@pytest.mark.parametrize(
    ("steps", "code", "says"),
    [
        (("load", "ctrl-c"), 130, "tidied"),
        (("ctrl-c", "load"), 130, "tidied"),
        (("load", "begun", "ctrl-c"), 0, "asked"),
        (("load", "begun"), 0, "not asked"),
    ],
)
def test_ctrl_c_waits_only_for_what_was_begun(steps: tuple[str, ...], code: int, says: str) -> None:
    """It may also come before the model is loaded, while the video is opened."""
    done = subprocess.run(
        [sys.executable, "-u", "-c", ENDS, *steps], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (code, says)
