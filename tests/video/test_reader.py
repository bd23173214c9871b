"""The process that decodes: it runs ahead, it can be killed, and it leaves nothing behind."""

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import kvvideo
import kvvideo.video
from kvvideo.errors import ConfigError, VideoError
from kvvideo.types import Chunk
from kvvideo.video import Live, VideoReader, probe
from kvvideo.video.process import WorkerProcess
from tests.helpers import ROOT
from tests.helpers.clips import H264, Clip, clip, drain, expected, made, numbers, read


def alive(pid: int) -> bool:
    """Return True if a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def stopped_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped stands for one that hangs: nobody looks whether it is."""
    monkeypatch.setattr("kvvideo.video.awake.is_stopped", lambda _: False)


@pytest.fixture
def long_clip() -> Path:
    """A clip of far more chunks than are decoded ahead."""
    return made(Clip("long.mp4", 600, 10, options=H264))


@pytest.fixture
def silent_pipe(tmp_path: Path) -> Path:
    """A pipe that nobody writes to: opening it hangs, in the kernel."""
    os.mkfifo(tmp_path / "silent")
    return tmp_path / "silent"


def test_chunks_come_in_order_with_position_and_info() -> None:
    with VideoReader(clip("plain.mp4"), chunk_seconds=2) as reader:
        assert (reader.info.width, reader.info.height, reader.info.codec) == (160, 120, "h264")
        assert (reader.info.duration, reader.info.fps, reader.info.frames) == (10.0, 30.0, 300)
        assert reader.position == 0
        seen = []
        for i, chunk in enumerate(reader):
            assert (chunk.start, chunk.end) == (2 * i, 2 * i + 2)
            assert reader.position == chunk.end
            assert chunk.frames.flags.writeable
            seen += [read(frame) for frame in chunk.frames]
    assert seen == expected(clip("plain.mp4"), 2)
    assert not alive(reader.pid)


def test_a_finished_reader_stays_finished() -> None:
    reader = VideoReader(clip("odd.mp4"))
    assert len(list(reader)) == 1
    assert not alive(reader.pid)
    assert list(reader) == []
    reader.close()


def test_both_decoders_give_the_same_through_the_pipe() -> None:
    with VideoReader(clip("plain.mp4"), decoder="decord") as reader:
        assert numbers(reader) == expected(clip("plain.mp4"), 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fps": 0}, "above 0"),
        ({"fps": float("nan")}, "above 0"),
        ({"chunk_seconds": 0}, "up to a day"),
        ({"fps": 3, "chunk_seconds": 1}, "0.66666667 or 1.3333333"),
        ({"start": 5, "end": 5}, "0:05 to 0:05"),
        ({"start": -1}, "begin at 0"),
        ({"end": float("nan")}, "must be after"),
        ({"min_pixels": 10**6, "max_pixels": 10**5}, "min_pixels"),
        ({"decoder": "vlc"}, "pyav or nvdec or decord"),
        ({"stall_seconds": 0}, "stall_seconds"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        VideoReader("no matter", **settings)  # type: ignore[arg-type]


def test_it_decodes_ahead_but_not_far(long_clip: Path) -> None:
    with VideoReader(long_clip, chunk_seconds=2, queue_chunks=2) as reader:
        next(reader)
        assert eventually(reader._worker.items.full)
        time.sleep(0.3)
        # Given out, two in the queue, one in the thread's hand, and one or so in the pipe: of 30.
        assert reader._worker.pulse.at <= 5 * 2
        assert len(list(reader)) == 29


def test_a_slow_consumer_is_no_stall(long_clip: Path) -> None:
    with VideoReader(long_clip) as reader:
        next(reader)
        reader._stall = 1.0  # only now: starting may take as long
        time.sleep(1.5)
        assert len(list(reader)) == 14


@pytest.mark.usefixtures("stopped_is_stuck")
def test_a_decoder_stuck_from_the_start_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    really_ask = WorkerProcess.ask

    def ask_a_worker_that_hangs(worker: WorkerProcess, request: dict[str, object]) -> None:
        os.kill(worker.pid, signal.SIGSTOP)
        really_ask(worker, request)

    monkeypatch.setattr(WorkerProcess, "ask", ask_a_worker_that_hangs)
    with pytest.raises(VideoError, match=r"no frame for 0\.7 s at 0:00 of .*plain"):
        VideoReader(clip("plain.mp4"), stall_seconds=0.7)
    with pytest.raises(VideoError, match="no frame"):
        probe(clip("plain.mp4"), stall_seconds=0.7)


@pytest.mark.usefixtures("stopped_is_stuck")
def test_a_decoder_stuck_midway_gives_what_it_had(long_clip: Path) -> None:
    with VideoReader(long_clip) as reader:
        assert eventually(reader._worker.items.full)
        os.kill(reader.pid, signal.SIGSTOP)
        reader._stall = 2.0  # only now: starting may take as long
        chunks, error = drain(reader)
        assert not alive(reader.pid)
    assert "no frame for 2 s at 0:" in str(error)
    assert [chunk.start for chunk in chunks] == [4.0 * i for i in range(len(chunks))]
    assert 2 <= len(chunks) < 15


@pytest.mark.slow
def test_a_decoder_that_is_stopped_is_waited_for(long_clip: Path) -> None:
    """By Ctrl-Z or a cluster; once it goes on, so does everything."""
    with VideoReader(long_clip, stall_seconds=3.0) as reader:
        next(reader)
        os.kill(reader.pid, signal.SIGSTOP)
        timer = threading.Timer(6.0, os.kill, (reader.pid, signal.SIGCONT))
        timer.start()
        assert len(list(reader)) == 14
        timer.join()


READS = """
import os, signal, sys
import kvvideo.video.awake
from kvvideo.video import VideoReader

if sys.argv[2] == "alone":
    kvvideo.video.awake.is_stopped = lambda _: False
with VideoReader(sys.argv[1], stall_seconds=2.0) as reader:
    os.kill(reader.pid, signal.SIGSTOP)
    print(reader.pid, flush=True)
    print(len(list(reader)))
"""
"""Reads a video with a decoder that is stopped at first."""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["alone", "both"])
def test_a_pause_is_not_taken_for_a_stall(long_clip: Path, which: str) -> None:
    """The process that waits for frames is stopped, alone or with its decoder: waiting begins anew after it."""
    command = [sys.executable, "-c", READS, str(long_clip), which]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        time.sleep(1.0)  # it waits
        process.send_signal(signal.SIGSTOP)
        time.sleep(4.0)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        os.kill(worker, signal.SIGCONT)
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "15\n"), errors


@pytest.mark.slow
def test_a_live_source_is_not_given_up_for_a_pause(tmp_path: Path) -> None:
    """Its limit runs in the process that decodes, which is what is stopped here."""
    pipe, data = tmp_path / "pipe", clip("late_start.ts").read_bytes()
    os.mkfifo(pipe)
    resumed = threading.Event()

    def write() -> None:
        with pipe.open("wb") as out:
            out.write(data[: len(data) * 3 // 4])
            out.flush()
            resumed.wait()
            time.sleep(0.5)
            out.write(data[len(data) * 3 // 4 :])

    writer = threading.Thread(target=write)
    writer.start()
    with VideoReader(pipe, chunk_seconds=1, live=Live(retry_seconds=2.0)) as reader:
        first = [next(reader) for _ in range(4)]
        time.sleep(1.0)  # there is nothing more to decode
        os.kill(reader.pid, signal.SIGSTOP)
        time.sleep(4.0)
        os.kill(reader.pid, signal.SIGCONT)
        resumed.set()
        chunks, error = drain(reader)
        writer.join()
    assert error is None
    assert numbers([*first, *chunks]) == expected(clip("late_start.ts"), 2)


def test_a_pipe_that_stays_silent_is_given_up(silent_pipe: Path) -> None:
    began = time.monotonic()
    with pytest.raises(VideoError, match=r"no frame for 0\.7 s at 0:00 of .*silent"):
        VideoReader(silent_pipe, live=Live(retry_seconds=0.7))
    assert time.monotonic() - began < 30
    with pytest.raises(VideoError, match="no frame"):
        probe(silent_pipe, live=Live(retry_seconds=0.7))


def test_a_pipe_that_falls_silent_gives_what_it_had(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = clip("late_start.ts").read_bytes()
    stop = threading.Event()

    def write() -> None:
        with pipe.open("wb") as out:
            out.write(data[: len(data) * 3 // 4])
            out.flush()
            stop.wait()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with VideoReader(pipe, chunk_seconds=1, live=Live(retry_seconds=2.0)) as reader:
            chunks, error = drain(reader)
            assert not alive(reader.pid)
    finally:
        stop.set()
        writer.join()
    assert "no frame for 2 s at 0:0" in str(error)
    assert reader.waited > 1
    seen = numbers(chunks)
    assert len(seen) >= 10
    assert seen[:-1] == expected(clip("late_start.ts"), 2)[: len(seen) - 1]  # the last may be there twice


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_decoder_that_dies_gives_what_it_had(number: signal.Signals, long_clip: Path) -> None:
    with VideoReader(long_clip) as reader:
        assert eventually(reader._worker.items.full)
        os.kill(reader.pid, number)
        chunks, error = drain(reader)
        assert f"was killed ({number.name}) at 0:" in str(error)
        assert [chunk.start for chunk in chunks] == [4.0 * i for i in range(len(chunks))]
        assert len(chunks) >= 2
        assert list(reader) == []


def test_close_leaves_no_process_thread_or_file(long_clip: Path) -> None:
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for taken in (0, 1):
        reader = VideoReader(long_clip)
        for _ in range(taken):
            next(reader)
        reader.close()
        reader.close()
        assert not alive(reader.pid)
        assert list(reader) == []
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_forgotten_reader_ends_its_process(long_clip: Path) -> None:
    reader = VideoReader(long_clip)
    child = reader.pid
    del reader
    gc.collect()
    assert eventually(lambda: not alive(child))


def test_close_frees_a_thread_that_waits(long_clip: Path) -> None:
    reader = VideoReader(long_clip)
    os.kill(reader.pid, signal.SIGSTOP)
    got: list[Chunk] = []
    thread = threading.Thread(target=lambda: got.extend(reader))
    thread.start()
    time.sleep(0.2)
    reader.close()
    thread.join(20)
    assert not thread.is_alive()
    assert len(got) < 15


def start(code: str, path: Path) -> "subprocess.Popen[str]":
    """A Python process of its own, in a process group of its own, with ``path`` as its argument."""
    return subprocess.Popen(
        [sys.executable, "-c", f"import sys, time\nfrom kvvideo.video import VideoReader\n{code}", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )


def child_of(process: "subprocess.Popen[str]") -> int:
    """The decoder of a process that just started one; waits until it has begun its work."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    assert eventually(lambda: bool(children.read_text().split()))
    (child,) = map(int, children.read_text().split())
    # The handler it sets for Ctrl-C, bit 2 of the ignored signals, is among the first things it does.
    assert eventually(lambda: bool(ignored(child) & 1 << signal.SIGINT - 1))
    return child


def ignored(child: int) -> int:
    lines = Path(f"/proc/{child}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("source", ["long_clip", "silent_pipe"])
def test_the_decoder_dies_with_its_parent(number: signal.Signals, source: str, request: pytest.FixtureRequest) -> None:
    """Also when it is stuck."""
    process = start("reader = VideoReader(sys.argv[1]); time.sleep(60)", request.getfixturevalue(source))
    child = child_of(process)
    time.sleep(0.5)
    assert alive(child)
    process.send_signal(number)
    process.communicate()
    assert eventually(lambda: not alive(child))


def test_the_first_ctrl_c_does_not_reach_the_decoder(long_clip: Path) -> None:
    code = """
import signal
signal.signal(signal.SIGINT, lambda *_: None)
reader = VideoReader(sys.argv[1])
time.sleep(1)
print(len(list(reader)))
"""
    process = start(code, long_clip)
    child = child_of(process)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    assert process.communicate(timeout=60) == ("15\n", "")
    assert not alive(child)


def test_an_interrupt_while_waiting_cleans_up(silent_pipe: Path) -> None:
    process = start("VideoReader(sys.argv[1])", silent_pipe)
    child = child_of(process)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert not alive(child)


def test_warnings_of_the_decoder_are_logged_here(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kvvideo.video"):
        list(VideoReader(clip("bare.h264")))
    assert "no display times" in caplog.text


def test_nothing_is_written_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "damaged.mkv"
    data = bytearray(clip("plain.mkv").read_bytes())
    data[5000:9000] = bytes(4000)
    path.write_bytes(data)
    for decoder in ("pyav", "decord"):
        try:
            list(VideoReader(path, decoder=decoder))
        except VideoError:
            continue
    assert capfd.readouterr() == ("", "")


def test_the_decoder_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "av.py").write_text("raise SystemExit('the wrong av')")
    assert probe(clip("odd.mp4")).height == 77


def test_imports_stay_light() -> None:
    heavy = "{'torch', 'transformers', 'vllm', 'torchvision', 'decord', 'qwen_vl_utils'}"
    for module, more in (("kvvideo.video", " | {'av'}"), ("kvvideo.video.worker, kvvideo.video.pyav", "")):
        code = f"import sys, {module}; print(sorted(({heavy}{more}) & set(sys.modules)))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.stdout == "[]\n"


def test_the_public_names() -> None:
    assert all(hasattr(kvvideo.video, name) for name in kvvideo.video.__all__)
    names = {"Live", "LiveStatus", "Source", "VideoReader", "VideoInfo", "frame_at", "is_live", "probe", "plan"}
    assert names < set(kvvideo.video.__all__)
