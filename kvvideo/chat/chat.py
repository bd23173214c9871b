"""What a chat does with each line: questions, and one method per command of ``commands``."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kvvideo.chat import commands
from kvvideo.chat.commands import Value
from kvvideo.chat.dialogue import Dialogue, Said
from kvvideo.chat.hints import little_held
from kvvideo.chat.player import Cancelled, Player, Watch
from kvvideo.errors import ConfigError, EngineError, KvvideoError
from kvvideo.prompt import Turn, well_formed
from kvvideo.runs.events import Event
from kvvideo.runs.playback import Arrival, Playback
from kvvideo.storage.file import SUFFIX
from kvvideo.times import format_time

if TYPE_CHECKING:
    from rich.console import RenderableType

_DIALOGUE_TOKENS = 2048
"""How much of the dialogue the model is told again with each question."""
_PATIENCE = 1.0
"""Seconds after which whoever waits is told that it goes on."""
_SLACK = 1e-3
"""Seconds by which a moment may be after the end: times are shown in milliseconds."""
_STOPPED = "stopped"
"""Why an answer ended that the person stopped."""
_ENDED = ("stop", "length", _STOPPED)
"""Why an answer may end; any other reason is what went wrong."""


class Screen(Protocol):
    """Where a chat shows things. ``say`` and ``piece`` may be called from the player's thread."""

    def say(self, text: str) -> None:
        """A line about what was done."""

    def problem(self, text: str) -> None:
        """A line about what could not be done."""

    def begin(self, at: float, question: str) -> None:
        """An answer is about to come."""

    def piece(self, text: str) -> None:
        """More of the answer."""

    def end(self) -> None:
        """The answer is complete, or was stopped."""

    def show(self, what: "Callable[[int], RenderableType]") -> None:
        """What rich makes for so many columns."""

    def dash(self, on: bool) -> None:
        """Keep the panel on screen, or not."""

    def waiting(self, text: str) -> None:
        """Show what is waited for, and how far that is; it goes with the next thing shown, or with an empty text."""


@dataclass(frozen=True)
class _Happened:
    """What a playback calls an event: ``said`` was remembered, or, if that is none, a strategy was switched to.

    ``after`` is how many exchanges had been said then.
    """

    said: tuple[Said, ...]
    after: int


class Chat:
    """A dialogue about what a player plays.

    Args:
        player: plays the video.
        screen: shows what is said.
        name: of the video.
        remember: whether what is said becomes part of what the model has seen.
        load: opens a memory file on the engine of a playback, which it closes.
        file: the memory file that is played, if it is one.

    Attributes:
        leaving: whether the person wants to leave.
        failed: exit code of the first line that could not be done; 0 if there was none.
    """

    def __init__(
        self,
        player: Player,
        screen: Screen,
        name: str,
        remember: bool,
        load: Callable[[Playback, Path], Playback],
        file: Path | None = None,
    ) -> None:
        self.player, self.screen, self.name = player, screen, name
        self.remember, self._open = remember, load
        self.dialogue = Dialogue()
        self.settings: dict[str, Value] = {setting.name: setting.default for setting in commands.SETTINGS}
        self.settings["dialogue"] = player.call(lambda playback: playback.engine.knows_dialogue)
        self._file, self._stamp = file, None if file is None else _stamp(file)
        # As many as the playback has events.
        self._happened: list[_Happened] = []
        self._adopt(player.call(lambda playback: playback.events))
        self.leaving = False
        self.failed = 0
        self._begun = time.monotonic()
        self._goal: tuple[str, float] | None = None  # what is on its way, and to which moment
        player.waiting = self._wait

    def handle(self, line: str) -> None:
        """Do what ``line`` asks for; what goes wrong is shown, not raised."""
        line = well_formed(line)
        if not line.strip():
            return
        self._begun, self._goal = time.monotonic(), None
        try:
            parsed = commands.parse(line)
            if parsed is None:
                self._ask(commands.question_in(line))
            else:
                getattr(self, f"_{parsed.name}")(parsed.arguments)
        except Cancelled:
            self.screen.end()
            self.screen.say("stopped")
        except KvvideoError as error:
            self._fail(error)
        finally:
            self.screen.waiting("")

    def _wait(self) -> None:
        """Tell the person who waits that it goes on, and how far it is."""
        if (passed := time.monotonic() - self._begun) < _PATIENCE:
            return
        far = f"{passed:.0f} s"
        if self._goal is not None:
            name, moment = self._goal
            far = f"{name}at {format_time(self.player.status.at)}, on the way to {format_time(moment)}"
        self.screen.waiting(f"… {far}; Ctrl-C stops")

    # Questions -----------------------------------------------------------------------------------

    def _ask(self, question: str) -> None:
        def work(playback: Playback) -> tuple[Said, str, str | None, KvvideoError | None]:
            said, reason = self._answer(playback, question)
            warning = problem = None
            if self.settings["hints"]:
                session = playback.session
                warning = little_held([question, said.answer], session.timeline(), session.end)
            if self.remember and playback.session.chunks:
                try:
                    playback.remember([(question, said.answer)])
                    said = replace(said, remembered=True)
                except KvvideoError as error:
                    problem = error
            return said, reason, warning, problem

        self._note(*self.player.call(work))

    def _at(self, arguments: str) -> None:
        moment, question = commands.split_at(arguments)

        def work(playback: Playback) -> tuple[Said, str]:
            _check_within(playback, moment)
            with playback.visit(moment, self._on_chunk(playback, moment)) as arrival:
                self._report(arrival, moment)
                said, reason = self._answer(playback, question)
            return replace(said, since=_way(arrival)), reason

        self._note(*self.player.call(work))

    def _answer(self, playback: Playback, question: str) -> tuple[Said, str]:
        """Ask, in the player's thread; returns what was said, and why the answer ended."""
        answers = playback.stream(question, dialogue=self._told(playback), **self._sampling(playback))
        self.screen.begin(playback.at, question)
        answer, shown = None, ""
        try:
            for answer in answers:
                # A character whose bytes have not all come yet.
                text = answer.text.rstrip("\N{REPLACEMENT CHARACTER}") if not answer.finish_reason else answer.text
                if text.startswith(shown):
                    self.screen.piece(text[len(shown) :])
                    shown = text
                self.player.check()
        except (Cancelled, KvvideoError) as error:
            # What there is of it is kept.
            if answer is None:
                if not isinstance(error, Cancelled):
                    self.screen.end()
                raise
            answer = replace(answer, finish_reason=_STOPPED if isinstance(error, Cancelled) else str(error))
        finally:
            answers.close()
        assert answer is not None
        self.screen.end()
        return Said(playback.at, question, answer.text, seconds=answer.seconds), answer.finish_reason

    def _told(self, playback: Playback, without: tuple[Said, ...] = ()) -> list[Turn]:
        """What was said before, for the model, but for ``without`` and what its stream has in it where it stands."""
        if not self.settings["dialogue"]:
            return []
        tokenizer, chunks = playback.engine.tokenizer, playback.session.chunks
        count = sum(event.chunks <= chunks for event in playback.events)
        seen = [said for happened in self._happened[:count] for said in happened.said]
        return self.dialogue.turns(_DIALOGUE_TOKENS, lambda text: len(tokenizer(text).input_ids), [*seen, *without])

    def _sampling(self, playback: Playback) -> dict[str, Any]:
        settings = self.settings
        return {
            "max_tokens": int(settings["max-answer-tokens"]),
            "temperature": float(settings["temperature"]),
            "seed": playback.engine.config.seed,
        }

    def _note(self, said: Said, reason: str, warning: str | None = None, problem: KvvideoError | None = None) -> None:
        self.dialogue.add(said)
        if said.remembered:
            self._happened.append(_Happened((said,), len(self.dialogue.said)))
        if reason == "length":
            self.screen.say("… cut here; '/set max-answer-tokens 512' allows longer answers")
        elif reason == _STOPPED:
            self.screen.say("… stopped")
        elif reason not in _ENDED:
            self._fail(EngineError(f"… cut here: {reason}"))
        if warning:
            self.screen.say(warning)
        if problem:
            self._fail(type(problem)(f"this is not remembered: {problem}"))

    def _fail(self, error: KvvideoError) -> None:
        self.screen.problem(str(error))
        self.failed = self.failed or error.exit_code

    # Moving --------------------------------------------------------------------------------------

    def _play(self, arguments: str) -> None:
        speed = commands.parse_speed(arguments) if arguments else None

        def work(playback: Playback) -> None:
            if playback.ended:
                raise ConfigError(f"there is nothing after {format_time(playback.at)}; /seek goes to an earlier moment")
            self.player.play(speed)

        self.player.call(work)

    def _pause(self, arguments: str) -> None:
        self.player.call(lambda _: self.player.pause())

    def _step(self, arguments: str) -> None:
        wanted = commands.parse_count(arguments)

        def work(playback: Playback) -> float:
            self.player.pause()
            for _ in range(wanted):
                if not self.player.step():
                    raise ConfigError(f"there is nothing after {format_time(playback.at)}")
                self._on_chunk(playback)()
            return playback.at

        self.screen.say(f"at {format_time(self.player.call(work))}")

    def _seek(self, arguments: str) -> None:
        moment = commands.parse_moment(arguments)

        def work(playback: Playback) -> None:
            if playback.source is not None and not playback.source.replayable:
                raise ConfigError("a live source cannot be left for another moment; '/at TIME question' looks back")
            _check_within(playback, moment)
            # At full speed it would be gone again before anything is asked.
            self.player.pause()
            try:
                self._report(playback.go(moment, self._on_chunk(playback, moment)), moment)
            finally:
                self._keep_events(len(playback.events))

        self.player.call(work)

    def _keep_events(self, kept: int) -> None:
        """What was remembered or switched beyond the first ``kept`` events has not happened."""
        self.dialogue.forget([said for happened in self._happened[kept:] for said in happened.said])
        self._happened = self._happened[:kept]

    def _adopt(self, events: tuple[Event, ...]) -> None:
        """What was remembered or switched on the way of a memory has happened, and nothing else."""
        self._keep_events(0)
        after = 0
        for event in events:
            which = [self.dialogue.recall(turn, event.end) for turn in event.turns]
            after = max([after, *(index + 1 for index in which)])
            self._happened.append(_Happened(tuple(self.dialogue.said[index] for index in which), after))

    def _on_chunk(self, playback: Playback, goal: float | None = None, name: str = "") -> Callable[[], None]:
        """Return what to do after each chunk on the way to ``goal``, called ``name``: look for a stop, and tell."""
        self._goal = None if goal is None else (name, goal)

        def on_chunk() -> None:
            self.player.refresh(playback)
            self.player.check()

        return on_chunk

    def _report(self, arrival: Arrival, wanted: float) -> None:
        self._goal, self._begun = None, time.monotonic()  # what comes next is an answer
        short = "" if arrival.exact else f", the nearest to {format_time(wanted)} there is"
        self.screen.say(f"at {format_time(arrival.at)}{short}: {_way(arrival)}")

    # Looking -------------------------------------------------------------------------------------

    def _stats(self, arguments: str) -> None:
        layer = commands.parse_layer(arguments)

        def work(playback: Playback) -> None:
            if layer is not None:
                playback.session.timeline(layer)  # says so if there is none
            self.player.layer = layer
            self.player.refresh(playback, timeline=True)

        self.player.call(work)
        from kvvideo.chat.panel import panel

        self.screen.show(lambda width: panel(self.player.status, width))

    def _dash(self, arguments: str) -> None:
        on = commands.parse_dash(arguments)
        self.player.looked_at = on
        self.player.call(lambda playback: self.player.refresh(playback, timeline=True))
        self.screen.dash(on)

    def _frame(self, arguments: str) -> None:
        from kvvideo.video.still import frame_at

        def work(playback: Playback) -> Path:
            if playback.source is None or not playback.source.replayable:
                raise ConfigError("frames of the past are gone: the video is not at hand as a file")
            moment = commands.parse_moment(arguments) if arguments else playback.at
            if not arguments and playback.ended and playback.also is None:
                moment = max(moment - 1 / playback.source.fps, playback.start)  # the last that was looked at
            shown, picture = frame_at(playback.source.path, moment, playback.source.decoder)
            path = _free(f"{Path(playback.source.path).stem}-{format_time(shown).replace(':', '-')}", "png")
            _write_picture(picture, path)
            return path

        self.screen.say(f"wrote {self.player.call(work)}")

    def _watch(self, arguments: str) -> None:
        watch = commands.parse_watch(arguments)
        watches = self.player.watches
        if watch.off:
            number = watch.number
            if number is not None and not 0 < number <= len(watches):
                raise ConfigError(f"watch: there is no number {number}; /watch lists them")
            self.player.watches = [] if number is None else [w for i, w in enumerate(watches, 1) if i != number]
        elif watch.question is not None:
            every = float(self.settings["watch-every"])
            question = watch.question
            self.player.call(lambda playback: watches.append(Watch(question, every, playback.at + every)))
        elif not watches:
            self.screen.say("nothing is watched")
        for number, w in enumerate(self.player.watches, 1):
            answer = "not asked yet" if w.answer is None else w.answer or "(no answer)"
            self.screen.say(f"{number}. {w.question} (every {format_time(w.every)}; last: {answer})")

    # The cache -----------------------------------------------------------------------------------

    def _strategy(self, arguments: str) -> None:
        from kvvideo.compression import load, strategies
        from kvvideo.session import BASELINES

        if not arguments:
            current = self.player.status.strategy
            for name in (name for name in strategies() if name not in BASELINES):
                self.screen.say(f"{'*' if name == current else ' '} {name}: {load(name).summary}")
            return

        def work(playback: Playback) -> None:
            playback.switch(replace(playback.engine.config.cache, strategy=arguments))
            self._happened.append(_Happened((), len(self.dialogue.said)))

        self.player.call(work)
        self.screen.say(f"{arguments} decides from here on; what is held stays")

    def _compare(self, arguments: str) -> None:
        names, question = commands.parse_compare(arguments)
        if question is None and not self.dialogue.said:
            raise ConfigError("nothing was asked yet; write a question: /compare h2o streaming -- what happened?")
        again = tuple(self.dialogue.said[-1:]) if question is None else ()
        asked = question or again[0].question

        def work(playback: Playback) -> None:
            caches = [replace(playback.engine.config.cache, strategy=name) for name in names]
            for cache in caches:
                on_chunk = self._on_chunk(playback, playback.at, f"{cache.strategy}: ")
                with playback.anew(cache, on_chunk) as arrival:
                    told, text = self._told(playback, again), ""
                    with closing(playback.stream(asked, dialogue=told, **self._sampling(playback))) as answers:
                        for answer in answers:
                            text = answer.text
                            self.player.check()
                self.screen.say(f"{cache.strategy}: {' '.join(text.split()) or '(no answer)'}  ({_way(arrival)})")

        self.player.call(work)

    def _budget(self, arguments: str) -> None:
        if not arguments:
            status = self.player.status
            bound = f"a compaction keeps {status.budget} tokens, and comes when {status.max_tokens} are held"
            pool = f"the pool has {status.blocks_total} blocks, {status.blocks_free} free"
            self.screen.say(f"{'no bound' if status.max_tokens is None else bound}; {pool}")
            return
        budget = commands.parse_count(arguments)

        def work(playback: Playback) -> Arrival:
            cache = playback.engine.config.cache
            if cache.schedule(playback.engine.block_size) is None:
                raise ConfigError(f"budget: strategy {cache.strategy!r} keeps everything; start anew with another")
            wanted = cache.with_budget(budget)
            try:
                return playback.restart(wanted, self._on_chunk(playback, playback.at))
            finally:
                self._keep_events(len(playback.events))

        arrival = self.player.call(work)
        kept = self.player.status.budget
        rounded = "" if kept == budget else f", {budget} in whole blocks"
        self.screen.say(f"keeping {kept} tokens{rounded}: {_way(arrival)}")

    # What was said -------------------------------------------------------------------------------

    def _undo(self, arguments: str) -> None:
        last = self._happened[-1] if self._happened else None
        if last is None or last.after < len(self.dialogue.said):
            self.screen.say(f"taken back: {self.dialogue.undo().question}")
            return

        def work(playback: Playback) -> Arrival:
            try:
                return playback.undo(self._on_chunk(playback, playback.at))
            finally:
                self._keep_events(len(playback.events))

        which = [i for i, said in enumerate(self.dialogue.said) if any(said is one for one in last.said)]
        way = _way(self.player.call(work))
        self.dialogue.said = [said for i, said in enumerate(self.dialogue.said) if i not in which]
        if which:
            self.screen.say(f"taken back: {last.said[-1].question} ({way})")
        else:
            self.screen.say(f"{self.player.status.strategy} decides again ({way})")

    def _history(self, arguments: str) -> None:
        if not self.dialogue.said:
            self.screen.say("nothing was said yet")
        for said in self.dialogue.said:
            self.screen.say(f"[{format_time(said.at)}] {said.question}\n  {said.answer or '(no answer)'}")

    def _export(self, arguments: str) -> None:
        kind, file = commands.parse_export(arguments)
        path = Path(file) if file else _free(f"{self._stem}.chat", kind)
        if file and path.exists():
            raise ConfigError(f"{str(path)!r} is there already; name another file")
        try:
            path.write_text(self.dialogue.export(kind, self.name), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{str(path)!r} cannot be written: {error.strerror}") from None
        self.screen.say(f"wrote {path}")

    # Memories ------------------------------------------------------------------------------------

    def _save(self, arguments: str) -> None:
        path = Path(arguments) if arguments else self._file or _free(self._stem, "kvv")
        if path.is_dir():
            raise ConfigError(f"{str(path)!r} is a folder; name a file in it")
        path = _with_suffix(path)
        if path.exists():
            if self._file is None or path.resolve() != self._file.resolve():
                raise ConfigError(f"{str(path)!r} is there already; name another file")
            if _stamp(path) != self._stamp:
                raise ConfigError(f"{str(path)!r} was written by somebody else meanwhile; name another file")
        self.player.call(lambda playback: playback.write(path))
        self._file, self._stamp = path, _stamp(path)
        self.screen.say(f"wrote {path}")

    @property
    def _stem(self) -> str:
        """What files about the video are called."""
        return "stdin" if self.name == "-" else Path(self.name).stem or "video"

    def _load(self, arguments: str) -> None:
        if not arguments:
            raise ConfigError("write which file: /load movie.kvv")
        path = Path(arguments)
        if not path.exists() and (named := _with_suffix(path)).exists():
            path = named

        def work(playback: Playback) -> tuple[float, tuple[Event, ...]]:
            self.player.playback = loaded = self._open(playback, path)
            return loaded.at, loaded.events

        stamp = _stamp(path)
        at, events = self.player.call(work)
        self.name, self._file, self._stamp = str(path), path, stamp
        self._adopt(events)
        self.screen.say(f"loaded {path}: at {format_time(at)}")

    # The rest ------------------------------------------------------------------------------------

    def _set(self, arguments: str) -> None:
        change = commands.parse_set(arguments)
        if change is not None:
            self.settings[change[0]] = change[1]
        for setting in commands.SETTINGS:
            if change is None or setting.name == change[0]:
                value = commands.format_setting(setting, self.settings[setting.name])
                self.screen.say(f"{setting.name} = {value}  ({setting.help})")

    def _show(self, arguments: str) -> None:
        from kvvideo.sizes import format_size as size

        status = self.player.status
        model = self.player.call(lambda playback: playback.engine.config.model)
        length = "" if status.duration is None else f", {format_time(status.duration)} long"
        bound = "unbounded" if status.max_tokens is None else f"{status.budget} kept of {status.max_tokens}"
        self.screen.say(f"{self.name}{length}; at {format_time(status.at)}, {status.state}")
        self.screen.say(f"model {model}; strategy {status.strategy}, {bound}; {size(status.stats.bytes)} held")
        trace = "become part of what is seen" if self.remember else "leave no trace in the memory"
        self.screen.say(f"questions {trace}")

    def _help(self, arguments: str) -> None:
        chosen = [commands.find(arguments.removeprefix("/"))] if arguments else commands.COMMANDS
        width = max(len(command.usage) for command in chosen)
        for command in chosen:
            self.screen.say(f"{command.usage:<{width}}  {command.help}")
        if not arguments:
            self.screen.say("anything else is a question; Ctrl-C stops an answer")

    def _bye(self, arguments: str) -> None:
        self.leaving = True


def _way(arrival: Arrival) -> str:
    """How a moment was reached, and what that cost, in words."""
    since = "the beginning" if arrival.since is None else f"the memory of {format_time(arrival.since)}"
    chunks = "1 chunk" if arrival.chunks == 1 else f"{arrival.chunks} chunks"
    return f"from {since}, {chunks} replayed in {arrival.seconds:.1f} s"


def _with_suffix(path: Path) -> Path:
    """``path`` as a memory file is called."""
    return path if path.suffix.lower() == SUFFIX else path.with_name(path.name + SUFFIX)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when somebody writes the file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _free(stem: str, suffix: str) -> Path:
    """A file that is not there yet: ``stem.suffix``, ``stem-2.suffix``, …"""
    names = (f"{stem}{'' if number == 1 else f'-{number}'}.{suffix}" for number in count(1))
    return next(path for name in names if not (path := Path(name)).exists())


def _check_within(playback: Playback, moment: float) -> None:
    """Refuse a moment after the end, where that is known: going there would take in all there is first."""
    end = playback.length()
    if end is not None and moment > max(end, playback.at) + _SLACK:
        raise ConfigError(f"there is nothing at {format_time(moment)}; it ends at {format_time(end)}")


def _write_picture(picture: Any, path: Path) -> None:
    from PIL import Image

    try:
        Image.fromarray(picture).save(path)
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be written: {error.strerror or error}") from None
