"""Plays a video in a thread of its own, so that it goes on while a person types."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kvvideo.chat.commands import format_speed
from kvvideo.chat.panel import Status
from kvvideo.errors import KvvideoError
from kvvideo.outputs.evidence import words
from kvvideo.runs.agenda import Question
from kvvideo.runs.playback import Playback
from kvvideo.runs.streaming import ask, shown_until
from kvvideo.session import Answer, Span
from kvvideo.times import format_time
from kvvideo.types import CacheStats, Chunk

T = TypeVar("T")

_POLL_SECONDS = 0.02
"""Seconds between two looks for work while the player waits for frames."""
_REST_SECONDS = 0.25
"""Seconds between two looks for its end while there are no frames to wait for; work wakes it at once."""
_WAIT_SECONDS = 0.2
"""Seconds between two signs of life to whoever waits."""
_TIMELINE_SECONDS = 0.5
"""Seconds between two look-ups of the timeline, while someone looks at it."""
_SLACK = 1e-6
"""Seconds by which moments that are the same may differ."""
_WATCH_TOKENS = 32
"""Longest answer to a question that is asked again and again."""
_RATE_SECONDS = 3.0
"""Seconds that the rates shown are measured over."""


class Cancelled(Exception):
    """The person stopped what was going on."""


@dataclass
class Watch:
    """A question asked every ``every`` seconds of video, whose answer is reported when it changes.

    Attributes:
        question: in words.
        every: seconds between two moments that it is asked at.
        due: the next of these, in seconds of the source.
        answer: the last one; None before the first.
        again: words about what that one looked at again; empty if it looked at nothing.
    """

    question: str
    every: float
    due: float
    answer: str | None = None
    again: str = ""


@dataclass
class _Rate:
    """Frames and seconds of video per second of the clock, over the last few seconds."""

    seen: list[tuple[float, int, float]] = field(default_factory=list)

    def add(self, frames: int, at: float) -> None:
        now = time.monotonic()
        if self.seen and frames < self.seen[-1][1]:
            self.seen = []  # it went back
        self.seen = [s for s in self.seen if s[0] > now - _RATE_SECONDS] + [(now, frames, at)]

    def get(self) -> tuple[float, float]:
        if len(self.seen) < 2 or time.monotonic() - self.seen[-1][0] > _RATE_SECONDS:
            return 0.0, 0.0
        (t0, frames0, at0), (t1, frames1, at1) = self.seen[0], self.seen[-1]
        passed = max(t1 - t0, 1e-6)
        return max(0.0, (frames1 - frames0) / passed), max(0.0, (at1 - at0) / passed)


class Player:
    """Keeps a playback going, and lends it out between two chunks.

    The model is loaded and run in one thread of its own: what others want done with it is a function
    given to ``call``. Ingestion waits meanwhile; an answer takes seconds, and then the stream catches up.

    Args:
        start: loads the model and opens the video; called in the player's thread.
        tell: takes lines for the person that nobody asked for, from the player's thread.
        speed: seconds of video per second; infinity for as fast as it goes.
        playing: begin at once.
        system: what the model is told before each question.

    Attributes:
        status: what there is to see; replaced, never changed.
        watches: questions asked again and again.
        layer: layer whose timeline is shown; None for the mean.
        looked_at: someone looks at the timeline now.
        playback: what is played; to be replaced in the player's thread only.
        waiting: called again and again, in the person's thread, while that waits for work or for the model.
    """

    def __init__(
        self,
        start: Callable[[], Playback],
        tell: Callable[[str], None],
        speed: float = float("inf"),
        playing: bool = True,
        system: str = "",
    ) -> None:
        self._start, self._tell = start, tell
        self._work: queue.Queue[tuple[Callable[[Playback], Any], Future[Any]]] = queue.Queue()
        self._closing = threading.Event()
        self._cancel = threading.Event()
        self._idle = threading.Event()
        self._speed, self._playing = speed, playing
        self.system = system
        self._since: tuple[float, float] | None = None  # when and where playing at this speed began
        self._rate = _Rate()
        self._looked = 0.0
        self.watches: list[Watch] = []
        self.layer: int | None = None
        self.looked_at = False
        self.waiting: Callable[[], None] = lambda: None
        self.status = Status(
            position=0.0,
            end=None,
            state="waiting",
            speed="",
            rate=0.0,
            realtime=0.0,
            cache=CacheStats(0, 0, 0, 0, 0, 0),
            budget=None,
            max_tokens=None,
            strategy="",
            blocks_free=0,
            blocks_total=0,
            timeline=(),
            layer=None,
            behind=0.0,
            dropped=0.0,
            message="",
        )
        self.playback: Playback
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="kvvideo-player", daemon=True)
        self._thread.start()

    # For the person's thread ------------------------------------------------------------------------

    def wait_ready(self) -> None:
        """Wait until the model is loaded; raise what kept it from that."""
        while True:
            try:
                return self._ready.result(timeout=_WAIT_SECONDS)
            except TimeoutError:
                if self._ready.done():
                    raise
                self.waiting()

    def call(self, work: Callable[[Playback], T]) -> T:
        """Do ``work`` in the player's thread and return what it returns. Ctrl-C cancels it.

        Raises:
            Cancelled: if it was cancelled; ``check`` has made ``work`` end.
            KvvideoError: what ``work`` raised.
        """
        future: Future[T] = Future()
        self._cancel.clear()
        self._work.put((work, future))
        while True:
            try:
                try:
                    return future.result(timeout=_WAIT_SECONDS)
                except TimeoutError:
                    if future.done():
                        raise
                    if not self._thread.is_alive():
                        raise KvvideoError("the player has ended") from None
                    self.waiting()
            except KeyboardInterrupt:
                self._cancel.set()

    def wait_idle(self, or_begun: bool = False) -> None:
        """Wait until there is nothing to ingest: at the end, paused, after an error; or until one chunk was."""
        while not (or_begun and self.status.cache.seen) and not self._idle.wait(timeout=0.2):
            if not self._thread.is_alive():
                return

    def close(self) -> None:
        """End the playback and the thread. A model that is still being loaded is not waited for."""
        self._closing.set()
        self._cancel.set()
        if self._ready.done():
            self._thread.join()

    # For work in the player's thread -----------------------------------------------------------------

    def check(self) -> None:
        """Raise Cancelled if the person wants what is going on to end."""
        if self._cancel.is_set() or self._closing.is_set():
            raise Cancelled

    def play(self, speed: float | None = None) -> None:
        """Go on, at ``speed`` if one is given."""
        self._playing, self._since = True, None
        self._speed = self._speed if speed is None else speed
        self._idle.clear()

    def pause(self) -> None:
        """Ingest no more until told to."""
        self._playing = False

    def step(self) -> bool:
        """Ask what is watched up to the end of the next chunk, and ingest that; False if there is none."""
        self._ask_watched(self.playback.coming())
        if self.playback.step() is None:
            return False
        self._rate.add(self.playback.session.frames, self.playback.session.end)
        return True

    def refresh(self, playback: Playback, timeline: bool = False) -> None:
        """Bring ``status`` up to date."""
        engine, session = playback.engine, playback.session
        schedule = engine.config.cache.schedule(engine.block_size)
        spans: tuple[Span, ...] = self.status.timeline
        if timeline or (self.looked_at and time.monotonic() - self._looked > _TIMELINE_SECONDS):
            self._looked = time.monotonic()
            spans = tuple(session.timeline(self.layer))
        reader = playback.opened
        live = None if reader is None else reader.live
        fps, realtime = self._rate.get()
        state = "ended" if playback.ended else "playing" if self._playing else "paused"
        if state == "playing" and not playback.ready:
            state = "waiting"
        self.status = Status(
            position=playback.at,
            end=playback.end,
            state=state,
            speed=format_speed(self._speed),
            rate=fps,
            realtime=realtime,
            cache=session.stats(),
            budget=schedule.budget if schedule else None,
            max_tokens=schedule.max_tokens if schedule else None,
            strategy=engine.config.cache.strategy,
            blocks_free=engine.free_blocks,
            blocks_total=engine.blocks,
            timeline=spans,
            layer=self.layer,
            behind=0.0 if live is None else live.behind,
            dropped=0.0 if live is None else live.dropped,
            message="" if live is None else live.message,
        )

    # The thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self.playback = self._start()
        except BaseException as error:
            self._ready.set_exception(error)
            return
        try:
            self.refresh(self.playback)
            self._ready.set_result(None)
            while not self._closing.is_set():
                self._turn()
        finally:
            self.playback.close()
            self.playback.engine.close()
            self._idle.set()

    def _turn(self) -> None:
        """Do one piece of work, or ingest one chunk, or rest a moment."""
        playback = self.playback
        if self._going:
            self._attempt(playback.reader)
        due = self._going and self._due()
        try:
            work, future = self._work.get(timeout=0 if due else _POLL_SECONDS if self._going else _REST_SECONDS)
        except queue.Empty:
            if due:
                self._attempt(self._play_on)
            self._attempt(lambda: self.refresh(playback))
            if not self._going:
                self._idle.set()
            return
        try:
            result = work(playback)
        except BaseException as error:
            self._after_work()
            future.set_exception(error)
        else:
            self._after_work()
            future.set_result(result)

    @property
    def _going(self) -> bool:
        return self._playing and not self.playback.ended

    def _after_work(self) -> None:
        """Bring the status up to date before whoever waited for the work looks at it."""
        self._since = None
        self._attempt(lambda: self.refresh(self.playback))
        if self._going:
            self._idle.clear()

    def _attempt(self, what: Callable[[], Any]) -> None:
        """Do ``what``; an error is told and stops the playing, but not the player."""
        try:
            what()
        except KvvideoError as error:
            self._playing = False
            self._tell(str(error))

    def _due(self) -> bool:
        if not self.playback.ready:
            return False
        end = self.playback.session.end
        if self._since is None:
            self._since = time.monotonic(), end
        began, first = self._since
        return (end - first) / self._speed <= time.monotonic() - began

    def _play_on(self) -> None:
        if not self.step():
            self._tell(f"the video has ended; {self.playback.session.frames} frames were seen")

    def _ask_watched(self, coming: Chunk | None) -> None:
        """Ask each watched question at its moments before the end of the ``coming`` chunk; None: at the end."""
        playback = self.playback
        until = playback.session.end + _SLACK if coming is None else coming.end
        for watch in self.watches:
            if watch.due > playback.at + watch.every + _SLACK:
                watch.due = playback.at  # it went back
        while playback.session.chunks and (due := [watch for watch in self.watches if watch.due < until]):
            at = max(min(watch.due for watch in due), playback.at)
            due = [watch for watch in due if watch.due <= at + _SLACK]
            also = None if coming is None else shown_until(coming, at, playback.session)
            questions = [Question(watch.question, system=self.system) for watch in due]
            options = {"recall": playback.recall, "max_tokens": _WATCH_TOKENS}
            for watch, asked in zip(due, ask(playback.session, at, questions, also, **options), strict=True):
                watch.due += watch.every * (1 + (at + _SLACK - watch.due) // watch.every)
                self._note(watch, at, asked.answer)

    def _note(self, watch: Watch, at: float, answer: Answer) -> None:
        """Keep the answer to ``watch`` as of the moment ``at``, and tell it if it is another than the last one."""
        watch.again = words((hit.start, hit.end) for hit in answer.looked_at)
        if answer.text != watch.answer:
            was = "" if watch.answer is None else f"was: {watch.answer}"
            notes = "; ".join(note for note in (was, watch.again) if note)
            self._tell(f"[{format_time(at)}] {watch.question} {answer.text}{f' ({notes})' if notes else ''}")
        watch.answer = answer.text
