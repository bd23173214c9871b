"""Words between the clock and the frames: their form, their bound, and that all that reads a chunk reads them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvvideo.compression.config import CacheConfig
from kvvideo.prompt import OPENING, VIDEO, WORDS_TOKENS, bounded, chunk_text, words_tokens
from kvvideo.runs.origin import engine_for as engine_config_for
from kvvideo.runs.playback import Playback
from kvvideo.runs.recall import Looking
from kvvideo.session import Engine, EngineConfig, Recall, VideoSession, open_session
from kvvideo.session.allowance import Allowance, chunk_tokens
from kvvideo.session.prediction import predict, stream_tokens
from kvvideo.session.prediction import words_tokens as tokens_of_words
from kvvideo.storage import codec, jpegs
from kvvideo.storage.checkpoints import Checkpoints
from kvvideo.types import Chunk
from kvvideo.video import Source, VideoInfo
from kvvideo.video.cues import Subtitles
from tests.conftest import EngineFor
from tests.helpers.engines import clip, clips
from tests.helpers.reference import Model
from tests.plugin.test_reference import feed_chunk, position_of_next, stream_of
from tests.session.test_recall import OPTIONS, QUESTION, Frames, check_shown, said, same_memory

LONG = "It was the best of times, it was the worst of times, it was the age of wisdom and of foolishness. " * 4


@pytest.fixture
def engine(engine_for: EngineFor) -> Engine:
    return engine_for("streaming")


def spoken(count: int) -> list[Chunk]:
    """Chunks of which all but every fourth have words, each its own."""
    return [replace(chunk, words=f"Now {n}") if n % 4 else chunk for n, chunk in enumerate(clips(count))]


# The form.


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("", f"<0:40>{VIDEO}"),
        (" \n\t ", f"<0:40>{VIDEO}"),
        ("the words", f'<0:40>"the words"{VIDEO}'),
        ("  the\n words ", f'<0:40>"the words"{VIDEO}'),
        ('He said "no".', f"<0:40>\"He said 'no'.\"{VIDEO}"),
        ("<|im_end|> and <|video_pad|>", f'<0:40>"< |im_end|> and < |video_pad|>"{VIDEO}'),
    ],
)
def test_the_text_of_a_chunk(words: str, text: str) -> None:
    assert chunk_text(40.0, words) == text


@pytest.mark.parametrize(("seconds", "tokens"), [(0.5, 64), (4.0, 64), (4.0 + 1e-9, 64), (8.0, 128), (30.0, 480)])
def test_the_bound_follows_the_length_of_a_chunk(seconds: float, tokens: int) -> None:
    assert words_tokens(seconds) == tokens


def by_letters(text: str) -> int:
    return len(text)


def test_words_are_cut_between_two_words() -> None:
    assert bounded("a bc " * 5, 4.0, by_letters) == " ".join(["a bc"] * 5)
    assert bounded("word " * 40, 4.0, by_letters) == "word word word word word word word word word word word word…"
    assert bounded("y" * 100, 4.0, by_letters) == "y" * 61 + "…"


@given(words=st.text(max_size=400), seconds=st.sampled_from([1.0, 4.0, 10.0]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_left_of_any_words(engine: Engine, words: str, seconds: float) -> None:
    def count(text: str) -> int:
        return len(engine.tokenizer(text).input_ids)

    whole, cut = chunk_text(0.0, words), bounded(words, seconds, count)
    assert count(f'"{cut}"') <= words_tokens(seconds)
    if chunk_text(0.0, cut) != whole:
        assert whole.startswith(chunk_text(0.0, cut).removesuffix(f'…"{VIDEO}'))
        assert count(whole.removeprefix("<0:00>").removesuffix(VIDEO)) > words_tokens(seconds)
    frames = np.zeros((8, 56, 56, 3), np.uint8)
    chunk = Chunk(frames, (3599.0,) * 8, 35999.5, 35999.5 + seconds, 8 / seconds, words)
    most = chunk_tokens(chunk.fps, seconds, 56 * 56) + words_tokens(seconds)
    assert engine.chunk_tokens(chunk) <= most


# Whatever reads a chunk.


def test_the_tokens_of_a_stream_are_those_of_the_plain_prompt(engine_for: EngineFor) -> None:
    """In one request with all frames, and by what is counted before."""
    engine, chunks = engine_for("full"), [*spoken(3), replace(clip(9, 12.0), words=LONG)]
    with VideoSession(engine) as session:
        for chunk in chunks:
            session.ingest(chunk)
        cut = engine.text(chunks[-1])
        assert cut.endswith(f'…"{VIDEO}')
        text = OPENING + "".join(chunk_text(one.start, one.words) for one in chunks[:-1]) + cut
        plain = engine.process("plain", engine.prompt(text, *chunks), _greedy())
        assert session.stats().seen == len(plain.prompt_token_ids)
        counted = len(engine.tokenizer(OPENING).input_ids) + sum(map(engine.chunk_tokens, chunks))
        assert session.stats().seen == counted
        answer = session.ask("What was said?", **OPTIONS)
    with VideoSession(engine) as other:
        for chunk in chunks[:-1]:
            other.ingest(chunk)
        at_once = other.ask("What was said?", also=chunks[-1], **OPTIONS)
    assert answer.token_ids == at_once.token_ids
    np.testing.assert_allclose(answer.logprobs, at_once.logprobs, atol=1e-4)


def _greedy() -> object:
    from vllm import SamplingParams

    return SamplingParams(max_tokens=1)


def test_words_change_what_is_said_and_no_words_nothing(engine: Engine) -> None:
    def answers(*chunks: Chunk) -> list[tuple[object, ...]]:
        with VideoSession(engine) as session:
            for chunk in chunks:
                session.ingest(chunk)
            return said([session.ask(QUESTION, **OPTIONS)])

    bare = clip(1, 0.0)
    assert answers(bare) == answers(replace(bare, words=" "))
    assert answers(bare) != answers(replace(bare, words="Hello"))


def test_what_is_shown_again_has_its_words(engine_for: EngineFor, reference: Model) -> None:
    engine, stream, chunks = engine_for("streaming"), stream_of(reference, "streaming"), spoken(14)
    streamed_at = {}
    with VideoSession(engine) as session:
        for index, chunk in enumerate(chunks):
            session.ingest(chunk)
            streamed_at[chunk.start] = position_of_next(stream)
            feed_chunk(stream, chunk, first=index == 0)
        answer = session.ask(QUESTION, recall=Recall(3, Frames(chunks)), **OPTIONS)
    shown = [chunk for chunk in chunks if (chunk.start, chunk.end) in {(h.start, h.end) for h in answer.looked_at}]
    assert any(chunk.words for chunk in shown)
    check_shown(stream, shown, streamed_at, answer)


def test_chunks_that_are_kept_keep_their_words() -> None:
    chunk = replace(clip(1, 0.0), words="Où? “Là”", said=((0.5, 3), (2.0, 8)))
    again = jpegs.decode(jpegs.encode(chunk))
    assert (again.words, again.said) == (chunk.words, chunk.said)
    assert again.until(1.0).words == "Où?"  # type: ignore[union-attr]
    bare = jpegs.encode(clip(1, 0.0))
    assert b"words" not in bare
    assert jpegs.decode(bare).words == ""


@pytest.mark.parametrize("bad", [{"words": 1}, {"said": 1}, {"said": [[1]]}, {"said": [["a", 1]]}, {"said": [[1, -1]]}])
def test_kept_words_that_are_none_are_refused(bad: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda facts: dumps({**facts, **bad}))
    data = jpegs.encode(replace(clip(1, 0.0), words="a", said=((0.0, 1),)))
    with pytest.raises(ValueError, match="the words are none"):
        jpegs.decode(data)


@pytest.mark.parametrize("strategy", ["streaming", "recent"])
def test_a_part_of_a_chunk_has_the_words_so_far(engine_for: EngineFor, strategy: str) -> None:
    """A question at a moment hears what was said by then."""
    engine = engine_for(strategy, cache={"max_tokens": 512, "budget": None, "sink": 16})
    whole = replace(clip(1, 4.0), words="One two", said=((4.0, 3), (7.9, 7)))
    early, late = whole.until(7.0), whole.until(7.9)
    assert early is not None
    assert late is not None
    assert (early.words, late.words, late is whole) == ("One", "One two", True)
    assert whole.until(7.8).words == "One"  # type: ignore[union-attr]
    with open_session(engine) as session:
        session.ingest(clip(0, 0.0))
        heard = session.ask(QUESTION, also=early, **OPTIONS)
        assert said([heard]) == said([session.ask(QUESTION, also=replace(early, words="One", said=()), **OPTIONS)])
        assert said([heard]) != said([session.ask(QUESTION, also=replace(early, words=""), **OPTIONS)])


def test_a_memory_goes_on_as_the_session_would(engine: Engine) -> None:
    chunks = spoken(12)
    with VideoSession(engine) as whole:
        for chunk in chunks[:7]:
            whole.ingest(chunk)
        memory = codec.decode(codec.encode(whole.save()), "a")
        with VideoSession.load(engine, memory) as resumed:
            for chunk in chunks[7:]:
                whole.ingest(chunk)
                resumed.ingest(chunk)
            same_memory(whole, resumed)
            assert said([whole.ask(QUESTION, **OPTIONS)]) == said([resumed.ask(QUESTION, **OPTIONS)])


# Rooms.

SUBTITLES = Subtitles("a.srt", ((1.0, "Hello."), (5.0, LONG), (5.5, "Never heard."), (9.9, "Bye."), (50.0, "After.")))
INFO = VideoInfo("a.mp4", 56, 56, 11.0, 30.0, "h264", "mov")
SOURCE = Source("a.mp4", min_pixels=56 * 56, max_pixels=56 * 56)


def test_tokens_of_words_are_known_before(engine_for: EngineFor) -> None:
    engine, source = engine_for("full"), replace(SOURCE, subtitles=SUBTITLES)
    config = EngineConfig(model="tiny", cache=CacheConfig("full"))
    with VideoSession(engine) as session:
        for start, end in ((0.0, 4.0), (4.0, 8.0), (8.0, 11.0)):
            session.ingest(SUBTITLES.given(clip(1, start, round(end - start) * 2)))
            chunks = session.chunks
            assert stream_tokens(config, source, INFO)[chunks - 1] == session.stats().seen
        assert predict(config, source, INFO).tokens == session.stats().seen
    bare = predict(config, SOURCE, INFO).tokens
    assert tokens_of_words(config, source, INFO) == predict(config, source, INFO).tokens - bare > WORDS_TOKENS
    assert tokens_of_words(config, SOURCE, INFO) == 0


def test_words_have_room_only_where_there_are_any() -> None:
    config = EngineConfig(model="tiny", step_tokens=100)
    chunk = chunk_tokens(2.0, 4.0, 56 * 56)
    bare, _ = Allowance(max_tokens=512).settle(config, [config.cache], chunk)
    words = config.with_words(4.0)
    assert (words.words_tokens, words.question_tokens) == (64, config.question_tokens + 64)
    room, _ = Allowance(max_tokens=512).settle(words, [config.cache], chunk + words.words_tokens)
    assert (bare.step_tokens, room.step_tokens) == (100, chunk + 64)
    more, less = (Looking(3).room_in(one, 2.0, 4.0, 56 * 56).again_tokens for one in (words, config))
    assert more == less + 3 * 64


def test_a_memory_says_whether_it_needs_room_for_words(engine: Engine) -> None:
    with VideoSession(engine) as session:
        session.ingest(clip(0, 0.0))
        memory = session.save()
    config = EngineConfig(model="tiny")
    bare = replace(memory, source=SOURCE.as_dict())
    assert engine_config_for(bare, config).words_tokens == 0
    assert engine_config_for(bare, config).question_tokens == config.question_tokens
    spoken_of = replace(memory, source=replace(SOURCE, subtitles=SUBTITLES).as_dict())
    assert engine_config_for(spoken_of, config).words_tokens == 64


def test_a_seek_says_again_what_was_said(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Through a playback of a video with words, which goes back between two checkpoints."""
    from tests.helpers.clips import clip as video

    cues = tuple((float(n), f"number {n}") for n in range(10))
    source = Source(str(video("plain.mp4")), 2.0, 1.0, min_pixels=784, max_pixels=4 * 784)
    source = replace(source, subtitles=Subtitles("a.srt", cues))
    with VideoSession(engine) as fresh, source.open() as reader:
        for chunk in reader:
            if chunk.start >= 5.0:
                also = chunk.until(5.0)
                break
            fresh.ingest(chunk)
        assert also is not None
        assert also.words == "number 5"
        wanted, seen = said([fresh.ask(QUESTION, also=also, **OPTIONS)]), fresh.stats()
    store = Checkpoints(tmp_path_factory.mktemp("checkpoints"))
    playback = Playback(engine, source, checkpoints=store, every=2.0)
    try:
        while playback.step() is not None:
            pass
        assert playback.save().source["subtitles"]["cues"][3] == [3.0, "number 3"]
        playback.go(5.0)
        (*_, answer) = playback.stream(QUESTION, **OPTIONS)
        assert (said([answer]), playback.session.stats()) == (wanted, seen)
    finally:
        playback.close()
        store.close()
