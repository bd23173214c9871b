"""Appending and locking, when the disk is full, a process is killed, or a file system has no locks."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from kvvideo.errors import ConfigError
from kvvideo.storage import disk
from kvvideo.storage.workspace import Busy, Workspace

HOLD = (
    "import sys, time; from pathlib import Path; from kvvideo.storage.workspace import Workspace; "
    "space = Workspace(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
)


@pytest.mark.parametrize("flush", [True, False])
def test_half_a_record_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flush: bool):
    path = tmp_path / "records"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    disk.append(descriptor, b"one\n", flush=flush)
    write = os.write

    def in_parts(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[:2])

    def full(descriptor: int, data: bytes) -> int:
        write(descriptor, data[:2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            disk.append(descriptor, b"two\n", flush=flush)
    assert path.read_bytes() == b"one\n"
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", in_parts)
        disk.append(descriptor, b"three\n", flush=flush)
    assert path.read_bytes() == b"one\nthree\n"
    os.close(descriptor)


def test_what_cannot_be_brought_to_the_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "records"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output error"):
            disk.append(descriptor, b"one\n")
        assert path.read_bytes() == b""
        disk.append(descriptor, b"two\n", flush=False)
    assert path.read_bytes() == b"two\n"
    os.close(descriptor)


def test_a_lock_dies_with_its_process(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "x")], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Busy):
            Workspace(tmp_path / "x")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    Workspace(tmp_path / "x").close()


def test_a_program_that_was_started_meanwhile_does_not_hold_the_lock(tmp_path: Path):
    space = Workspace(tmp_path / "x")
    with subprocess.Popen(
        [sys.executable, "-c", "print('runs', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        close_fds=False,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"runs\n"
        space.close()
        Workspace(tmp_path / "x").close()
        child.communicate(b"\n")


def test_a_file_system_without_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And nobody there takes another's temporary file for one that was left behind."""

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with Workspace(tmp_path / "x"), Workspace(tmp_path / "x") as other:
        with disk.durable(tmp_path / "x" / "file") as stream:
            stream.write(b"one")
            disk.remove_temporaries(tmp_path / "x")
        assert (tmp_path / "x" / "file").read_bytes() == b"one"
        assert other.held


def test_threads_may_write_beside_each_other(tmp_path: Path):
    """None takes what another has begun, and not locked yet, for left behind by a process that was killed."""
    wrong: list[ConfigError] = []

    def write(number: int) -> None:
        for _ in range(300):
            try:
                with disk.durable(tmp_path / str(number)) as stream:
                    stream.write(b"x")
            except ConfigError as error:
                wrong.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]


def test_a_place_that_removes_new_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And not tried for ever."""

    def opened(path: Path, mode: str) -> Any:
        stream = open(path, mode)  # noqa: SIM115  the caller closes it
        path.unlink()
        return stream

    monkeypatch.setattr(disk, "open", opened, raising=False)
    with pytest.raises(ConfigError, match="is removed at once"), disk.durable(tmp_path / "x"):
        pass
