"""Words are found where they were shown, in one ranking over memories and videos."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, EngineError, VideoError
from kvvideo.runs import find
from kvvideo.runs.analyze import Hooks
from kvvideo.runs.find import Cuts, Found, Search, Subject, of_memory, question_of, recorded, score_of
from kvvideo.session import EngineConfig
from kvvideo.storage.file import MemoryFile, write
from kvvideo.tiny import samples, world
from kvvideo.types import Hit
from kvvideo.video import Source
from tests.helpers.clips import clip, read

CONFIG = EngineConfig(model="tiny", cache=CacheConfig(strategy="distinct", max_tokens=512, sink=32))


# How moments compare -----------------------------------------------------------------------------


def test_a_score_tells_how_far_a_moment_stands_out_among_any_number() -> None:
    assert score_of(1.0, 10) == score_of(1.0, 900) == 1.0
    assert score_of(0.1, 10) == pytest.approx(0.0)
    assert score_of(0.01, 10) == 0.0
    # The same share means more among more.
    assert score_of(0.3, 15) < score_of(0.3, 600)
    # And less attention among many may say less than it seems: 30 times the mean, and 13 times.
    assert score_of(0.05, 600) < score_of(0.9, 15)
    assert score_of(1.0, 1) == score_of(0.0, 10) == 0.0
    assert score_of(1.0000001, 10) == 1.0  # a sum of rounded numbers


def test_words_are_their_own_question() -> None:
    assert question_of("  the letter K ") == "the letter K"
    for nothing in ("", "  \n"):
        with pytest.raises(ConfigError, match="there is nothing to find"):
            question_of(nothing)


@dataclass
class FakeSession:
    """Session as a search asks it: as many chunks as shares, the best first."""

    name: str
    shares: list[float]
    chunks: int
    end: float = 40.0

    @property
    def index(self) -> list[int]:
        return [0] * self.chunks

    @property
    def engine(self) -> Any:
        return SimpleNamespace(drive=lambda found: found)

    def finding(self, questions: list[str]) -> list[Iterator[tuple[Hit, Hit]]]:
        """Moments of a chunk, but for the last, which has another beside it."""
        assert questions == ["a dog"]
        best = [Hit(4.0 * at, 4.0 * at + 4, share) for at, share in enumerate(self.shares)]
        last = best[-1]
        wide = Hit(last.start, last.end + 4, 1.9 * last.score)
        return [iter([*zip(best[:-1], best[:-1], strict=True), (wide, last)])]


class FakeEngine:
    """Counts what is done with it."""

    log: list[str]

    def __init__(self, config: EngineConfig) -> None:
        self.name = config.model

    def use(self, cache: CacheConfig) -> None:
        self.log.append(f"{self.name} uses {cache.strategy}")

    def close(self) -> None:
        self.log.append(f"{self.name} ends")


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeSession]:
    """Sessions by the name of their subject; an error in place of one is raised."""
    found: dict[str, Any] = {}
    FakeEngine.log = []

    @contextmanager
    def session(self: Search, engine: FakeEngine, subject: Subject) -> Iterator[tuple[Any, float]]:
        if isinstance(found[subject.name], Exception):
            raise found[subject.name]
        yield found[subject.name], 0.0

    monkeypatch.setattr(find, "open_engine", lambda config, caches: FakeEngine(config))
    monkeypatch.setattr(Search, "_session", session)
    return found


def subject(name: str, model: str = "tiny", strategy: str = "distinct", source: Source | None = None) -> Subject:
    cache = replace(CONFIG.cache, strategy=strategy)
    return Subject(name, replace(CONFIG, model=model, cache=cache), source, Path(name))


def test_one_ranking_over_several_and_an_engine_for_each_model(sessions: dict[str, Any]) -> None:
    """A clear moment of a short video comes before the best of a long one that shows nothing of the kind."""
    sessions["short"] = FakeSession("short", [0.9, 0.02], 10)
    sessions["long"] = FakeSession("long", [0.3, 0.05], 600)
    sessions["other"] = FakeSession("other", [0.5, 0.5], 30)
    search = Search([subject("short"), subject("other", model="m"), subject("long", strategy="h2o")], "a dog", 4)
    ranked = search.run()
    assert [(one.subject.name, one.best.score) for one in ranked] == [
        ("short", 0.9),
        ("long", 0.3),
        ("other", 0.5),
        ("other", 0.5),
    ]
    assert [one.score for one in ranked] == sorted((one.score for one in ranked), reverse=True)
    assert FakeEngine.log == ["tiny uses distinct", "tiny uses h2o", "tiny ends", "m uses distinct", "m ends"]
    assert search.complete
    assert {one.subject.name for one in search.searched} == {"short", "long", "other"}


def test_what_was_found_before_a_failure_is_kept(sessions: dict[str, Any]) -> None:
    sessions["good"] = FakeSession("good", [0.5], 10)
    sessions["bad"] = EngineError("vLLM failed")
    search = Search([subject("good"), subject("bad"), subject("good")], "a dog")
    hit, done = recorded(search, Cuts())
    assert (hit["rank"], hit["video"], hit["share"], hit["clip"]) == (1, "good", 0.5, None)
    assert (done["status"], done["error"], done["hits"]) == ("error", "vLLM failed", 1)
    assert [one["video"] for one in done["searched"]] == ["good"]
    assert FakeEngine.log[-1] == "tiny ends"


def test_a_search_that_is_stopped_says_so(sessions: dict[str, Any]) -> None:
    sessions["one"] = FakeSession("one", [0.5], 10)
    asked = iter([False, *[True] * 20])
    search = Search([subject("one"), subject("one")], "a dog", hooks=Hooks(lambda: next(asked)))
    _, done = recorded(search, Cuts())
    assert (done["status"], done["error"], len(done["searched"])) == ("interrupted", None, 1)


def test_moments_are_cut_out_once_and_replaced_only_if_forced(sessions: dict[str, Any], tmp_path: Path) -> None:
    source = Source(str(clip("plain.mp4")))
    sessions["one"] = FakeSession("one", [0.6, 0.3], 3)
    cuts = Cuts(tmp_path / "new" / "clips", tmp_path / "frames")
    first, second, done = recorded(Search([subject("one", source=source)], "a dog"), cuts)
    assert first["clip"] == str(tmp_path / "new/clips/01-plain-0-00.mp4")
    assert second["frame"] == str(tmp_path / "frames/02-plain-0-04.jpg")
    assert done["status"] == "complete"
    with Image.open(second["frame"]) as picture:
        assert picture.size == (160, 120)
        assert read(np.asarray(picture)) == 180  # the middle of 0:04 to 0:08, at 30 a second
    assert sum(1 for _ in (tmp_path / "new" / "clips").iterdir()) == 2

    again = Search([subject("one", source=source)], "a dog")
    first, second, done = recorded(again, cuts)
    assert first["clip"] is None is second["frame"]
    assert (done["status"], again.found[0].best.score) == ("error", 0.6)
    assert "01-plain-0-00.mp4' is there already" in done["error"]
    *_, done = recorded(Search([subject("one", source=source)], "a dog"), replace(cuts, force=True))
    assert done["status"] == "complete"


def test_what_cannot_be_cut_out_is_known_before(tmp_path: Path) -> None:
    cuts = Cuts(clips=tmp_path)
    with pytest.raises(ConfigError, match=r"clips: the video of 'a\.kvv' is not at hand; say where it is with --video"):
        cuts.check([subject("a.kvv")])
    with pytest.raises(ConfigError, match=r"clips: 'a\.kvv' is no file that could be cut; record it first"):
        cuts.check([subject("a.kvv", source=Source("rtsp://camera/"))])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        Cuts(frames=tmp_path / "file").check([])
    # The memory has pictures, as the model saw them, but no clips.
    kept = replace(subject("a.kvv"), kept=True)
    Cuts(frames=tmp_path).check([kept])
    with pytest.raises(ConfigError, match="clips"):
        cuts.check([kept])


# With the bundled model --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A clip of a minute and a half, and when each letter is shown in it."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    samples.make(path, seed=77, minutes=88 / 60, density=0.4)
    drawn = world.Clip(77, 22, density=0.4)
    return path, {slot.letter: slot.start for slot in drawn.slots if slot.letter}


def source_of(path: Path) -> Source:
    from kvvideo.session.prediction import frame_pixels

    low, high = frame_pixels(CONFIG)
    return Source(str(path), min_pixels=low, max_pixels=high)


def shows(found: Found, at: float) -> bool:
    return found.hit.start <= at + 1e-6 and at + world.SLOT <= found.hit.end + 1e-6


@pytest.mark.usefixtures("one_engine")
def test_letters_are_found_where_they_were_shown_and_in_the_memory_too(
    film: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    """Most of what was shown is evicted. The memory finds what the session found, in the video's place."""
    path, letters = film
    kept = tmp_path / "film.kvv"
    letter, at = next(iter(letters.items()))
    search = Search([find.of_video(source_of(path), CONFIG)], f"the letter {letter}", 3, kept)
    first = search.run()
    assert search.complete
    assert (search.searched[0].start, round(search.searched[0].end)) == (0, 88)
    assert len(first) == 3
    assert shows(first[0], at)

    subject, note = of_memory(kept, CONFIG)
    assert (subject.source, note) == (source_of(path), "")
    right = 0
    for other, when in letters.items():
        search = Search([subject], f"the letter {other}", 1)
        right += shows(search.run()[0], when)
    assert right >= len(letters) - 1
    again = Search([subject], f"the letter {letter}", 3).run()
    assert [one.hit for one in again] == [one.hit for one in first]


@pytest.mark.usefixtures("one_engine")
def test_python_finds_in_five_lines(film: tuple[Path, dict[str, float]]) -> None:
    path, letters = film
    letter, at = next(iter(letters.items()))
    cache = CONFIG.cache
    (found,) = find.find(path, words=f"the letter {letter}", count=1, model="tiny", cache=cache)
    assert shows(found, at)
    assert 0 < found.score <= 1
    with pytest.raises(VideoError, match="there is no file"):
        find.find("missing.mp4", words="the letter K", model="tiny", cache=cache)


@pytest.mark.usefixtures("one_engine")
def test_a_memory_without_an_index_is_refused_in_one_line(film: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    path, _ = film
    new, old = tmp_path / "new.kvv", tmp_path / "old.kvv"
    Search([find.of_video(replace(source_of(path), end=12.0), CONFIG)], "the letter K", keep=new).run()
    with MemoryFile(new) as file:
        memory = file.memory()
    tensors = {name: tensor for name, tensor in memory.tensors.items() if not name.startswith("index")}
    write(old, replace(memory, tensors=tensors))
    with pytest.raises(
        ConfigError, match=r"old\.kvv' was made by an older version.*make it again with 'kvvideo ingest'"
    ):
        of_memory(old, CONFIG)


def test_a_strategy_without_a_cache_has_nothing_to_find_words_in() -> None:
    config = replace(CONFIG, cache=replace(CONFIG.cache, strategy="recent"))
    with pytest.raises(ConfigError, match="'recent' keeps no cache to find words in; choose another"):
        find.of_video(Source(str(clip("plain.mp4"))), config)


@pytest.mark.usefixtures("one_engine")
def test_a_search_that_is_stopped_loads_no_other_model(film: tuple[Path, dict[str, float]]) -> None:
    seen: list[float] = []
    loaded: list[str] = []
    hooks = Hooks(lambda: len(seen) >= 3, loaded.append, lambda now: seen.append(now.position))
    other = replace(CONFIG, dtype="bfloat16")
    search = Search(
        [find.of_video(source_of(film[0]), CONFIG), find.of_video(source_of(film[0]), other)], "K", hooks=hooks
    )
    assert search.run()
    assert loaded == [CONFIG.model]
    assert not search.complete


@pytest.mark.usefixtures("one_engine")
def test_a_search_that_is_stopped_looks_at_what_was_ingested_by_then(film: tuple[Path, dict[str, float]]) -> None:
    seen: list[float] = []
    hooks = Hooks(stopped=lambda: len(seen) >= 3, chunk=lambda now: seen.append(now.position))
    *hits, done = recorded(Search([find.of_video(source_of(film[0]), CONFIG)], "the letter K", hooks=hooks), Cuts())
    assert (done["status"], done["searched"][0]["end"]) == ("interrupted", 12.0)
    assert hits
    assert all(hit["end"] <= 12 for hit in hits)
