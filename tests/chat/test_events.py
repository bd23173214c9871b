"""A chat on a real engine, driven from Python: what happened to its stream is what it says has happened."""

import json
import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvvideo.chat.chat import Chat
from kvvideo.chat.panel import to_ansi
from kvvideo.chat.player import Player
from kvvideo.errors import EngineError
from kvvideo.prompt import dialogue_text, question_text, system_text
from kvvideo.runs.agenda import Agenda, Question
from kvvideo.runs.playback import Playback
from kvvideo.runs.streaming import analyze, ask
from kvvideo.session import Answer, Engine, VideoSession
from kvvideo.storage.checkpoints import Checkpoints
from kvvideo.storage.file import MemoryFile
from kvvideo.times import format_time
from kvvideo.types import Hit
from tests.conftest import EngineFor
from tests.helpers.engines import clips
from tests.runs.test_playback import SECONDS, FakeSource, bounded, now, same


class Recorder:
    """A screen of which one sees all that was shown."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.problems: list[str] = []
        self.answers: list[str] = []
        self.waited: list[str] = []
        self.layers: list[int | None] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def begin(self, at: float, question: str) -> None:
        self.answers.append("")

    def piece(self, text: str) -> None:
        self.answers[-1] += text

    def end(self) -> None:
        if self.answers:
            self.answers[-1] += "\n"

    def show(self, what: Any) -> None:
        found = re.search(r"timeline of layer (\d+)", to_ansi(what(100), 100))
        self.layers.append(int(found[1]) if found else None)

    def dash(self, on: bool) -> None:
        pass

    def waiting(self, text: str) -> None:
        self.waited.append(text)


class Driven:
    """A chat, its screen, and what the player tells."""

    def __init__(self, playback: Playback, remember: bool, system: str) -> None:
        self.told: list[str] = []
        self.player = Player(lambda: playback, self.told.append, playing=False, system=system)
        self.player.wait_ready()
        self.remember = remember
        self.screen, self.chat = self.talk()

    def talk(self) -> tuple[Recorder, Chat]:
        """Another chat about the same, as after the program was started again."""
        screen = Recorder()
        return screen, Chat(self.player, screen, "fake.mp4", self.remember, _load)

    def __call__(self, *lines: str) -> None:
        for line in lines:
            self.chat.handle(line)

    @property
    def playback(self) -> Playback:
        return self.player.playback

    def now(self) -> tuple[Answer, Any, list[Any]]:
        """Return what the stream says and holds, without the frame on screen."""

        def look(playback: Playback) -> tuple[Answer, Any, list[Any]]:
            playback.also = None
            return now(playback)

        return self.player.call(look)

    def stop_after(self, chunks: int) -> None:
        """Ctrl-C once a journey has come so far."""
        refresh, left = self.player.refresh, chunks

        def refreshed(playback: Playback, timeline: bool = False) -> None:
            nonlocal left
            refresh(playback, timeline)
            left -= 1
            if left == 0:
                self.player._cancel.set()
                self.player.refresh = refresh  # type: ignore[method-assign]

        self.player.refresh = refreshed  # type: ignore[method-assign]


def _load(playback: Playback, path: Path) -> Playback:
    saved = MemoryFile(path)
    source: Any = FakeSource()
    return playback.replaced_by(lambda engine: Playback(engine, source, saved=saved, memory=saved.memory()))


Start = Callable[..., Driven]


@pytest.fixture
def start(engine_for: EngineFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts chats on one engine, which has room for other strategies and goes on afterwards."""
    monkeypatch.chdir(tmp_path)
    engine: Engine = engine_for("full", spare_rows=3)
    engine.use(bounded("streaming"))
    monkeypatch.setattr(engine, "close", lambda: None)
    begun: list[Driven] = []

    def get(remember: bool = False, system: str = "") -> Driven:
        source: Any = FakeSource()
        store = Checkpoints(tmp_path / "checkpoints")
        begun.append(Driven(Playback(engine, source, checkpoints=store, every=3 * SECONDS), remember, system))
        begun[-1]("/set max-answer-tokens 4")
        return begun[-1]

    yield get
    for driven in begun:
        driven.player.close()
    monkeypatch.undo()
    engine.use(bounded("full"))


def remembered(chat: Chat) -> list[tuple[str, bool]]:
    return [(said.question, said.remembered) for said in chat.dialogue.said]


@pytest.mark.slow
def test_what_was_remembered_comes_with_a_memory(start: Start):
    """And can be taken back there, last first; what was said since is not part of it."""
    driven = start(remember=True)
    driven("/step 3", "A?")
    with_a = driven.now()
    driven("/step 3", "B?", "/save talk")
    with_both = driven.now()
    driven("C?", "/load talk")
    assert driven.screen.problems == []
    assert remembered(driven.chat) == [("A?", True), ("B?", True), ("C?", False)]
    same(driven.now(), with_both)
    # A chat that begins with the file knows it too.
    screen, chat = driven.talk()
    assert remembered(chat) == [("A?", True), ("B?", True)]
    assert [said.at for said in chat.dialogue.said] == [12.0, 24.0]
    driven("/undo", "/undo")
    assert remembered(driven.chat) == [("A?", True)]
    assert driven.screen.said[-2:-1] == ["taken back: C?"]
    assert driven.screen.said[-1].startswith("taken back: B? (from the ")
    driven("/seek 12")
    same(driven.now(), with_a)
    driven("/seek 8")
    assert remembered(driven.chat) == [("A?", False)]
    driven("/undo", "/undo")
    assert driven.screen.problems == ["nothing was said that could be taken back"]
    assert screen.problems == []


@pytest.mark.slow
def test_events_of_a_memory_are_counted_when_later_ones_go(start: Start):
    driven = start(remember=True)
    driven(
        "/step 2", "A?", "/step", "/strategy window", "/save one", "/load one.kvv", "/step 3", "B?", "/seek 20", "C?"
    )
    assert driven.screen.problems == []
    assert remembered(driven.chat) == [("A?", True), ("B?", False), ("C?", True)]
    driven("/undo", "/undo", "/undo")
    assert driven.playback.engine.config.cache.strategy == "streaming"
    assert remembered(driven.chat) == [("A?", True)]
    assert [event.turns[0][0] for event in driven.playback.events] == ["A?"]


@pytest.mark.parametrize("line", ["/undo", "/budget 96"])
def test_a_journey_that_is_stopped_leaves_no_event_behind(start: Start, line: str):
    """Taking back and beginning anew have happened where they are stopped, as far as they came."""
    driven = start(remember=True)
    driven("/step 6", "A?")
    assert driven.playback.memories.checkpoints is not None
    driven.player.call(lambda playback: playback.memories.checkpoints.clear())  # type: ignore[union-attr]
    driven.stop_after(2)
    driven(line)
    assert driven.screen.said[-1] == "stopped"
    assert driven.playback.events == ()
    assert driven.playback.at == 8.0
    assert remembered(driven.chat) == [("A?", False)]
    driven("/step", "/undo", "/undo")
    assert driven.screen.said[-1] == "taken back: A?"
    assert driven.screen.problems == ["nothing was said that could be taken back"]


def test_the_dialogue_is_told_where_the_stream_has_it_not(start: Start, monkeypatch: pytest.MonkeyPatch):
    driven = start(remember=True)
    told: list[list[str]] = []
    stream = Playback.stream

    def spied(playback: Playback, question: str, **options: Any) -> Generator[Answer, None, None]:
        told.append([asked for asked, _ in options["dialogue"]])
        return stream(playback, question, **options)

    monkeypatch.setattr(Playback, "stream", spied)
    driven("/set dialogue on", "/step 3", "A?", "/step 3", "B?")
    assert told == [[], []], "the stream has them"
    driven("/at 20 C?", "/at 4 D?", "E?", "/compare streaming window", "/compare streaming window -- F?")
    assert told[2:] == [
        ["B?"],
        ["A?", "B?", "C?"],
        ["C?", "D?"],
        *[["A?", "B?", "C?", "D?"]] * 2,
        *[["A?", "B?", "C?", "D?", "E?"]] * 2,
    ]
    driven("/set dialogue off", "G?")
    assert told[-1] == []
    assert driven.screen.problems == []


def test_an_answer_that_fails_is_kept_as_far_as_it_came(start: Start, monkeypatch: pytest.MonkeyPatch):
    driven = start()
    driven("/step 2")

    def broken(playback: Playback, question: str, **options: Any) -> Generator[Answer, None, None]:
        yield Answer(question, "So far", (1,), (), "", 0.1, 0.2)
        raise EngineError("the pool ran out of blocks")

    monkeypatch.setattr(Playback, "stream", broken)
    driven("What?")
    assert driven.screen.answers == ["So far\n"]
    assert driven.screen.problems == ["… cut here: the pool ran out of blocks"]
    assert [said.answer for said in driven.chat.dialogue.said] == ["So far"]
    assert driven.chat.failed == EngineError.exit_code


def test_a_line_says_what_was_looked_at_again(start: Start, monkeypatch: pytest.MonkeyPatch):
    driven = start()
    driven("/step 3")
    hits: tuple[Hit, ...] = (Hit(0.0, 4.0, 0.5), Hit(8.0, 10.0, 0.25))
    reason = "length"

    def again(playback: Playback, question: str, **options: Any) -> Generator[Answer, None, None]:
        yield Answer(question, "So", (1,), (), "", 0.1, 0.2, hits)
        yield Answer(question, "So it is", (1, 2), (), reason, 0.1, 0.2, hits)

    monkeypatch.setattr(Playback, "stream", again)
    words = "looked again at 0:00–0:04, 0:08–0:10"
    driven("What?")
    assert driven.screen.answers == ["So it is\n"]
    assert driven.screen.said[-2:] == ["… cut here; '/set max-answer-tokens 512' allows longer answers", words]
    reason = "stop"
    driven("/at 4 What?")
    assert driven.screen.said[-1] == words
    assert [said.looked_at for said in driven.chat.dialogue.said] == [hits] * 2
    driven("/compare streaming window")
    assert [re.sub(r"from .* s;", "way;", line) for line in driven.screen.said[-2:]] == [
        f"streaming: So it is  (way; {words})",
        f"window: So it is  (way; {words})",
    ]
    hits = ()
    before = len(driven.screen.said)
    driven("What?", "/compare streaming window")
    assert [re.sub(r"from .* s", "way", line) for line in driven.screen.said[before:]] == [
        "streaming: So it is  (way)",
        "window: So it is  (way)",
    ]
    assert driven.screen.problems == []


def test_what_cannot_be_remembered_was_said_all_the_same(start: Start, monkeypatch: pytest.MonkeyPatch):
    driven = start(remember=True)
    driven("/step 2")

    def full(*_: Any) -> None:
        raise EngineError("it is too long")

    monkeypatch.setattr(Playback, "remember", full)
    driven("What?")
    assert driven.screen.problems == ["this is not remembered: it is too long"]
    assert remembered(driven.chat) == [("What?", False)]


def test_what_is_watched_is_asked_after_going_back_and_step_by_step(start: Start):
    driven = start()
    driven("/step 8", '/watch "Is it?"', "/step 2")
    assert driven.told == []
    driven("/step")
    asked = [line.split("]")[0] for line in driven.told]
    assert asked == ["[0:42"]
    driven("/seek 8")
    (watch,) = driven.player.watches
    watch.answer = None
    driven("/step")
    watch.answer = None
    driven("/step", "/step")
    assert [line.split("]")[0] for line in driven.told] == ["[0:42", "[0:08", "[0:18"]


def test_a_file_that_somebody_else_wrote_is_not_replaced(start: Start, tmp_path: Path):
    driven = start()
    driven("/step 2", "/save mine", "/step", "/save", "/save ./mine.kvv")
    assert driven.screen.problems == []
    with MemoryFile("mine.kvv") as file:
        assert file.times[-1] == 12.0
    Path("mine.kvv").rename("other.kvv")
    Path("mine.kvv").write_bytes(Path("other.kvv").read_bytes())
    (tmp_path / "folder").mkdir()
    driven("/save", "/save mine", "/save other", "/save folder")
    assert driven.screen.problems == [
        "'mine.kvv' was written by somebody else meanwhile; name another file",
        "'mine.kvv' was written by somebody else meanwhile; name another file",
        "'other.kvv' is there already; name another file",
        "'folder' is a folder; name a file in it",
    ]
    # Loaded again, it is ours again; what was kept of the stream before is gone from the disk.
    kept = driven.playback.memories.checkpoints
    driven("/load mine", "/save")
    assert len(driven.screen.problems) == 4
    assert kept is not None
    assert kept.times == []


def test_strategies_and_budgets_that_cannot_be(start: Start):
    driven = start()
    driven("/step 6")
    before = driven.now()
    driven("/strategy recent", "/compare summary streaming -- A?", "/strategy full", "/budget 1")
    assert [problem.split(";")[0] for problem in driven.screen.problems[:2]] == [
        "strategy: 'recent' keeps no cache that could be saved or gone back in",
        "strategy: 'summary' keeps no cache that could be saved or gone back in",
    ]
    assert "'full' has no bound" in driven.screen.problems[2]
    assert "fill the whole budget of 1 tokens" in driven.screen.problems[3]
    same(driven.now(), before)
    driven("/strategy")
    assert not any(line.strip("* ").startswith(("recent", "summary")) for line in driven.screen.said)
    driven("/budget 70")
    assert driven.screen.said[-1].startswith("keeping 64 tokens, 70 in whole blocks: from the beginning")


def test_a_question_is_watched_as_often_as_it_says(start: Start, monkeypatch: pytest.MonkeyPatch):
    """At its moments, not at the ends of chunks after them; and so it is answered as ``analyze --every`` answers."""
    driven, every = start(), 1.25 * SECONDS
    asked: list[tuple[float, str]] = []

    def noted(session: VideoSession, *arguments: Any, **options: Any) -> Any:
        found = ask(session, *arguments, **options)
        asked.extend((one.at, one.text) for one in found)
        return found

    monkeypatch.setattr("kvvideo.chat.player.ask", noted)
    driven(f"/set watch-every {every}", '/watch "Is it?"', "/step 10")
    assert [at for at, _ in asked] == [every * count for count in range(1, 8)]

    def analyzed(playback: Playback) -> list[tuple[float, str]]:
        with VideoSession(playback.engine) as session:
            said = analyze(session, clips(10), Agenda([Question("Is it?")], every), max_tokens=32)
            return [(one.at, one.text) for one in said]

    assert asked == driven.player.call(analyzed)[: len(asked)]
    assert len({text for _, text in asked}) > 1, "or nothing was shown by this"
    asked.clear()
    driven("/seek 4", "/step")
    assert [at for at, _ in asked] == [4.0]


def test_what_is_watched_is_told_with_what_it_looked_at_again(start: Start, monkeypatch: pytest.MonkeyPatch):
    driven = start()
    hits = (Hit(4.0, 8.0, 0.5),)

    def again(*arguments: Any, **options: Any) -> Any:
        return [replace(one, answer=replace(one.answer, looked_at=hits)) for one in ask(*arguments, **options)]

    monkeypatch.setattr("kvvideo.chat.player.ask", again)
    driven('/watch "Is it?"', "/watch Was it?", "/step 3", "/watch")
    assert all(line.startswith("[0:10] ") and line.endswith(" (looked again at 0:04–0:08)") for line in driven.told)
    assert len(driven.told) == 2
    assert driven.screen.said[-1].endswith("; looked again at 0:04–0:08)")
    driven("/watch off 1")
    assert driven.screen.said[-2] == "not asked any more: Is it?"
    assert driven.screen.said[-1].startswith("1. Was it? (every 0:10; last: ")
    driven("/watch off", "/watch")
    assert driven.screen.said[-2:] == ["not asked any more: Was it?", "nothing is watched"]


def test_one_layer_is_shown_once_or_kept_on_screen(start: Start):
    driven = start()
    driven("/step 2", "/dash", "/stats layer 0")
    assert driven.screen.layers == [0]
    driven("/step", "/stats")
    assert driven.screen.layers == [0, None]
    assert driven.player.status.layer is None
    driven("/dash layer 1", "/step")
    assert driven.player.status.layer == 1
    driven("/stats layer 99", "/dash layer 99", "/step")
    assert [problem.split(";")[0] for problem in driven.screen.problems] == ["layer: there is no 99"] * 2
    assert driven.player.status.layer == 1
    driven("/dash", "/step")
    assert driven.player.status.layer is None


def test_what_was_said_is_shown_in_place_of_a_file(start: Start, tmp_path: Path):
    driven = start()
    driven("/step", "A?", "/export json -")
    (record,) = json.loads(driven.screen.said[-1])
    assert record["question"] == "A?"
    assert not (tmp_path / "-").exists()


def test_what_the_model_is_told_is_in_no_memory(start: Start, monkeypatch: pytest.MonkeyPatch):
    driven, texts = start(remember=True, system="Be brief."), list[str]()
    prompt = Engine.prompt

    def noted(engine: Engine, text: str, *chunks: Any) -> Any:
        texts.append(text)
        return prompt(engine, text, *chunks)

    monkeypatch.setattr(Engine, "prompt", noted)
    driven("/set watch-every 4", "/step 2", "A?", "/at 4 B?", '/watch "C?"', "/step 2")
    driven("/compare streaming window -- D?", "/export json -")
    for question in ("A?", "B?", "C?", "D?"):
        asked = [text for text in texts if text.endswith(question_text(question))]
        assert asked
        assert all(text.count(system_text("Be brief.")) == 1 for text in asked)
    remembered = [text for text in texts if text.startswith(dialogue_text([("A?", "")])[:4])]
    assert len(remembered) >= 1
    assert not any("Be brief." in text for text in remembered)
    assert [record["system"] for record in json.loads(driven.screen.said[-1])] == ["Be brief."] * 2


def test_history_says_what_was_looked_at_again(start: Start):
    driven = start()
    driven("/step", "A?")
    driven.chat.dialogue.said[-1] = replace(driven.chat.dialogue.said[-1], looked_at=(Hit(0.0, 4.0, 0.5),))
    driven("/history")
    assert driven.screen.said[-1].endswith("\n  (looked again at 0:00–0:04)")


def test_a_journey_says_how_far_it_is(start: Start, monkeypatch: pytest.MonkeyPatch):
    """And so does whatever else takes long; in the end nothing of that is left."""
    monkeypatch.setattr("kvvideo.chat.chat._PATIENCE", 0.0)
    monkeypatch.setattr("kvvideo.chat.player._WAIT_SECONDS", 0.001)
    driven = start()
    waited = driven.chat.screen.waited
    driven("/step", f"/seek {5 * SECONDS}")
    moments = [re.fullmatch(r"… at (\S+), on the way to (\S+); Ctrl-C stops", text) for text in waited]
    assert {match[2] for match in moments if match} == {format_time(5 * SECONDS)}
    assert len({match[1] for match in moments if match}) > 1
    waited.clear()
    driven("A?")
    assert re.fullmatch(r"… \d s; Ctrl-C stops", waited[0])
    assert waited[-1] == ""
    waited.clear()
    driven("/compare streaming window -- B?")
    assert any(text.startswith("… window: at ") for text in waited)


def test_a_moment_after_the_end_is_refused_at_once(start: Start):
    driven = start()
    length = 14 * SECONDS
    driven.playback.source.end = length
    driven("/step 2", f"/seek {length + 1}", f"/at {length + 1} A?")
    says = f"there is nothing at {format_time(length + 1)}; it ends at {format_time(length)}"
    assert driven.screen.problems == [says, says]
    assert driven.playback.at == 2 * SECONDS
    driven(f"/seek {length}")
    assert driven.playback.at == length
