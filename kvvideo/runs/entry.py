"""``kvvideo.analyze``: the short way from a video and questions to answers, for Python."""

import logging
import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import fields, replace
from typing import Any

from kvvideo.compression import find_option
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, VideoError
from kvvideo.runs import streaming
from kvvideo.runs.agenda import Question
from kvvideo.runs.analyze import Asking
from kvvideo.runs.messages import reading_of
from kvvideo.runs.recall import COUNT, Looking
from kvvideo.runs.streaming import Asked
from kvvideo.session import EngineConfig, open_engine, open_session
from kvvideo.session.allowance import AUTO, Allowance, chunk_tokens
from kvvideo.session.prediction import frame_pixels
from kvvideo.times import format_time
from kvvideo.video import Source
from kvvideo.video.subtitles import AUTO as AUTO_SUBTITLES

logger = logging.getLogger("kvvideo.runs")

Video = str | os.PathLike[str] | Source | Mapping[str, Any]


def analyze(
    video: Video,
    questions: str | Question | Iterable[str | Question],
    *,
    model: str = EngineConfig.model,
    every: float | None = None,
    max_answer_tokens: int = 128,
    recall: int = COUNT,
    memory: str = AUTO,
    system: str = "",
    subtitles: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Generator[Asked, None, None]:
    """Stream a video through a model and yield each answer as it is given.

    The model is loaded with the first answer, and closed after the last or when the generator is closed::

        for answer in kvvideo.analyze("film.mp4", ["Who came in?", "@1:30 What just happened?"], model="tiny"):
            print(answer.at, answer.text, answer.held)

    Args:
        video: a path or URL; a ``Source``; or a message of qwen-vl-utils, ``{"type": "video", "video": …, "fps": …}``.
        questions: asked at the end of the video, or at their moments: ``"@1:30 What just happened?"``.
        model: directory or hub name; ``tiny`` is the bundled one.
        every: if given, the questions without a moment are asked every so many seconds of video instead.
        max_answer_tokens: longest answer.
        recall: stretches of the video that each question finds and is shown again, if they were evicted; 0 for none.
        memory: size that the cache may take, such as ``8GB``, its room for questions included; ``auto``: what pays off
            for the model, and this machine has. ``max_tokens`` or ``cache`` among the settings say it exactly.
        system: what the model is told before each question, as a system turn.
        subtitles: a file with the words spoken in the video; ``off``; or ``auto``, by default but for a ``Source``: one
            beside it or a track in it, see ``kvvideo.video.subtitles.find``.
        settings: those of ``CacheConfig`` (``strategy``, ``max_tokens`` …, options of the strategy), ``Source``
            (``fps``, ``start`` …) and ``EngineConfig`` (``dtype``, ``seed`` …), by their names. Frames are by default
            as large as the model knows.

    Raises:
        ConfigError: a setting, a question or the model cannot be used.
        VideoError: the video cannot be decoded, or ends before the moment of a question; what could be answered was.
        EngineError: vLLM failed.
    """
    allowance = Allowance.parse(memory, _exact(settings), settings.get("max_model_len"))
    config, source = _settled(video, model, settings, subtitles)
    given = [questions] if isinstance(questions, str | Question) else questions
    asked = [q if isinstance(q, Question) else Question.parse(q) for q in given]
    asking = Asking([replace(q, system=q.system or system) for q in asked], every, None, max_answer_tokens)
    if not asking.questions:
        raise ConfigError("questions: there is nothing to ask; give at least one")
    # Questions that cannot be asked show here, before anything is loaded.
    asking.agenda(source.start, source.end)
    looking = Looking(recall)
    longest = max((question.system for question in asking.questions), key=len)
    config = looking.room_in(config.with_system(longest), source.fps, source.chunk_seconds, source.max_pixels)
    chunk = chunk_tokens(source.fps, source.chunk_seconds, source.max_pixels) + config.words_tokens
    config, _ = allowance.settle(config, [config.cache], chunk)
    return _answers(source, config, asking, looking)


def _answers(source: Source, config: EngineConfig, asking: Asking, looking: Looking) -> Generator[Asked, None, None]:
    agenda = asking.agenda(source.start, source.end)
    # The reader comes first: a bad video is found before the model is loaded, and meanwhile it decodes.
    with source.open() as reader, looking.during(source, logger.warning) as (recall, watching):
        asking.check(source, reader.info, config)
        with closing(open_engine(config, [config.cache])) as engine, open_session(engine) as session:
            options = {"max_tokens": asking.max_answer_tokens, "seed": config.seed, "recall": recall}
            yield from streaming.analyze(session, watching(reader), agenda, **options)
            if left := [question.text for question in agenda.left()]:
                raise VideoError(
                    f"{source.path!r} ends at {format_time(session.end)}, before {left[0]!r} could be asked"
                )


def _exact(settings: Mapping[str, Any]) -> int | None:
    """Return the ``max_tokens`` that ``settings`` say; None if the memory is to say them."""
    cache = settings.get("cache")
    tokens = cache.max_tokens if isinstance(cache, CacheConfig) else settings.get("max_tokens")
    return tokens if isinstance(tokens, int) else None


def _settled(
    video: Video, model: str, settings: dict[str, Any], subtitles: str | os.PathLike[str] | None
) -> tuple[EngineConfig, Source]:
    """Return the engine's configuration and the source that these settings describe."""
    # The engine's come first: it has ``options`` as well as the cache.
    of_engine, of_source, of_cache = (_taken(settings, kind) for kind in (EngineConfig, Source, CacheConfig))
    # What is left may be an option of the strategy.
    strategy = str(of_cache.get("strategy", CacheConfig.strategy)).partition(":")[0]
    if unknown := [name for name in settings if find_option(strategy, name) is None]:
        allowed = [f.name for kind in (CacheConfig, Source, EngineConfig) for f in fields(kind)]
        raise ConfigError(f"{unknown[0]}: not a setting; allowed are {', '.join(allowed)}, and those of strategies")
    if "cache" in of_engine and (both := [*of_cache, *settings]):
        raise ConfigError(f"{both[0]}: the cache that is given has that too; leave one out")
    config = EngineConfig(**{"cache": CacheConfig(**of_cache, **settings), **of_engine}, model=model)
    if isinstance(video, Source):
        source = replace(video, **of_source)
    else:
        low, high = frame_pixels(config)
        path = {"path": os.fsdecode(video)} if isinstance(video, str | os.PathLike) else reading_of(video)
        source = Source(**{"min_pixels": low, "max_pixels": high, **path, **of_source})
    source = Source.from_dict(source.as_dict())
    if subtitles is not None or not isinstance(video, Source):
        source = source.with_subtitles(os.fsdecode(subtitles or AUTO_SUBTITLES), note=logger.info)
    return config.with_words_of(source), source


def _taken(settings: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Take those that ``kind`` has as fields out of ``settings``."""
    return {field.name: settings.pop(field.name) for field in fields(kind) if field.name in settings}
