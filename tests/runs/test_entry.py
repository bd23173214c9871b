"""``kvvideo.analyze``: what the session API gives in many lines, in five."""

import ast
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kvvideo
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, KvvideoError, VideoError
from kvvideo.runs import entry
from kvvideo.runs.agenda import Agenda, Question
from kvvideo.runs.streaming import analyze
from kvvideo.session import Engine, EngineConfig, open_session
from kvvideo.session.prediction import frame_pixels
from kvvideo.tiny import samples
from kvvideo.video import Source, VideoReader
from tests.conftest import EngineFor

CACHE = CacheConfig(max_tokens=320, sink=16)
SETTINGS = {"model": "tiny", "dtype": "float32", "max_tokens": 320, "sink": 16, "max_answer_tokens": 8}
NOW = "Which letter is on screen now?"
LOW, HIGH = frame_pixels(EngineConfig(model="tiny"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a minute of letters: eight whole chunks."""
    path = tmp_path_factory.mktemp("clips") / "letters.mp4"
    samples.make(path, seed=5, minutes=32 / 60, density=0.5)
    return path


@pytest.fixture
def engine(engine_for: EngineFor, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The engine that every call gets; ``closed`` below counts how often it would have been closed."""
    engine = engine_for("distinct", cache={"max_tokens": 512, "budget": None, "sink": 32})
    started: list[EngineConfig] = []

    def start(config: EngineConfig, caches: list[CacheConfig]) -> Engine:
        started.append(config)
        engine.use(config.cache)
        return engine

    before = engine.config.cache
    monkeypatch.setattr(entry, "open_engine", start)
    yield engine
    assert [config.cache for config in started] == [CACHE] * len(started)
    engine.use(before)


@pytest.fixture
def closed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parts that were closed, in order."""
    found: list[str] = []
    close = VideoReader.close

    def closing(reader: VideoReader) -> None:
        found.append("reader")
        close(reader)

    monkeypatch.setattr(VideoReader, "close", closing)
    monkeypatch.setattr(engine, "close", lambda: found.append("engine"), raising=False)
    return found


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may load a model."""

    def start(*_: object) -> Engine:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(entry, "open_engine", start)


def test_it_answers_as_the_session_does(engine: Engine, closed: list[str], clip: Path):
    asked = [NOW, f"@0:05 {NOW}", Question("And then?", 9.5)]
    found = list(kvvideo.analyze(clip, asked, **SETTINGS))
    assert closed[-2:] == ["engine", "reader"]
    engine.use(CACHE)
    agenda = Agenda([Question(NOW), Question(NOW, 5.0), Question("And then?", 9.5)])
    with Source(str(clip), min_pixels=LOW, max_pixels=HIGH).open() as reader, open_session(engine) as session:
        expected = list(analyze(session, reader, agenda, max_tokens=8, seed=0))
    assert [(one.at, one.question) for one in found] == [
        (5.0, Question(NOW, 5.0)),
        (9.5, Question("And then?", 9.5)),
        (32.0, Question(NOW)),
    ]
    for one, other in zip(found, expected, strict=True):
        assert one.text == other.answer.text
        assert one.answer.token_ids == other.answer.token_ids
        assert (one.held, one.cache) == (other.held, other.cache)
        assert one.held


def test_what_the_model_is_told_is_told_before_each_question(engine: Engine, closed: list[str], clip: Path):
    """Unless a question brings its own."""
    asked = [NOW, f"@0:05 {NOW}", Question(NOW, 9.5, system="Be long.")]
    found = list(kvvideo.analyze(clip, asked, system="Be brief.", **SETTINGS))
    assert [one.question.system for one in found if one.question] == ["Be brief.", "Be long.", "Be brief."]
    without = list(kvvideo.analyze(clip, asked[:2], **SETTINGS))
    assert [one.cache for one in without] == [found[0].cache, found[2].cache]


def test_what_is_left_open_is_closed(closed: list[str], clip: Path):
    answers = kvvideo.analyze(clip, [f"@0:02 {NOW}", NOW], **SETTINGS)
    assert closed == []
    next(answers)
    answers.close()
    assert closed == ["engine", "reader"]


def test_a_question_may_be_asked_every_so_often(closed: list[str], clip: Path):
    found = list(kvvideo.analyze(str(clip), NOW, every=5.0, end=12.0, **SETTINGS))
    assert [one.at for one in found] == [5.0, 10.0]


def test_a_video_that_ends_early_answers_what_it_can(closed: list[str], clip: Path, monkeypatch: pytest.MonkeyPatch):
    """The end of the video shows only once it was read."""
    monkeypatch.setattr("kvvideo.runs.analyze.Asking.check", lambda *_: None)
    answers = kvvideo.analyze(clip, [f"@0:02 {NOW}", "@2:00 And then?"], **SETTINGS)
    assert next(answers).at == 2.0
    with pytest.raises(VideoError, match="ends at 0:32, before 'And then\\?' could be asked"):
        next(answers)
    assert closed[-2:] == ["engine", "reader"]


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("questions", "settings", "message"),
    [
        ([], {}, "questions: there is nothing to ask"),
        (["@0:70 What?"], {}, "is not a time"),
        ([NOW], {"frames": 2}, "frames: not a setting; allowed are strategy"),
        ([NOW], {"strategy": "magic"}, "strategy: no 'magic'"),
        ([NOW], {"strategy": "h2o", "queries": -1}, "queries: -1"),
        ([NOW], {"strategy": "h2o:queries=-1", "score_norm": "mean"}, "queries: '?-1"),
        ([NOW], {"cache": CACHE}, "max_tokens: the cache that is given has that too"),
        ([NOW], {"fps": "two"}, "fps of a video source must be a number"),
        ([NOW], {"dtype": "float7"}, "dtype: no 'float7'"),
        (["@0:20 What?"], {"end": 10.0}, "is outside of what is read"),
        (["@5:00 What?"], {}, "is after the end"),
        ([Question("What?", math.nan)], {}, "at: nan is not a moment of any video"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(
    clip: Path, questions: list[str | Question], settings: dict[str, Any], message: str
):
    with pytest.raises(ConfigError, match=message):
        list(kvvideo.analyze(clip, questions, **SETTINGS | settings))


@pytest.mark.usefixtures("no_engine")
def test_a_video_that_is_not_there_is_a_kvvideo_error(tmp_path: Path):
    with pytest.raises(KvvideoError, match="none"):
        next(kvvideo.analyze(tmp_path / "none.mp4", [NOW], **SETTINGS))


@pytest.mark.usefixtures("no_engine")
def test_a_video_may_be_a_path_a_source_or_a_message(clip: Path, monkeypatch: pytest.MonkeyPatch):
    """Frames are as large as the model knows, unless somebody says otherwise."""
    opened: list[Source] = []

    def note(source: Source, **_: Any) -> VideoReader:
        opened.append(source)
        raise VideoError("seen")

    monkeypatch.setattr(Source, "open", note)

    def source(video: entry.Video, **settings: Any) -> Source:
        with pytest.raises(VideoError, match="seen"):
            next(kvvideo.analyze(video, NOW, **SETTINGS | settings))
        return opened.pop()

    known = Source(str(clip), min_pixels=LOW, max_pixels=HIGH)
    assert source(clip) == source(str(clip)) == known
    assert source(known, fps=1.0) == replace(known, fps=1.0)
    assert source(Source(str(clip))) == Source(str(clip))
    element = {"type": "video", "video": str(clip)}
    assert source(element) == known
    assert source({**element, "video_start": 2, "video_end": 9.5}) == replace(known, start=2.0, end=9.5)
    assert source({**element, "max_pixels": 50176}) == replace(known, max_pixels=50176)
    assert source({**element, "fps": 3}) == replace(known, fps=3.0, chunk_seconds=4.0)
    assert source({**element, "fps": 3}, fps=1.0) == replace(known, fps=1.0)
    for wrong, message in (
        ({**element, "nframes": 8}, "nframes of a message"),
        ({**element, "fps": "2"}, "fps of a message"),
        ({"type": "video"}, "video of a message"),
        ({"role": "user", "content": [element]}, "content: give the element of the video alone"),
    ):
        with pytest.raises(ConfigError, match=message):
            kvvideo.analyze(wrong, NOW, **SETTINGS)


def test_importing_is_light_and_every_name_is_there():
    code = (
        "import sys, kvvideo\n"
        "kvvideo.ConfigError, kvvideo.Question, kvvideo.Source\n"
        "assert not hasattr(kvvideo, 'unknown')\n"
        "assert not {'torch', 'transformers', 'vllm', 'av'} & set(sys.modules)\n"
        "print(*(getattr(kvvideo, name).__module__ for name in kvvideo.__all__ if name != '__version__'))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert all(module.startswith("kvvideo.") for module in result.stdout.split())
    # Those who check types see the same names.
    tree = ast.parse(Path(kvvideo.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    names = [name.name for node in checked.body if isinstance(node, ast.ImportFrom) for name in node.names]
    assert sorted([*names, "__version__"]) == sorted(kvvideo.__all__)
