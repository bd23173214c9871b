"""``--dry-run``: predict a run without loading the model."""

from dataclasses import asdict
from typing import Any

from kvvideo.errors import ConfigError
from kvvideo.runs.analyze import Asking
from kvvideo.session import EngineConfig


def prediction(
    video: str, decoder: str, reading: dict[str, Any], config: EngineConfig, asking: Asking | None = None
) -> dict[str, Any]:
    """Return the record of what streaming ``video`` with these settings will take.

    Raises:
        ConfigError: if the video does not say how long it is, or what is to be seen or asked is after its end.
    """
    from kvvideo.cli import render
    from kvvideo.session.prediction import predict
    from kvvideo.video import Source, plan, probe

    with render.Transient() as shown:
        shown.wait(f"looking at {video} …")
        info = probe(video, decoder)
    (asking or Asking(())).check(Source(video, **reading), info.duration)
    planned = plan(info, **reading)
    if planned.chunks is None or planned.frames is None:
        raise ConfigError(f"{video!r} does not say how long it is; give --to to predict what that much will take")
    predicted = predict(config, planned, reading["chunk_seconds"], reading["fps"], reading["start"] or 0.0)
    return {
        "type": "prediction",
        "schema": 1,
        "video": video,
        "model": config.model,
        "strategy": config.cache.strategy,
        "max_tokens": config.cache.max_tokens if config.cache.schedule(32) else None,
        "width": planned.width,
        "height": planned.height,
        "chunks": planned.chunks,
        "frames": planned.frames,
        **asdict(predicted),
    }
