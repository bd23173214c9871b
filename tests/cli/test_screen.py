"""Screens after a command, seen in a terminal emulator: every answer whole, one summary, and nothing else."""

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pyte
import pytest

import kvvideo
import kvvideo.runs.ask
from kvvideo.cli import line, main, render, screen
from kvvideo.cli.everywhere import Everywhere, Way
from kvvideo.cli.screen import standard_streams
from kvvideo.outputs import FORMATS
from kvvideo.session import EngineConfig
from kvvideo.types import CacheStats, Progress
from tests.helpers import SAMPLES, commands
from tests.helpers.commands import command
from tests.helpers.outputs import RECORD
from tests.helpers.windows import DRAWN, Reflowing, Window, wrapped

pytestmark = pytest.mark.usefixtures("no_looking_again")

LONG = ("--from", "1:59:00", "--to", "2:00:03", "--fps", "1")
MODEL = ("--model", "tiny", "--max-tokens", "512", "--max-answer-tokens", "24", "--checkpoint-every", "0")
QUESTION = "Which letter?"
SUMMARY = r"\d+ answers, 1:03 of video, 64 frames in \d+\.\d s.*; cache \d+/512 tokens, .* evicted"


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hours and five seconds of a picture every five seconds."""
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for second in range(0, 7206, 5):
            picture = np.full((64, 128, 3), second % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = second, Fraction(1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def analyze(film: Path) -> tuple[object, ...]:
    return ("analyze", film, *MODEL, *LONG, "--every", "10s", "-q", QUESTION)


@pytest.fixture
def answers(analyze: tuple[object, ...], one_engine: None, capfd: pytest.CaptureFixture[str]) -> str:
    """Return what is said of the film, on a stdout that is no terminal."""
    done = commands.run(capfd, *analyze)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\[1:59:\d0\] Which letter\?$", done.stdout, re.MULTILINE)) == 5
    return done.stdout


def check(screen: str, answers: str, columns: int, rest: str = SUMMARY) -> None:
    """See that there is nothing but ``answers``, and after them what ``rest`` matches, blanks apart."""
    expected, shown = wrapped(answers, columns), screen.splitlines()
    assert shown[: len(expected)] == expected
    assert re.fullmatch(rest.replace(" ", ""), "".join(shown[len(expected) :]).replace(" ", "")), screen


@pytest.mark.slow
def test_every_answer_is_left_on_the_screen(analyze: tuple[object, ...], answers: str, tmp_path: Path) -> None:
    """With hour-long times at several widths, stdout the same terminal or a file, which then has the answers alone."""
    for columns in (40, 80, 120):
        window, drawn = Window(columns), list[bytes]()
        window.on_bytes = drawn.append
        check(window.run(*analyze).stdout, answers, columns)
        assert {*re.findall(rb"\d / (\S+) ", re.sub(rb"\x1b\[\d*m", b"", b"".join(drawn)))} == {b"2:00:03"}
        check(Window(columns).run(*analyze, out=tmp_path / "out").stdout, "", columns)
        assert (tmp_path / "out").read_text() == answers
    assert Window(80).run(*analyze, "-f", "jsonl", out=tmp_path / "out.jsonl").stdout == ""
    assert (tmp_path / "out.jsonl").read_text().count('"type": "answer"') == answers.count(QUESTION)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "widths"),
    [(pyte.Screen, (80, 60, 120, 60, 100, 70, 110, 80)), (Reflowing, (80, 40, 120, 30, 100, 40, 110, 20, 80, 30))],
)
def test_a_window_may_change_its_width_on_the_way(
    analyze: tuple[object, ...], answers: str, kind: type[pyte.Screen], widths: tuple[int, ...], tmp_path: Path
) -> None:
    """Cutting its lines or breaking them anew, and before the command is told."""
    for out in (None, tmp_path / "out"):
        window = Window(120, kind=kind, widths=widths)
        shown = window.run(*analyze, out=out).stdout
        assert window.screen.columns == widths[-1]
        check(shown, "" if out else answers, widths[-1])


STATS = CacheStats(seen=2181, live=1157, evicted=1024, blocks=37, compactions=1, bytes=3_800_000)
NOW = Progress(position=3680.0, end=3780.4, rate=30.53, cache=STATS, max_tokens=4096, behind=12.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have time stand still for what is shown, but not for who waits for it."""
    for module in (render, line):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 101.0))


def begun(progress: render.Progress) -> render.Progress:
    """Have it that the first 80 of 180 s took 101 s, so that 127 are left."""
    progress._rest._since = (3600.0, 0.0)
    return progress


@pytest.mark.usefixtures("clock")
def test_the_line_fits_any_width_and_tells_of_the_part_that_is_read() -> None:
    shown = {}
    for columns in range(1, 140):
        window = Window(columns, rows=4)
        with window.standing_for(), standard_streams(), render.Progress(3600.0) as progress:
            begun(progress).chunk(NOW)
            shown[columns] = window.now()
            progress.chunk(replace(NOW, position=3780.5, rate=None, behind=0.0))
            last = window.now()
        window.close()
        assert window.lines() == []
    for columns, lines in shown.items():
        assert len(lines) <= 1
        assert len("".join(lines)) < max(columns, 2)
    assert shown[20] == ["1:01:20  44%"]
    assert shown[30] == ["1:01:20 ━━     44%  2:07 left"]
    assert shown[40] == ["1:01:20 / 1:03:00 ━━     44%  2:07 left"]
    assert shown[80] == ["1:01:20 / 1:03:00 ━━━━━━━━╸             44%  2:07 left  12 s behind"]
    assert shown[139] == [f"{shown[80][0]}  30.5 frames/s  1157/4096 tokens  3.8 MB  1024 evicted"]
    # The last frame stands until after the end; and what is not known is not told.
    assert last == ["1:03:00 / 1:03:00 ━━━━━━━━━━━━━━━━━━━━ 100%  0:00 left  1157/4096 tokens  3.8 MB  1024 evicted"]


@pytest.mark.usefixtures("clock")
def test_elsewhere_a_line_a_minute_says_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is done; from the first minute on, and not after the end."""
    monkeypatch.setattr(screen, "_PLAIN_SECONDS", 0.01)

    def told(text: str) -> None:
        until, said = time.monotonic() + 10, ""
        while text not in said:
            assert time.monotonic() < until, said
            time.sleep(0.02)
            said += capsys.readouterr().err

    with render.Progress(3600.0) as progress:
        assert capsys.readouterr().err == ""
        progress.wait("loading …")
        told("kvvideo: loading … 0 s\n")
        begun(progress).chunk(NOW)
        told("kvvideo: 1:01:20 / 1:03:00  44%  2:07 left  12 s behind  30.5 frames/s  1157/4096 tokens  3.8 MB  1024")
    for thread in threading.enumerate():
        if thread.name == "kvvideo-minutes":
            thread.join()
    capsys.readouterr()
    with Everywhere(quiet=True).in_force(), render.Progress(3600.0) as progress:
        progress.chunk(NOW)
        assert "kvvideo-minutes" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.usefixtures("clock")
def test_programs_get_a_record_for_what_is_done_and_one_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    with Everywhere(progress=Way.jsonl).in_force(), render.Progress(3600.0) as progress:
        progress.wait("loading \x1b[2J …")
        for position in (3680.0, 3684.0, 3688.0, 3780.5):
            begun(progress).chunk(replace(NOW, position=position))
    loading, first, last = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    for record in (loading, first, last):
        RECORD.validate(record)
        assert record.pop("seconds") == 0.0
    assert loading == {"type": "progress", "schema": 1, "doing": "loading \x1b[2J …"}
    assert first == {
        "type": "progress",
        "schema": 1,
        "doing": None,
        "start": 3600.0,
        "position": 3680.0,
        "end": 3780.4,
        "share": 0.4435,
        "left_seconds": 126.8,
        "frames_per_second": 30.5,
        "behind_seconds": 12.0,
        "dropped_seconds": 0.0,
        "live": 1157,
        "max_tokens": 4096,
        "evicted": 1024,
        "bytes": 3_800_000,
    }
    assert (last["position"], last["share"]) == (3780.4, 1.0)


def test_what_every_command_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A command that is done at once has them, and one that fails."""
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_LOGGING_STREAM", "_KVVIDEO_LOG_FILE"):
        monkeypatch.setenv(name, "")  # as it will be again after this
    make = ("samples", "make", tmp_path / "clip.mp4", "--minutes", "0.1")
    log = tmp_path / "log.txt"
    said = commands.run(capfd, *make, "--log-file", log).stderr
    assert re.fullmatch(r"kvvideo: wrote .*clip\.mp4: .*\nkvvideo: wrote .*clip\.srt: what is said in it\n", said)
    assert commands.run(capfd, *make, "--force", "--quiet").stderr == ""
    records = commands.run(capfd, *make, "--force", "--progress", "jsonl").stderr.splitlines()
    assert json.loads(records[0])["doing"].startswith("making ")
    failed = commands.run(capfd, *make, "--quiet", "--log-file", log)
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert "exists; add --force" in failed.stderr
    wrote, _, error, *trace = log.read_text().splitlines()
    assert re.fullmatch(r"\S+ \S+ INFO:kvvideo\.told:wrote .*clip\.mp4: .*", wrote)
    assert "ERROR:kvvideo.told:" in error
    assert trace[0].startswith("Traceback")
    nowhere = commands.run(capfd, "strategies", "--log-file", tmp_path / "no" / "log.txt")
    assert (nowhere.returncode, nowhere.stdout) == (2, "")
    assert re.fullmatch(r"kvvideo: log-file: '.*' cannot be written: No such file.*\n", nowhere.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("analyze", "-q", "What?"), ("ingest", "-o", "a.kvv")])
def test_ctrl_c_while_the_model_is_loaded_ends_the_command(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Nothing of the video is read, and nothing left behind."""
    process = subprocess.Popen(
        command(*arguments, SAMPLES / "letters-1m.mp4", "--model", "tiny", "--progress", "jsonl"),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    assert process.stderr is not None
    while "loading tiny" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 130
    assert [*tmp_path.iterdir()] == []


def test_whatever_is_printed_meanwhile_is_above_the_line() -> None:
    """By whomever: a log that was set up before, other threads, what draws lines of its own, and Ctrl-C's echo."""
    window = Window(60)
    with window.standing_for(), standard_streams():
        handler = logging.StreamHandler()
        with render.Progress() as progress:
            progress.say("loading …")
            assert window.now() == ["loading …"]
            handler.emit(logging.makeLogRecord({"msg": "a log"}))
            assert window.now() == ["a log", "loading …"]
            print("begun", end="")
            progress.say("more …")
            assert window.now() == ["a log", "begun"]
            print(", ended")
            threads = [threading.Thread(target=render.err.print, args=(f"thread {n}",)) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            window.type(b"\x03")
            window.wait_for(r"^\^Cre …$")
            sys.stderr.write("\r50%\r100%\n")
            assert window.now()[-1] == "more …"
            # Two lines, cut like one.
            progress._show(lambda columns: "one\n" + "x" * 100, {"doing": None})
            assert window.now()[-2:] == ["one", "x" * 58 + "…"]
    window.close()
    said, begun, *others, percent = window.lines()
    assert (said, begun, percent) == ("a log", "begun, ended", "100%")
    assert sorted(others) == [f"thread {n}" for n in range(8)]


def test_no_line_where_nothing_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(60)
    with window.standing_for(), standard_streams():
        monkeypatch.setenv("TERM", "dumb")
        with render.Progress() as progress:
            progress.say("loading …")
            assert window.now() == []
    window.close()


@pytest.mark.slow
@pytest.mark.usefixtures("one_engine")
def test_other_commands_leave_the_screen_in_order(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Tasks, comparisons, ingest, ask, batch, doctor: what is said elsewhere stands on the screen."""
    engine = kvvideo.session.Engine(EngineConfig())
    monkeypatch.setattr(kvvideo.runs.ask, "Engine", kvvideo.session.Engine)
    monkeypatch.setattr(engine, "close", lambda: None)
    monkeypatch.chdir(tmp_path)
    read = (film, *MODEL[:4], *LONG)
    ask = ("ask", "film.kvv", "-q", f"@1:59:30 {QUESTION}", "-q", QUESTION, "--max-answer-tokens", "8")
    task = ("analyze", *read, *MODEL[4:], "--task", "caption", "--every", "20s")
    job = {"id": "film", "video": str(film), "questions": [{"t": None, "q": QUESTION, "answer": "A"}]}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(job))
    batch = ("batch", "jobs.jsonl", *MODEL[:6], *LONG, "--restart")
    compared = ("analyze", *read, *MODEL[4:], "--compare", "distinct,streaming", "-q", QUESTION)
    for arguments in (("ingest", *read, "--force"), ask, task, compared, batch, ("doctor", "python", "memory")):
        elsewhere = commands.run(capfd, *arguments)
        assert elsewhere.returncode == 0, elsewhere.stderr
        window, drawn = Window(90), list[bytes]()
        window.on_bytes = drawn.append
        shown = window.run(*arguments).stdout
        either = elsewhere.stdout + elsewhere.stderr, elsewhere.stderr + elsewhere.stdout
        assert untimed(shown) in map(untimed, either)
        assert DRAWN in b"".join(drawn)
        assert b" 0.0 frames/s" not in b"".join(drawn)


def untimed(text: str) -> str:
    """``text`` without blanks, and without what is never the same again."""
    return re.sub(r"in\d+\.\ds(,[\d.]+xasfastastheyplay)?|,after[\d.]+sofloading|\d+GB", "", "".join(text.split()))


@pytest.mark.slow
def test_a_run_that_is_interrupted_and_resumed_leaves_the_screen_in_order(tmp_path: Path) -> None:
    """In a process of its own: Ctrl-C and its echo, what was answered before, and the log of vLLM."""
    clip = SAMPLES / "letters-1m.mp4"
    asked = ("-q", "@0:10 What colour is the letter on screen now?", "-q", "When did the letter S appear?")
    analyze = ("analyze", clip, *MODEL[:4], "--fps", "8", "--checkpoint-every", "4s", *asked)
    window = Window(80, rows=300)
    environment = {**os.environ, "KVVIDEO_STATE_DIR": str(tmp_path)}
    process = window.spawn(*analyze, environment=environment)
    window.wait_for(r"^\[0:10\] What colour")
    window.wait_for(r"^0:\d\d / 1:00 ")
    window.type(b"\x03")
    assert process.wait(120) == 130
    head = r"\[0:10\] What colour is the letter on screen now\?\n  (\w+)\n"
    interrupted = r"kvvideo: finishing this chunk; press Ctrl-C again to stop at once\n"
    summary = r"\d answers?, (\d:\d\d)\S* of video, \d+ frames [^\0]* evicted\n"
    rest = r"kvvideo: the same command with --resume goes on from there\nkvvideo: not asked: When did .*\?"
    found = re.fullmatch(head + interrupted + summary + rest, "\n".join(window.now()))
    assert found, window.now()
    begun = len(window.now())
    process = window.spawn("-v", *analyze, "--resume", environment=environment)
    assert process.wait(120) == 0
    window.close()
    shown = "\n".join(window.lines()[begun:])
    assert "INFO" in shown
    assert re.search(rf"^\[0:10\] .*\n  {found[1]}$", shown, re.MULTILINE)
    assert re.search(r"^\[1:00\] When did the letter S appear\?\n  .+\n2 answers, 1:00 of video", shown, re.MULTILINE)
    assert not re.search(r"loading tiny|━|\d%  ", shown)


def test_listings_are_a_line_a_row(capfd: pytest.CaptureFixture[str]) -> None:
    """In a terminal cut to its width; elsewhere in full, and no line ends in blanks."""
    full = {words: commands.run(capfd, *words).stdout for words in (("strategies",), ("config", "show"))}
    for words, text in full.items():
        assert "…" not in text
        assert all(line == line.rstrip() for line in text.splitlines())
        for columns in (40, 80, 100):
            first = [line.split()[0] for line in text.splitlines()]
            shown = Window(columns).run(*words).stdout.splitlines()[: len(first)]
            assert [line.split()[0] for line in shown] == first
        assert len(max(text.splitlines(), key=len)) > 100
    wide = Window(80).run("strategies").stdout.splitlines()
    assert all(line == row[: len(line)] for line, row in zip(wide, full["strategies",].splitlines(), strict=True))
    assert Window(80).run("config", "show").stdout.splitlines()[0].split() == ["option", "value", "from", "in"]
    assert full["config", "show"].splitlines()[0].split() == ["option", "value", "from", "in"]


AWAY = "中 Où → ?"
ESCAPED = r"\u4e2d Où \u2192 ?"


@pytest.mark.slow
@pytest.mark.usefixtures("one_engine")
def test_what_stdout_cannot_encode_is_escaped_and_data_is_utf_8(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: object) -> bytes:
        with open(tmp_path / "out", "w", encoding="latin-1") as out:
            monkeypatch.setattr(sys, "stdout", out)
            monkeypatch.setattr(sys, "argv", ["kvvideo", *map(str, arguments)])
            with suppress(SystemExit):
                main()
        return (tmp_path / "out").read_bytes()

    analyze = ("analyze", film, *MODEL, *LONG, "-q", AWAY)
    assert f"[2:00:03] {ESCAPED}\n" in run(*analyze).decode("latin-1")
    for name in FORMATS:
        if name != "html":
            assert AWAY in run(*analyze, "-f", name).decode() or name == "md"
    (tmp_path / "→.toml").write_text("")
    monkeypatch.setenv("KVVIDEO_→", "1")
    assert r"KVVIDEO_\u2192 sets nothing" in run("doctor", "settings").decode("latin-1")
    for words in (("doctor", "settings", "--json"), ("config", "show", "--json")):
        assert "KVVIDEO_→" in run(*words).decode()


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_as_good_as_dev_null(closed: str, tmp_path: Path) -> None:
    """And no file that is opened later takes its place."""
    make = shlex.join(command("samples", "make", "clip.mp4", "--minutes", "0.1", "--truth", "truth.jsonl"))
    look = shlex.join(command("analyze", "clip.mp4", "-m", "tiny", "--dry-run"))
    script = f"{make} {closed} && {look} {closed}"
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    said = [line.split()[1] for line in done.stderr.splitlines()]
    assert said == ([] if "2>&-" in closed else ["wrote", "wrote", "appended", "subtitles"])
    assert ("tokens" in done.stdout) == (closed == "2>&-")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].frames > 0
    assert json.loads((tmp_path / "truth.jsonl").read_text())["id"] == "clip"
