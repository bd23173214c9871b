"""Subtitles: what is read from each format, which file or track is taken, and which chunk has which words."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from av.stream import Disposition
from hypothesis import given
from hypothesis import strategies as st

from kvvideo.errors import ConfigError, VideoError
from kvvideo.types import Chunk
from kvvideo.video import Source, VideoReader
from kvvideo.video import cues as words_of
from kvvideo.video.again import FileAgain
from kvvideo.video.cues import Caption, Subtitles
from kvvideo.video.subtitles import AUTO, OFF, beside, find, read, same_language
from tests.helpers.subtitles import Track, ass, srt, video, vtt

CUES = [(0.5, 2.0, "Hello there"), (5.25, 7.0, "One, two"), (9.0, 9.5, "♪ la la ♪")]
SAID = tuple((start, text) for start, _, text in CUES)
WRITTEN = {"srt": srt, "vtt": vtt, "ass": ass}


def written(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_bytes(text.encode(encoding))
    return str(path)


def said(*captions: tuple[float, float, str]) -> list[tuple[float, str]]:
    return list(words_of.said(Caption(*one) for one in captions))


# What files say.


@pytest.mark.parametrize("kind", list(WRITTEN))
def test_each_format_says_the_same(tmp_path: Path, kind: str) -> None:
    assert read(written(tmp_path / f"a.{kind}", WRITTEN[kind](CUES))).cues == SAID


@pytest.mark.parametrize("kind", list(WRITTEN))
def test_the_content_tells_the_format(tmp_path: Path, kind: str) -> None:
    assert read(written(tmp_path / "a.txt", WRITTEN[kind](CUES))).cues == SAID


def test_ssa_is_read(tmp_path: Path) -> None:
    text = (
        "[Script Info]\nScriptType: v4.00\n\n[V4 Styles]\nFormat: Name\nStyle: Default\n\n[Events]\n"
        "Format: Marked, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
        "Dialogue: Marked=0,0:00:01.50,0:00:02.00,Default,,0,0,0,,Hello, you\\Nthere\n"
        "Comment: Marked=0,0:00:03.00,0:00:04.00,Default,,0,0,0,,Not said\n"
    )
    assert read(written(tmp_path / "a.ssa", text)).cues == ((1.5, "Hello, you there"),)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (r"{\an8\i1}Up{\i0} there\Nand\nhere\hnow", ["Up there", "and", "here now"]),
        ("<i>Hello</i> <font color='#fff'>you</font>\n- Again", ["Hello you", "- Again"]),
        ("<v Fred>Hi <00:00:01.500><c.yellow>there</c>", ["Hi there"]),
        ("♪ la la ♪\n[door slams]\n(laughs)", ["♪ la la ♪", "[door slams]", "(laughs)"]),
        ("Tom &amp; Anna&nbsp;&lt;3", ["Tom & Anna <3"]),
        ("1 < 2 and 3 > 2", ["1 < 2 and 3 > 2"]),
        (r"{\p1}m 0 0 l 10 10{\p0}Sign", ["Sign"]),
        (r"{\pos(1,2)\p4}m 0 0 l 10 10", []),
        ("\u200f\u202bשלום\u202c\ufeff\x07", ["שלום"]),
        ("می\u200cروم", ["می\u200cروم"]),
        (" \n\t\n", []),
    ],
)
def test_markup_is_taken_out(text: str, lines: list[str]) -> None:
    assert words_of.lines_of(text) == lines


def test_comments_and_names_of_webvtt_are_not_said(tmp_path: Path) -> None:
    text = (
        "WEBVTT - a title\n\nSTYLE\n::cue { color: red }\n\nintro\n00:01.000 --> 00:02.000 align:start\nHello\nyou\n\n"
        "NOTE nobody says this\n\nthe second\n00:03.000 --> 00:04.000\nAgain\n"
    )
    assert read(written(tmp_path / "a.vtt", text)).cues == ((1.0, "Hello you"), (3.0, "Again"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_unicode_is_read_without_a_word(
    tmp_path: Path, encoding: str, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = srt([(1.0, 2.0, "Où est “Łódź”?")]).replace("\n", end)
    assert read(written(tmp_path / "a.srt", text, encoding)).cues == ((1.0, "Où est “Łódź”?"),)
    assert not caplog.records


def test_what_is_no_unicode_is_read_as_latin_1_and_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "a.srt", srt([(1.0, 2.0, "Où est “elle”?")]), "cp1252")
    assert read(path).cues == ((1.0, "Où est “elle”?"),)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path!r} is not in Unicode and was read as Latin-1: letters may be wrong; save it as UTF-8"
    ]
    (tmp_path / "a.srt").write_bytes(srt([(1.0, 2.0, "caf\xe9 \x81")]).encode("latin-1"))
    assert read(path).cues == ((1.0, "café"),)


def test_rolling_captions_are_said_once(tmp_path: Path) -> None:
    """As they come from YouTube: each line twice, once word by word, and ten milliseconds alone."""
    text = (
        "WEBVTT\nKind: captions\nLanguage: en\n\n"
        "00:00:00.160 --> 00:00:02.000 align:start position:0%\n \n"
        "so<00:00:00.400><c> today</c><00:00:00.700><c> we</c>\n\n"
        "00:00:02.000 --> 00:00:02.010 align:start position:0%\nso today we\n \n\n"
        "00:00:02.010 --> 00:00:04.000 align:start position:0%\nso today we\nwill<00:00:02.300><c> look</c>\n\n"
        "00:00:04.000 --> 00:00:04.010 align:start position:0%\nwill look\n \n\n"
        "00:00:04.010 --> 00:00:06.000 align:start position:0%\nwill look\nat<00:00:04.300><c> birds</c>\n\n"
    )
    assert read(written(tmp_path / "a.vtt", text)).cues == (
        (0.16, "so today we"),
        (2.01, "will look"),
        (4.01, "at birds"),
    )


def test_lines_that_grow_or_stay_are_said_once() -> None:
    assert said((0, 1, "I think"), (1, 2, "I think that"), (2, 3, "I think that\nwe go")) == [
        (0, "I think"),
        (1, "that"),
        (2, "we go"),
    ]
    # A sign of ASS that moves is a caption for each picture, between which others are shown.
    frames = [(0.04 * n, 0.04 * n + 0.04, "EXIT") for n in range(50)]
    assert said(*frames, (0.5, 1.5, "Come!")) == [(0, "EXIT"), (0.5, "Come!")]


def test_what_is_said_twice_is_said_twice() -> None:
    assert said((0, 1, "No!"), (1.5, 2, "No!")) == [(0, "No!"), (1.5, "No!")]
    assert said((0, 1, "No"), (1, 2, "No way")) == [(0, "No"), (1, "No way")]


def test_captions_side_by_side_are_all_said() -> None:
    assert said((2, 5, "Over you"), (0, 4, "Under"), (1, 3, "Beside")) == [(0, "Under"), (1, "Beside"), (2, "Over you")]


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 100)), max_size=20, unique_by=lambda one: one[0]))
def test_every_caption_is_said_once_at_its_time(times: list[tuple[int, int]]) -> None:
    captions = [(start / 10, (start + length) / 10, f"number {start}") for start, length in times]
    assert said(*captions) == [(start, text) for start, _, text in sorted(captions)]


@given(st.text(max_size=300))
def test_any_text_is_cleaned_to_lines(text: str) -> None:
    for line in words_of.lines_of(text):
        assert line == " ".join(line.split()) != ""
        line.encode()


@pytest.mark.parametrize("part", ["{", "<a", "< ", "{\\p1}", "&", "<1:"])
def test_hostile_text_takes_no_longer_than_other_text(tmp_path: Path, part: str) -> None:
    """Without a bound on backtracking each of these takes minutes."""
    read(written(tmp_path / "a.srt", srt([(1.0, 2.0, part * 300_000), (2.0, 3.0, "a" + "\n" * 300_000 + "a")])))


# What cannot be read.


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"there is no file '.*none\.srt'; check the name"):
        find("film.mp4", str(tmp_path / "none.srt"))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"Hello, there is no time in this", "holds no subtitles in SubRip, WebVTT or ASS"),
        (bytes(range(256)) * 40, "holds no subtitles in SubRip, WebVTT or ASS"),
    ],
)
def test_what_is_no_subtitles_is_refused_in_one_line(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "a.srt"
    path.write_bytes(data)
    with pytest.raises(VideoError, match=why) as failure:
        find("film.mp4", str(path))
    assert "\n" not in str(failure.value)
    assert failure.value.exit_code == 3


def test_a_folder_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="is a directory"):
        read(str(tmp_path))
    with open(tmp_path / "a.srt", "wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(VideoError, match="larger than 16 MB"):
        read(str(tmp_path / "a.srt"))


def test_more_words_than_a_memory_holds_are_refused(tmp_path: Path) -> None:
    cues = [(float(n), n + 0.5, f"{n} " + "word " * 20_000) for n in range(85)]
    with pytest.raises(VideoError, match="more words than days of speech"):
        read(written(tmp_path / "a.srt", srt(cues)))


def test_damaged_cues_are_left_out(tmp_path: Path) -> None:
    text = srt(CUES).replace("00:00:05,250 --> 00:00:07,000", "00:00:05,250 -> broken")
    assert (9.0, "♪ la la ♪") in read(written(tmp_path / "a.srt", text)).cues


@pytest.mark.parametrize("text", ["WEBVTT\n\n", ass([]), srt([(1.0, 2.0, "<i></i>")])])
def test_a_file_without_words_is_told_of(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path / "a.srt", text)
    assert find("film.mp4", path) is None
    assert caplog.messages == [f"the subtitles in {path!r} have no words"]


# Which file is taken.


@pytest.fixture
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.delenv("LC_MESSAGES", raising=False)
    monkeypatch.setenv("LANG", "en_GB.UTF-8")


def touched(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(srt(CUES))


@pytest.mark.usefixtures("english")
@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["film.en.srt", "film.srt"], "film.srt"),
        (["film.de.srt", "film.en.srt"], "film.en.srt"),
        (["film.ger.srt", "film.eng.srt"], "film.eng.srt"),
        (["film.de.srt", "film.fr.srt"], "film.de.srt"),
        (["film.vtt", "film.ass", "film.srt"], "film.srt"),
        (["film.ASS"], "film.ASS"),
        (["film.pt-BR.sdh.vtt"], "film.pt-BR.sdh.vtt"),
        (["film.en.forced.srt", "film.fr.srt"], "film.fr.srt"),
        (["film.en.sdh.srt", "film.de.srt"], "film.en.sdh.srt"),
        # What kvvideo itself writes has the name of a strategy.
        (["film.distinct.srt", "film.h2o.vtt", "film.chat.srt"], None),
        (["film2.srt", "other.srt", "film.txt", "film.srt.bak", "filmsrt"], None),
    ],
)
def test_files_beside_a_video(tmp_path: Path, names: Sequence[str], first: str | None) -> None:
    touched(tmp_path, *names)
    found = beside(str(tmp_path / "film.mp4"))
    assert (found[0].name if found else None) == first


@pytest.mark.usefixtures("english")
def test_auto_takes_the_first_and_says_so(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"no video")
    touched(tmp_path, "film.de.srt", "film.en.srt")
    lines: list[str] = []
    found = find(str(film), note=lines.append)
    assert found is not None
    assert (found.name, found.cues) == (str(tmp_path / "film.en.srt"), SAID)
    assert lines == [f"subtitles of {str(film)!r}: {str(tmp_path / 'film.en.srt')!r}, the first of 2 beside it"]
    assert find(str(film), OFF, note=lines.append) is None
    assert find(str(film), live=True, note=lines.append) is None
    assert find("rtsp://host/film", note=lines.append) is None
    assert len(lines) == 1
    assert find("rtsp://host/film", found.name, live=True) == found


def test_a_broken_file_beside_a_video_is_told_of_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"no video")
    (tmp_path / "film.srt").write_text("broken")
    touched(tmp_path, "film.vtt")
    found = find(str(film))
    assert found is not None
    assert found.name.endswith("film.vtt")
    assert "subtitles are left out" in caplog.text


def test_what_the_run_writes_is_not_taken(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"no video")
    touched(tmp_path, "film.srt")
    assert find(str(film), spared=[tmp_path / "x" / ".." / "film.srt"]) is None


def test_no_video_has_no_subtitles(tmp_path: Path) -> None:
    touched(tmp_path, "film.srt")
    assert find(str(tmp_path / "film.mp4")) is None
    assert beside("/no/such/folder/film.mp4") == []


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("en", "eng", True),
        ("en-GB", "en_US", True),
        ("ger", "deu", True),
        ("de", "ger", True),
        ("de", "en", False),
        ("", "", False),
        ("tlh", "tlh", True),
    ],
)
def test_codes_of_languages(one: str, other: str, same: bool) -> None:
    assert same_language(one, other) is same


# Tracks.


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "subrip"), ("a.mkv", "ass"), ("a.mkv", "webvtt"), ("a.mp4", "mov_text")]
)
@pytest.mark.parametrize("first", [0.0, 3.0])
def test_a_track_is_read_by_the_clock_of_the_pictures(tmp_path: Path, name: str, codec: str, first: float) -> None:
    path = video(tmp_path / name, Track(codec, [(0.5, 2, r"Hello {\i1}there"), *CUES[1:]]), first=first)
    lines: list[str] = []
    found = find(str(path), note=lines.append)
    assert found is not None
    assert found.cues == SAID
    assert found.name.startswith(f"{path}, track 1 (eng, ")
    assert lines == [f"subtitles of {str(path)!r}: {found.name!r}"]
    with VideoReader(path) as chunks:
        assert next(chunks).times[:2] == (0.0, 0.5)


@pytest.mark.usefixtures("english")
@pytest.mark.parametrize(
    ("tracks", "taken"),
    [
        ([("ger", 0), ("fre", 0)], 0),
        ([("ger", 0), ("eng", 0)], 1),
        ([("eng", 0), ("ger", Disposition.default)], 1),
        ([("eng", Disposition.default | Disposition.forced), ("ger", 0)], 1),
        ([("eng", Disposition.forced)], 0),
    ],
)
def test_one_of_several_tracks(tmp_path: Path, tracks: list[tuple[str, int]], taken: int) -> None:
    made = [Track("subrip", [(1.0, 2.0, f"track {n}")], *track) for n, track in enumerate(tracks)]
    found = find(str(video(tmp_path / "a.mkv", *made, seconds=3.0)))
    assert found is not None
    assert found.cues == ((1.0, f"track {taken}"),)


def test_a_file_beside_the_video_goes_before_its_track(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mkv", Track("subrip", [(1.0, 2.0, "track")]), seconds=3.0)
    touched(tmp_path, "a.srt")
    found = find(str(path))
    assert found is not None
    assert found.cues == SAID


def test_videos_without_a_track(tmp_path: Path) -> None:
    assert find(str(video(tmp_path / "a.mkv", seconds=1.0))) is None
    (tmp_path / "b.mkv").write_bytes(b"no video at all")
    assert find(str(tmp_path / "b.mkv")) is None


# Which chunk has which words.

times_of_cues = st.lists(st.integers(0, 4000).map(lambda n: n / 100), max_size=30)


def chunk(start: float, end: float, count: int = 8) -> Chunk:
    times = tuple(start + n * (end - start) / count for n in range(count))
    return Chunk(np.zeros((count, 28, 28, 3), np.uint8), times, start, end, count / (end - start))


@given(times_of_cues, st.sampled_from([1.0, 4.0, 0.3]), st.sampled_from([0.0, 7.5]))
def test_every_cue_is_in_one_chunk_and_none_before_its_time(times: list[float], length: float, start: float) -> None:
    subtitles = Subtitles.of("a", [Caption(time, time + 1, f"w{n}") for n, time in enumerate(times)])
    edges = [start + n * length for n in range(int(41 / length) + 2)]
    chunks = [subtitles.given(chunk(a, b)) for a, b in pairwise(edges)]
    spoken = [word for one in chunks for word in one.words.split()]
    assert sorted(spoken) == sorted(f"w{n}" for n, time in enumerate(times) if time >= start)
    for one in chunks:
        for word in one.words.split():
            assert one.start <= times[int(word[1:])] < one.end
        for at in (*one.times, one.end):
            part = one.until(at)
            assert part is not None
            assert set(part.words.split()) == {w for w in one.words.split() if times[int(w[1:])] <= at + 1e-6}
            assert one.words.startswith(part.words)


def test_a_chunk_without_words_stays_as_it_is() -> None:
    bare = chunk(0.0, 4.0)
    assert Subtitles("a", ((5.0, "later"),)).given(bare) is bare
    assert bare.until(9.0) is bare


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = video(tmp_path_factory.mktemp("said") / "a.mkv", seconds=13.0)
    cues = [
        (0.0, 1.0, "zero"),
        (3.999, 5.0, "almost four"),
        (4.0, 5.0, "four"),
        (11.9, 13.0, "late"),
        (12.6, 13, "last"),
    ]
    written(path.with_suffix(".srt"), srt(cues))
    return Source(str(path)).with_subtitles(AUTO)


def words(chunks: Sequence[Chunk | None]) -> list[str | None]:
    return [None if one is None else one.words for one in chunks]


def test_a_reader_gives_words(spoken: Source) -> None:
    with spoken.open() as reader:
        assert words(list(reader)) == ["zero almost four", "four", "late", "last"]
    with spoken.open(skip_chunks=2) as reader:
        assert words(list(reader)) == ["late", "last"]
    with Source(spoken.path, start=3.0, end=12.0, subtitles=spoken.subtitles).open() as reader:
        assert words(list(reader)) == ["almost four four", "", "late"]


def test_looking_again_gives_the_same_words(spoken: Source) -> None:
    again = FileAgain(spoken)
    assert words(again.chunks([(4.0, 8.0), (12.0, 13.0), (0.0, 8.0)])) == ["four", "last", "zero almost four four"]


def test_a_source_is_written_down_with_its_words(spoken: Source) -> None:
    data = spoken.as_dict()
    assert Source.from_dict(data) == spoken
    assert data["subtitles"]["cues"][0] == [0.0, "zero"]
    assert "subtitles" not in Source("a.mp4").as_dict()
    assert "zero" not in repr(spoken)
    assert spoken.subtitles is not None
    moved = Source("/elsewhere/a.mkv", subtitles=Subtitles(os.path.join("/elsewhere", "a.srt"), spoken.subtitles.cues))
    assert moved.reading() == spoken.reading()
    assert spoken.reading() != Source(spoken.path).reading()


@pytest.mark.parametrize(
    "data",
    [
        3,
        {},
        {"name": "a"},
        {"name": 1, "cues": []},
        {"name": "a", "cues": [["1", "x"]]},
        {"name": "a", "cues": [[-1, "x"]]},
    ],
)
def test_what_describes_no_subtitles_is_refused(data: object) -> None:
    with pytest.raises(ConfigError, match="subtitles"):
        Source.from_dict({"path": "a.mp4", "subtitles": data})
