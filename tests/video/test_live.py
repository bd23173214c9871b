"""Videos that come as they happen: from pipes, growing files, cameras and the network, with all that goes wrong."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kvvideo.errors import ConfigError, VideoError
from kvvideo.types import Chunk
from kvvideo.video import Live, LiveStatus, VideoReader, frame_at, is_live, probe
from kvvideo.video.address import Address
from kvvideo.video.live import Clock
from tests.helpers import ROOT
from tests.helpers import servers as video_servers
from tests.helpers.clips import clip, drain, expected, numbers, read
from tests.helpers.servers import (
    ALL,
    Play,
    Server,
    bare,
    datagrams,
    files,
    live_http,
    rtmp,
    rtsp,
    segment,
    silent,
    stalling,
)

SECOND = {"chunk_seconds": 1.0}
WHOLE = [10 * i for i in range(20)]
"""Numbers that the stream of the servers shows, twice a second."""
PATIENT = Live(retry_seconds=60)
BRIEF = Live(retry_seconds=2)

PROTOCOLS: dict[str, Callable[..., Callable[[socket.socket], None]]] = {
    "tcp": bare,
    "http": live_http,
    "rtsp": rtsp,
    "rtmp": rtmp,
}


def url(scheme: str, server: Server) -> str:
    return f"{scheme}://127.0.0.1:{server.port}" + ("" if scheme == "tcp" else "/live/stream")


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def are_in_order(chunks: Sequence[Chunk]) -> bool:
    """Return True if neither chunks nor frames overlap or go back."""
    times = [t for chunk in chunks for t in chunk.times]
    spans = [edge for chunk in chunks for edge in (chunk.start, chunk.end)]
    return times == sorted(times) and spans == sorted(spans)


# Names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("-", "pipe"),
        ("0", "camera"),
        ("12", "camera"),
        ("rtsp://host/x", "url"),
        ("RTSP://host/x", "url"),
        ("srt://host:9", "url"),
        ("https://host/a.m3u8?token=1", "url"),
        ("/dev/null", "pipe"),
        ("a.mp4", "file"),
        ("http:x", "file"),
        ("concat:a|b", "file"),
        ("ftp://host/a.mp4", "file"),
        ("./-", "file"),
        ("٣", "file"),
        ("a\0b", "file"),
    ],
)
def test_what_a_name_stands_for(name: str, kind: str) -> None:
    assert Address.of(name).kind == kind
    assert is_live(name) == (kind != "file")


@pytest.mark.parametrize("name", ["0", "http:x", "concat:x", "udp:x", "-x"])
def test_what_is_there_as_a_file_is_that_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(clip("odd.mp4").read_bytes())
    assert not is_live(name)
    assert probe(name).width == 131


def test_a_path_that_looks_like_a_url_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("http:/127.0.0.1").mkdir(parents=True)
    Path("http:/127.0.0.1/a.mp4").write_bytes(clip("odd.mp4").read_bytes())
    assert probe("http://127.0.0.1/a.mp4").width == 131


def test_passwords_are_not_shown() -> None:
    assert Address.of("rtsp://me:secret@host:554/a").name == "rtsp://me:***@host:554/a"
    assert Address.of("rtsp://me@host/a:b@c").name == "rtsp://me@host/a:b@c"
    with pytest.raises(VideoError) as caught:
        VideoReader("rtsp://me:secret@127.0.0.1:9/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("7919", "no camera 7919"),
        ("http://127.0.0.1:9/a.ts", "Connection refused"),
        ("rtsp://127.0.0.1:9/a", "Connection refused"),
        ("tcp://127.0.0.1:9", "Connection refused"),
        ("https://127.0.0.1:9/a.m3u8", "cannot be opened"),
        ("rtmp://127.0.0.1:9/a/b", "cannot be opened"),
        ("gopher://127.0.0.1/a", "one of rtsp, rtsps, rtp, udp, tcp, srt, rtmp, http, https"),
        ("/dev/null", "not a video"),
        ("/dev/zero", "not a video"),
    ],
)
def test_what_cannot_be_opened_gives_one_line_at_once(name: str, words: str) -> None:
    with pytest.raises(VideoError, match=words) as caught:
        VideoReader(name, live=Live(retry_seconds=300))
    assert "\n" not in str(caught.value)
    assert "[Errno" not in str(caught.value)


def late_index() -> bytes:
    """An MP4 whose index comes after more than what FFmpeg keeps of what it has read."""
    data = clip("plain.mp4").read_bytes()
    at, more = data.index(b"mdat") - 4, 1 << 20
    size = int.from_bytes(data[at : at + 4], "big")
    assert data.index(b"moov") > at
    return data[:at] + (size + more).to_bytes(4, "big") + data[at + 4 : at + size] + bytes(more) + data[at + size :]


PAGE = b"\n<!DOCTYPE HTML>\n<html><head><title>A video</title></head>" + b"<p>More of it</p>" * 500 + b"</html>"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        ("200 OK", late_index, ["its index at the end", "download it", "ffmpeg -i OLD -c copy -movflags +faststart"]),
        ("200 OK", lambda: late_index()[:500_000], ["is cut short", "get a complete copy"]),
        ("200 OK", lambda: PAGE, ["is a web page", "yt-dlp -o - http://127.0.0.1:{port}/live/stream | kvvideo "]),
        ("200 OK", lambda: b"<no page>" * 99, ["what can be read as it comes is"]),
        ("404 Not Found", bytes, ["404", "nothing is there under this name"]),
        ("403 Forbidden", bytes, ["403", "does not let us have it"]),
        ("401 Unauthorized", bytes, ["401", "wants a login"]),
        ("503 Service Unavailable", bytes, ["5XX", "try again later"]),
        ("410 Gone", bytes, ["4XX", "refuses to send it"]),
    ],
)
def test_why_a_url_gives_no_video(status: str, body: Callable[[], bytes], words: list[str]) -> None:
    with Server(*[video_servers.answering(status, body())] * 3) as server:
        with pytest.raises(VideoError) as caught:
            VideoReader(url("http", server), live=PATIENT)
        for word in words:
            assert word.format(port=server.port) in str(caught.value)
    assert "that something is sent there" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_behind_a_url_has_a_length_and_a_broadcast_has_none() -> None:
    with files(clip("plain.mkv").parent) as base:
        assert probe(f"{base}/plain.mkv", live=PATIENT).duration == pytest.approx(10, abs=0.1)
    with Server(live_http(*ALL)) as server:
        assert probe(url("http", server), live=PATIENT).duration is None


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:9/a.mp4", "nothing listens there"),
        ("http://nobody.invalid/a.mp4", "its host is not known here"),
        ("rtsp://nobody.invalid/a", "its host is not known here"),
    ],
)
def test_why_a_host_gives_nothing(address: str, words: str) -> None:
    with pytest.raises(VideoError, match=words):
        VideoReader(address, live=PATIENT)


def test_a_protocol_that_was_not_built_in_is_named() -> None:
    with pytest.raises(VideoError, match=r"built without srt|cannot be opened"):
        VideoReader("srt://127.0.0.1:9", live=BRIEF)


def test_impossible_settings_are_named() -> None:
    for settings, words in [
        ({"retry_seconds": -1}, "0 or more"),
        ({"retry_seconds": float("nan")}, "0 or more"),
        ({"when_behind": "hurry"}, "lag or drop"),
    ]:
        with pytest.raises(ConfigError, match=words):
            Live(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="decord reads files only"):
        VideoReader("-", decoder="decord")
    with pytest.raises(ConfigError, match="files only"):
        frame_at("rtsp://127.0.0.1:9/a", 1.0)


# The right frames, from everywhere


@pytest.mark.slow
@pytest.mark.parametrize("scheme", PROTOCOLS)
def test_a_stream_gives_its_frames_and_then_one_line(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    with Server(PROTOCOLS[scheme](*ALL)) as server, VideoReader(url(scheme, server), live=BRIEF, **SECOND) as reader:
        assert (reader.info.width, reader.info.height, reader.info.duration) == (160, 120, None)
        chunks, error = drain(reader)
        assert reader.live.message == caplog.messages[-1]
        assert reader.live == LiveStatus(message=reader.live.message)
    assert numbers(chunks) == WHOLE
    assert [chunk.start for chunk in chunks] == [float(i) for i in range(10)]
    assert [t for chunk in chunks for t in chunk.times] == pytest.approx([0.5 * i for i in range(20)], abs=2e-3)
    assert "no frame for 2 s at 0:09.95 of" in str(error)
    assert "\n" not in str(error)
    assert "broke off at 0:09.95" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["udp", "rtp"])
def test_datagrams(scheme: str) -> None:
    with datagrams(scheme, ALL) as address, VideoReader(address, live=BRIEF, **SECOND) as reader:
        chunks, error = drain(reader)
    seen = numbers(chunks)
    # What was sent while FFmpeg found out what it is may be lost, as when a stream is joined.
    assert seen[0] in {0, 20, 40, 60}
    shown = [n for n in seen if n is not None and n < 190]
    assert shown == list(range(shown[0], shown[-1] + 1, 10))
    assert "no frame for 2 s" in str(error)


def test_a_playlist_that_is_complete(tmp_path: Path) -> None:
    segment(tmp_path)
    with files(tmp_path) as base, VideoReader(f"{base}/a.m3u8", **SECOND) as reader:
        assert numbers(reader) == WHOLE


@pytest.mark.slow
def test_a_playlist_that_goes_on(tmp_path: Path) -> None:
    writer = threading.Thread(target=segment, args=(tmp_path, 2.0), kwargs={"hls_list_size": "4"})
    writer.start()
    assert eventually((tmp_path / "a.m3u8").exists)
    with files(tmp_path) as base, VideoReader(f"{base}/a.m3u8", live=Live(retry_seconds=8), **SECOND) as reader:
        chunks, _ = drain(reader)
    writer.join()
    seen = numbers(chunks)
    assert seen == [n for n in WHOLE if n >= (seen[0] or 0)]
    assert seen[0] in {0, 20, 40, 60}


@pytest.mark.parametrize("name", ["plain.mp4", "live.mkv", "late_start.ts"])
def test_a_file_on_a_server_ends_where_it_ends(name: str) -> None:
    with files(clip(name).parent) as base, VideoReader(f"{base}/{name}") as reader:
        assert numbers(reader) == expected(clip(name), 2)


PIPEABLE = [
    *("late_start.ts", "mpeg2.ts", "hevc.ts", "live.mkv", "plain.mkv", "vp9.webm", "fragments.mp4", "bare.h264"),
    *("irregular.mkv", "slow.mkv", "longer_audio.mkv", "mpeg4.avi", "spaced.avi"),
]


@pytest.mark.parametrize("name", PIPEABLE)
def test_a_named_pipe_shows_what_the_file_shows(name: str, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(clip(name).read_bytes()))
    writer.start()
    with VideoReader(path, 3, 2) as reader:
        seen = numbers(reader)
    writer.join()
    wanted = expected(clip(name), 3)
    assert seen == wanted + wanted[-1:] * (len(wanted) % 2)


def piped(code: str, source: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs Python with what a shell command writes as its standard input."""
    return subprocess.run(
        ["bash", "-c", f'{source} | "$0" -c "$1" "${{@:2}}"', sys.executable, code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


SHOW = (
    "from kvvideo.video import VideoReader; from tests.helpers.clips import numbers\nprint(numbers(VideoReader('-')))"
)


@pytest.mark.parametrize("name", ["late_start.ts", "live.mkv"])
def test_standard_input(name: str) -> None:
    done = piped(SHOW, f"cat '{clip(name)}'")
    assert (done.stdout, done.stderr) == (f"{expected(clip(name), 2)}\n", "")


def test_a_file_as_standard_input() -> None:
    done = piped(SHOW, ":", "<", str(clip("live.mkv")))
    assert "standard input" in done.stderr  # an empty pipe
    with clip("live.mkv").open("rb") as file:
        run = subprocess.run(
            [sys.executable, "-c", SHOW],
            stdin=file,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert run.stdout == f"{expected(clip('live.mkv'), 2)}\n"


def test_standard_input_that_is_no_video() -> None:
    done = piped(SHOW, "echo hello")
    assert "kvvideo.errors.VideoError: 'standard input' is not a video" in done.stderr


@pytest.mark.parametrize("stdin", ["terminal", "closed"])
def test_standard_input_that_is_none(stdin: str) -> None:
    code = "import os\nfrom kvvideo.video import VideoReader\n"
    code += "os.close(0)\n" if stdin == "closed" else "os.isatty = lambda fd: True\n"
    done = piped(f"{code}VideoReader('-')", ":")
    assert done.stderr.splitlines()[-1].startswith("kvvideo.errors.VideoError: ")
    assert "name a file" in done.stderr


def test_recordings_joined_in_a_pipe_go_on() -> None:
    path = clip("late_start.ts")
    done = piped(SHOW, f"cat '{path}' '{path}'")
    assert done.stderr == ""
    seen = eval(done.stdout)
    assert seen[:20] == expected(path, 2)
    assert len(seen) in {39, 40}


@pytest.mark.slow
@pytest.mark.parametrize("format", ["mpegts", "matroska", "flv"])
def test_a_growing_file_is_followed(format: str, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    path.touch()
    growing = threading.Event()

    def write() -> None:
        with path.open("wb", buffering=0) as out:
            for step in (Play(0, 100), 1.0, Play(100)):
                video_servers.play([step], lambda piece: out.write(piece.data), format)
                growing.set()

    writer = threading.Thread(target=write)
    writer.start()
    with VideoReader(path, live=Live(follow=True, retry_seconds=3), **SECOND) as reader:
        assert numbers(reader) == WHOLE
        assert growing.is_set()
    writer.join()


@pytest.mark.slow
@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_is_not_begun_yet_is_waited_for(
    there: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "recording.ts"
    if there:
        path.touch()
    whole = clip("late_start.ts").read_bytes()
    found: list[list[int | None]] = []

    def follow() -> None:
        with VideoReader(path, live=Live(follow=True, retry_seconds=5)) as reader:
            found.append(numbers(reader))

    following = threading.Thread(target=follow)
    following.start()
    assert eventually(lambda: not following.is_alive() or "it is waited for, 5 s at most" in caplog.text)
    path.write_bytes(whole)
    following.join()
    assert found == [expected(clip("late_start.ts"), 2)]


def test_a_file_that_never_begins(tmp_path: Path) -> None:
    empty = tmp_path / "empty.ts"
    empty.touch()
    for path, seconds, words in (
        (tmp_path / "missing.ts", 0.5, "is not there after 0.5 s; check the name, or allow it more time"),
        (empty, 0.5, "is still empty after 0.5 s"),
        (tmp_path / "missing.ts", 0.0, "there is no file"),
        (empty, 0.0, r"is empty \(0 bytes\)"),
        (tmp_path, 0.5, "is a directory"),
    ):
        with pytest.raises(VideoError, match=words):
            VideoReader(path, live=Live(follow=True, retry_seconds=seconds))


def test_a_file_that_does_not_grow_is_no_live_source() -> None:
    path = clip("plain.mp4")
    with VideoReader(path, live=Live(when_behind="drop", retry_seconds=0)) as reader:
        time.sleep(1)
        assert numbers(reader) == expected(path, 2)
        assert reader.live == LiveStatus()


def test_a_part_of_a_stream() -> None:
    with (
        Server(bare(Play(speed=20))) as server,
        VideoReader(url("tcp", server), start=2.0, end=6.0, skip_chunks=1, live=BRIEF, **SECOND) as reader,
    ):
        assert reader.position == 3.0
        chunks, error = drain(reader)
    assert (numbers(chunks), error) == ([60, 70, 80, 90, 100, 110], None)


# Stalls and breaks


@pytest.mark.slow
def test_a_pause_is_waited_out() -> None:
    with (
        Server(bare(Play(0, 100, 20), 3.0, Play(100, 200, 20))) as server,
        VideoReader(url("tcp", server), live=PATIENT, stall_seconds=1.5, end=9.5, **SECOND) as reader,
    ):
        chunks, error = drain(reader)
        assert reader.live.reconnects == 0
    assert (numbers(chunks), error) == ([*WHOLE[:19], 180], None)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", PROTOCOLS)
def test_a_stream_that_comes_back_goes_on(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    talk = PROTOCOLS[scheme]
    with (
        Server(talk(Play(0, 103)), talk(Play(100, 200)), away=0.5) as server,
        VideoReader(url(scheme, server), live=PATIENT, end=9.0, **SECOND) as reader,
    ):
        chunks, error = drain(reader)
        assert reader.live.reconnects == 1
    assert "is back after" in caplog.text
    assert error is None
    assert are_in_order(chunks)
    shown = {read(frame): t for chunk in chunks for frame, t in zip(chunk.frames, chunk.times, strict=True)}
    assert None not in shown
    assert list(shown)[:11] == WHOLE[:11]
    # Its own clock says that frame 180 is 4 s after frame 100; the time it was away comes on top of that.
    late = [t - n / 20 for n, t in shown.items() if n is not None and n > 103]
    assert max(late) - min(late) < 0.01
    assert 0.2 < late[0] < 60


@pytest.mark.slow
def test_a_stream_that_begins_anew_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with (
        Server(bare(Play(0, 100)), bare(Play(0, 60)), bare(Play(40, 100))) as server,
        VideoReader(url("tcp", server), live=BRIEF, **SECOND) as reader,
    ):
        chunks, _ = drain(reader)
        assert reader.live.reconnects == 2
    assert are_in_order(chunks)
    seen = [n for n in numbers(chunks) if n is not None]
    back = [i for i in range(1, len(seen)) if seen[i] < seen[i - 1]]
    assert len(back) == 2


@pytest.mark.slow
def test_a_playlist_that_comes_back_repeats_nothing(tmp_path: Path) -> None:
    writer = threading.Thread(target=segment, args=(tmp_path, 1.0), kwargs={"hls_list_size": "8"})
    writer.start()
    assert eventually(lambda: len(list(tmp_path.glob("*.ts"))) > 3)
    with ExitStack() as reading:
        with files(tmp_path) as base:
            reader = reading.enter_context(VideoReader(f"{base}/a.m3u8", live=Live(retry_seconds=30), **SECOND))
            chunks = [next(reader)]
        assert eventually(lambda: "broke off" in reader.live.message)
        with files(tmp_path, int(base.rpartition(":")[2])):
            more, error = drain(reader)
        assert reader.live.reconnects == 1
    writer.join()
    assert error is None  # the playlist says where it ends
    assert are_in_order([*chunks, *more])
    times = [(n, t) for c in (*chunks, *more) for n, t in zip(numbers([c]), c.times, strict=True) if n is not None]
    # The clock is the one it had.
    assert len({round(t - n / 20, 2) for n, t in times}) == 1
    assert times[-1][0] == 190


def test_a_stream_that_stays_away_is_given_up() -> None:
    with Server(bare(Play(0, 100, 20))) as server:
        reader = VideoReader(url("tcp", server), live=Live(retry_seconds=1), **SECOND)
        chunks, error = drain(reader)
    assert numbers(chunks) == WHOLE[:10]
    assert str(error).startswith("there was no frame for 1 s at 0:04.95 of 'tcp://")
    assert "\n" not in str(error)
    assert list(reader) == []


def test_without_retries_the_first_break_is_the_end() -> None:
    with Server(bare(Play(0, 100, 20)), bare(*ALL)) as server:
        chunks, error = drain(VideoReader(url("tcp", server), live=Live(retry_seconds=0), **SECOND))
    assert numbers(chunks) == WHOLE[:10]
    assert "broke off at 0:04.95" in str(error)


@pytest.mark.parametrize("scheme", ["tcp", "http", "rtsp", "rtmp"])
def test_a_server_that_says_nothing_is_given_up(scheme: str) -> None:
    with Server(silent) as server, pytest.raises(VideoError, match="no frame for 1 s at 0:00 of"):
        VideoReader(url(scheme, server), live=Live(retry_seconds=1))


def test_nobody_sends_datagrams() -> None:
    with pytest.raises(VideoError, match="no frame for 1 s at 0:00 of 'udp:"):
        VideoReader("udp://127.0.0.1:54345", live=Live(retry_seconds=1))


# Behind


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["tcp", "rtsp"])
def test_with_drop_what_comes_is_recent(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    with (
        Server(PROTOCOLS[scheme](Play(0, 200, 4.0))) as server,
        VideoReader(url(scheme, server), live=Live(1, "drop"), **SECOND) as reader,
    ):
        first = next(reader)
        assert eventually(lambda: reader.live.dropped >= 3)
        status = reader.live
        rest, error = drain(reader)
    assert error is not None
    assert status.behind < 6
    assert first.start == 0
    assert rest[0].start >= 3
    assert are_in_order([first, *rest])
    for chunk in [first, *rest]:
        assert numbers([chunk]) == [round(20 * chunk.start), round(20 * chunk.start) + 10]
    assert reader.live.dropped == 10 - len(rest) - 1
    assert caplog.text.count("was dropped: it came faster than it was seen") == 1
    assert rest[-1].end == 10


@pytest.mark.parametrize("scheme", ["tcp", "rtsp"])
def test_with_lag_nothing_is_lost(
    scheme: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvvideo.video.reader._TELL_SECONDS", 3.0)
    with (
        Server(PROTOCOLS[scheme](Play(0, 200, 10.0))) as server,
        VideoReader(url(scheme, server), live=Live(1), **SECOND) as reader,
    ):
        chunks = [next(reader)]
        # All of it arrives, although nobody takes it, and it is told.
        assert eventually(lambda: reader.live.behind > 8.5)
        more, _ = drain(reader)
        assert reader.live.behind == 0
    assert numbers([*chunks, *more]) == WHOLE
    assert reader.live.dropped == 0
    # What cannot wait is late, and that is said once, as it does not get twice as late.
    late = "s late; when_behind=drop would skip what is old"
    assert caplog.text.count(late) == (scheme == "rtsp")
    assert "was dropped" not in caplog.text


# Ends


@pytest.fixture
def waiting() -> Iterator[VideoReader]:
    """A reader that has had all there is for now."""
    with (
        Server(stalling(Play(0, 100, 20))) as server,
        VideoReader(url("tcp", server), live=PATIENT, **SECOND) as reader,
    ):
        for _ in range(3):
            next(reader)
        yield reader


def test_close_while_it_waits_returns(waiting: VideoReader) -> None:
    done = threading.Event()
    thread = threading.Thread(target=lambda: (drain(waiting), done.set()))
    thread.start()
    time.sleep(0.5)
    assert not done.is_set()
    began = time.monotonic()
    waiting.close()
    assert done.wait(20)
    thread.join()
    assert time.monotonic() - began < 20
    assert list(waiting) == []


def test_close_while_it_tries_again_returns() -> None:
    with Server(bare(Play(0, 60, 20))) as server:
        reader = VideoReader(url("tcp", server), live=PATIENT, **SECOND)
        next(reader)
        assert eventually(lambda: "broke off" in reader.live.message)
        reader.close()
        assert list(reader) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_found(
    number: signal.Signals, waiting: VideoReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process that is stopped stands for one that hangs.
    monkeypatch.setattr("kvvideo.video.awake.is_stopped", lambda _: False)
    waiting._stall = 2.0
    os.kill(waiting.pid, number)
    _, error = drain(waiting)
    assert ("was killed (SIGKILL)" if number == signal.SIGKILL else "gave no frame for 2 s") in str(error)


def test_nothing_is_left_behind() -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with (
        Server(stalling(Play(0, 100, 20))) as server,
        VideoReader(url("tcp", server), live=PATIENT, **SECOND) as reader,
    ):
        next(reader)
        assert threading.active_count() == threads + 3
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors


# What cannot be had here, or takes too long, inside this process


def decode(path: str, live: Live, moments: float | None = None) -> tuple[list[Chunk], VideoError | None, list[Any]]:
    from kvvideo.video.pyav_live import LiveDecoder
    from kvvideo.video.sampling import Grid

    told: list[Any] = []
    with LiveDecoder(path, lambda at: None, live, -1, lambda *status: told.append(status)) as decoder:
        chunks, error = drain(decoder.chunks(Grid.of(2, 1, None, moments), 1, 24 * 784))
    return chunks, error, told


def test_a_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device of FFmpeg's own in place of a real one: it counts seconds."""
    monkeypatch.setattr(Address, "camera", lambda self: ("lavfi", "testsrc=size=160x120:rate=20"))
    chunks, error, _ = decode("7919", BRIEF, 5.0)
    assert error is None
    assert [t for chunk in chunks for t in chunk.times] == [0.5 * i for i in range(10)]


def test_a_stall_that_is_no_break_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from kvvideo.video import capture

    monkeypatch.setattr(capture, "CALL_SECONDS", 1.0)
    with (
        caplog.at_level(logging.WARNING, "kvvideo.video"),
        Server(stalling(Play(0, 100, 20)), bare(Play(100, 200, 20))) as server,
    ):
        chunks, error, told = decode(url("tcp", server), PATIENT, 8.0)
    assert "nothing came for too long" in caplog.text
    assert told[-1][0].reconnects == 1
    assert are_in_order(chunks)
    assert error is None


def test_a_full_spool_drops_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvvideo.video.capture import Spool, Taken

    spool = Spool(100, waits=False, seconds=None)
    for i in range(40):
        spool.put(Taken(None, i, float(i), 10, key=i % 4 == 0))  # type: ignore[arg-type]
    kept = []
    while (taken := spool.get(0.0)) is not None:
        kept.append(taken.packet)
    assert kept == list(range(32, 40))
    assert spool.dropped == 32
    assert spool.gaps[0] == (0.0, 4.0)
    assert sum(end - begin for begin, end in spool.gaps) == 32


def test_a_spool_of_what_is_recent() -> None:
    from kvvideo.video.capture import Spool, Taken

    spool = Spool(10**9, waits=False, seconds=5.0)
    for i in range(100):
        spool.put(Taken(None, i, i / 4, 10, key=i % 8 == 0))  # type: ignore[arg-type]
    first = spool.get(0.0)
    assert first is not None
    assert first.key
    assert first.time >= 99 / 4 - 5


def test_a_full_spool_makes_who_can_wait_wait() -> None:
    from kvvideo.video.capture import Spool, Taken

    spool = Spool(100, waits=True, seconds=None)
    put: list[int] = []

    def fill() -> None:
        for i in range(40):
            spool.put(Taken(None, i, float(i), 10, key=True))  # type: ignore[arg-type]
            put.append(i)

    thread = threading.Thread(target=fill)
    thread.start()
    time.sleep(0.3)
    assert len(put) <= 12
    assert [taken.packet for _ in range(40) if (taken := spool.get(20.0)) is not None] == list(range(40))
    thread.join()
    spool.end()
    assert spool.is_over
    assert spool.dropped == 0


# The clock


def test_the_clock_goes_on_after_a_break() -> None:
    clock = Clock()
    clock.reconnect(100.0, 0.0)
    assert clock.shift(100.0, 100.1, 0.05, 3.0) == (-100.1, None)
    assert clock.shift(101.0, 101.1, 0.05, 1.0) == (-100.1, None)
    assert clock.newest == pytest.approx(1.0)
    clock.reconnect(0.0, 0.0)
    shift, gap = clock.shift(0.0, 0.0, 0.05, 7.5)
    assert shift == pytest.approx(8.5)
    assert gap == (clock.newest - 7.5, clock.newest)


@pytest.mark.parametrize("jump", [-6.0, -1e6, 120.0, 1e9])
def test_the_clock_does_not_follow_jumps(jump: float) -> None:
    clock = Clock()
    clock.shift(0.0, 0.0, 0.1, 0.0)
    clock.shift(5.0, 5.0, 0.1, 5.0)
    shift, gap = clock.shift(5.0 + jump, 5.0 + jump, 0.1, 0.5)
    assert clock.newest == pytest.approx(5.5)
    assert shift == pytest.approx(0.5 - jump)
    assert gap == (5.0, 5.5)


@pytest.mark.slow
def test_the_clock_knows_what_was_there_before() -> None:
    clock = Clock()
    clock.shift(0.0, 0.0, 0.1, 0.0)
    clock.shift(50.0, 50.0, 0.1, 0.0)
    clock.reconnect(40.0, 60.0)
    assert clock.is_repeated(50.0)
    assert not clock.is_repeated(50.1)
    assert clock.shift(52.0, 52.0, 0.1, 9.0) == (0.0, None)
    clock.reconnect(0.0, 10.0)  # too far back: another stream
    assert not clock.is_repeated(0.0)
