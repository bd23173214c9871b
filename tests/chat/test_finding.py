"""``/find`` lists the moments so far, as ``kvvideo find`` does."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from kvvideo.chat.finding import find
from kvvideo.errors import ConfigError
from kvvideo.runs.find import COUNT, score_of
from kvvideo.runs.playback import Playback
from tests.conftest import EngineFor
from tests.runs.test_playback import FakeSource


def test_moments_so_far_are_listed_best_first(engine_for: EngineFor):
    source: Any = FakeSource()
    playback = Playback(engine_for("streaming"), source)
    said: list[str] = []
    chat: Any = SimpleNamespace(
        player=SimpleNamespace(call=lambda work: work(playback)), screen=SimpleNamespace(say=said.append)
    )
    try:
        for _ in range(10):
            playback.step()
        find(chat, "the letter K")
        (hits,) = playback.session.find(["the letter K"], COUNT)
        stats = playback.session.stats()
        find(chat, "the letter K")
        assert playback.session.stats() == stats
    finally:
        playback.close()
    assert said[: len(hits)] == said[len(hits) :]
    found = [re.fullmatch(r"(\d)\. 0:(\d\d)–0:(\d\d) \(score (\d\.\d\d)\)", line) for line in said[: len(hits)]]
    assert [(int(m[1]), float(m[2]), float(m[3]), float(m[4])) for m in found if m] == [
        (rank, hit.start, hit.end, pytest.approx(score_of(hit.score, 10), abs=0.006))
        for rank, hit in enumerate(hits, 1)
    ]
    assert all(hit.end <= 40 for hit in hits)
    with pytest.raises(ConfigError, match="write what to find: /find the letter K"):
        find(chat, "")
