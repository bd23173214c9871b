"""What tests of the command line share."""

from functools import partial
from pathlib import Path

import pytest

from tests.helpers import commands
from tests.helpers.commands import Run
from tests.helpers.places import Places


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    folder, user = tmp_path / "folder", tmp_path / "xdg" / "kvvideo" / "config.toml"
    folder.mkdir()
    user.parent.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    found = Places(folder, user, monkeypatch)
    found.clear()
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")  # which -v sets, for this process and all that it starts
    return found


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """The program's own entry point, in this process: a new one takes a second to import itself."""
    return partial(commands.run, capfd)
