"""Decoding groups of pictures at once never changes a picture: streams drawn from a seed, against a plain decode."""

import collections

import pytest

from kvvideo.video.pyav import PyavDecoder
from tests.helpers.streams import H264, LANES, NAMES, PAIRS, Corpus, Run, Shown, Stream, described, in_lanes, sampled

SEED, COUNT = 1, 220
STREAMS = described(SEED, COUNT)
# One of each eleven, for there are eleven containers and nine codecs; the slow tests have the rest.
PARAMS = [
    pytest.param(stream, marks=[pytest.mark.slow] if number % 11 else [], id=stream.name)
    for number, stream in enumerate(STREAMS)
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(SEED, COUNT, tmp_path_factory.mktemp("streams"))


@pytest.mark.parametrize("stream", PARAMS)
def test_every_moment_shows_what_a_plain_decode_shows(corpus: Corpus, stream: Stream) -> None:
    """From the beginning and after two other moments, by 1, 2 and 8 lanes, at 0.25, 2 and 10 frames/s."""
    faults = corpus.faults(stream)
    assert not faults, "\n".join([str(stream), *faults])


@pytest.mark.slow
def test_the_streams_are_many_and_of_all_kinds(corpus: Corpus) -> None:
    """Those that a plain decode does not read well are not held against anything: they must be few."""
    judged = {stream: truth for stream in STREAMS if isinstance(truth := corpus.truth(stream), Shown)}
    assert len(judged) >= 200
    assert sum(bool(truth.open or truth.lost) for truth in judged.values()) <= 20
    assert {(stream.codec, stream.suffix) for stream in judged} == set(PAIRS)
    kinds = collections.Counter(stream.kind for stream in judged)
    assert min(kinds[stream.kind] for stream in STREAMS) >= 8
    for how in (
        "trim",
        "cuts",
        "repeat",
        "backwards",
        "empty",
        "gap",
        "mixed",
        "all",
        "first",
        "wrong",
        "negative",
        "far",
    ):
        assert any(how in stream.name.split("-") for stream in judged), how
    for style in ("open", "closed", "openpyramid", "strict", "intra", "nob", "long", "refresh", "altref", "packed"):
        assert any(style in stream.name.split("-") for stream in judged), style
    assert {NAMES[stream.codec] for stream in judged if len(stream.parts) > 1} >= {
        "h264",
        "hevc",
        "mpeg2",
        "vp9",
        "av1",
    }


def test_lanes_are_as_many_as_was_asked_for(corpus: Corpus) -> None:
    """Or all runs would be the same."""
    stream = next(stream for stream in STREAMS if stream.suffix == "mkv" and stream.kind == "plain")
    assert not isinstance(corpus.truth(stream), str)
    for count in LANES:
        with in_lanes(count, "pyav"), PyavDecoder(str(corpus.path(stream)), lambda _: None) as decoder:
            assert decoder._lanes() == count


BOXED = [stream for stream in STREAMS if stream.codec == H264 and stream.suffix in {"mp4", "mov", "3gp"}]


@pytest.mark.slow
@pytest.mark.parametrize("stream", BOXED, ids=lambda stream: stream.name)
def test_decord_is_right_where_it_is_let(corpus: Corpus, stream: Stream) -> None:
    faults = corpus.faults(stream, "decord")
    assert not faults, "\n".join([str(stream), *faults])


@pytest.mark.slow
def test_decord_is_let_somewhere(corpus: Corpus) -> None:
    run = Run(1, 2, None)
    let = [stream for stream in BOXED if not isinstance(corpus.truth(stream), str)]
    assert sum(bool(sampled(corpus.path(stream), run, "decord")[0]) for stream in let) >= 4
