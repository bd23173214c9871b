"""``kvvideo ask`` finds a server: only one that runs, of this very file, and with these settings."""

import os
from pathlib import Path
from typing import Any

import pytest

from kvvideo.runs.recall import Looking
from kvvideo.serve.notice import Notice, Shown, found, identity, settings
from kvvideo.session import EngineConfig

USUAL: tuple[Any, ...] = (EngineConfig(), Looking(), None, None, None)


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "film.kvv"
    path.write_bytes(b"memory")
    return path


def notice(path: Path, url: str = "http://127.0.0.1:1", usual: tuple[Any, ...] = USUAL) -> Notice:
    return Notice(url, "secret", settings(*usual), [Shown(path.stem, identity(path), "distinct", None, ["a line"])])


def refuse(line: str) -> None:
    raise AssertionError(line)


def left(memory: Path) -> list[Path]:
    return [*(memory.parent / "state" / "serve").glob("*")]


def test_it_is_found_while_it_is_posted(memory: Path) -> None:
    posted = notice(memory)
    assert found(memory, settings(*USUAL)) is None
    with posted.posted(refuse):
        assert found(memory, settings(*USUAL)) == (posted, posted.memories[0])
        link = memory.with_name("link.kvv")
        link.symlink_to(memory)
        assert found(link, settings(*USUAL)) is not None
        (directory,) = left(memory)
        assert directory.stat().st_mode & 0o077 == 0
    assert found(memory, settings(*USUAL)) is None
    assert left(memory) == []


@pytest.mark.parametrize(
    "other",
    [
        (EngineConfig(seed=1), *USUAL[1:]),
        (EngineConfig(max_model_len=4096), *USUAL[1:]),
        (USUAL[0], Looking(0), None, None, None),
        (USUAL[0], Looking(4, 12), None, None, None),
        (*USUAL[:2], "elsewhere", None, None),
        (*USUAL[:3], "float32", None),
        (*USUAL[:4], "clip.mp4"),
    ],
)
def test_other_settings_have_other_answers(memory: Path, other: tuple[Any, ...]) -> None:
    with notice(memory).posted(refuse):
        assert found(memory, settings(*other)) is None


def test_another_file_in_its_place_is_not_what_is_served(memory: Path) -> None:
    with notice(memory).posted(refuse):
        os.utime(memory, (1, 1))
        assert found(memory, settings(*USUAL)) is None
        memory.unlink()
        assert found(memory, settings(*USUAL)) is None


def test_what_a_dead_server_left_is_removed(memory: Path) -> None:
    """And what is posted but cannot be read is left to who holds it."""
    dead = memory.parent / "state" / "serve" / "dead"
    posted = notice(memory)
    with posted.posted(refuse):
        (alive,) = left(memory)
        dead.mkdir()
        (dead / "run.json").write_bytes((alive / "run.json").read_bytes())
        (alive / "run.json").write_text("{")
        assert found(memory, settings(*USUAL)) is None
        assert left(memory) == [alive]


def test_without_a_place_for_notices_a_line_says_so(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVVIDEO_STATE_DIR", str(memory))
    said: list[str] = []
    with notice(memory).posted(said.append):
        assert found(memory, settings(*USUAL)) is None
    (line,) = said
    assert line.startswith("'kvvideo ask' will not find this server: ")
