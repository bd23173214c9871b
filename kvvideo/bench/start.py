"""``bench start``: the time between calling kvvideo and its first answer, stage by stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from kvvideo.session.config import EngineConfig


def run(config: EngineConfig) -> dict[str, object]:
    """Start an engine, ingest one chunk and ask one question, in a process that has done nothing; return the report."""
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - began, 2)

    with stage("import torch and torchvision"):
        from kvvideo.plugin import compat

        compat.prepare()
    with stage("import vLLM"):
        from kvvideo.session.engine import Engine
        from kvvideo.session.environment import set_environment

        set_environment()
        import kvvideo.plugin.engine  # noqa: F401
    with stage("load the model and its cache"):
        engine = Engine(config)
    with stage("first chunk"):
        from kvvideo.bench.frames import SMALL, Frames
        from kvvideo.session import VideoSession

        session = VideoSession(engine)
        session.ingest(Frames(config, source=SMALL).chunk(0))
    with stage("first answer"):
        session.ask("Which letter is on screen now?", max_tokens=8)
    engine.close()
    from kvvideo.bench.machine import describe

    return {
        "bench": "start",
        "machine": describe(),
        "model": config.model,
        "seconds": seconds,
        "total": round(sum(seconds.values()), 2),
    }
