"""The places where settings may stand, all of them empty."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvvideo.cli.settings import PREFIX


@dataclass
class Places:
    """The places where settings may stand."""

    folder: Path
    user: Path
    environment: pytest.MonkeyPatch

    def clear(self) -> None:
        for file in (self.folder / "kvvideo.toml", self.user):
            file.unlink(missing_ok=True)
        for name in [name for name in os.environ if name.startswith(PREFIX) and not name.startswith("KVVIDEO_TEST_")]:
            self.environment.delenv(name)

    def write(self, text: str) -> None:
        (self.folder / "kvvideo.toml").write_text(text)
