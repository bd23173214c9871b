"""Commands that look again, run in this process on real engines of the very settings that they ask for."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

import kvvideo.session
from kvvideo.chat import opening
from kvvideo.runs import ask
from kvvideo.session import Engine, EngineConfig
from kvvideo.video.again import FileAgain
from tests.conftest import started
from tests.helpers import SAMPLES

CLIP = SAMPLES / "letters-2m.mp4"
QUESTION, COLOUR, SHOWN = "What colour was the letter F?", "red", (12.0, 16.0)
"""A question about the clip, its answer, and the seconds in which it is seen."""
SMALL = ("--model", "tiny", "--max-tokens", "192", "--sink", "16")
"""A cache that has long forgotten them."""
STRATEGY = ("--strategy", "streaming")
ASKED = ("--max-answer-tokens", "8", "-f", "jsonl")


@dataclass
class Watched:
    """The engines that commands have asked for, and what their pools came to.

    Attributes:
        configs: of the engines, in order.
        preemptions: requests that had to start over.
        over: steps after which questions had more blocks than they may.
        most: blocks that questions had at most.
        open: sessions that were open at most.
    """

    configs: list[EngineConfig] = field(default_factory=list)
    preemptions: int = 0
    over: int = 0
    most: int = 0
    open: int = 0

    def look(self, engine: Engine) -> None:
        """Count what is in the pool of ``engine``."""
        scheduler = engine.scheduler
        blocks = {
            name: {block.block_id for block in found if not block.is_null}
            for name, found in scheduler.manager.req_to_blocks.items()
        }
        of_sessions = {name for name in blocks if name.startswith("video")}
        held = set[int]().union(*(blocks[name] for name in of_sessions))
        others = len(set[int]().union(*blocks.values()) - held)
        self.preemptions += sum(request.num_preemptions for request in scheduler.requests.values())
        self.over += others > engine.question_room
        self.most, self.open = max(self.most, others), max(self.open, len(of_sessions))


_frames: dict[Any, Any] = {}


def decoded_once(patch: pytest.MonkeyPatch) -> None:
    """Decode each stretch of a file once for all tests: each time takes a process of its own."""
    decode = FileAgain._decoded

    def once(again: FileAgain, stretch: tuple[float, float]) -> Any:
        key = again._fingerprint, replace(again._source, path=""), stretch
        if key not in _frames:
            _frames[key] = decode(again, stretch)
        return _frames[key]

    patch.setattr(FileAgain, "_decoded", once)


def as_asked(patch: pytest.MonkeyPatch) -> Watched:
    """Give commands an engine of the very settings that they ask for, each started once for all tests."""
    decoded_once(patch)
    watched = Watched()

    def start(config: EngineConfig) -> Engine:
        key = repr(config)
        if key not in started:
            started[key] = Engine(config)
        engine = started[key]
        engine.use(config.cache)
        step = type(engine).step

        def stepping() -> Any:
            done = step(engine)
            watched.look(engine)
            return done

        patch.setattr(engine, "step", stepping)
        patch.setattr(engine, "close", lambda: None)
        watched.configs.append(config)
        return engine

    for place in (kvvideo.session, ask, opening):
        patch.setattr(place, "Engine", start)
    return watched


def sees(record: dict[str, Any], stretch: tuple[float, float] = SHOWN) -> bool:
    """Return True if an answer looked at ``stretch`` again."""
    return stretch in [(hit["start"], hit["end"]) for hit in record.get("looked_at", [])]
