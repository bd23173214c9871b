"""``/find`` lists the moments so far, as ``kvvideo find`` does."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from kvvideo.chat.finding import find
from kvvideo.errors import ConfigError
from kvvideo.runs.find import COUNT, moments
from kvvideo.runs.playback import Playback
from tests.conftest import EngineFor
from tests.runs.test_playback import FakeSource


def test_moments_so_far_are_listed_best_first(engine_for: EngineFor) -> None:
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
        wanted = moments(playback.session, "the letter K", COUNT)
        stats = playback.session.stats()
        find(chat, "the letter K")
        assert playback.session.stats() == stats
    finally:
        playback.close()
    assert len(wanted) > 1
    assert said[: len(wanted)] == said[len(wanted) :]
    for rank, (line, (hit, _, score)) in enumerate(zip(said, wanted, strict=False), 1):
        match = re.fullmatch(r"(\d)\. 0:(\d\d)–0:(\d\d) \(score (\d\.\d\d)\)", line)
        assert match
        assert (int(match[1]), float(match[2]), float(match[3])) == (rank, hit.start, hit.end)
        assert float(match[4]) == pytest.approx(score, abs=0.006)
    with pytest.raises(ConfigError, match="write what to find: /find the letter K"):
        find(chat, "")


def test_a_memory_without_an_index_says_that_there_is_nothing_to_find(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvvideo.chat.finding.moments", lambda session, words, count: [])
    chat: Any = SimpleNamespace(player=SimpleNamespace(call=lambda work: work(SimpleNamespace(session=None))))
    with pytest.raises(ConfigError, match="there is nothing to find words by"):
        find(chat, "the letter K")
