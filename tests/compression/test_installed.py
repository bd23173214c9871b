"""Strategies of other packages: installed, listed, used with their options, and refused in one line if broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kvvideo.cli import app

ROOT = Path(__file__).parents[2]

EVERY = '''
"""Keep every n-th token."""

import torch
from torch import Tensor

from kvvideo.compression.options import Option
from kvvideo.compression.policy import LiveCache, ScorePolicy


class Every(ScorePolicy):
    """Score: 1 for each ``step``-th token, 0 for the others."""

    summary = "keeps sinks, recent, and every n-th token"
    source = "a test"

    step = Option(3, "Distance of two tokens that are kept.", source="our choice", least=1)
    share = Option(0.5, "Not used.", source="our choice")
    loud = Option(False, "Not used.", source="our choice")

    def score(self, live: LiveCache) -> Tensor:
        print(f"every {self.step}, {self.share}, {self.loud}")
        chosen = torch.arange(len(live), device=live.keys.device) % self.step == 0
        return chosen.float().expand(live.keys.shape[0], -1)


class Bare(ScorePolicy):
    summary = source = "no score"


number = 3
'''

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "others-strategies"
version = "1"

[project.entry-points."kvvideo.strategies"]
every = "others:Every"
h2o = "others:Every"
not-there = "others.missing:Every"
no-attribute = "others:Nothing"
number = "others:number"
bare = "others:Bare"

[tool.setuptools]
py-modules = ["others"]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that a package with strategies was installed into."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    (source / "others.py").write_text(EVERY)
    (source / "pyproject.toml").write_text(PROJECT)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, source], check=True)
    return target


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the package at hand."""
    path = os.pathsep.join([str(installed), str(ROOT)])
    command, environment = [sys.executable, *arguments], os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_an_installed_strategy_is_listed_and_a_broken_one_is_a_line(installed: Path):
    result = run(installed, "-m", "kvvideo", "strategies", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    known = {one["strategy"]: one for one in report["strategies"]}
    assert known["every"]["options"] == [
        {
            "name": "step",
            "default": 3,
            "help": "Distance of two tokens that are kept.",
            "source": "our choice",
            "least": 1,
        },
        {"name": "share", "default": 0.5, "help": "Not used.", "source": "our choice", "least": 0},
        {"name": "loud", "default": False, "help": "Not used.", "source": "our choice"},
    ]
    assert known["h2o"]["source"] == "H2O, arXiv 2306.14048"
    assert report["unusable"] == [
        "'h2o' of others-strategies is not used: kvvideo has one of that name",
        "'bare' of others-strategies cannot be used: others:Bare does not define score",
        "'no-attribute' of others-strategies cannot be used: importing others:Nothing failed: "
        "module 'others' has no attribute 'Nothing'",
        "'not-there' of others-strategies cannot be used: importing others.missing:Every failed: "
        "No module named 'others.missing'; 'others' is not a package",
        "'number' of others-strategies cannot be used: others:number is no subclass of "
        "kvvideo.compression.policy.Policy",
    ]
    table = run(installed, "-m", "kvvideo", "strategies")
    assert "every n-th token" in table.stdout
    assert "not-there" not in table.stdout
    assert table.stderr.splitlines() == report["unusable"]


@pytest.mark.slow
def test_an_installed_strategy_decides_what_is_kept(installed: Path, tmp_path: Path):
    sample = str(ROOT / "samples/letters-2m.mp4")
    asked = ["-q", "Which letter is on screen now?", "--model", "tiny", "--max-tokens", "1024", "--to", "1:30"]
    output = ["-f", "jsonl", "-o", str(tmp_path / "answers.jsonl")]
    result = run(installed, "-m", "kvvideo", "analyze", sample, *asked, *output, "-s", "every:step=5:loud=true")
    assert result.returncode == 0, result.stderr
    answer, done = (json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines())
    assert answer["strategy"] == done["strategy"] == "every"
    assert done["cache"]["compactions"] > 0
    assert "every 5, 0.5, True" in result.stdout.splitlines()


REFUSED = {
    "bare": "strategy: 'bare' of others-strategies cannot be used: others:Bare does not define score",
    "every:step=0": "step: 0 is not a whole number of at least 1",
    "every:step=many": "step: 'many' is not a whole number of at least 1",
    "every:loud=1": "loud: '1' is neither true nor false",
    "every:share=nan": "share: nan is not a number of at least 0",
    "every:pace=2": "pace: not a setting; allowed are strategy, max_tokens, ratio, budget, sink, window, queries, "
    "score_norm, positions, spare_rows, step, share, loud",
    "every:step": "strategy: 'step' sets no option; write every:OPTION=VALUE",
}

PROGRAM = """
import sys
from kvvideo.compression import load
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError

for strategy in sys.argv[1:]:
    try:
        load(CacheConfig(strategy).strategy)
    except ConfigError as error:
        print(error)
"""


def test_what_cannot_be_used_is_refused_in_a_line(installed: Path):
    result = run(installed, "-c", PROGRAM, *REFUSED)
    assert result.stdout.splitlines() == [*REFUSED.values()]


def test_a_strategy_is_compared_once_whatever_its_options():
    """Records and journals tell runs apart by the strategy's name."""
    arguments = ["analyze", "none.mp4", "-q", "What?", "--compare", "h2o:queries=4,h2o:queries=8"]
    assert "'h2o' is there more than once" in str(CliRunner().invoke(app, arguments).exception)
