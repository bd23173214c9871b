"""``kvvideo chat`` through pipes and in a real terminal, with the bundled model."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from kvvideo.compression.config import CacheConfig
from kvvideo.session import Engine, EngineConfig, VideoSession
from kvvideo.session.prediction import frame_pixels
from kvvideo.storage.file import MemoryFile
from kvvideo.times import format_time
from kvvideo.tiny import samples
from kvvideo.video import read_chunks
from tests.helpers import SAMPLES
from tests.helpers.chats import COLOUR, LETTER, SETTINGS, Terminal, chat
from tests.helpers.commands import kvvideo, records

pytestmark = pytest.mark.usefixtures("no_looking_again")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "minute.mp4"
    samples.make(path, seed=77, minutes=1.0, density=0.5)
    return path


@pytest.fixture(scope="module")
def expected(clip: Path) -> dict[float, str]:
    """Return what ``analyze`` answers at these moments: a stream that ran there from the beginning."""
    moments = ["@0:10", "@0:22", "@0:22.5", "@0:30", "@0:40", "@0:47", "@0:50", ""]
    questions = [part for moment in moments for part in ("-q", f"{moment} {LETTER if moment != '@0:47' else COLOUR}")]
    result = kvvideo("analyze", str(clip), *SETTINGS, "-f", "jsonl", *questions)
    assert result.returncode == 0, result.stderr
    return {record["asked_at"]: record["answer"] for record in records(result.stdout)[:-1]}


@pytest.mark.slow
def test_a_script_gets_what_a_fresh_run_would_say(clip: Path, expected: dict[float, str], tmp_path: Path):
    """Every way to a moment and back; then all that can be looked at, switched, written and loaded."""
    lines = f"""{LETTER}
/at 0:22 {LETTER}
/at 0:47 \\
{COLOUR}
{LETTER}
What was there at 0:24?
/set hints off
What was there at 0:24?
/seek 0:30
{LETTER}
/step
/stats
/save thirty
/play
{LETTER}
/at 0:22.5 {LETTER}
/strategy window
/strategy full
/strategy
/undo
/compare streaming window -- {LETTER}
/budget
/seek 0:20
/watch "{LETTER}"
/play 64x
/watch off
/frame 0:10
/stats layer 1
/stats layer 99
/history
/export srt
/export json said.json
/export md said.json
/budget 128
/load thirty.kvv
/show
/set temperature 0.5
/help seek
/help
/pause
/pley
/bye
never asked
"""
    result = chat(tmp_path, str(clip), *SETTINGS, "--checkpoint-every", "12s", lines=lines)
    assert "Traceback" not in result.stderr
    out, err = result.stdout, result.stderr
    answers = re.findall(r"^\[([\d:.]+)\] (.+)\n(?:\S+\n)?  (.*)$", out.replace("\\\n", ""), re.MULTILINE)
    letters = [(moment, answer) for moment, _, answer in answers]
    wanted = [("1:00", 60.0), ("0:22", 22.0), ("0:47", 47.0), ("1:00", 60.0), ("0:30", 30.0), ("1:00", 60.0)]
    wanted += [("0:22.5", 22.5)]
    letters = [letter for letter, (_, question, _) in zip(letters, answers, strict=True) if "0:24" not in question]
    assert letters[: len(wanted)] == [(moment, expected[time]) for moment, time in wanted]
    # Half a minute ago is forgotten, and it says so unless one does not want to know.
    assert out.count("of 0:24 is still held; '/at 0:24 …' asks with all that was seen by then") == 1
    # /at says what it cost, and the nearest memory is what it began from.
    assert re.search(r"^at 0:22: from the memory of 0:12, 2 chunks replayed in \d+\.\d s$", out, re.MULTILINE)
    assert re.search(r"^at 0:30: from the memory of 0:24, 1 chunk replayed", out, re.MULTILINE)
    assert re.search(r"^at 0:32$", out, re.MULTILINE)
    assert "budget 256" in out
    assert "window decides from here on" in out
    assert "'full' has no bound" in err
    assert "* window: " in out
    assert "streaming decides again" in out
    assert re.search(rf"^streaming: {expected[60.0]}  \(from the beginning, 15 chunks replayed", out, re.MULTILINE)
    assert re.search(r"^window: ", out, re.MULTILINE)
    assert "a compaction keeps 256 tokens, and comes when 512 are held" in out
    # What is watched is asked every ten seconds, and reported when the answer has changed.
    reports = re.findall(rf"^kvvideo: \[([\d:]+)\] {re.escape(LETTER)} (\S+)", err, re.MULTILINE)
    asked = [(format_time(time), expected[time]) for time in (30.0, 40.0, 50.0, 60.0)]
    changes = [one for before, one in zip([("", ""), *asked], asked, strict=False) if one[1] != before[1]]
    assert reports == changes
    assert f"not asked any more: {LETTER}" in out
    (picture,) = tmp_path.glob("minute-0-10*.png")
    with av.open(str(clip)) as container:
        frame = next(f for f in container.decode(video=0) if f.time > 10.0 - 1e-3)
    assert abs(np.asarray(Image.open(picture)).astype(int) - frame.to_ndarray(format="rgb24")).mean() < 2
    assert "layer: there is no 99" in err
    said = json.loads((tmp_path / "said.json").read_text())
    assert [record["answer"] for record in said] == [answer for _, _, answer in answers[: len(said)]]
    assert answers[len(said) :] == answers[: len(said)], "what /history shows"
    assert (tmp_path / "minute.chat.srt").read_text().count(" --> ") == len(said)
    assert "'said.json' is there already" in err
    assert "keeping 128 tokens: from the beginning, 15 chunks replayed" in out
    assert "loaded thirty.kvv: at 0:32" in out
    assert re.search(r"^model tiny; strategy streaming, 256 kept of 512", out, re.MULTILINE)
    assert "temperature = 0.5" in out
    assert len(re.findall(r"^/seek TIME +go to another moment", out, re.MULTILINE)) == 2
    assert re.search(r"^/at TIME question +ask as of", out, re.MULTILINE)
    assert "did you mean /play?" in err
    assert "never asked" not in out
    assert result.returncode == 2, "some lines were wrong"


@pytest.mark.slow
def test_a_saved_chat_goes_on_where_it_stopped(clip: Path, expected: dict[float, str], tmp_path: Path):
    """With its video, without it, and with one that only has its name."""
    first = chat(
        tmp_path, str(clip), *SETTINGS, "--paused", "--checkpoint-every", "8s", lines="/seek 0:22\n/save here\n"
    )
    assert first.returncode == 0, first.stderr
    with MemoryFile(tmp_path / "here.kvv") as file:
        assert file.times == [8.0, 16.0, 20.0]
    second = chat(
        tmp_path,
        "here.kvv",
        "--paused",
        "--checkpoint-every",
        "8s",
        lines=f"/at 0:10 {LETTER}\n/play\n{LETTER}\n/at 0:30 {LETTER}\n/save\n",
    )
    assert second.returncode == 0, second.stderr
    assert re.findall(r"^  (.*)$", second.stdout, re.MULTILINE) == [expected[t] for t in (10.0, 60.0, 30.0)]
    with MemoryFile(tmp_path / "here.kvv") as file:
        assert file.times == [8.0, 16.0, 20.0, 24.0, 32.0, 40.0, 48.0, 56.0, 60.0]
    clip.rename(clip.with_suffix(".away"))
    try:
        third = chat(tmp_path, "here.kvv", lines=f"{LETTER}\n/at 0:22 {LETTER}\n/frame\n/play\n/at 0:01 {LETTER}\n")
        clip.write_bytes(b"something else")
        fourth = chat(tmp_path, "here.kvv", lines="/play\n")
    finally:
        clip.with_suffix(".away").rename(clip)
    assert f"[1:00] {LETTER}\n  {expected[60.0]}\n" in third.stdout
    assert "at 0:20, the nearest to 0:22 there is: from the memory of 0:20, 0 chunks" in third.stdout
    assert "frames of the past are gone" in third.stderr
    assert "there is nothing after 1:00" in third.stderr
    assert "there is no memory of that moment or an earlier one, and the video is not at hand" in third.stderr
    assert "is not the video that the memory was made of" in fourth.stderr


@pytest.mark.slow
def test_what_is_said_is_remembered_on_request_and_can_be_taken_back(
    clip: Path, expected: dict[float, str], tmp_path: Path
):
    lines = f"/seek 0:30\n/stats\n{LETTER}\n/stats\n/undo\n/stats\n{LETTER}\n/export json\n/undo\n/undo\n"
    result = chat(tmp_path, str(clip), *SETTINGS, "--remember", "--paused", lines=lines)
    seen = [int(n) for n in re.findall(r"seen (\d+)", result.stdout)]
    assert seen[1] > seen[0] == seen[2]
    assert re.findall(r"^  (.*)$", result.stdout, re.MULTILINE) == [expected[30.0]] * 2
    assert result.stdout.count(f"taken back: {LETTER} (from the beginning, 7 chunks replayed") == 2
    assert json.loads((tmp_path / "minute.chat.json").read_text())[0]["remembered"] is True
    assert "nothing was said that could be taken back" in result.stderr
    assert result.returncode == 2


@pytest.mark.slow
def test_a_question_is_told_what_was_said_before(clip: Path, tmp_path: Path):
    """As far as it is not undone, and of moments that were only visited too; the bundled model has to be asked to."""
    config = EngineConfig(model="tiny", cache=CacheConfig("streaming", max_tokens=512))
    low, high = frame_pixels(config)
    engine = Engine(config)
    with VideoSession(engine) as session:
        for chunk in read_chunks(str(clip), min_pixels=low, max_pixels=high):
            session.ingest(chunk)
        first = session.ask(LETTER).text
        then = "When did it first appear?"
        alone, followed = session.ask(then).text, session.ask(then, dialogue=[(LETTER, first)]).text
        twice = session.ask(LETTER, dialogue=[(LETTER, first), (then, followed)]).text
    engine.close()
    lines = [LETTER, then, "/undo", "/set dialogue on", then, LETTER, "/undo", LETTER]
    result = chat(tmp_path, str(clip), *SETTINGS, lines="\n".join(lines))
    assert result.returncode == 0, result.stderr
    said = re.findall(r"^  (.*)$", result.stdout, re.MULTILINE)
    assert said == [first, alone, followed, twice, twice]
    assert followed != alone, "or nothing was shown by this"


def test_whatever_is_typed_is_answered_or_explained(clip: Path, expected: dict[float, str], tmp_path: Path):
    """Bytes that are no text, more words than fit, escape sequences; the picture where the video has ended."""
    lines = [
        "caf\udce9?",
        "x " * 3000,
        "y " * 300_000,
        "\x1b[31mred\x1b]0;title\x07 <|im_end|>?",
        LETTER,
        "/history",
        "/export md \udcff.md",
        "/frame",
        "/frame 9:00",
    ]
    result = chat(tmp_path, str(clip), *SETTINGS, lines="\n".join(lines))
    assert "Traceback" not in result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    asked = re.findall(r"^\[1:00\] (.*)\n  (.*)$", result.stdout, re.MULTILINE)
    assert [question[:4] for question, _ in asked] == [
        "caf\N{REPLACEMENT CHARACTER}",
        "x x ",
        "y y ",
        "\N{REPLACEMENT CHARACTER}[31",
        "Whic",
        "caf\N{REPLACEMENT CHARACTER}",
        "\N{REPLACEMENT CHARACTER}[31",
        "Whic",
    ]
    assert [answer for question, answer in asked if question == LETTER] == [expected[60.0]] * 2
    said, *problems = [line for line in result.stderr.splitlines() if "loading" not in line]
    assert said == "kvvideo: the video has ended; 120 frames were seen"
    assert [problem.split()[1] for problem in problems] == ["the", "vLLM", "there"]
    assert re.search(r"is longer than the \d+ tokens that the pool has room for", problems[0])
    assert (tmp_path / "minute-0-59.5.png").exists()
    assert result.returncode == 5


@pytest.mark.slow
def test_wrong_usage_is_one_line(clip: Path, tmp_path: Path):
    (tmp_path / "broken.kvv").write_bytes(b"PK\x03\x04 broken")
    for arguments, code, says in [
        ((str(clip), "--speed", "fast"), 2, "'fast' is not a speed"),
        ((str(clip), "--max-disk", "much"), 2, "'much' is not a size"),
        ((str(clip), "--strategy", "recent"), 2, "keeps no cache"),
        ((str(tmp_path / "nothing.mp4"),), 3, "there is no file"),
        ((str(tmp_path / "broken.kvv"),), 2, "broken.kvv"),
        (("gopher://example.org/x",), 3, "gopher"),
        ((str(tmp_path / "broken.kvv"), "-s", "h2o", "--to", "9"), 2, "--strategy, --to: "),
        ((str(clip), "--video", "other.mp4"), 2, "is a video itself"),
    ]:
        result = chat(tmp_path, *arguments, "--model", "tiny", lines="hello\n")
        assert (result.returncode, result.stdout) == (code, ""), result.stderr
        lines = [line for line in result.stderr.splitlines() if "loading" not in line]
        assert len(lines) == 1, result.stderr
        assert says in lines[0]


LOADING = """
import time
from kvvideo.cli import main
from kvvideo.session import Engine

Engine.__init__ = lambda *_: time.sleep(600)
main()
"""
"""The command line, with a model that takes ten minutes to load."""


UNHURRIED = """
import time
from kvvideo.cli import main
from kvvideo.runs.playback import Playback
step = Playback.step
Playback.step = lambda self: (time.sleep(0.2), step(self))[1]
main()
"""
"""The command line, with a stream that takes its time."""


@pytest.fixture(scope="module")
def terminal(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """One chat for all that is done in a terminal, in this order."""
    directory = tmp_path_factory.mktemp("terminal")
    terminal = Terminal(directory, str(clip), *SETTINGS, "--paused", "--checkpoint-every", "8s")
    yield terminal
    assert terminal.leave() == 0
    assert not [*terminal.temporary.glob("kvvideo-*")]
    assert LETTER in (directory / "state" / "history").read_text()


@pytest.mark.slow
def test_the_prompt_moves_on_while_a_person_types(terminal: Terminal):
    terminal.expect(r"^ask anything about the video; /help lists .*, /exit leaves\n0:00/1:00 ‖ · 0/512 · 0 fr/s ›")
    terminal.enter("/play 2x")
    terminal.type("Which letter")
    terminal.expect(r"^0:(0[4-9]|1\d)/1:00 ▶ 2x · \d+/512 · \d+ fr/s › Which letter$")
    terminal.expect(r"^0:[2-5]\d/1:00 ▶ 2x · \d+/512 · [1-9]\d* fr/s › Which letter$")
    terminal.type("\x7f" * 12)


@pytest.mark.slow
def test_answers_come_at_the_moment_stood_at(terminal: Terminal, expected: dict[float, str]):
    terminal.enter("/seek 0:30")
    terminal.expect(r"^at 0:30: from the memory of \d:\d\d, \d chunks? replayed")
    terminal.expect(r"^0:30/1:00 .* ›$")
    terminal.enter(LETTER)
    terminal.expect(rf"› {re.escape(LETTER)}\n{expected[30.0]}$")


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_and_not_the_chat(terminal: Terminal):
    terminal.enter("/set max-answer-tokens 1500")
    terminal.expect(r"^max-answer-tokens = 1500")
    # The bundled model is brief, but for this: tokens without text, and no end of them.
    terminal.enter("What goes on and on?")
    terminal.expect(r"› What goes on and on\?\n")
    terminal.ctrl_c()
    terminal.expect(r"› What goes on and on\?\n(?:.*\n)*?… stopped\n0:30/1:00")
    terminal.enter("/set max-answer-tokens 20")
    terminal.expect(r"^max-answer-tokens = 20")


@pytest.mark.slow
def test_ctrl_c_stops_a_journey_and_returns(terminal: Terminal, expected: dict[float, str]):
    terminal.enter("/compare streaming window h2o tova snapkv distinct -- What?")
    terminal.expect(r"^streaming: ")
    terminal.ctrl_c()
    terminal.expect(r"^stopped$")
    terminal.enter(LETTER)
    terminal.expect(rf"› {re.escape(LETTER)}\n{expected[30.0]}\n0:30/1:00")


@pytest.mark.slow
def test_lines_are_edited(terminal: Terminal, expected: dict[float, str]):
    """Ctrl-C clears the line, Tab completes, Alt-Enter begins a new line, and lines of before come back."""
    terminal.type("half a line")
    terminal.expect("› half a line$")
    terminal.ctrl_c()
    terminal.expect(r"^0:30/1:00 .* ›$")
    terminal.type("/hist\t")
    terminal.expect(r"› /history$")
    terminal.enter("")
    terminal.expect(r"^\[0:30\] Which letter")
    terminal.type("/at 0:10\x1b\r")
    terminal.expect(r"^ +… *$")
    terminal.enter(LETTER)
    terminal.expect(r"^at 0:10: from the memory of 0:08")
    terminal.expect(rf"^at 0:10.*\n{expected[10.0]}$")
    terminal.type("\x1b[A\x1b[A\x1b[A")
    terminal.expect(r"› /history$")
    terminal.ctrl_c()


@pytest.mark.slow
def test_the_panel_stays_and_moves_on(terminal: Terminal, expected: dict[float, str]):
    terminal.enter("/dash")
    terminal.expect(r"^│ 0:30 / 1:00")
    terminal.expect(r"budget 256 · seen \d+ · evicted \d+")
    terminal.enter("/play max")
    terminal.expect(r"the video has ended; 120 frames were seen")
    terminal.expect(r"^│ 1:00 / 1:00")
    # In a window that is too low for both, what is typed comes first.
    terminal.resize(8, 60)
    terminal.type("Which")
    terminal.expect(r"(?s)\A((?!│).)*› Which\s*\Z")
    terminal.resize(40, 120)
    terminal.expect(r"^│ 1:00 / 1:00")
    terminal.ctrl_c()
    terminal.enter("/dash off")
    terminal.expect(r"(?s)\A((?!│).)*\Z")
    terminal.enter(LETTER)
    terminal.expect(rf"› {re.escape(LETTER)}\n{expected[60.0]}\n1:00/1:00")


@pytest.mark.slow
def test_a_narrow_window_has_a_prompt(terminal: Terminal):
    terminal.resize(40, 30)
    terminal.type("Which")
    terminal.expect(r"^1:00 ■ › Which$")
    terminal.resize(40, 12)
    terminal.expect(r"^› Which$")
    terminal.resize(40, 120)
    terminal.ctrl_c()
    terminal.expect(r"^1:00/1:00 ■ · \d+/512 · \d+ fr/s ›$")


@pytest.mark.slow
def test_ctrl_z_suspends_the_chat_and_fg_brings_it_back(clip: Path, tmp_path: Path):
    """With what was typed; and while there is no prompt."""
    script = "set -m; {}; echo suspended; read go; fg; echo once more; read go; fg"
    terminal = Terminal(tmp_path, str(clip), *SETTINGS, "--paused", shell=script)
    terminal.expect("^loading tiny …")
    terminal.type("\x1a")
    terminal.expect(r"suspended$")
    terminal.enter("")
    terminal.expect(r"^0:00/1:00 ‖ · .* ›$")
    terminal.type("/sho")
    terminal.expect(r" › /sho$")
    terminal.type("\x1a")
    terminal.expect(r"once more$")
    terminal.enter("")
    terminal.expect(r"^0:00/1:00 ‖ · .* › /sho$")
    terminal.enter("w")
    terminal.expect(r"^model tiny; strategy streaming")
    assert terminal.leave() == 0


@pytest.mark.slow
def test_ctrl_c_while_the_model_is_loaded_leaves_at_once(clip: Path, tmp_path: Path):
    terminal = Terminal(tmp_path, str(clip), *SETTINGS, program=LOADING)
    terminal.expect("^loading tiny …")
    assert [*terminal.temporary.glob("kvvideo-scratch-*")]
    terminal.ctrl_c()
    assert terminal.wait() == 130
    assert not [*terminal.temporary.glob("kvvideo-scratch-*")]


@pytest.mark.slow
def test_what_takes_long_says_so_and_typing_is_not_in_its_way(tmp_path: Path):
    """A later moment is reached through all frames between; what is typed meanwhile is for the next prompt."""
    video = SAMPLES / "letters-4m.mp4"
    terminal = Terminal(tmp_path, str(video), *SETTINGS, "--paused", program=UNHURRIED)
    terminal.expect(r"^… \d+ s; Ctrl-C leaves")
    terminal.expect(r"^0:00/4:00 ‖ .* ›$")
    assert "Ctrl-C leaves" not in terminal.look()
    terminal.enter("/seek 9:00")
    terminal.expect(r"^there is nothing at 9:00; it ends at 4:00$")
    terminal.enter("/seek 1:00")
    terminal.expect(r"^… at 0:\d\d, on the way to 1:00; Ctrl-C stops$", timeout=60)
    terminal.type("/history\x0c typed")
    terminal.expect(r"^… at 0:[345]\d, on the way to 1:00; Ctrl-C stops$", timeout=60)
    assert "typed" not in terminal.look()
    terminal.expect(r"^1:00/4:00 ‖ .* › /history typed$", timeout=60)
    assert "on the way" not in terminal.look()
    assert terminal.look().count("/4:00 ‖") == 1  # the screen was cleared by what was typed, and is drawn once
    terminal.type("\x15")
    terminal.enter("/seek 4:00")
    terminal.expect(r"^… at 1:[345]\d, on the way to 4:00; Ctrl-C stops$", timeout=60)
    terminal.ctrl_c()
    terminal.expect(r"^stopped\n1:\d\d/4:00 ‖ .* ›$", timeout=60)
    # What is loaded knows how long its video is.
    terminal.enter("/save here")
    terminal.expect(r"^wrote here\.kvv$", timeout=60)
    terminal.enter("/load here.kvv")
    terminal.expect(r"^loaded here\.kvv: at 1:\d\d\n1:\d\d/4:00 ‖ .* ›$", timeout=60)
    terminal.enter("/quit")
    assert terminal.wait() == 0
