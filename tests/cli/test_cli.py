"""The real command line, in processes of its own, on real clips with the bundled model."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import pexpect
import pytest

from kvvideo.__main__ import main
from kvvideo.tiny import samples, world
from tests.helpers.clips import truncated
from tests.helpers.commands import command, kvvideo, records, untimed

pytestmark = pytest.mark.usefixtures("no_looking_again")

ANALYZE = ("analyze", "--model", "tiny", "--max-tokens", "512", "--max-answer-tokens", "8")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "minute.mp4"
    samples.make(path, seed=77, minutes=1.0, density=0.5)
    return path


@pytest.mark.parametrize("words", [["--help"], ["strategies", "--help"], ["strategies"]], ids=" ".join)
def test_help_and_strategies_load_nothing_heavy(words: list[str]) -> None:
    code = (
        f"import sys\nfrom kvvideo.cli import main\nsys.argv = ['kvvideo', *{words}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'vllm', 'transformers', 'av', 'ray', 'jinja2'}\n"
        "print(sorted(heavy & {*sys.modules}), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ("analyze" if words == ["--help"] else "strategies" if words[1:] else "infinipot-v") in result.stdout
    assert result.stderr.strip() == "[]"


def test_the_version_is_printed() -> None:
    assert kvvideo("--version").stdout.startswith("kvvideo ")


@pytest.mark.slow
def test_what_vllm_logs_goes_to_stderr(clip: Path) -> None:
    result = kvvideo("-v", *ANALYZE, str(clip), "--to", "0:08", "-f", "jsonl", "-q", "What now?")
    assert [record["type"] for record in records(result.stdout)] == ["answer", "done"]
    assert "INFO" in result.stderr


def test_questions_are_answered_at_their_moments(clip: Path) -> None:
    """The main job: every record is complete, in order, and what is predicted is what happens."""
    result = kvvideo(
        *ANALYZE,
        str(clip),
        "-f",
        "jsonl",
        "-q",
        "@0:22 Which letter is on screen now?",
        "-q",
        "@0:47 What colour is the letter on screen now?",
        "-q",
        "Which letter is on screen now?",
    )
    assert result.returncode == 0, result.stderr
    *answers, done = records(result.stdout)
    shown = world.Clip(77, 15, density=0.5).slots
    assert [a["asked_at"] for a in answers] == [22.0, 47.0, 60.0]
    expected = [shown[5].letter or "none", shown[11].colour or "none", shown[14].letter or "none"]
    assert [a["answer"] for a in answers] == expected
    for answer in answers:
        cache = answer["cache"]
        assert cache["seen"] == cache["live"] + cache["evicted"]
        assert cache["live"] < cache["max_tokens"] == 512
        assert cache["budget"] == 256
        assert answer["held"][0][0] == 0.0
        assert answer["held"][-1][1] == pytest.approx(answer["asked_at"], abs=0.51)
        assert answer["finish_reason"] == "stop"
    assert done["type"] == "done"
    assert (done["status"], done["answers"], done["frames"], done["unasked"]) == ("complete", 3, 120, [])
    predicted = json.loads(kvvideo(*ANALYZE, str(clip), "--dry-run", "-f", "jsonl").stdout)
    assert predicted["tokens"] == done["cache"]["seen"]
    assert predicted["compactions"] == done["cache"]["compactions"] > 0
    assert predicted["frames"] == 120


@pytest.mark.slow
def test_text_output_with_every_and_a_part_of_the_video(clip: Path) -> None:
    result = kvvideo(
        *ANALYZE, str(clip), "--from", "0:12", "--to", "0:40", "--every", "10s", "-q", "Which letter is on screen now?"
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("[")]
    assert [line.partition("]")[0] for line in lines] == ["[0:22", "[0:32"]
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("-q", "hello", "--strategy", "psychic"), 2, "strategy: no 'psychic'; choose one of"),
        (("-q", "hello", "--budget", "9999"), 2, "budget: keeping 9999 tokens leaves nothing to evict"),
        (("-q", "hello", "--compare", "streaming,psychic"), 2, "strategy: no 'psychic'; choose one of"),
        (("-q", "hello", "--compare", "window,h2o,window"), 2, "compare: 'window' is there more than once"),
        (("-q", "hello", "--compare", "h2o", "-s", "window"), 2, "compare: it names the strategies itself"),
        (("-q", "@soon hello"), 2, "'soon' is not a time"),
        (("-q", "@10 hello", "--from", "20"), 2, "outside of what is read"),
        ((), 2, "nothing to ask"),
        (("-q", "hello", "--chunk", "1.3"), 2, "the model takes them in pairs"),
        (("-q", "hello", "--decoder", "magic"), 2, "decoder"),
        (("-q", "hello", "--model", "/nowhere/at/all"), 2, "there is no directory '/nowhere/at/all'"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(clip: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    result = kvvideo("analyze", "--model", "tiny", "--max-tokens", "512", str(clip), *arguments)
    assert result.returncode == code
    assert result.stdout == ""
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_videos_that_cannot_be_decoded_are_one_line_and_code_3(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    for name in ("empty.mp4", "text.mp4", "missing.mp4", "."):
        result = kvvideo(*ANALYZE, str(tmp_path / name), "-q", "hello")
        assert result.returncode == 3, name
        assert result.stdout == ""
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr


@pytest.mark.slow
def test_a_truncated_video_keeps_its_answers(clip: Path, tmp_path: Path) -> None:
    cut = truncated(clip, tmp_path)
    result = kvvideo(
        *ANALYZE,
        str(cut),
        "-f",
        "jsonl",
        "-q",
        "@0:09 Which letter is on screen now?",
        "-q",
        "Which letter is on screen now?",
        "-q",
        "@0:58 hello?",
    )
    assert result.returncode == 3, result.stderr
    first, last, done = records(result.stdout)
    shown = world.Clip(77, 15, density=0.5).slots
    assert (first["asked_at"], first["answer"]) == (9.0, shown[2].letter or "none")
    assert 12 < last["asked_at"] < 50
    assert done["status"] == "error"
    assert [q["question"] for q in done["unasked"]] == ["hello?"]
    assert done["error"] in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_ctrl_c_finishes_the_chunk_and_exits_130(tmp_path: Path) -> None:
    """The stream is long enough not to end by itself while the test watches for its first answer."""
    clip = tmp_path / "long.mp4"
    samples.make(clip, seed=3, minutes=8.0, fps=2)
    process = subprocess.Popen(
        command(*ANALYZE, str(clip), "-f", "jsonl", "-q", "@0:04 Which letter is on screen now?", "-q", "At the end?"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    (done,) = records(rest)
    assert first["type"] == "answer"
    assert done["status"] == "interrupted"
    assert [q["question"] for q in done["unasked"]] == ["At the end?"]
    assert 0 < done["end"] < 480
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("loading", "exiting", "seen", "code"),
    [
        ("pass", "pass", "", 0),
        ("press()", "pass", "pressed\n", 130),
        ("atexit.register(press)", "pass", "pressed\n", 130),
        ("pass", "atexit.register(press)", "pressed\ngone on\n", 0),
    ],
    ids=["not at all", "while it is loaded", "while it exits", "at the very end"],
)
def test_ctrl_c_before_and_after_the_command(loading: str, exiting: str, seen: str, code: int) -> None:
    """It ends at once, with the exit code of Ctrl-C; at the very end there is nothing left to end."""
    program = f"""
import atexit, signal, sys
from kvvideo.__main__ import main

def press():
    print("pressed", file=sys.stderr, flush=True)
    signal.raise_signal(signal.SIGINT)
    print("gone on", file=sys.stderr, flush=True)

class Loading:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            {loading}

sys.meta_path.insert(0, Loading())
{exiting}
main()
"""
    result = subprocess.run(
        [sys.executable, "-c", program, "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.stderr, result.returncode) == (seen, code)
    assert result.stdout.startswith("kvvideo ") == (loading != "press()")


def test_the_program_is_what_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="kvvideo")
    assert script.load() is main


COMPARED = ("streaming", "full", "h2o", "recent")


@pytest.mark.slow
def test_strategies_are_compared_as_if_each_had_run_alone(clip: Path) -> None:
    """The first has no side state, the second no bound, the third side state, the last a session of its own."""
    questions = ("-q", "@0:22 Which letter is on screen now?", "-q", "When did the letter A appear?")
    result = kvvideo(*ANALYZE, str(clip), "-f", "jsonl", "--compare", ",".join(COMPARED), *questions)
    assert result.returncode == 0, result.stderr
    found = records(result.stdout)
    assert [(r["type"], r["strategy"]) for r in found] == [
        (kind, name) for name in COMPARED for kind in ("answer", "answer", "done")
    ]
    for name in COMPARED:
        first, last, done = (r for r in found if r["strategy"] == name)
        assert (done["status"], done["answers"], done["frames"], done["chunks"]) == ("complete", 2, 120, 15)
        assert first["answer"] == (world.Clip(77, 15, density=0.5).slots[5].letter or "none")
        assert (last["held"][0][0] == 0.0) == (name != "recent")
        assert (last["cache"]["evicted"] == 0) == (name == "full")
        assert (done["cache"]["compactions"] > 0) == (name in ("streaming", "h2o"))
        if name not in ("h2o", "recent"):
            continue  # these two are furthest from what the engine was started with
        alone = kvvideo(*ANALYZE, str(clip), "-f", "jsonl", "--strategy", name, *questions)
        for one, other in zip(records(alone.stdout), (first, last, done), strict=True):
            # Side state kept ready for the others makes a block larger.
            one["cache"]["bytes"] = other["cache"]["bytes"]
            assert untimed([one]) == untimed([other])


@pytest.mark.slow
def test_a_comparison_as_text_shows_the_answers_side_by_side(clip: Path) -> None:
    result = kvvideo(
        *ANALYZE, str(clip), "--compare", "streaming, window", "-q", "What\x1b[2J now?", "-q", "@0:20 And?"
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["[0:20]", "streaming", "window", "[1:00]", "streaming", "window"]
    assert "\x1b" not in result.stdout
    assert result.stderr.startswith("streaming: 2 answers")
    assert "\nwindow: 2 answers" in result.stderr


@pytest.mark.slow
def test_a_comparison_that_is_interrupted_keeps_its_records(tmp_path: Path) -> None:
    """In files of each strategy, those that are written at the end too."""
    clip, first = tmp_path / "long.mp4", tmp_path / "streaming.jsonl"
    samples.make(clip, seed=3, minutes=8.0, fps=2)
    process = subprocess.Popen(
        command(
            *ANALYZE,
            str(clip),
            "-f",
            "jsonl,json",
            "-o",
            "{strategy}.{ext}",
            "--compare",
            "streaming,window",
            "-q",
            "@0:04 Now?",
            "-q",
            "Then?",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    while process.poll() is None and not (first.exists() and first.read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    found = [record for name in ("streaming", "window") for record in records((tmp_path / f"{name}.jsonl").read_text())]
    answer, *ends = found
    assert (answer["type"], answer["strategy"]) == ("answer", "streaming")
    assert [(r["type"], r["strategy"], r["status"], len(r["unasked"]), r["chunks"] > 0) for r in ends] == [
        ("done", "streaming", "interrupted", 1, True),
        ("done", "window", "interrupted", 2, False),
    ]
    assert json.loads((tmp_path / "streaming.json").read_text()) == found[:2]
    assert json.loads((tmp_path / "window.json").read_text()) == found[2:]
    assert output.splitlines() == ["[0:04] Now?", f"  streaming  {answer['answer'] or '(no answer)'}"]


@pytest.mark.slow
def test_a_comparison_over_a_damaged_video_goes_to_the_damage_with_each(clip: Path, tmp_path: Path) -> None:
    cut = truncated(clip, tmp_path)
    result = kvvideo(*ANALYZE, str(cut), "-f", "jsonl", "--compare", "streaming,window", "-q", "Now?")
    assert result.returncode == 3, result.stderr
    found = records(result.stdout)
    assert [(r["type"], r["strategy"]) for r in found] == [
        ("answer", "streaming"),
        ("done", "streaming"),
        ("answer", "window"),
        ("done", "window"),
    ]
    assert found[1]["status"] == found[3]["status"] == "error"
    assert found[1]["error"] == found[3]["error"]
    assert result.stderr.count(found[1]["error"]) == 1


def test_samples_are_jobs_with_answers(tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    for seed in ("1", "2"):
        result = kvvideo(
            "samples", "make", str(tmp_path / f"{seed}.mp4"), "--seed", seed, "--minutes", "0.5", "--truth", str(truth)
        )
        assert result.returncode == 0, result.stderr
    jobs = records(truth.read_text())
    assert [(job["id"], job["video"]) for job in jobs] == [("1", "1.mp4"), ("2", "2.mp4")]
    assert all({"t", "q", "answer"} == set(q) for job in jobs for q in job["questions"])


@pytest.mark.slow
def test_bench_stream_reports(tmp_path: Path) -> None:
    result = kvvideo("bench", "stream", "--model", "tiny", "-n", "30", "--max-tokens", "512", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["windows"][-1]["chunk"] == 30
    assert max(w["peak_live"] for w in report["windows"]) <= report["max_tokens"] == 512
    assert report["windows"][-1]["tokens"] > 1900
    assert report["time_ratio"] > 0


@pytest.mark.slow
def test_bench_start_says_where_the_time_goes() -> None:
    result = kvvideo("bench", "start", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert list(report["seconds"])[-1] == "first answer"
    assert report["total"] == pytest.approx(sum(report["seconds"].values()), abs=0.02)


def test_strategies_are_listed_with_their_source() -> None:
    result = kvvideo("strategies")
    assert result.returncode == 0
    for name in ("full", "streaming", "window", "2309.17453"):
        assert name in result.stdout


@pytest.mark.slow
def test_what_takes_long_says_so_on_a_terminal(clip: Path, tmp_path: Path) -> None:
    """Opening the video, loading the model and writing the file: each says how long it has taken."""
    arguments = command("ingest", "--model", "tiny", "--max-tokens", "512", str(clip), "-o", "a.kvv")
    terminal = pexpect.spawn(arguments[0], arguments[1:], cwd=str(tmp_path), encoding="utf-8", timeout=120)
    terminal.expect(r"opening .*clip\S* … \d s")
    terminal.expect(r"loading tiny … [1-9]\d* s")
    terminal.expect(r"writing a\.kvv … \d s")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    arguments = command("analyze", "--model", "tiny", str(clip), "--dry-run")
    terminal = pexpect.spawn(arguments[0], arguments[1:], cwd=str(tmp_path), encoding="utf-8", timeout=120)
    terminal.expect(r"looking at .*clip\S* … \d s")
    terminal.expect("positions")
    terminal.expect(pexpect.EOF)


NEVER_LOADED = """
from kvvideo.cli import main
from kvvideo.session import Engine

def load(*_):
    raise SystemExit("the model was loaded")

Engine.__init__ = load
main()
"""
"""The command line, with a model that nothing may load."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("analyze", "-q", "@99:00 What?"), "'@1:39:00 What?' is after the end: '{clip}' lasts 1:00"),
        (("analyze", "-q", "@1:01 What?", "--dry-run"), "'@1:01 What?' is after the end: '{clip}' lasts 1:00"),
        (("analyze", "-q", "What?", "--from", "5:00"), "there is nothing to see from 5:00 on in '{clip}', which lasts"),
        (("analyze", "--dry-run", "--from", "5:00"), "there is nothing to see from 5:00 on in '{clip}', which lasts"),
        (("ingest", "--from", "1:00", "-o", "a.kvv"), "there is nothing to see from 1:00 on in '{clip}', which lasts"),
    ],
)
def test_what_is_after_the_end_is_refused_before_the_model_is_loaded(
    clip: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NEVER_LOADED, *arguments, "--model", "tiny", str(clip)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("kvvideo: " + says.format(clip=clip))
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_what_was_not_asked_has_a_reason_and_an_exit_code(tmp_path: Path) -> None:
    """Nobody knows beforehand where a pipe ends."""
    samples.make(tmp_path / "clip.ts", seed=5, minutes=0.2)
    with (tmp_path / "clip.ts").open("rb") as video:
        done = subprocess.run(
            command("analyze", *ANALYZE[1:], "-", "-f", "jsonl", "-q", "What now?", "-q", "@5:00 And then?"),
            stdin=video,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1
    assert "kvvideo: not asked: And then? (at 5:00; what was read ends at 0:12)" in done.stderr
    assert [record["type"] for record in records(done.stdout)] == ["answer", "done"]


@pytest.mark.slow
def test_a_video_may_be_named_by_its_url_and_times_have_units(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "a video é.mp4").write_bytes(clip.read_bytes())
    asked = ("-q", "@ 0:20 What?", "-q", "@0h1m0s Now?", "--from", "0m12s", "--dry-run", "-f", "jsonl")
    url = (tmp_path / "a video é.mp4").as_uri()
    found = records(kvvideo("analyze", "--model", "tiny", url, *asked).stdout)
    assert [(one["chunks"], one["video"]) for one in found] == [(12, str(tmp_path / "a video é.mp4"))]
