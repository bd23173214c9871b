"""``--dry-run``: predict a run without loading the model."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from kvvideo.errors import ConfigError
from kvvideo.runs.analyze import Asking
from kvvideo.session import EngineConfig

if TYPE_CHECKING:
    from kvvideo.video import Source, VideoInfo


def looked_at(source: "Source") -> "VideoInfo":
    """Return what is known of a video, while a terminal says that it is looked at.

    Raises:
        VideoError: if it cannot be decoded.
    """
    from kvvideo.cli import render
    from kvvideo.video import probe

    with render.Transient() as shown:
        shown.wait(f"looking at {source.path} …")
        # Of a file that grows, what is there so far.
        return probe(source.path, source.decoder, live=source.live and replace(source.live, follow=False))


def prediction(
    source: "Source", info: "VideoInfo", config: EngineConfig, asking: Asking | None = None
) -> dict[str, Any]:
    """Return the record of what streaming ``source``, of which ``info`` is known, will take with these settings.

    Raises:
        ConfigError: if the video does not say how long it is, or the run would be refused.
    """
    from kvvideo.runs.pace import known
    from kvvideo.session.prediction import predict, words_tokens
    from kvvideo.video.geometry import legible, small_letter, tokens_to_read

    asking = asking or Asking(())
    asking.check(source, info, config)
    planned = source.plan(info)
    if planned.chunks is None or planned.frames is None or planned.seconds is None:
        raise ConfigError(f"{source.path!r} does not say how long it is; give --to to predict what that much will take")
    record: dict[str, Any] = {
        "type": "prediction",
        "schema": 1,
        "video": source.path,
        "model": config.model,
        "strategy": config.cache.strategy,
        "max_tokens": config.cache.max_tokens if config.cache.schedule(32) else None,
        "width": planned.width,
        "height": planned.height,
        "chunks": planned.chunks,
        "frames": planned.frames,
        **asdict(predict(config, source, info)),
        "source_width": info.width,
        "source_height": info.height,
        "legible_pixels": legible(info.height, planned.height),
        "legible_frame_tokens": None,
        "answers": asking.count(source.start or 0.0, (source.start or 0.0) + planned.seconds),
        "run_seconds": None,
        "pace": None,
    }
    if record["legible_pixels"] > small_letter(info.height):
        pairs = max(1, round(source.chunk_seconds * source.fps / 2))
        record["legible_frame_tokens"] = tokens_to_read(info.height, info.width, config.step_tokens // pairs - 1)
    if (pace := known(config, source, info)) is not None:
        record["run_seconds"] = round(pace.seconds(planned.chunks, record["answers"]), 1)
        record["pace"] = asdict(pace)
    if source.words_from is not None:
        record |= {"subtitles": source.words_from, "words_tokens": words_tokens(config, source, info)}
    return record
