"""Checkpoints: written behind one's back, there after any crash, spread over the whole video."""

import errno
import os
import tempfile
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvvideo.errors import ConfigError
from kvvideo.session.memory import Memory
from kvvideo.storage import codec
from kvvideo.storage.checkpoints import Checkpoints
from tests.storage.test_memory_file import in_new_process, killed, memory, one_line, same


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def numbered(end: float) -> Memory:
    return memory(end, seed=int(end))


class Gate:
    """Holds up every write until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Semaphore(0), threading.Semaphore(0)
        write = codec.write

        def held(saved: Memory, stream: Any) -> None:
            self.reached.release()
            assert self.opened.acquire(timeout=60)
            write(saved, stream)

        monkeypatch.setattr(codec, "write", held)


def test_what_was_added_is_there_for_the_next(tmp_path: Path):
    with Checkpoints(tmp_path / "a" / "b") as checkpoints:
        assert checkpoints.times == []
        assert checkpoints.latest() is None
        assert checkpoints.before(8.0) is None
        for end in (4.0, 480.0333, 8.0):
            checkpoints.add(numbered(end))
    for again in (checkpoints, Checkpoints(tmp_path / "a" / "b")):
        assert again.times == [4.0, 8.0, 480.0333]
        assert names(again.directory) == [f"{ms:012d}.safetensors" for ms in (4000, 8000, 480033)]
        assert again.bytes == sum(path.stat().st_size for path in again.directory.iterdir())
        assert again.path(480.0333).exists()
        latest, middle = again.latest(), again.before(480.0332)
        assert latest is not None
        assert middle is not None
        assert same(latest, numbered(480.0333))
        assert same(middle, numbered(8.0))
        assert again.before(3.9) is None


def test_adding_does_not_wait_and_counts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gate = Gate(monkeypatch)
    with Checkpoints(tmp_path) as checkpoints:
        added = numbered(4.0)
        checkpoints.add(added)
        assert gate.reached.acquire(timeout=60)
        assert checkpoints.times == [4.0]
        assert checkpoints.latest() is added
        assert checkpoints.before(3.0) is None
        assert not checkpoints.path(4.0).exists()
        gate.opened.release()
        checkpoints.flush()
        assert checkpoints.path(4.0).exists()
        found = checkpoints.latest()
        assert found is not None
        assert found is not added
        assert same(found, added)


def test_at_most_one_is_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gate = Gate(monkeypatch)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.add(numbered(4.0))
        adding = threading.Thread(target=checkpoints.add, args=(numbered(8.0),))
        adding.start()
        assert gate.reached.acquire(timeout=60)
        adding.join(0.05)
        assert adding.is_alive()
        gate.opened.release(2)
        adding.join(60)
        assert not adding.is_alive()
    assert Checkpoints(tmp_path).times == [4.0, 8.0]


def test_the_same_time_is_replaced(tmp_path: Path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.add(memory(4.0, seed=1))
        checkpoints.add(memory(4.0, seed=2, live=7))
        checkpoints.flush()
        found = checkpoints.latest()
        assert found is not None
        assert same(found, memory(4.0, seed=2, live=7))
        assert checkpoints.times == [4.0]
        assert checkpoints.bytes == checkpoints.path(4.0).stat().st_size


def test_a_full_disk_is_said_once_and_costs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.add(numbered(2.0))
        checkpoints.flush()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            checkpoints.add(numbered(4.0))
            checkpoints.settle()
        assert checkpoints.times == [2.0]
        assert names(tmp_path) == ["000000002000.safetensors"]
        with pytest.raises(ConfigError, match=r"000000004000\.safetensors' cannot be written: No space left") as caught:
            checkpoints.add(numbered(6.0))
        one_line(caught.value)
        checkpoints.flush()
        checkpoints.add(numbered(8.0))
        checkpoints.flush()
        assert checkpoints.times == [2.0, 6.0, 8.0]


def test_a_failure_is_said_by_flush_and_close(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    wrong = Memory(**{**vars(memory(4.0)), "live": 9})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.add(wrong)
        with pytest.raises(ConfigError, match="cannot be saved"):
            checkpoints.flush()
    with pytest.raises(ConfigError, match="cannot be saved"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.add(wrong)
    with pytest.raises(KeyError), Checkpoints(tmp_path) as checkpoints:
        {checkpoints.add(wrong): 0}["other"]
    assert "cannot be saved" in caplog.text
    assert names(tmp_path) == []


def test_damaged_ones_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with Checkpoints(tmp_path) as checkpoints:
        for end in (2.0, 4.0, 6.0, 8.0, 10.0):
            checkpoints.add(numbered(end))
    checkpoints.path(10.0).write_bytes(b"")
    checkpoints.path(8.0).rename(checkpoints.path(9.0))
    with open(checkpoints.path(6.0), "r+b") as stream:
        stream.seek(-9, os.SEEK_END)
        stream.write(b"x")
    checkpoints.path(4.0).write_bytes(checkpoints.path(4.0).read_bytes()[:-50])
    (tmp_path / "notes.txt").touch()
    again = Checkpoints(tmp_path)
    assert again.times == [2.0, 6.0]
    found = again.latest()
    assert found is not None
    assert same(found, numbered(2.0))
    assert again.times == [2.0]
    warned = [record for record in caplog.records if record.name == "kvvideo.memories"]
    assert [record.levelname for record in warned] == ["WARNING"] * 4
    assert all(record.getMessage().isprintable() for record in warned)


def test_what_is_later_can_be_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Checkpoints(tmp_path) as checkpoints:
        for end in (2.0, 4.0, 6.0):
            checkpoints.add(numbered(end))
        checkpoints.drop_after(4.0)
        assert checkpoints.times == [2.0, 4.0]
        checkpoints.path(9.0).write_bytes(b"damaged")
        checkpoints.drop_after(3.0)
        assert names(tmp_path) == ["000000002000.safetensors"]
        (tmp_path / "notes.txt").touch()
        checkpoints.add(numbered(8.0))
        checkpoints.clear()
        assert (checkpoints.times, checkpoints.bytes, checkpoints.latest()) == ([], 0, None)
        assert names(tmp_path) == ["notes.txt"]
        checkpoints.add(numbered(1.0))
    assert Checkpoints(tmp_path).times == [1.0]


def test_temporary_files_of_the_dead_are_removed(tmp_path: Path):
    (tmp_path / ".kvvideo-0123456789abcdef.tmp").write_bytes(b"half")
    Checkpoints(tmp_path)
    assert names(tmp_path) == []


def test_folders_that_cannot_be_used_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=r"checkpoints cannot be kept in .*file") as caught:
            Checkpoints(path)
        one_line(caught.value)
    # Root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="Permission denied; choose another folder"):
        Checkpoints(tmp_path)


def test_a_folder_that_goes_away_is_one_line(tmp_path: Path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        (tmp_path / "c").rmdir()
        checkpoints.add(numbered(4.0))
        with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
            checkpoints.flush()
        with pytest.raises(ConfigError, match="cannot be deleted: No such file or directory"):
            checkpoints.clear()


LARGEST = len(codec.encode(memory(10_000.0)))


@given(
    ends=st.lists(st.integers(1, 9_999), min_size=1, max_size=25),
    room=st.integers(0, 8),
    sizes=st.randoms(use_true_random=False),
)
@settings(max_examples=25, deadline=None)
def test_there_is_never_too_much_and_always_the_latest(ends: list[int], room: int, sizes: Any):
    limit = room * LARGEST
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):
        with Checkpoints(Path(folder), limit) as checkpoints:
            latest = 0
            for end in ends:
                checkpoints.add(memory(float(end), live=sizes.randrange(20)))
                checkpoints.flush()
                latest = max(latest, end)
                times = checkpoints.times
                assert times[-1] == latest
                assert checkpoints.bytes <= limit or len(times) == 1
                assert checkpoints.bytes == sum(path.stat().st_size for path in Path(folder).iterdir())
        assert Checkpoints(Path(folder)).times == times


@given(count=st.integers(1, 60), room=st.integers(1, 12), step=st.sampled_from([0.04, 1.0, 8.0]))
@settings(max_examples=20, deadline=None)
def test_they_stay_spread_over_the_whole(count: int, room: int, step: float):
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):
        with Checkpoints(Path(folder), room * LARGEST) as checkpoints:
            for n in range(1, count + 1):
                checkpoints.add(memory(round(n * step, 2)))  # as written, no longer than the largest
        times = [0.0, *checkpoints.times]
        assert len(times) - 1 >= min(room, count)
        widest = max(b - a for a, b in pairwise(times))
        assert widest <= max(2 * count * step / room, step) + 0.001


def kill_checkpoints(folder: str) -> None:
    torch.set_num_threads(1)
    directory = Path(folder)
    room = 5 * len(codec.encode(memory(live=500)))

    def child(reached: int) -> None:
        with Checkpoints(directory, room) as checkpoints:
            for n in range(reached + 1, 10**6):
                checkpoints.add(memory(float(n), seed=n, live=500))

    def after() -> int:
        checkpoints = Checkpoints(directory, room)
        assert not [name for name in os.listdir(directory) if name.endswith(".tmp")]
        assert len(os.listdir(directory)) == len(checkpoints.times)
        for end in checkpoints.times:
            found = checkpoints.before(end)
            assert found is not None
            assert same(found, memory(end, seed=int(end), live=500))
        latest = checkpoints.latest()
        return 0 if latest is None else int(latest.end)

    killed(child, after, 15, seed=2)


@pytest.mark.slow
def test_a_killed_process_leaves_whole_checkpoints(tmp_path: Path):
    in_new_process("tests.storage.test_checkpoints.kill_checkpoints", tmp_path)
