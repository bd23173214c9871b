"""A run is foretold: tokens as they come, room for them, weights, and letters that can be read."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from kvvideo.bench import shapes
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, FullError
from kvvideo.runs.agenda import Question
from kvvideo.session import EngineConfig, VideoSession
from kvvideo.session.footprint import weight_bytes
from kvvideo.session.hub import model_path
from kvvideo.session.prediction import check_room, predict, stream_tokens
from kvvideo.video import Source, VideoInfo, probe
from kvvideo.video.geometry import frame_size, legible, small_letter, tokens_to_read
from tests.conftest import EngineFor
from tests.helpers.clips import clip

FULL = CacheConfig("full")
FILM = VideoInfo("film.mp4", 1920, 1080, 7200.0, 25.0, "h264", "mov")
QUESTION = "Who was in the kitchen when the lights went out?"


def source(**settings: float) -> Source:
    return Source(str(clip("plain.mp4")), 2.0, 1.0, min_pixels=1, max_pixels=4 * 784, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"start": 2.0, "end": 7.5}])
def test_tokens_and_what_fits_are_known_before(engine_for: EngineFor, settings: dict[str, float]) -> None:
    """For each length that a request may have the check says as many chunks as a session takes, or lets all pass."""
    video = source(**settings)
    info, engine = probe(video.path), engine_for("full", max_model_len=256, kv_bytes=1 << 22)
    config, seen = engine.config, []
    with video.open() as reader, VideoSession(engine) as session:
        try:
            for chunk in reader:
                session.ingest(chunk)
                seen.append(session.stats().seen)
        except FullError:
            assert len(seen) > 2
    counts = stream_tokens(config, video, info)
    assert counts[: len(seen)] == seen
    assert predict(config, video, info).tokens == counts[-1]
    for limit in (counts[0], counts[0] + 1, counts[2], counts[2] + 1, counts[-1]):
        fitting = sum(count < limit for count in counts)
        until = f"add --to 0:0{int((video.start or 0) + fitting)}, raise"
        with pytest.raises(ConfigError, match=f"{counts[-1]} tokens of .* more than max_model_len={limit}") as caught:
            check_room(replace(config, max_model_len=limit), video, info)
        assert (until in str(caught.value)) == (fitting > 0)
    check_room(replace(config, max_model_len=counts[-1] + 1), video, info)


def test_a_question_needs_room_too(engine_for: EngineFor) -> None:
    """Streams that are let through are answered."""
    video = source(end=2.0)
    info, engine = probe(video.path), engine_for("full", max_model_len=256, kv_bytes=1 << 22)
    question = Question(QUESTION)
    asked = question.prompt
    least = next(
        limit for limit in range(1, 256) if _passes(replace(engine.config, max_model_len=limit), video, info, asked)
    )
    told = replace(question, system="Be brief.").prompt
    assert not _passes(replace(engine.config, max_model_len=least), video, info, told)
    assert least > stream_tokens(engine.config, video, info)[-1] + engine.block_size
    with video.open() as reader, VideoSession(engine) as session:
        for chunk in reader:
            session.ingest(chunk)
        for limit, fits in ((least - 1, False), (least, True)):
            engine.config = replace(engine.config, max_model_len=limit)
            try:
                assert session.ask(QUESTION, max_tokens=1).token_ids
                assert fits
            except FullError:
                assert not fits
            finally:
                engine.config = replace(engine.config, max_model_len=256)


def _passes(config: EngineConfig, video: Source, info: VideoInfo, *questions: str) -> bool:
    try:
        check_room(config, video, info, questions)
    except ConfigError:
        return False
    return True


def test_bounded_caches_and_lengths_that_nobody_knows_are_let_through() -> None:
    config = EngineConfig(model="tiny", cache=FULL, max_model_len=8)
    video, info = source(), probe(source().path)
    assert not _passes(config, video, info)
    assert _passes(replace(config, cache=CacheConfig()), video, info)
    assert _passes(config, video, replace(info, duration=None))


@pytest.mark.parametrize(("shape", "parameters"), [("3b", 3_754_622_976), ("7b", 8_292_166_656)])
def test_weights_by_their_shape(shape: str, parameters: int) -> None:
    """As the cards of Qwen2.5-VL count them."""
    config = EngineConfig(model=str(shapes.directory(shape)), load_format="dummy")
    assert weight_bytes(config) == pytest.approx(2 * parameters, rel=2e-3)
    assert weight_bytes(replace(config, dtype="float32")) == 2 * weight_bytes(config)


def test_weights_by_their_files_or_their_index(tmp_path: Path) -> None:
    config = EngineConfig(model="tiny")
    files = sum(file.stat().st_size for file in Path(model_path("tiny")).glob("*.safetensors"))
    assert weight_bytes(config) == files > 1_000_000
    assert weight_bytes(replace(config, load_format="dummy")) == pytest.approx(files, rel=0.05)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(Path(model_path("tiny")) / name, tmp_path)
    by_shape = weight_bytes(replace(config, model=str(tmp_path)))
    assert by_shape == weight_bytes(replace(config, load_format="dummy"))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 123}, "weight_map": {}}))
    assert weight_bytes(replace(config, model=str(tmp_path))) == 123
    index.write_text('{"metadata": {}}')
    assert weight_bytes(replace(config, model=str(tmp_path))) == by_shape


def test_the_film_of_two_hours() -> None:
    """On a card of 24 GB, at the size of Qwen2.5-VL-3B with the bundled model's tokenizer."""
    config = EngineConfig(model=str(shapes.directory("3b")), load_format="dummy", again_tokens=2600)
    video = Source("film.mp4", min_pixels=4 * 784, max_pixels=128 * 784)
    found = predict(config, video, FILM)
    assert (found.peak_tokens, found.budget_tokens, found.frame_tokens) == (4096, 2048, 120)
    assert 0.004 < found.peak_tokens / found.tokens < 0.006
    assert found.pool_bytes is not None
    assert found.bytes < found.pool_bytes < 2e9
    says = r"'full' forgets nothing, and the \d+ tokens of 'film.mp4' .* add --to 4:\d\d,"
    with pytest.raises(ConfigError, match=says):
        check_room(replace(config, cache=FULL), video, FILM)


@pytest.mark.parametrize(
    ("height", "width", "shown", "letters", "tokens"),
    [
        (1080, 1920, 224, 39, 320),
        (2160, 3840, 224, 78, 320),
        (480, 854, 224, 18, None),
        (144, 256, 84, 14, None),
        (84, 140, 84, 8, None),
        (56, 56, 224, 8, None),
    ],
)
def test_letters_that_can_be_read(height: int, width: int, shown: int, letters: int, tokens: int | None) -> None:
    """Eight pixels of the frame for each; and the tokens that are said to show small ones do."""
    assert legible(height, shown) == letters
    assert (letters > small_letter(height)) == (tokens is not None)
    if tokens is not None:
        assert tokens_to_read(height, width, 8192) == tokens
        assert tokens_to_read(height, width, tokens - 1) is None
        assert frame_size(height, width, 1, tokens * 784)[0] * small_letter(height) >= 8 * height
