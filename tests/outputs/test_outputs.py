"""Formats of answers: every one takes every text, loses nothing, and is what its readers expect."""

import csv
import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from kvvideo.chat.dialogue import Dialogue, Said
from kvvideo.cli.render import Answers, summary
from kvvideo.compression.schedule import Schedule
from kvvideo.errors import ConfigError, VideoError
from kvvideo.outputs import (
    FORMATS,
    Choice,
    Look,
    Outputs,
    Record,
    Samples,
    Stills,
    choose,
    clean,
    markdown,
    open_files,
    open_writer,
    plots,
    table,
)
from kvvideo.outputs.delivery import Delivery
from kvvideo.outputs.figures import count, short, size
from kvvideo.outputs.page import render
from kvvideo.outputs.paths import LONGEST, Names, check, output_path, output_paths, safe_name, stem_of
from kvvideo.outputs.samples import MOST
from kvvideo.outputs.stills import jpeg
from kvvideo.outputs.subtitles import as_srt, cues
from kvvideo.prompt import DESCRIBE, happened
from kvvideo.runs import records
from kvvideo.runs.agenda import Question
from kvvideo.runs.streaming import Asked
from kvvideo.session import Answer, Span
from kvvideo.times import parse_time
from kvvideo.tiny.samples import make
from kvvideo.types import CacheStats, Chunk
from kvvideo.video import Source, frame_at
from tests.helpers import ROOT
from tests.helpers.outputs import JOB, RECORD, check_page, demuxed

SCHEDULE = Schedule(256, 512)
STATS = CacheStats(seen=1500, live=400, evicted=1100, blocks=13, compactions=5, bytes=709_632)

HOSTILE = [
    "",
    " ",
    "\n\n",
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b2J",
    "a\x00b",
    "\u202egpj.exe",
    "\u2066x\u2069",
    "\ud800",
    "\udcff",
    "00:00:01,000 --> 00:00:02,000",
    "1\n\n2\n00:00:00,000 --> 00:00:09,000\nforged",
    "-->",
    "NOTE x\n\nSTYLE",
    "WEBVTT",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="x',
    "<!--",
    "]]>",
    "&lt;&amp;",
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    " =1",
    "＝1",
    '"a","b"',
    "a\r\nb",
    'x";=1',
    "# h",
    "- a",
    "1. a",
    "1) a",
    "a\n===",
    "a\n---",
    "| a |",
    "[a](http://x)",
    "![a](http://x)",
    "<http://x>",
    "`a`",
    "**a**",
    "\\",
    "a\\\nb",
    "~~~",
    "&copy;",
    "    code",
    "{\\an8}top",
    "<b>bold</b>",
    "\u2028",
    "\x85",
    "\ufeff",
    "שלום",
    "می‌خواهم",
    "👨‍👩‍👧",
    "x" * 20_000,
]
texts = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=40), st.lists(st.sampled_from(HOSTILE), max_size=3).map("".join)
)
moments = st.one_of(
    st.sampled_from([0.0, 0.001, 5.0, 5.0, 359_999.999, 360_000.0, 1e7]), st.floats(0, 1e6).map(lambda t: round(t, 3))
)


def answer(
    at: float, question: str = "What?", said: str = "That.", video: str = "a/film.mp4", **changes: Any
) -> Record:
    """A record as ``analyze`` makes it."""
    spans = (Span(0.0, at / 4, 0.5), Span(at / 4, at / 2, 0.0), Span(at / 2, at, 1.0))
    asked = Asked(Answer(question, said, (), (), "stop", 0.1, 0.25), at, STATS, spans)
    record = records.answer(asked, video=video, model="tiny", strategy="distinct", schedule=SCHEDULE)
    return record | changes


def done(
    answers: int = 1, status: str = "complete", error: str | None = None, end: float = 60.0, **changes: Any
) -> Record:
    unasked = [Question("Later?", 90.0), Question("Last?")] if status != "complete" else []
    record = records.done(
        status,
        error,
        unasked,
        STATS,
        video="a/film.mp4",
        model="tiny",
        strategy="distinct",
        schedule=SCHEDULE,
        answers=answers,
        chunks=15,
        frames=120,
        start=0.0,
        end=end,
        waited=0.5,
        seconds=12.5,
    )
    return record | changes


@st.composite
def runs(draw: st.DrawFn) -> list[Record]:
    """The records of a run about hostile texts; some were interrupted, and have no last record at all."""
    said = draw(st.lists(st.tuples(moments, texts, texts, st.just("") | texts), min_size=1, max_size=8))
    video = draw(texts.filter(bool))
    found = [
        answer(at, asked, words, video, **records.system(told))
        for at, asked, words, told in sorted(said, key=lambda s: s[0])
    ]
    if draw(st.booleans()):
        status = draw(st.sampled_from(["complete", "interrupted", "error"]))
        end = found[-1]["asked_at"]
        found.append(done(len(found), status, draw(texts) if status == "error" else None, end, video=video))
    return found


@contextmanager
def written(name: str, run: Sequence[Record], **options: Any) -> Iterator[Path]:
    """The file of a format that ``run`` was written to."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / f"out.{FORMATS[name].extension}"
        writer = open_writer(name, path, **options)
        for record in run:
            writer.write(record)
        writer.close()
        yield path


def answers_of(run: Sequence[Record]) -> list[Record]:
    return [record for record in run if record["type"] == "answer"]


# All formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@given(run=runs())
@settings(max_examples=25, deadline=None)
def test_no_text_gets_a_control_character_or_an_override_into_a_file(name: str, run: list[Record]) -> None:
    with written(name, run) as path:
        data = path.read_bytes().decode()
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]", data)


@pytest.mark.parametrize("name", FORMATS)
def test_ordinary_texts_are_in_every_format(name: str) -> None:
    question, said = "Who is it, naïve 👩‍🚀 می‌خواهم?", "O'Neil says hello"
    with written(name, [answer(5.0, question, said), done()]) as path:
        data = path.read_text(encoding="utf-8").replace("&#39;", "'")
    assert question in data
    assert said in data


@pytest.mark.parametrize("name", FORMATS)
def test_equal_runs_give_equal_files(name: str) -> None:
    run = [answer(5.0), answer(9.0, said="x"), done(2)]
    with written(name, run) as first, written(name, run) as second:
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", FORMATS)
def test_stdout_gets_what_a_file_gets(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = [answer(5.0, "ä?", "=1\nx"), done()]
    writer = open_writer(name, None)
    for record in run:
        writer.write(record)
    writer.close()
    with written(name, run) as path:
        assert capsys.readouterr().out == path.read_bytes().decode()


def test_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="jsonl, json, csv, srt, vtt, md, html"):
        open_writer("pdf", None)
    with pytest.raises(ConfigError, match="'pdf'"):
        open_files("x.{ext}", ["json", "pdf"], stem="a", strategies=["full"])


# Writing ----------------------------------------------------------------------------------------


def test_each_record_is_in_a_jsonl_file_as_soon_as_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    writer = open_writer("jsonl", path)
    assert not path.exists()
    for number, record in enumerate([answer(1.0), answer(2.0), done(2)], 1):
        writer.write(record)
        lines = path.read_text().splitlines()
        assert len(lines) == number
        assert json.loads(lines[-1]) == record
    writer.close()
    writer.close()


def test_each_answer_is_in_a_csv_file_as_soon_as_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    writer = open_writer("csv", path)
    writer.write(answer(1.0))
    assert path.read_text().count("\n") == 2
    writer.write(done())
    writer.close()
    assert path.read_text().count("\n") == 2


@pytest.mark.parametrize("name", ["json", "srt", "vtt", "md", "html"])
def test_others_appear_whole_when_closed_and_leave_nothing_else(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("earlier")
    writer = open_writer(name, path, force=True)
    writer.write(answer(1.0, said="half a run"))
    assert path.read_text() == "earlier"
    writer.close()
    assert "half a run" in path.read_text()
    assert os.listdir(tmp_path) == ["out"]
    path.unlink()
    writer.close()
    assert not path.exists()


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_that_gave_nothing_replaces_nothing(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("earlier")
    open_writer(name, path, force=True).close()
    assert path.read_text() == "earlier"


@pytest.mark.parametrize("name", FORMATS)
def test_force_replaces_all_that_was_there(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("earlier" * 10_000)
    writer = open_writer(name, path, force=True)
    writer.write(answer(1.0))
    writer.close()
    assert "earlier" not in path.read_text()


@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_without_force_a_file_that_came_meanwhile_stays(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    writer = open_writer(name, path)
    path.write_text("other")
    for act in (lambda: writer.write(answer(1.0)), writer.close):
        with pytest.raises(ConfigError, match="exists"):
            act()
    assert path.read_text() == "other"


def test_a_full_disk_leaves_whole_records_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    writer = open_writer("jsonl", path)
    writer.write(answer(1.0))
    before, real = path.read_bytes(), os.write
    room = [40]

    def write(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        some, room[0] = room[0], 0
        return real(descriptor, data[:some])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(ConfigError, match="No space left on device") as raised:
        writer.write(answer(2.0))
    monkeypatch.undo()
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == before
    # Nothing is missing once there is room again.
    writer.write(answer(3.0))
    writer.close()
    assert [json.loads(line)["asked_at"] for line in path.read_text().splitlines()] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_what_a_full_disk_kept_from_being_written_is_missed_at_the_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or written then, if there is room by that time; even if not even the file could be made."""

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = open_writer(name, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        for act in (lambda: writer.write(answer(1.0)), lambda: writer.write(answer(2.0)), writer.close):
            with pytest.raises(ConfigError, match="No space left"):
                act()
    assert os.listdir(tmp_path) == []
    writer.close()
    with written(name, [answer(1.0), answer(2.0)]) as whole:
        assert (tmp_path / "out").read_bytes() == whole.read_bytes()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_a_device_without_room_is_a_usage_error(name: str) -> None:
    writer = open_writer(name, Path("/dev/full"), force=True)
    with pytest.raises(ConfigError, match="No space left"):
        writer.write(answer(1.0))


@pytest.mark.parametrize("name", FORMATS)
def test_a_place_that_cannot_be_written_to_is_a_usage_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    writer = open_writer(name, tmp_path / "file" / "out")
    with pytest.raises(ConfigError, match="cannot be written"):  # noqa: PT012
        writer.write(answer(1.0))
        writer.close()


def test_what_one_output_cannot_write_the_others_have(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    paths = [tmp_path / folder / f"out.{name}" for name in ("jsonl", "json") for folder in ("file", "")]
    said: list[str] = []
    outputs = Outputs([open_writer(path.suffix[1:], path) for path in paths], said.append, paths)
    outputs.write(answer(1.0))
    (line,) = said
    assert "out.jsonl' cannot be written: " in line
    outputs.write(answer(2.0))
    assert said == [line]
    with pytest.raises(ConfigError, match=r"out\.jsonl"):
        outputs.close()
    assert len(said) == 2
    assert "out.json' cannot be written: " in said[1]
    assert outputs.written == [paths[1], paths[3]]
    run = [answer(1.0), answer(2.0)]
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == run
    assert json.loads((tmp_path / "out.json").read_text()) == run


def test_several_formats_of_several_strategies_go_to_files_of_their_own(tmp_path: Path) -> None:
    opened = open_files(
        "{stem}.{strategy}.{ext}", [*FORMATS], stem="film", strategies=["h2o", "tova"], directory=tmp_path
    )
    for strategy, outputs in opened.items():
        with outputs:
            outputs.write(answer(1.0, strategy=strategy))
            outputs.write(done(strategy=strategy))
    assert sorted(os.listdir(tmp_path)) == sorted(
        f"film.{s}.{f.extension}" for s in ("h2o", "tova") for f in FORMATS.values()
    )
    for strategy in ("h2o", "tova"):
        assert json.loads((tmp_path / f"film.{strategy}.json").read_text())[0]["strategy"] == strategy


def test_outputs_are_closed_when_a_run_fails(tmp_path: Path) -> None:
    def run() -> None:
        with open_files("{stem}.{ext}", ["md"], stem="a", strategies=["full"], directory=tmp_path)["full"] as outputs:
            outputs.write(answer(1.0))
            raise VideoError("broken")

    with pytest.raises(VideoError):
        run()
    assert "That." in (tmp_path / "a.md").read_text()


def test_nothing_is_opened_if_one_of_the_files_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.srt").touch()
    with pytest.raises(ConfigError, match=r"a\.srt' is there already.*--force"):
        open_files("a.{ext}", ["json", "srt"], stem="x", strategies=["full"], directory=tmp_path)
    assert open_files("a.{ext}", ["json", "srt"], stem="x", strategies=["full"], directory=tmp_path, force=True)


@given(runs(), st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_a_run_that_goes_on_ends_in_the_file_of_an_undisturbed_one(
    name: str, run: list[Record], data: st.DataObject
) -> None:
    """Wherever the first part was cut off, and whatever it wrote last; what of it is right is not written again."""
    with written(name, run) as whole, TemporaryDirectory() as directory:
        expected, path = whole.read_bytes(), Path(directory) / "out"
        cut = data.draw(st.integers(0, len(expected)))
        path.write_bytes(expected[:cut] + data.draw(st.sampled_from([b"", b"x", b'{"type": "done"}\n' * 9])))
        writer = open_writer(name, path, resume=True)
        for count, record in enumerate(run, 1):
            writer.write(record)
            with written(name, run[:count]) as part:
                # At no time is less there than there was.
                assert path.read_bytes().startswith((part.read_bytes(), expected[:cut]))
        writer.close()
        assert path.read_bytes() == expected


def test_files_of_the_same_run_are_gone_on_with_and_others_are_not(tmp_path: Path) -> None:
    def opened(own: set[str]) -> Outputs:
        return open_files("a.{ext}", ["jsonl", "md"], stem="x", strategies=["h2o"], directory=tmp_path, own=own)["h2o"]

    with opened(set()) as outputs:
        outputs.write(answer(1.0))
        paths = {str(path) for path in outputs.paths}
    with pytest.raises(ConfigError, match=r"a\.md' is there already"):
        opened({str(tmp_path / "a.jsonl")})
    with opened(paths) as outputs:
        outputs.write(answer(1.0))
        outputs.write(answer(2.0))
    assert [json.loads(line)["asked_at"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [1.0, 2.0]
    assert "0:02" in (tmp_path / "a.md").read_text()


# What goes where --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formats", "output", "strategies", "expected"),
    [
        ([], None, 1, Choice()),
        (["text"], None, 2, Choice()),
        (["jsonl"], None, 1, Choice("jsonl")),
        (["srt"], None, 1, Choice("srt")),
        (["html"], None, 1, Choice(files=("html",))),
        (["html"], "-", 1, Choice("html")),
        (["srt", "html"], None, 1, Choice(files=("srt", "html"))),
        ([" SRT ,html", "srt"], None, 1, Choice(files=("srt", "html"))),
        (["text,srt"], None, 1, Choice(files=("srt",))),
        (["jsonl"], "out.txt", 1, Choice(files=("jsonl",), template="out.txt")),
        ([], "a.b/out.HTML", 1, Choice(files=("html",), template="a.b/out.HTML")),
        ([], "-", 1, Choice()),
        # What cannot hold several strategies goes to a file for each.
        (["csv"], None, 2, Choice("csv")),
        (["json"], "-", 2, Choice("json")),
        (["vtt"], None, 2, Choice(files=("vtt",))),
    ],
)
def test_answers_go_where_a_person_expects_them(
    formats: list[str], output: str | None, strategies: int, expected: Choice
) -> None:
    assert choose(formats, output, strategies) == expected


@pytest.mark.parametrize(
    ("formats", "output", "strategies", "message"),
    [
        (["pdf"], None, 1, "format: no 'pdf'; choose of text, jsonl, json, csv, srt, vtt, md, html"),
        (["srt,"], None, 1, "format: no ''"),
        (["srt,csv"], "-", 1, "takes one format, not srt and csv"),
        (["srt"], "-", 2, "srt cannot hold several strategies"),
        (["text"], "out.txt", 1, "text goes to standard output"),
        ([], "out.txt", 1, "'out.txt' does not end in a format; name one with -f: jsonl, json"),
        ([], "{stem}.{ext}", 1, "does not end in a format"),
    ],
)
def test_what_cannot_go_there_is_said(formats: list[str], output: str | None, strategies: int, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        choose(formats, output, strategies)


def delivery(choice: Choice, said: list[str], **options: Any) -> Delivery:
    return Delivery(
        choice, Answers(len(options.setdefault("strategies", ["h2o"])) > 1), stem="film", say=said.append, **options
    )


@pytest.mark.parametrize("name", ["jsonl", "json", "csv"])
def test_one_output_can_hold_several_strategies(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = [record | {"strategy": strategy} for strategy in ("h2o", "tova") for record in (answer(1.0), done())]
    with delivery(Choice(name), [], strategies=["h2o", "tova"]) as records:
        for record in run:
            records.write(record)
    with written(name, run) as path:
        assert capsys.readouterr().out == path.read_bytes().decode()
    assert os.listdir(tmp_path) == []


def test_text_is_on_stdout_while_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    strategies = ["h2o", "tova"]
    records = delivery(Choice(files=("srt", "json")), said, strategies=strategies)
    assert records.files == [str(tmp_path / f"film.{s}.{e}") for s in strategies for e in ("srt", "json")]
    for strategy in strategies:
        records.write(answer(1.0, strategy=strategy))
    assert records.close() is None
    assert capsys.readouterr().out == "[0:01] What?\n  h2o   That.\n  tova  That.\n"
    assert said == ["wrote film.h2o.srt, film.h2o.json, film.tova.srt, film.tova.json"]
    assert sorted(os.listdir(tmp_path)) == sorted(map(os.path.basename, records.files))


def test_what_tasks_say_is_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    text = Answers()
    for record in TASKED:
        text.write(record)
    text.close()
    assert capsys.readouterr().out == "[0:30 to 1:00] That.\n[1:00] That.\n[1:00] What?\n  That.\n"


TASKED = [
    answer(60.0, happened(30.0, 60.0), task="timeline", since=30.0),
    answer(60.0, DESCRIBE, task="caption"),
    answer(60.0),
]


def test_what_a_task_asks_is_not_repeated_in_reports_and_subtitles() -> None:
    page, text = check_page(render(TASKED)), markdown.render(TASKED)
    assert page.all("question") == ["0:30 to 1:00", "What?"]
    assert page.all("answer") == ["That."] * 3
    assert re.findall(r"^(?:\*\*|> ).*", text, re.MULTILINE)[1:] == [
        "**0:30 to 1:00**",
        "> That.",
        "> That.",
        "**What?**",
        "> That.",
    ]
    with written("srt", TASKED) as path:
        assert [cue.partition("\n")[2] for cue in re.split(r"(?:^|\n\n)\d+\n", path.read_text().rstrip())][1:] == [
            "That.",
            "That.",
            "What?\nThat.",
        ]
    with written("csv", TASKED) as path:
        rows = [*csv.DictReader(io.StringIO(path.read_bytes().decode(), newline=""))]
    assert [(row["task"], row["since"]) for row in rows] == [("timeline", "30.0"), ("caption", ""), ("", "")]


@given(st.integers(0, 3 * MOST))
@settings(max_examples=20, deadline=None)
def test_samples_are_evenly_apart_and_never_too_many(count: int) -> None:
    samples = Samples()
    for at in range(count):
        samples.add(float(at), {})
    times = [at for at, _ in samples]
    assert len(samples) == len(times) <= MOST
    apart = {after - at for at, after in pairwise(times)}
    assert len(apart) <= 1
    if count:
        assert times[0] == 0
        assert count - times[-1] <= max(apart, default=1.0)
        assert len(times) >= min(count, MOST // 2)


def test_each_picture_is_fetched_once_as_it_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    make(path, seed=5, minutes=0.2, fps=8)
    with closing(Stills(Source(str(path)))) as stills:
        first, same, last, never = (stills(at) for at in (3.0, 3.0, 12.0, 99.0))
        assert same is first
        assert never.result() is None
        for picture, at in ((first, 3.0), (last, 11.5)):
            found = np.asarray(Image.open(io.BytesIO(picture.result() or b"")).convert("RGB"), np.float32)
            _, shown = frame_at(path, at)
            assert found.shape == shown.shape
            assert np.abs(found - shown).mean() < 6
    large = np.zeros((1080, 1920, 3), np.uint8)
    assert Image.open(io.BytesIO(jpeg(large))).size == (640, 360)


def test_of_what_cannot_be_read_again_there_is_what_was_seen() -> None:
    def chunk(start: float) -> Chunk:
        times = tuple(start + i / 2 for i in range(8))
        frames = np.stack([np.full((28, 28, 3), int(4 * time), np.uint8) for time in times])
        return Chunk(frames, times, start, start + 4.0, 2.0)

    size = len(jpeg(np.zeros((28, 28, 3), np.uint8)))
    with closing(Stills(Source("-"), limit=3 * size)) as stills:
        asked = []
        for one in stills.watching([chunk(start) for start in (0.0, 4.0, 8.0)]):
            asked += [stills(one.start - 0.01), stills(one.start + 1.3), stills(one.start + 1.3)]
        pictures = [picture.result() for picture in asked]
    assert pictures[0] is None
    grey = [np.asarray(Image.open(io.BytesIO(picture))).mean() for picture in (pictures[1], pictures[3], pictures[4])]
    assert grey == pytest.approx([4 * 1.0, 4 * 3.5, 4 * 5.0], abs=2)
    # No more than there is room for.
    assert pictures[6:] == [None] * 3


@pytest.mark.parametrize(
    ("video", "stem"),
    [
        ("a/film.v2.mp4", "film.v2"),
        ("-", "stdin"),
        ("7", "camera-7"),
        ("rtsp://u:secret@cam.lan/live/one?x=1", "one"),
        ("udp://239.0.0.1:1234", "239.0.0.1"),
        ("http://x/y/z.m3u8", "z"),
        ("..", ".."),
    ],
)
def test_outputs_are_called_as_the_video(video: str, stem: str) -> None:
    assert stem_of(video) == stem


# JSON -------------------------------------------------------------------------------------------


@given(run=runs())
@settings(max_examples=40, deadline=None)
def test_json_says_the_same_as_the_records(run: list[Record]) -> None:
    with written("jsonl", run) as lines, written("json", run) as document:
        parsed = [json.loads(line) for line in lines.read_text(encoding="utf-8").split("\n")[:-1]]
        # Two halves of a character next to each other are one to whoever reads JSON.
        assert parsed == json.loads(document.read_text(encoding="utf-8")) == json.loads(json.dumps(run))


def test_an_answer_about_a_long_video_is_a_short_record() -> None:
    """Two hours of which something of every other chunk is held, of the later ones more."""
    spans = tuple(Span(4.0 * n, 4.0 * n + 4, n % 2 * n / 1800) for n in range(1800))
    asked = Asked(Answer("What?", "That.", (), (), "stop", 0.1, 0.25), 7200.0, STATS, spans)
    assert len(asked.held) == 900
    record = records.answer(asked, video="a.mp4", model="tiny", strategy="h2o", schedule=SCHEDULE)
    RECORD.validate(record)
    assert len(json.dumps(record)) < 2500
    # Nothing that is held is left out, and of the gaps only some are.
    assert len(record["held"]) == records.PARTS
    assert (record["held"][0][0], record["held"][-1][1]) == (4.0, 7200.0)
    assert all(any(start <= first and last <= end for start, end in record["held"]) for first, last in asked.held)
    shares = record["remembered"]["shares"]
    assert (record["remembered"]["start"], record["remembered"]["end"], len(shares)) == (0.0, 7200.0, records.PARTS)
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(1 / 256, rel=0.1)
    with written("json", [record]) as path:
        assert len(path.read_text()) < 2600


def test_of_two_hours_the_widest_gaps_stay() -> None:
    spans = (Span(0.0, 4.0, 0.1), Span(4.0, 90.0, 0.0), *(Span(90.0 + n, 91.0 + n, 1.0 - n % 2) for n in range(200)))
    asked = Asked(Answer("What?", "That.", (), (), "stop", 0.1, 0.25), 290.0, STATS, spans)
    record = records.answer(asked, video="a.mp4", model="tiny", strategy="h2o", schedule=SCHEDULE)
    assert record["held"][0] == [0.0, 4.0]
    assert len(record["held"]) == records.PARTS


# CSV --------------------------------------------------------------------------------------------


@given(run=runs())
@settings(max_examples=60, deadline=None)
def test_csv_has_one_row_an_answer_and_no_formula(run: list[Record]) -> None:
    with written("csv", run) as path:
        data = path.read_bytes().decode()
    rows = [*csv.reader(io.StringIO(data, newline=""), strict=True)]
    assert rows[0] == [*table.COLUMNS]
    assert len(rows) == 1 + len(answers_of(run))
    for row, record in zip(rows[1:], answers_of(run), strict=True):
        cells = dict(zip(table.COLUMNS, row, strict=True))
        assert float(cells["asked_at"]) == record["asked_at"]
        assert int(cells["bytes"]) == record["cache"]["bytes"]
        for name in ("video", "question", "answer"):
            assert not cells[name].strip().startswith(tuple("=+-@＝＋－＠"))
            assert cells[name].removeprefix("'") == clean.text(record[name]).removeprefix("'")
    # Outside of quotes, lines end as RFC 4180 has it.
    assert re.sub(r'"[^"]*"', "", data).count("\n") == re.sub(r'"[^"]*"', "", data).count("\r\n") == len(rows)


def test_csv_of_an_answer() -> None:
    record = answer(8.0, "Who?", "=cmd|'/C calc'!A0", cache=answer(8.0)["cache"] | {"budget": None, "max_tokens": None})
    assert table.row(record) == (
        '"a/film.mp4","tiny","distinct",8.0,8.0,"Who?","\'=cmd|\'/C calc\'!A0","stop","","",1500,400,1100,13,5,709632,'
        '"0-2 4-8",0.1,0.25,"",""\r\n'
    )
    assert table.row(done()) == ""


# Subtitles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "codec"), [("srt", "subrip"), ("vtt", "webvtt")])
@given(run=runs())
@settings(max_examples=60, deadline=None)
def test_ffmpeg_finds_each_answer_at_its_moment(name: str, codec: str, run: list[Record]) -> None:
    asked = answers_of(run)
    with written(name, run) as path:
        found, times = demuxed(path)
    assert found == codec
    assert len(times) == len(asked)
    last = next((round(record["end"] * 1000) for record in run if record["type"] == "done"), None)
    end = -1
    for (start, duration), record in zip(times, asked, strict=True):
        moment = round(record["asked_at"] * 1000)
        assert start == max(moment, end) or (moment == last and start < moment)
        assert start >= end
        assert duration >= 1000
        end = start + duration


def test_what_is_said_at_the_end_is_shown_before_it() -> None:
    """Players show nothing when the video is over."""

    def times(*said: tuple[float, str], end: float | None = 60.0) -> list[tuple[int, int]]:
        return [(cue.start, cue.end) for cue in cues([(at, "", text) for at, text in said], end)]

    assert times((20.0, "a"), (60.0, "b")) == [(20_000, 23_000), (57_000, 60_000)]
    assert times((60.0, "a"), (60.0, "b" * 90)) == [(51_000, 54_000), (54_000, 60_000)]
    # The one before keeps half of the time between.
    assert times((57.0, "a" * 90), (60.0, "b" * 90)) == [(57_000, 58_500), (58_500, 60_000)]
    assert times((57.0, "a"), (60.0, "b"), end=None) == [(57_000, 60_000), (60_000, 63_000)]
    assert times((57.0, "a"), (60.0, "b"), end=70.0) == [(57_000, 60_000), (60_000, 63_000)]
    assert times((0.0, "a"), end=0.0) == [(0, 1000)]


def test_what_happened_in_a_stretch_is_shown_all_along_it() -> None:
    run = [
        answer(30.0, happened(0.0, 30.0), "One", task="timeline", since=0.0),
        answer(40.0, "What?", "Two"),
        answer(60.0, happened(30.0, 60.0), "Three", task="timeline", since=30.0),
        done(3),
    ]
    with written("srt", run) as path:
        assert re.findall(r"(.*) --> (.*)\n(.*)", path.read_text()) == [
            ("00:00:00,000", "00:00:30,000", "One"),
            ("00:00:30,000", "00:00:40,000", "Three"),
            ("00:00:40,000", "00:00:43,000", "What?"),
        ]


@pytest.mark.parametrize("name", ["srt", "vtt"])
def test_ffmpeg_shows_what_was_said(name: str) -> None:
    run = [answer(3.0, "a & b?", "10 --> 2, 5 < 6 &amp; &lt;b>x"), answer(360_001.0, "", "")]
    with written(name, run) as path, av.open(str(path)) as container:
        packets = [packet for packet in container.demux(subtitles=0) if packet.size]
        shown = [subtitle.dialogue.decode() for packet in packets for subtitle in packet.decode()]
    if name == "srt":
        assert shown == ["a & b?\n10 --› 2, 5 ‹ 6 &amp; &lt;b›x", "(no answer)"]
    else:
        assert shown == ["a & b?\n10 --> 2, 5 < 6 &amp; &lt;b>x", "(no answer)"]


def test_subtitles_as_they_are_in_the_file() -> None:
    run = [answer(1.5, "Who?", "<b>Ann & {x}\n\nBob"), answer(360_000.25, "Now?", "no"), done(2, end=400_000.0)]
    with written("srt", run) as srt, written("vtt", run) as vtt:
        assert srt.read_text() == (
            "1\n00:00:01,500 --> 00:00:04,500\nWho?\n‹b›Ann & (x) Bob\n\n"
            "2\n100:00:00,250 --> 100:00:03,250\nNow?\nno\n\n"
        )
        assert vtt.read_text() == (
            "WEBVTT\n\n1\n00:00:01.500 --> 00:00:04.500\nWho?\n&lt;b&gt;Ann &amp; {x} Bob\n\n"
            "2\n100:00:00.250 --> 100:00:03.250\nNow?\nno\n\n"
        )


@given(st.lists(st.tuples(st.floats(0, 1e6), *[st.text(st.characters(codec="ascii", categories=["L", "P"]))] * 2)))
def test_subtitles_are_those_of_a_dialogue(said: list[tuple[float, str, str]]) -> None:
    dialogue = Dialogue()
    for at, asked, words in said:
        dialogue.add(Said(at, asked, words))
    assert as_srt(cues(said)) == dialogue.export("srt", "")


# Markdown ---------------------------------------------------------------------------------------


@given(run=runs())
@settings(max_examples=80, deadline=None)
@example(run=[answer(1.0, text, text, text or "x") for text in HOSTILE])
def test_nothing_that_is_said_is_markup_in_markdown(run: list[Record]) -> None:
    plain = [record | dict.fromkeys(("video", "question", "answer"), "x") for record in run]

    def kinds(run: list[Record]) -> set[str]:
        tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown.render(run))
        return {t.type for t in tokens} | {c.type for t in tokens for c in t.children or ()}

    assert kinds(run) <= kinds(plain) | {"text", "text_special", "hardbreak", "softbreak"}


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.strip()], ids=lambda text: ascii(text[:30]))
def test_markdown_shows_each_text_as_it_is(text: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown.render([answer(1.0, text, text, "a/" + text)]))
    shown = ["".join(c.content for c in t.children or () if "text" in c.type) for t in tokens]
    strong = clean.line(text)
    assert shown.count(strong) >= 1 + (len(clean.lines(text)) == 1)
    assert shown[shown.index("Video") + 3] == clean.line("a/" + text)


def test_answers_are_in_the_order_of_their_moments() -> None:
    run = [answer(9.0), answer(5.0), answer(9.0, "again")]
    assert re.findall(r"^## (.*)", markdown.render(run), re.MULTILINE) == ["0:05", "0:09"]
    assert [text for name, text in check_page(render(run)).texts if name == "a"] == ["0:05", "0:09", "", ""]


def test_markdown_renders_to_what_was_said() -> None:
    said = "* one\n# two\n\n1. <b>three</b> & [x](y)"
    text = markdown.render([answer(90.0, "Is 1 < 2 | `3`?", said), done(end=90.0)])
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert "<h2>1:30</h2>" in html
    assert "<strong>Is 1 &lt; 2 | `3`?</strong>" in html
    quoted = html.split("<blockquote>")[1].split("</blockquote>")[0]
    assert quoted == "\n<p>* one<br />\n# two</p>\n<p>1. &lt;b&gt;three&lt;/b&gt; &amp; [x](y)</p>\n"
    assert "<td>512 tokens, compacted to 256</td>" in html
    assert "Then 400 of the 1,500 tokens seen were held: 27\xa0%, 709.6\xa0kB; at most 512 are." in html


# HTML -------------------------------------------------------------------------------------------


@given(run=runs(), samples=st.lists(st.tuples(moments, st.just(answer(1.0)["cache"])), max_size=5))
@settings(max_examples=60, deadline=None)
@example(run=[answer(5.0, text, text, text or "x") for text in HOSTILE], samples=[])
def test_the_page_is_sound_and_says_what_was_said(run: list[Record], samples: list[tuple[float, Any]]) -> None:
    page = check_page(render(run, {(5.0,): b"\xff\xd8</script>"}, samples))
    said = answers_of(run)
    words = [text for name, text in page.texts if name in ("answer", "answer none")]
    assert words == ["\n".join(clean.lines(record["answer"])) or "no answer" for record in said]
    assert page.all("question") == [clean.line(record["question"]) or "(no question)" for record in said]
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == any(record["asked_at"] == 5.0 for record in said)
    assert len(page.all("area")) == 3


def test_the_page_tells_of_the_run() -> None:
    run = [
        answer(30.0),
        answer(60.0, said="B", finish_reason="length", answered_at=48.0),
        done(2, "error", "bad <frame>"),
    ]
    text = render(run)
    page = check_page(text)
    assert page.all("h1") == ["film.mp4"]
    assert page.all("path") == ["a/film.mp4"]
    assert page.all("notice") == ["Ended early, at 1:00: bad <frame>"]
    facts = dict(zip(page.all("dt"), page.all("dd"), strict=True))
    assert facts == {
        "Watched": "0:00 to 1:00",
        "Model": "tiny",
        "Strategy": "distinct",
        "Cache bound": "512 tokens, compacted to 256",
        "Cache at the end": "400 tokens, 709.6\xa0kB",
        "Answers": "2, median 0.2\xa0s",
        "Frames": "120 in 15 chunks",
        "Took": "12.5\xa0s",
    }
    assert page.all("note") == [
        "cut here; --max-answer-tokens allows longer answers; answered from what was held at 0:48",
        "At 1:00 400 of the 1,500 tokens seen were held: 27\xa0%.",
    ]
    # Answers come first.
    assert page.all("brief") == ["2 answers about 0:00 to 1:00, by tiny"]
    assert page.all("h2") == [
        "Answers",
        "Not asked",
        "What is remembered of the video",
        "The cache while it watched",
        "The run",
    ]
    assert page.all("summary") == ["400 of the 1,500 tokens seen were held: 27\xa0%"] * 2
    assert "Later?" in text
    assert "at the end" in text


def test_what_was_told_before_is_said_once_or_of_each_answer_where_it_differs() -> None:
    def shown(*told: str) -> tuple[list[str], list[str], str]:
        run = [answer(30.0 + n, **records.system(words)) for n, words in enumerate(told)]
        page = check_page(render(run))
        facts = dict(zip(page.all("dt"), page.all("dd"), strict=True))
        found = [facts[name] for name in facts if name.startswith("Told")], page.all("note")[: len(told)]
        return *found, markdown.render(run)

    facts, notes, text = shown("Be brief.", "Be brief.")
    assert facts == ["Be brief."]
    assert not any("told" in note for note in notes)
    assert text.count("Be brief.") == 1
    assert "| Told before each question | Be brief. |" in text
    facts, notes, text = shown("Be <brief>.", "")
    assert facts == []
    assert notes[0] == "told before: Be <brief>."
    assert "told" not in notes[1]
    assert r"(told before: Be \<brief\>.)" in text
    assert shown("", "")[0] == []
    assert "told" not in "".join(shown("", "")[1] + [shown("", "")[2]])


def test_the_page_of_a_run_without_answers_or_bound() -> None:
    cache = done()["cache"] | {"budget": None, "max_tokens": None}
    page = check_page(render([done(0, "interrupted", cache=cache)]))
    assert "Nothing was answered." in page.all("none")
    assert "none: nothing is evicted" in page.all("dd")
    assert not page.all("bar")
    assert 'class="bound"' not in render([done(0, cache=cache)])
    assert 'class="bound"' in render([done(0)])
    check_page(render([done(0, "error", "out of memory", cache=None, end=0.0)]))


def test_a_long_page_has_contents_and_filters_and_a_short_one_has_none() -> None:
    def run(count: int) -> list[Record]:
        said = [["red", "red", "blue"][at % 3] for at in range(count)]
        return [answer(float(at), "Colour?" if at % 2 else "Shape?", said[at]) for at in range(count)]

    few, many = check_page(render(run(20))), check_page(render(run(21)))
    assert not few.all("panel contents")
    assert not any(tag == "input" for tag, _ in few.tags)
    assert "contents" not in few.all("style")[0]
    inputs = [attributes for tag, attributes in many.tags if tag == "input"]
    assert [one.get("id") for one in inputs] == [None, "q1", "q2", "changes"]
    assert many.all("label") == ["all questions", "", "", "only where the answer changes"]
    listed = [a.get("class") for tag, a in many.tags if tag == "li" and (a.get("class") or "")[:1] == "q"]
    assert [a["class"] for tag, a in many.tags if (a.get("class") or "")[:5] == "said "] == [
        f"said {classes}" for classes in listed
    ]
    # Red at 0:03 as at 0:01, and at 0:06 as at 0:04.
    assert listed[:8] == ["q1", "q2", "q1", "q2 same", "q1", "q2", "q1 same", "q2"]
    for number in (1, 2):
        assert f"main:has(#q{number}:checked)" in many.all("style")[0]


def test_questions_that_are_too_many_to_choose_from_are_only_listed() -> None:
    page = check_page(render([answer(float(at), f"Question {at}?", "yes") for at in range(30)]))
    assert not any(tag == "input" for tag, _ in page.tags)
    assert [text for name, text in page.texts if name == "span" and "?" in text] == [
        f"Question {n}?" for n in range(30)
    ]


def test_times_seek_a_player_beside_the_answers() -> None:
    run = [answer(5.0), answer(90.5, looked_at=[{"start": 12.0, "end": 16.5, "score": 0.5}]), done(2, end=120.0)]
    page = check_page(render(run, {(5.0,): b"jpeg"}, video="a%20film.mp4"), "a%20film.mp4")
    links = [attributes["href"] for _, attributes in page.tags if attributes.get("class") == "seek"]
    assert links == [f"a%20film.mp4#t={part}" for part in ("5.0", "5.0", "90.5", "12.0,16.5")]
    assert [a.get("src") for tag, a in page.tags if tag == "video"] == ["a%20film.mp4"]
    # Without one there is neither.
    assert "<script" not in render(run)


@pytest.mark.parametrize(
    ("video", "page", "address"),
    [
        ("films/a b.mp4", "out/report.html", "../films/a%20b.mp4"),
        ("films/a b.mp4", "films/report.html", "a%20b.mp4"),
        ("films/a b.mp4", None, "films/a%20b.mp4"),
        ("films/12:30 50%.mp4", "films/x.html", "12%3A30%2050%25.mp4"),
        ("https://example.org/a b.mp4?x=%20&y", "out/report.html", "https://example.org/a%20b.mp4?x=%20&y"),
    ],
)
def test_a_player_finds_the_video_from_where_the_report_is(
    video: str, page: str | None, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Look(video=video).href(None if page is None else Path(page)) == address


@pytest.mark.parametrize("video", ["-", "7", "rtsp://camera/live", "https://x/live.m3u8", "https://u:secret@x/a.mp4"])
def test_no_player_shows_what_cannot_be_played_again(video: str) -> None:
    with pytest.raises(ConfigError, match=r"^video-link: ") as raised:
        Look(video=video)
    assert "secret" not in str(raised.value)
    with pytest.raises(ConfigError, match="pictures: no 'some'; choose one of auto, all, none"):
        Look("some")


def test_a_password_is_in_no_report() -> None:
    run = [answer(1.0, video="rtsp://user:secret@camera/live")]
    for text in (render(run), markdown.render(run)):
        assert "secret" not in text
        assert "camera" in text


def test_a_page_has_the_frame_of_each_moment(tmp_path: Path) -> None:
    asked: dict[float, Future[bytes | None]] = {}

    def frame(at: float, end: float | None = None) -> Future[bytes | None]:
        assert at not in asked
        assert end is None
        return asked.setdefault(at, Future())

    path = tmp_path / "out.html"
    writer = open_writer("html", path, frame=frame)
    for at in (1.0, 1.0, 2.0, 3.0, 4.0):
        writer.write(answer(at))
    # Asked as answers come: later the video may be gone.
    assert [*asked] == [1.0, 2.0, 3.0, 4.0]
    writer.write(done(6))
    asked[1.0].set_result(b"jpeg")
    asked[2.0].set_exception(OSError("gone"))
    asked[3.0].set_result(None)
    asked[4.0].set_result(b"jpeg")
    writer.close()
    page = check_page(path.read_text())
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == ["The frame shown at 0:01", "The frame shown at 0:04"]


def sheet(name: str) -> str:
    return (ROOT / "kvvideo" / "outputs" / "templates" / f"{name}.css").read_text()


SHEET, OTHERS = sheet("report"), ("again", "contents", "player")
LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+): (#\w{6});", rules)) for rules in re.findall(r":root {(.*?)}", SHEET, re.S)[:2]
)
"""Colours by name, and the same where the reader prefers a dark screen."""


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_all_that_must_be_told_apart_has_contrast(colours: dict[str, str]) -> None:
    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(colours[one]), luminance(colours[other])))
        return (high + 0.05) / (low + 0.05)

    for text in ("ink", "muted", "held"):
        assert min(contrast(text, "card"), contrast(text, "page")) >= 4.5
    assert contrast("warn", "warn-page") >= 4.5
    # WCAG asks for 3 where it is not text.
    assert min(contrast("held", "seen"), contrast("mark", "card"), contrast("bound", "card")) >= 3
    assert LIGHT.keys() == DARK.keys()


def test_the_sheet_has_each_colour_it_uses() -> None:
    assert {*re.findall(r"var\(--([\w-]+)\)", SHEET)} - {"key"} == {*LIGHT}
    assert check_page(render([answer(1.0)])).all("style") == [SHEET]
    assert not {*re.findall(r"var\(--([\w-]+)\)", "".join(map(sheet, OTHERS)))} - {*LIGHT}


# Plots ------------------------------------------------------------------------------------------

stretches = st.lists(st.floats(0, 1000), max_size=20).map(
    lambda edges: [*zip(sorted(edges)[::2], sorted(edges)[1::2], [0.25, 1.0] * 5, strict=False)]
)


@given(stretches, st.floats(0, 400), st.floats(500, 1000), st.integers(1, 200))
def test_columns_cover_in_sum_what_is_held(
    held: list[tuple[float, float, float]], start: float, end: float, columns: int
) -> None:
    found = plots.shares(held, start, end, columns)
    inside = sum(share * max(0.0, min(last, end) - max(first, start)) for first, last, share in held)
    assert len(found) == columns
    assert all(0 <= share <= 1 for share in found)
    assert sum(found) * (end - start) / columns == pytest.approx(inside, abs=1e-6)


def test_a_bar_is_as_high_as_the_share_that_is_held_and_as_long_as_what_was_seen() -> None:
    assert plots.shares([(0.0, 2.5, 1.0), (9.0, 10.0, 0.5)], 0.0, 10.0, 5) == [1.0, 0.25, 0.0, 0.0, 0.25]
    bar = plots.heights({"start": 2.0, "end": 6.0, "shares": [0.5, 0.5, 0.001, 0.0]}, 0.0, 10.0, "a <b>")
    assert '<rect class="seen" x="200" width="400" height="100"/>' in bar
    # The least that is held can be seen, and nothing is nothing.
    assert '<path class="held" d="M200 100V50H400V96H500V100H600V100Z"/>' in bar
    assert 'aria-label="a &lt;b&gt;"' in bar


@given(st.floats(0, 1000), st.floats(0, 1000))
def test_the_shortest_stretch_is_seen_where_it_is(first: float, length: float) -> None:
    drawn = plots.spot(first, first + length, 0.0, 1000.0, "x")
    ((left, width),) = re.findall(r'class="held" x="([\d.]+)%" width="([\d.]+)%"', drawn)
    assert float(left) == pytest.approx(first / 10, abs=0.01)
    assert float(width) >= 0.25


@given(st.floats(0, 1e6), st.floats(1e-3, 1e8), st.integers(2, 10))
def test_ticks_are_few_and_lie_below_the_picture(start: float, length: float, most: int) -> None:
    places = [float(p) for p in re.findall(r"left:([\d.-]+)%", plots.ticks(start, start + length, most))]
    assert 1 <= len(places) <= most + 1
    assert all(-0.01 <= place <= 100.01 for place in places) or len(places) == 1


def test_ticks_are_round() -> None:
    assert re.findall(r">([\d:]+)<", plots.ticks(0.0, 7200.0, 9)) == [
        "0:00",
        "15:00",
        "30:00",
        "45:00",
        "1:00:00",
        "1:15:00",
        "1:30:00",
        "1:45:00",
        "2:00:00",
    ]
    assert re.findall(r">([\d:]+)<", plots.ticks(95.0, 200.0, 4)) == ["2:00", "3:00"]


points_of = st.lists(
    st.tuples(st.floats(0, 1000), st.floats(0, 1e9)), min_size=1, max_size=60, unique_by=lambda p: p[0]
)


@given(points_of.map(sorted), st.none() | st.floats(1, 1e9))
def test_a_plot_stays_within_its_axes(points: list[tuple[float, float]], bound: float | None) -> None:
    drawn = plots.plot(points, 0.0, 1000.0, "x", count, bound)
    for path in re.findall(r'class="(?:line|band|fill|bound)" d="M([^HZ"]*)', drawn):
        numbers = [float(n) for n in re.findall(r"[\d.]+", path)]
        xs, ys = numbers[::2], numbers[1::2]
        assert all(0 <= x <= 1000 for x in xs)
        assert all(0 <= y <= 100 for y in ys)


def test_a_plot_of_many_points_keeps_the_highest_and_the_lowest() -> None:
    points = [(t / 100, 50.0) for t in range(100_000)]
    points[777], points[55_555] = (7.77, 100.0), (555.55, 0.0)
    drawn = plots.plot(points, 0.0, 1000.0, "x", count)
    line, band = (re.findall(rf'class="{name}" d="M([^Z"]*)', drawn)[0] for name in ("line", "band"))
    assert "7.77 0 " in line
    assert "555.55 100 " in band
    assert len(drawn) < 20_000


def test_marks_are_dots_or_lines_and_never_too_many() -> None:
    few = plots.marks([(1.0, "a"), (1.0, "b"), (9.0, "c")], 0.0, 10.0)
    assert re.findall(r'href="#(\w)".*?cx="(\d+)%"', few) == [("a", "10"), ("c", "90")]
    many = plots.marks([(float(t), f"m{t}") for t in range(10_000)], 0.0, 10_000.0)
    assert "circle" not in many
    assert 100 < many.count("<line") <= plots.COLUMNS + 1


def test_numbers_as_people_read_them() -> None:
    assert [count(0), count(1234567)] == ["0", "1,234,567"]
    sizes = [size(n).replace("\xa0", " ") for n in (0, 999, 999.99, 1000, 709_632, 2e8, 1.5e9, 2.5e15)]
    assert sizes == ["0 B", "999 B", "1 kB", "1 kB", "709.6 kB", "200 MB", "1.5 GB", "2,500.0 TB"]
    times = [short(s).replace("\xa0", " ") for s in (0.04, 59.9, 59.99, 200.4, 3599.8, 400_000)]
    assert times == ["0.0 s", "59.9 s", "1 min 0 s", "3 min 20 s", "1 h 0 min", "111 h 6 min"]


# Paths ------------------------------------------------------------------------------------------

TEMPLATES = (
    "{stem}.{strategy}.{ext}",
    "out/{stem}.{ext}",
    "{strategy}/{stem}{ext}",
    ".{stem}",
    "{stem}",
    "../{stem}-{ext}",
)
NAMES = [
    "..",
    ".",
    "",
    "/",
    "\\",
    "../../etc/passwd",
    "/etc/passwd",
    "..\\x",
    "con",
    "NUL.txt",
    "com1",
    "-rf",
    "--",
    ".bashrc",
    "a\x1b[31mb",
    "a\nb",
    "a\0b",
    "\u202egpj.exe",
    "\udcff",
    "a" * 300,
    "ü" * 300,
    "{ext}",
    "%s",
    "$HOME",
    "~root",
    " x ",
    "a.",
    "C:x",
    "x.mp4",
]
names = st.sampled_from(NAMES) | st.text(max_size=60)


@given(names)
def test_a_safe_name_is_one_on_any_system(value: str) -> None:
    name = safe_name(value)
    assert name
    assert name.isprintable()
    assert not {*name} & {*'\\/:*?"<>|'}
    assert name[0] not in "-. "
    assert name[-1] not in ". "
    assert len(name.encode()) <= LONGEST
    assert name.split(".")[0].lower() not in ("con", "nul", "prn", "aux", "com1", "lpt9")
    assert safe_name(name) == name


def test_safe_names_stay_recognizable() -> None:
    plain = ["film", "Ein Film (2024) – Teil 2", "映画", "a.b.c", "_x", "x~1"]
    assert [safe_name(name) for name in plain] == plain
    assert safe_name("../../etc/passwd") == "_.._etc_passwd"
    assert safe_name("") == "_"
    assert safe_name("Con") == "_Con"
    assert len(safe_name("ü" * 100).encode()) == LONGEST - 1
    long = [safe_name("a" * 200 + end) for end in "xy"]
    assert long[0] != long[1]
    assert all(len(name) == LONGEST for name in long)


@given(st.sampled_from(TEMPLATES), names, names, st.sampled_from(["json", "..", "/x"]))
@settings(deadline=None)
def test_no_name_leads_out_of_the_directory(template: str, stem: str, strategy: str, ext: str) -> None:
    with TemporaryDirectory() as root:
        directory = Path(root) / "here"
        directory.mkdir()
        path = output_path(template, stem=stem, strategy=strategy, ext=ext, directory=directory)
        assert Path(os.path.realpath(path)).is_relative_to(
            os.path.realpath(directory / os.path.dirname(template.partition("{")[0]))
        )
        # It can be made, and is where it was said to be.
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        found = [p for p in Path(root).rglob("*") if p.is_file()]
        assert [os.path.realpath(p) for p in found] == [os.path.realpath(path)]
        assert len(path.relative_to(directory).parts) == len(Path(template).parts)


def test_the_path_that_a_template_names(tmp_path: Path) -> None:
    def path(template: str) -> Path:
        return output_path(template, stem="film", strategy="h2o", ext="srt", directory=tmp_path)

    assert path("{stem}.{strategy}.{ext}") == tmp_path / "film.h2o.srt"
    assert path("a/{strategy}/{{{stem}}}.{ext}") == tmp_path / "a" / "h2o" / "{film}.srt"
    assert path("x") == tmp_path / "x"
    assert path("/elsewhere/{ext}") == Path("/elsewhere/srt")


@pytest.mark.parametrize(
    "template",
    [
        "{video}",
        "{}",
        "{0}",
        "{stem",
        "stem}",
        "{stem!r}",
        "{stem:>9}",
        "{stem.__class__}",
        "{stem[0]}",
        "a\0b",
        "",
        ".",
        "..",
        "out/",
        "{stem}/",
        "{stem}/..",
        "{stem}/../x/..",
        "{stem}/../../x",
        "a/{stem}/../../{ext}",
    ],
)
def test_templates_that_name_no_file_or_lead_out_are_refused(template: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^output: ") as raised:
        output_path(template, stem="film", strategy="h2o", ext="srt", directory=tmp_path)
    assert "\n" not in str(raised.value)


def test_a_link_does_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "h2o").symlink_to("/tmp")
    (tmp_path / "out" / "film.srt").symlink_to("../film")
    for template in ("out/{strategy}/x", "out/{stem}.{ext}"):
        with pytest.raises(ConfigError, match="leads out of"):
            output_path(template, stem="film", strategy="h2o", ext="srt", directory=tmp_path)


@pytest.mark.parametrize(
    ("template", "outputs", "message"),
    [
        ("{stem}.{ext}", [("a", "h2o", "md"), ("a", "tova", "md")], "add {strategy} to"),
        ("{stem}.{strategy}", [("a", "h2o", "md"), ("a", "h2o", "srt")], "add {ext} to"),
        ("{strategy}.{ext}", [("a", "h2o", "md"), ("b", "h2o", "md")], "add {stem} to"),
        ("x", [("a", "h2o", "md"), ("b", "tova", "md")], "add {stem} or {strategy} to"),
        ("{stem}", [("a/b", "h2o", "md"), ("a:b", "h2o", "md")], "'a/b h2o md' and 'a:b h2o md' differ in nothing"),
        ("{stem}", [("a", "h2o", "md"), ("a", "h2o", "md")], "differ in nothing"),
    ],
)
def test_outputs_that_fall_together_say_which_field_is_missing(
    template: str, outputs: list[tuple[str, str, str]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        output_paths(template, [Names(*names) for names in outputs], tmp_path)
    everything = output_paths("{stem}.{strategy}.{ext}", [Names("a", "h2o", "md"), Names("b", "h2o", "md")], tmp_path)
    assert [path.name for path in everything] == ["a.h2o.md", "b.h2o.md"]


def test_what_is_there_is_replaced_only_when_forced(tmp_path: Path) -> None:
    there, film = tmp_path / "there.json", tmp_path / "film.mp4"
    there.touch()
    film.touch()
    check(tmp_path / "new.json", force=False)
    check(tmp_path / "new" / "er" / "x.json", force=False)
    check(there, force=True, inputs=[film, tmp_path / "missing"])
    refused: list[tuple[Path, bool, str]] = [
        (there, False, r"there\.json' is there already"),
        (tmp_path, True, "it is a directory"),
        (film, True, "the run reads it"),
        (there / "x" / "y", True, "cannot be written"),
        (there / "x", True, "cannot be written"),
        (Path(os.devnull), True, "it is no file; '-' is standard output"),
        (tmp_path / ("x" * 300), True, "File name too long"),
    ]
    for path, force, message in refused:
        with pytest.raises(ConfigError, match=message):
            check(path, force=force, inputs=[film])


def test_a_directory_that_is_closed_to_writing_is_found_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root, which tests may run as, may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(ConfigError, match="no directory that can be written to"):
        check(tmp_path / "x" / "y", force=False)


# Schemas ----------------------------------------------------------------------------------------


INGEST = records.ingest(
    "complete",
    None,
    STATS,
    video="a.mp4",
    output="a.kvv",
    model="tiny",
    strategy="full",
    schedule=None,
    chunks=1,
    frames=8,
    start=0.0,
    end=4.0,
    resumed_from=None,
    checkpoints=0,
    bytes=5,
    waited=0.5,
    seconds=0.1,
)
PREDICTION = {
    "type": "prediction",
    "schema": 1,
    "video": "a.mp4",
    "model": "tiny",
    "strategy": "full",
    "width": 224,
    "height": 140,
    "chunks": 2,
    "frames": 16,
    "tokens": 300,
    "compactions": 0,
    "peak_tokens": 300,
    "bytes": 9,
    "full_bytes": 9,
    "last_position": 40,
    "trained_positions": 2048,
}
SAID = [answer(5.0), done(), done(0, "error", "x", cache=None), INGEST, PREDICTION]
IDS = ["answer", "done", "failed", "ingest", "prediction"]
# A journal of an earlier version may lack them, and the documents do not promise them.
UNPROMISED = {
    "answer": {"task", "since", "remembered"},
    "done": {"video"},
    "ingest": {"schema"},
    "prediction": {"schema"},
}


@given(run=runs())
@settings(max_examples=40, deadline=None)
def test_all_records_are_as_the_schema_says(run: list[Record]) -> None:
    for record in run:
        RECORD.validate(record)


@pytest.mark.parametrize("record", SAID, ids=IDS)
def test_the_schema_asks_for_each_field_and_for_its_type(record: Record) -> None:
    RECORD.validate(record)
    RECORD.validate(record | {"some_later_field": 1})
    for name in record:
        lacking = {key: value for key, value in record.items() if key != name}
        assert RECORD.is_valid(lacking) == (name in UNPROMISED.get(record["type"], ()))
        assert not RECORD.is_valid(record | {name: ["no", {}]})
        assert not RECORD.is_valid(record | {name: -1})


@pytest.mark.parametrize("record", SAID, ids=IDS)
def test_the_document_names_each_field_of_the_schema(record: Record) -> None:
    document = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
    assert [name for name in record if name != "type" and f"`{name}`" not in document] == []


def test_parts_of_records_are_checked() -> None:
    record = answer(5.0)
    for name in record["cache"]:
        assert not RECORD.is_valid(record | {"cache": {k: v for k, v in record["cache"].items() if k != name}})
    for held in ([[0.0]], [[0.0, 1.0, 2.0]], [["0", "1"]], [0.0, 1.0]):
        assert not RECORD.is_valid(record | {"held": held})
    assert not RECORD.is_valid(done() | {"unasked": [{"question": "x"}]})
    assert not RECORD.is_valid(record | {"schema": 2})
    assert not RECORD.is_valid(record | {"type": "other"})


def test_the_bundled_jobs_are_as_the_schema_says() -> None:
    jobs = [json.loads(line) for line in (ROOT / "samples" / "jobs.jsonl").read_text().splitlines()]
    assert jobs
    for job in jobs:
        JOB.validate(job)


FULL_JOB: dict[str, Any] = {
    "id": "a1",
    "video": "x.mp4",
    "questions": [{"t": "10:30", "q": "Who?", "answer": "Ann"}, {"q": "Why?"}],
    "strategy": "h2o",
    "budget": 4096,
    "meta": {"any": [1]},
}


@pytest.mark.parametrize(
    "change",
    [
        {"id": 1},
        {"id": ""},
        {"video": None},
        {"questions": []},
        {"questions": ["Who?"]},
        {"questions": [{"t": "1:00"}]},
        {"questions": [{"q": " "}]},
        {"questions": [{"q": "x", "t": "1:99"}]},
        {"questions": [{"q": "x", "t": -5}]},
        {"questions": [{"q": "x", "at": "1:00"}]},
        {"budget": 0},
        {"budget": "1"},
        {"budget": 1.5},
        {"meta": []},
        {"buget": 1},
    ],
    ids=repr,
)
def test_wrong_jobs_are_not(change: dict[str, Any]) -> None:
    JOB.validate(FULL_JOB)
    assert not JOB.is_valid(FULL_JOB | change)


@pytest.mark.parametrize("name", ["id", "video", "questions"])
def test_jobs_lack_nothing(name: str) -> None:
    assert not JOB.is_valid({key: value for key, value in FULL_JOB.items() if key != name})


@given(st.from_regex(r"\A\s?[0-9]{0,3}:?[0-9]{1,3}:?[0-9]{0,2}(\.[0-9]*)?s?\s?\Z") | st.text(max_size=8))
@example("１:００")
@example("1:00\n")
@settings(max_examples=300)
def test_a_job_takes_the_times_that_people_write(text: str) -> None:
    def readable(parse: Callable[[str], float]) -> bool:
        try:
            parse(text)
        except ConfigError:
            return False
        return True

    assert JOB.is_valid(FULL_JOB | {"questions": [{"q": "x", "t": text}]}) == readable(parse_time)


def test_outputs_load_nothing_heavy() -> None:
    import subprocess

    heavy = "('torch', 'vllm', 'av', 'PIL', 'matplotlib', 'rich', 'numpy')"
    code = f"import sys, kvvideo.outputs; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_waiting_for_frames_is_told_of_where_it_is_much(capsys: pytest.CaptureFixture[str]) -> None:
    older = done()
    del older["waited_seconds"]
    for record in (done(), older, done(waited_seconds=1.2)):
        summary(record)
        assert "in 12.5 s; cache " in capsys.readouterr().err
    summary(done(waited_seconds=6.04))
    assert "in 12.5 s, 6.0 of them waiting for frames; cache " in capsys.readouterr().err
    summary(done(waited_seconds=0.6, seconds=0.8))
    assert "in 0.8 s; cache " in capsys.readouterr().err
