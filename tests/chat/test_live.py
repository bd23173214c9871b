"""Live sources through the commands: streams that are served here, a recording that grows, and pipes."""

import re
import subprocess
import threading
import time
from pathlib import Path

import av
import pytest

from kvvideo.tiny import samples
from tests.helpers.chats import COLOUR, LETTER, SETTINGS, Terminal, chat
from tests.helpers.commands import command, kvvideo, records
from tests.helpers.servers import Play, Server, files, rtsp

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_looking_again")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute of letters as a transport stream."""
    directory = tmp_path_factory.mktemp("clips")
    samples.make(directory / "minute.mp4", seed=77, minutes=1.0, density=0.5)
    path = directory / "minute.ts"
    with av.open(str(directory / "minute.mp4")) as source, av.open(str(path), "w", format="mpegts") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path


@pytest.fixture(scope="module")
def expected(clip: Path) -> dict[float, str]:
    """Return what ``analyze`` answers about the file."""
    asked = ("-q", f"@0:22 {LETTER}", "-q", f"@0:47 {COLOUR}", "-q", LETTER)
    result = kvvideo("analyze", str(clip), *SETTINGS, "-f", "jsonl", *asked)
    assert result.returncode == 0, result.stderr
    return {record["asked_at"]: record["answer"] for record in records(result.stdout)[:-1]}


def test_a_chat_about_a_stream(clip: Path, expected: dict[float, str], tmp_path: Path):
    """It looks back as far as memories reach, and says what is not possible."""
    with files(clip.parent) as base:
        lines = [LETTER, f"/at 0:22 {LETTER}", "/seek 0:10", "/frame", "/compare h2o window -- What?", LETTER, "/save"]
        result = chat(tmp_path, f"{base}/minute.ts", *SETTINGS, "--checkpoint-every", "8s", lines="\n".join(lines))
    assert "Traceback" not in result.stderr
    answers = re.findall(r"^  (.*)$", result.stdout, re.MULTILINE)
    assert (answers[0], answers[2]) == (expected[60.0],) * 2
    assert "at 0:16, the nearest to 0:22 there is: from the memory of 0:16, 0 chunks replayed" in result.stdout
    assert "a live source cannot be left for another moment" in result.stderr
    assert "frames of the past are gone" in result.stderr
    assert "its frames are gone, as it is not a file" in result.stderr
    result = chat(tmp_path, "minute.kvv", lines=f"/play\n{LETTER}\n/at 0:22 {LETTER}\n")
    assert re.findall(r"^  (.*)$", result.stdout, re.MULTILINE) == [expected[60.0], answers[1]]


def test_a_script_need_not_wait_for_the_end_of_a_broadcast(tmp_path: Path):
    """The end may never come: here it is 50 s away."""
    with Server(rtsp(Play(speed=0.2))) as server:
        live = (*SETTINGS, "--fps", "20", "--chunk", "0.5")
        result = chat(tmp_path, f"rtsp://127.0.0.1:{server.port}/a", *live, lines=f"{LETTER}\n")
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(rf"\[0:0[0-8](\.5)?\] {re.escape(LETTER)}\n  \S+\n", result.stdout)
    assert "the video has ended" not in result.stderr


def test_a_pipe_is_a_video(clip: Path, expected: dict[float, str], tmp_path: Path):
    """For analyze and for ingest; a chat has to be typed somewhere else then."""
    asked = ("-q", f"@0:22 {LETTER}", "-q", f"@0:47 {COLOUR}", "-q", LETTER)
    for arguments in (
        ("analyze", "-", *SETTINGS, "-f", "jsonl", *asked),
        ("ingest", "-", "-o", "piped.kvv", *SETTINGS, "--checkpoint-every", "8s"),
        ("chat", "-", *SETTINGS),
    ):
        with clip.open("rb") as video:
            result = subprocess.run(
                command(*arguments),
                stdin=video,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
                cwd=tmp_path,
                start_new_session=True,
            )
        assert "Traceback" not in result.stderr
        if arguments[0] == "analyze":
            assert result.returncode == 0, result.stderr
            assert {r["asked_at"]: r["answer"] for r in records(result.stdout)[:-1]} == expected
        elif arguments[0] == "chat":
            assert result.returncode == 2
            assert "there is nowhere to type" in result.stderr
        else:
            assert result.returncode == 0, result.stderr
    answered = kvvideo("ask", str(tmp_path / "piped.kvv"), "-q", LETTER, "-q", f"@0:24 {LETTER}", "-f", "jsonl")
    assert answered.returncode == 0, answered.stderr
    assert records(answered.stdout)[1]["answer"] == expected[60.0]


def test_a_recording_that_grows_is_followed(clip: Path, expected: dict[float, str], tmp_path: Path):
    growing, data = tmp_path / "growing.ts", clip.read_bytes()
    growing.write_bytes(data[: len(data) // 4])

    def write() -> None:
        for first in range(len(data) // 4, len(data), 8192):
            time.sleep(0.02)
            with growing.open("ab") as file:
                file.write(data[first : first + 8192])

    writer = threading.Thread(target=write)
    writer.start()
    result = kvvideo("analyze", str(growing), *SETTINGS, "--follow", "--retry", "12s", "-f", "jsonl", "-q", LETTER)
    writer.join()
    assert result.returncode == 0, result.stderr
    answer, done = records(result.stdout)
    assert (answer["asked_at"], answer["answer"], done["frames"]) == (60.0, expected[60.0], 120)


def test_a_stream_that_breaks_off_is_tried_again_before_the_persons_eyes(tmp_path: Path):
    """The video time goes on, the break is told, and what is behind is visible; then it is given up, not the chat."""
    with Server(rtsp(Play(0, 160, 0.25)), rtsp(Play(160, 200, 0.25)), away=1.0) as server:
        live = ("--chunk", "1", "--retry", "8s", "--when-behind", "drop")
        terminal = Terminal(tmp_path, f"rtsp://127.0.0.1:{server.port}/a", *SETTINGS, *live)
        terminal.expect(r"^0:0[1-7] .{1,6} · \d+/512")
        terminal.expect(r"broke off")
        terminal.expect(r"is back after")
        terminal.enter(LETTER)
        terminal.expect(rf"› {re.escape(LETTER)}\n\S+")
        terminal.expect(r"^there was no frame for 8 s")
        terminal.enter("/stats")
        terminal.expect(r"budget 256 · seen \d+")
    assert terminal.leave() == 0


def test_lines_are_typed_at_the_terminal_while_the_video_comes_through_a_pipe(
    clip: Path, expected: dict[float, str], tmp_path: Path
):
    terminal = Terminal(tmp_path, "-", *SETTINGS, shell=f"cat {clip} | exec {{}}")
    terminal.expect(r"^1:00 ■")
    terminal.enter(LETTER)
    terminal.expect(rf"› {re.escape(LETTER)}\n{expected[60.0]}$")
    # The window is closed: nothing is left behind.
    assert [*terminal.temporary.glob("kvvideo-scratch-*")]
    terminal.hang_up()
    until = time.monotonic() + 60
    while [*terminal.temporary.glob("kvvideo-scratch-*")]:
        assert time.monotonic() < until
        time.sleep(0.1)
