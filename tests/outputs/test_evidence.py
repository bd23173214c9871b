"""Stretches that answers looked at again stand in every output; of answers that looked at nothing, nothing is said."""

import io
import json
import re
from base64 import b64decode
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from kvvideo.cli.render import Answers
from kvvideo.outputs import FORMATS, Choice, Look, Record, Stills, evidence, markdown, open_writer, page, table
from kvvideo.outputs.delivery import Delivery
from kvvideo.outputs.page import render
from kvvideo.outputs.stills import Pictures, When, fitted, jpeg
from kvvideo.runs import records
from kvvideo.runs.streaming import Asked
from kvvideo.session import Answer, Recall, Span
from kvvideo.tiny.samples import make
from kvvideo.types import Chunk, Hit
from kvvideo.video import Source, frame_at
from tests.helpers import ROOT
from tests.helpers.outputs import RECORD, check_page
from tests.helpers.windows import Window, wrapped
from tests.outputs.test_outputs import SCHEDULE, STATS, answer, done, written

HITS = (Hit(12.0, 16.0, 0.25), Hit(100.0, 104.0, 0.33339), Hit(104.0, 108.00049, 0.1))
WORDS = "looked again at 0:12–0:16, 1:40–1:48"
FIELD = [
    {"start": 12.0, "end": 16.0, "score": 0.25},
    {"start": 100.0, "end": 104.0, "score": 0.3334},
    {"start": 104.0, "end": 108.0, "score": 0.1},
]


def looked(at: float = 120.0, hits: Sequence[Hit] = HITS, said: str = "That.", **changes: object) -> Record:
    """A record as ``analyze`` makes it of an answer that looked at ``hits`` again."""
    spans = (Span(0.0, at / 4, 0.5), Span(at / 4, at / 2, 0.0), Span(at / 2, at, 1.0))
    asked = Asked(Answer("What?", said, (), (), "stop", 0.1, 0.25, tuple(hits)), at, STATS, spans)
    made = records.answer(asked, video="a/film.mp4", model="tiny", strategy="distinct", schedule=SCHEDULE)
    return made | changes


def text_of(run: Sequence[Record], capsys: pytest.CaptureFixture[str], compared: bool = False) -> str:
    text = Answers(compared)
    for record in run:
        text.write(record)
    text.close()
    return capsys.readouterr().out


# Words ------------------------------------------------------------------------------------------


def test_stretches_that_touch_are_one() -> None:
    assert evidence.words((hit.start, hit.end) for hit in HITS) == WORDS
    assert evidence.words([]) == ""
    assert evidence.words([(8.0, 12.0), (0.0, 4.0), (1.0, 2.0), (3.0, 5.5)]) == "looked again at 0:00–0:05.5, 0:08–0:12"
    assert evidence.clock((3599.0, 3603.5)) == "59:59–1:00:03.5"


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)).map(lambda s: (float(s[0]), float(s[0] + s[1])))))
def test_joined_stretches_cover_the_same_and_lie_apart(stretches: list[tuple[float, float]]) -> None:
    def covered(some: Sequence[tuple[float, float]]) -> set[int]:
        return {second for start, end in some for second in range(int(start), int(end))}

    found = evidence.joined(stretches)
    assert covered(found) == covered(stretches)
    assert all(end < start for (_, end), (start, _) in pairwise(found))


# Records ----------------------------------------------------------------------------------------


def test_a_record_has_what_was_looked_at_again_and_else_no_such_field() -> None:
    record = looked()
    assert record["looked_at"] == FIELD
    RECORD.validate(record)
    assert {name: record[name] for name in record if name != "looked_at"} == looked(hits=())
    assert "looked_at" not in looked(hits=())
    with written("jsonl", [record]) as path:
        assert json.loads(path.read_text()) == record


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {},
        [[12.0, 16.0]],
        [{"start": 12.0, "end": 16.0}],
        [{"start": -1.0, "end": 16.0, "score": 0.5}],
        [{"start": 12.0, "end": "16", "score": 0.5}],
        [{"start": 12.0, "end": 16.0, "score": 1.5}],
    ],
    ids=repr,
)
def test_the_schema_says_what_it_is(wrong: object) -> None:
    assert not RECORD.is_valid(looked(looked_at=wrong))


def test_the_document_names_the_field_and_its_parts() -> None:
    document = (ROOT / "docs" / "records.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| `looked_at` \|.*", document, re.MULTILINE)
    assert all(f"`{name}`" in row for name in FIELD[0])


# Text -------------------------------------------------------------------------------------------


def test_text_has_a_line_below_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    cut = looked(finish_reason="length")
    asked = looked(question="Describe", task="caption")
    assert text_of([looked(), cut, asked, looked(hits=())], capsys) == (
        f"[2:00] What?\n  That.\n  {WORDS}\n"
        f"[2:00] What?\n  That.\n  … cut here; --max-answer-tokens allows longer answers\n  {WORDS}\n"
        f"[2:00] That.\n  {WORDS}\n"
        "[2:00] What?\n  That.\n"
    )


def test_a_comparison_has_it_at_the_end_of_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    run = [looked(strategy="h2o"), looked(strategy="full", hits=()), looked(strategy="tova", finish_reason="length")]
    assert text_of(run, capsys, compared=True) == (
        f"[2:00] What?\n  h2o   That.  ({WORDS})\n  full  That.\n  tova  That. …  ({WORDS})\n"
    )


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_a_screen_shows_all_of_it(columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    many = looked(hits=[Hit(60.0 * i, 60.0 * i + 4.0, 0.1) for i in range(8)])
    for compared in (False, True):
        run = [looked(), many]
        plain = text_of(run, capsys, compared)
        window = Window(columns)
        with window.standing_for():
            text_of(run, capsys, compared)
        window.close()
        assert window.lines() == wrapped(plain, columns)


# Files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["srt", "vtt", "csv"])
def test_subtitles_and_tables_are_as_without(name: str) -> None:
    with written(name, [looked(), done()]) as some, written(name, [looked(hits=()), done()]) as none:
        assert some.read_bytes() == none.read_bytes()
    assert "looked_at" not in table.COLUMNS


def test_markdown_says_it_below_the_answer() -> None:
    text = markdown.render([looked(finish_reason="length"), looked(150.0, HITS[:1]), looked(160.0, ())])
    assert re.findall(r"^\((.*)\)$", text, re.MULTILINE) == [
        f"cut here; --max-answer-tokens allows longer answers; {WORDS}",
        "looked again at 0:12–0:16",
    ]
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert f"; {WORDS})</p>" in html


def test_without_it_reports_are_as_they_were() -> None:
    run = [answer(5.0), answer(9.0), done(2)]
    assert "again" not in render(run)
    assert "again" not in markdown.render(run)


# Pages ------------------------------------------------------------------------------------------


def again(text: str) -> list[list[str]]:
    """Return the stretches of each answer of a page that looked again, in words, after a + if there is a picture."""
    lists = re.findall(r'<p class="note">looked again at</p>\n<ul class="again">\n(.*?)</ul>', text, re.DOTALL)
    return [re.findall(r"<li>(.*)</li>", re.sub("<img.*?>", "+", items)) for items in lists]


def pictures(text: str) -> list[tuple[str | None, bytes]]:
    """Return the pictures of a page, each with what is said of it."""
    tags = check_page(text).tags
    return [(a["alt"], b64decode((a["src"] or "").partition(",")[2])) for tag, a in tags if tag == "img"]


def test_a_page_has_the_pictures_beside_the_answer() -> None:
    found: Pictures = {(120.0,): b"now", (12.0, 16.0): b"then"}
    text = render([looked(said="One"), looked(150.0, HITS[:1], "Two"), looked(160.0, (), "Three")], found)
    assert again(text) == [["+0:12–0:16", "1:40–1:44", "1:44–1:48"], ["+0:12–0:16"]]
    assert pictures(text) == [
        ("The frame shown at 2:00", b"now"),
        ("The frame shown at 0:14", b"then"),
        ("The frame shown at 0:14", b"then"),
    ]
    # Each belongs to its own answer.
    parts = text.split('<div class="said">')[1:]
    assert [again(part) != [] for part in parts] == [True, True, False]
    (sheet,) = check_page(text).all("style")
    assert ".again img" in sheet
    check_page(render([looked()]))


def noise(width: int, height: int) -> bytes:
    """Return a picture in which there is much to see: 36 kB of 640 x 360 pixels."""
    frame = np.random.default_rng(width).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    return jpeg(frame.repeat(10, 0).repeat(10, 1))


def test_pictures_are_as_large_as_there_is_room_for() -> None:
    """A picture takes its room as often as it is in the page, and those of moments have room before others."""
    moment, stretch = (120.0,), (12.0, 16.0)
    found: Pictures = {moment: noise(640, 360), stretch: noise(320, 180)}

    def sizes(room: int, uses: int = 1) -> dict[When, tuple[int, int]]:
        shown = fitted(found, {moment: 1, stretch: uses}, room)
        assert sum(len(shown[when]) * {moment: 1, stretch: uses}[when] for when in shown) * 4 / 3 <= room
        return {when: Image.open(io.BytesIO(picture)).size for when, picture in shown.items()}

    whole = sum(map(len, found.values())) * 4 // 3 + 4
    assert sizes(whole) == {moment: (640, 360), stretch: (320, 180)}
    assert fitted(found, {moment: 1, stretch: 1}, whole) == found
    assert sizes(whole, uses=2) == {moment: (320, 180), stretch: (160, 90)}
    assert sizes(whole // 3) == {moment: (320, 180)}
    assert sizes(whole // 10) == {moment: (160, 90)}
    assert sizes(1000) == {}


@pytest.mark.parametrize(("chosen", "width"), [("auto", 160), ("all", 640), ("none", 0)])
def test_a_page_of_240_answers_is_small_unless_all_pictures_are_asked_for(chosen: str, width: int) -> None:
    run = [looked(float(at), HITS[:2]) for at in range(120, 360)]
    one, other = noise(640, 360), noise(320, 180)
    found: Pictures = {when: one if len(when) == 1 else other for record in run for when in page._whens(record)}
    text = render(run, found, look=Look(chosen))
    shown = [Image.open(io.BytesIO(picture)).width for _, picture in pictures(text)]
    assert shown.count(width) == (240 if width else 0)
    assert (len(text) < 3_000_000) == (chosen != "all")
    said = {"auto": "Pictures were made smaller to keep this page small; --pictures all has all of them."}
    assert [line.removeprefix("Written by kvvideo ").partition(". ")[2] for line in check_page(text).all("footer")] == [
        said.get(chosen, "")
    ]


def test_a_page_asks_for_each_picture_once_as_answers_come(tmp_path: Path) -> None:
    asked: dict[tuple[float, ...], Future[bytes | None]] = {}

    def frame(at: float, end: float | None = None) -> Future[bytes | None]:
        when = (at,) if end is None else (at, end)
        assert when not in asked
        return asked.setdefault(when, Future())

    path = tmp_path / "out.html"
    writer = open_writer("html", path, frame=frame)
    writer.write(looked())
    assert [*asked] == [(120.0,), (12.0, 16.0), (100.0, 104.0), (104.0, 108.0)]
    writer.write(looked(said="Once more"))
    writer.write(looked(130.0, HITS[:1]))
    assert [*asked][4:] == [(130.0,)]
    writer.write(done(3))
    asked[120.0,].set_result(b"now")
    asked[130.0,].set_result(None)
    asked[12.0, 16.0].set_result(b"then")
    asked[100.0, 104.0].set_exception(OSError("gone"))
    asked[104.0, 108.0].set_result(None)
    writer.close()
    assert again(path.read_text()) == [["+0:12–0:16", "1:40–1:44", "1:44–1:48"]] * 2 + [["+0:12–0:16"]]


# Pictures ---------------------------------------------------------------------------------------


def test_the_picture_of_a_stretch_is_a_small_one_of_its_middle(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    make(path, seed=5, minutes=0.2, fps=8)
    with closing(Stills(Source(str(path)))) as stills:
        asked = stills(2.0, 5.0)
        assert stills(2.0, 5.0) is asked
        picture = asked.result()
    assert picture is not None
    found = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), np.float32)
    _, frame = frame_at(path, 3.5)
    assert max(found.shape) <= 320
    assert np.abs(found - np.asarray(Image.fromarray(frame).resize(found.shape[1::-1]), np.float32)).mean() < 6


def chunk(start: float) -> Chunk:
    """Four seconds of frames that are the brighter the later."""
    times = tuple(start + i / 2 for i in range(8))
    frames = np.stack([np.full((84, 840, 3), int(4 * time), np.uint8) for time in times])
    return Chunk(frames, times, start, start + 4.0, 2.0)


def test_of_what_cannot_be_read_again_only_what_was_seen_last_has_a_picture() -> None:
    with closing(Stills(Source("-"))) as stills:
        for _ in stills.watching([chunk(start) for start in (0.0, 4.0, 8.0)]):
            pass
        gone, seen = stills(0.0, 4.0).result(), stills(4.0, 8.0).result()
    assert gone is None
    assert seen is not None
    picture = Image.open(io.BytesIO(seen))
    assert picture.size == (320, 32)
    assert np.asarray(picture).mean() == pytest.approx(4 * 6.0, abs=2)


def test_of_a_stretch_that_was_kept_there_is_what_the_model_saw() -> None:
    """Also where no video is at hand at all, only a memory with frames."""

    class Kept:
        def chunks(self, stretches: Sequence[tuple[float, float]]) -> list[Chunk | None]:
            return [chunk(start) if start < 8.0 else None for start, _ in stretches]

    for source in (Source("-"), None):
        with closing(Stills(source, Recall(1, Kept()))) as stills:
            kept, gone, moment = stills(4.0, 8.0).result(), stills(8.0, 12.0).result(), stills(4.0).result()
        assert gone is moment is None
        assert kept is not None
        assert np.asarray(Image.open(io.BytesIO(kept))).mean() == pytest.approx(4 * 6.0, abs=2)


def test_a_delivery_writes_it_to_all_files_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("film.mp4"), seed=5, minutes=0.2, fps=8)
    run = [looked(8.0, [Hit(0.0, 4.0, 0.5)]), looked(11.0, [Hit(4.0, 8.0, 0.5)]), done(2, end=12.0)]
    with (
        closing(Stills(Source("film.mp4"))) as stills,
        Delivery(
            Choice(files=tuple(FORMATS)),
            Answers(),
            stem="film",
            strategies=["distinct"],
            say=lambda _: None,
            frame=stills,
        ) as delivery,
    ):
        for record in run:
            delivery.write(record)
    assert capsys.readouterr().out.count("  looked again at 0:0") == 2
    files = {name: Path(f"film.distinct.{one.extension}").read_text() for name, one in FORMATS.items()}
    assert json.loads(files["json"]) == [json.loads(line) for line in files["jsonl"].splitlines()] == run
    assert re.findall("looked again at (.*)[)]", files["md"]) == ["0:00–0:04", "0:04–0:08"]
    assert again(files["html"]) == [["+0:00–0:04"], ["+0:04–0:08"]]
    assert len(pictures(files["html"])) == 4
    assert not any("looked" in files[name] for name in ("csv", "srt", "vtt"))
