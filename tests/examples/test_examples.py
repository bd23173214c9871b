"""Each program in examples/ is run as a person runs it, and says what it should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

EXAMPLES = ROOT / "examples"
SAID = {
    "ask.py": ["19 s: What colour is the letter on screen now? purple\n", "When was the letter V on screen? 0:28\n"],
    "strategy.py": ["reservoir", "distinct yellow"],
    "memory.py": ["the session says yellow", "letters.kvv: ", "the file says yellow"],
    "serve.py": ["yellow"],
    "batch.py": ["letters-1m: What colour was the letter D? yellow", "right"],
}
"""Beginnings, or ends, of the lines that each prints."""


def test_all_examples_are_here_and_short() -> None:
    programs = {path.name: path for path in EXAMPLES.glob("*.py")}
    assert programs.keys() == SAID.keys()
    assert all(len(path.read_text().splitlines()) <= 30 for path in programs.values())


@pytest.mark.parametrize(
    "name", [name if name == "ask.py" else pytest.param(name, marks=pytest.mark.slow) for name in SAID]
)
def test_it_runs_and_says_what_it_should(name: str, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(said in done.stdout for said in SAID[name]), done.stdout
    assert not any(tmp_path.iterdir())
