"""Play a video on an engine, and stand at any moment of it: play on, go back, look elsewhere and return."""

import time as clock
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, EngineError
from kvvideo.prompt import Turn
from kvvideo.runs.events import Event, happened
from kvvideo.runs.memories import Memories
from kvvideo.runs.streaming import shown_until
from kvvideo.session import BASELINES, Answer, Engine, Recall, VideoSession
from kvvideo.session.memory import Memory
from kvvideo.storage.checkpoints import SLACK, Checkpoints
from kvvideo.storage.file import MemoryFile, write
from kvvideo.storage.frames import KeptFrames
from kvvideo.times import format_time
from kvvideo.types import Chunk
from kvvideo.video import Source, VideoReader


@dataclass(frozen=True)
class Arrival:
    """Report of how a moment was reached.

    Attributes:
        at: moment stood at, in seconds; where there are no frames to replay, or no more, before the one asked for.
        since: end of the memory that was resumed from; None if that is the beginning.
        chunks: chunks replayed from there.
        seconds: time it took.
        exact: ``at`` is the moment asked for.
    """

    at: float
    since: float | None
    chunks: int
    seconds: float
    exact: bool


@dataclass(frozen=True)
class _Place:
    """Everything needed to return to a moment."""

    memory: Memory | None
    cache: CacheConfig
    events: list[Event]
    reader: VideoReader | None
    pending: Chunk | None
    also: Chunk | None
    at: float
    ended: bool


class Playback:
    """Streams ``source`` into a session of ``engine``, and takes it to other moments.

    A moment is reached as by a stream that began anew and stopped there: from the nearest memory before it, through
    the frames between. What it says there is, token for token, what that stream would say.

    Args:
        engine: runs the model; a new stream has its cache settings.
        source: the video; None if it is not at hand and only memories can be asked about.
        checkpoints: takes memories of moments on the way.
        every: how far apart these are, in seconds of video; 0 for none.
        saved: a file with memories of earlier moments of the same stream.
        memory: where to begin, instead of at the beginning.
        reader: reads ``source`` from there already.
        recall: how questions look again; None for not at all.
        kept: takes the frames of what cannot be read again, so that they can be looked at again.

    Attributes:
        session: stands at the end of the last whole chunk.
        also: the frames since then, where the moment lies inside a chunk: shown with questions, not remembered.
        at: the moment, in seconds of the source.
        memories: of earlier moments of the stream.
        ended: there are no frames after it.
        recall: how questions look again.
        duration: of the video in seconds, once it was opened; None if it does not say.

    Raises:
        ConfigError: if the strategy keeps no cache, or ``memory`` does not fit the engine.
    """

    def __init__(
        self,
        engine: Engine,
        source: Source | None,
        *,
        checkpoints: Checkpoints | None = None,
        every: float = 0.0,
        saved: MemoryFile | None = None,
        memory: Memory | None = None,
        reader: VideoReader | None = None,
        recall: Recall | None = None,
        kept: KeptFrames | None = None,
    ) -> None:
        cache = engine.config.cache
        _check_keeps(cache)
        self.engine, self.source = engine, source
        self.memories, self._every = Memories(checkpoints, saved), every
        self._first, self._events = cache, list[Event]()
        self._about: dict[str, Any] = {}
        if memory is not None:
            self._about = memory.source
            self._first, self._events = happened(memory)
        if source is not None:
            self._about = {**source.as_dict(), "fingerprint": source.fingerprint()}
        self.start: float = (self._about.get("start") if source is None else source.start) or 0.0
        self.recall, self._kept = recall, kept
        self._reader = reader
        self._pending: Chunk | None = None
        self._visiting = False
        self.also: Chunk | None = None
        self.duration = None if reader is None else reader.info.duration
        self.session = self._open(memory)
        self.at = self.session.end if self.session.chunks else self.start
        self.ended = source is None

    def close(self) -> None:
        """End the session and the reading; what was saved stays."""
        self._stop_reading()
        if not self.engine.closed:
            self.session.close()
        if self._kept is not None:
            self._kept.close()

    # Onwards -------------------------------------------------------------------------------------

    def reader(self) -> VideoReader | None:
        """Return the reader of the coming chunks, opened if need be; None if there are none.

        Raises:
            VideoError: if the video cannot be opened.
        """
        if self._reader is None and self.source is not None and not self.ended:
            self._reader = self.source.open(skip_chunks=self.session.chunks)
            self.duration = self._reader.info.duration
        return self._reader

    def length(self) -> float | None:
        """Return the moment of the source after which there are no frames, in seconds; None if that is not known.

        Raises:
            VideoError: if the video cannot be opened.
        """
        if self.source is None or not self.source.replayable:
            return None
        if self.duration is None and self.reader() is None:
            with self.source.open() as reader:
                self.duration = reader.info.duration
        return self.end

    @property
    def end(self) -> float | None:
        """Moment of the source after which there are no frames, in seconds, as far as it is known by now."""
        ends = (self.duration, None if self.source is None else self.source.end)
        return min((end for end in ends if end is not None), default=None)

    @property
    def opened(self) -> VideoReader | None:
        """The reader at work, if there is one."""
        return self._reader

    @property
    def ready(self) -> bool:
        """True if the next chunk is there, so that ``step`` would not wait for it."""
        return self._pending is not None or (self._reader is not None and self._reader.ready)

    def step(self) -> Chunk | None:
        """Ingest the next chunk; None, and from then on ``ended``, if there is none.

        Raises:
            VideoError: if the video cannot be read on; what was ingested stays, and is all there is.
            EngineError: see ``VideoSession.ingest``.
        """
        chunk = self.coming()
        if chunk is None:
            self.at = max(self.at, self.session.end)
            return None
        self.session.ingest(chunk)
        if self._kept is not None:
            self._kept.add(chunk)
        self._pending = self.also = None
        self.at = self.session.end
        due = self._every > 0 and self._periods(chunk.start) < self._periods(chunk.end)
        # What is about to happen again at this moment belongs to its memory.
        if due and not any(event.chunks == self.session.chunks for event in self._events):
            self.keep()
        return chunk

    @property
    def events(self) -> tuple[Event, ...]:
        """Dialogues remembered and switches, in order; during a visit also those after its moment."""
        return tuple(self._events)

    def keep(self) -> None:
        """Take a checkpoint, unless there is one of this moment.

        Raises:
            ConfigError: if an earlier one could not be written.
        """
        if self.session.chunks:
            self.memories.keep(self.session.end, self.save)

    def save(self) -> Memory:
        """Return the memory of the last whole chunk's end."""
        happened = {"first": self._first.as_dict(), "events": [event.as_dict() for event in self._events]}
        return replace(self.session.save(), source={**self._about, **happened})

    def write(self, path: Path) -> None:
        """Write a memory file of now, with the checkpoints there are, and the frames of the file it came from.

        Damaged ones are left out, with a warning.

        Raises:
            ConfigError: if it cannot be written.
        """
        self.memories.gather()
        write(path, self.save(), self.memories.checkpoints, self.memories.frames())

    def stream(self, question: str, **options: Any) -> Generator[Answer, None, None]:
        """Ask about the moment stood at; yields the answer so far as its tokens come. See ``Session.ask_all``."""
        for _, answer in self.session.stream([question], also=self.also, recall=self.recall, **options):
            yield answer

    def coming(self) -> Chunk | None:
        """Return the chunk that ``step`` will ingest; None, and from then on ``ended``, if there is none.

        Raises:
            VideoError: if the video cannot be read on.
        """
        if self._pending is None:
            try:
                reader = self.reader()
                self._pending = None if reader is None else next(reader, None)
            except BaseException:
                self._stop_reading()
                self.ended = True
                raise
            self.ended = self._pending is None
        return self._pending

    def _periods(self, time: float) -> float:
        return (time - self.start + SLACK) // self._every

    # Elsewhere -----------------------------------------------------------------------------------

    def go(self, time: float, on_chunk: Callable[[], None] = lambda: None) -> Arrival:
        """Stand at ``time``: from the nearest memory before it, or from here, through the frames between.

        What was remembered or switched after that moment has not happened then, unless this is during a visit.

        Args:
            time: in seconds of the source.
            on_chunk: called after each chunk; what it raises ends the journey there.

        Raises:
            ConfigError: if there is no way to that moment.
            VideoError: if the video cannot be read as far as that; it stands where that happened.
        """
        try:
            return self._go(time, on_chunk)
        finally:
            later = [event for event in self._events if event.chunks > self.session.chunks]
            if later and not self._visiting:
                self._events = self._events[: -len(later)]
                self.memories.forget_from(later[0].end)

    def _go(self, time: float, on_chunk: Callable[[], None]) -> Arrival:
        if time < self.start - SLACK:
            raise ConfigError(f"nothing before {format_time(self.start)} is looked at; choose a moment from there on")
        begun, since = clock.perf_counter(), self.memories.nearest(time)
        here = self.session.end if self.session.chunks else None
        if here is not None and here <= time + SLACK and (since is None or here >= since - SLACK):
            since = here
        else:
            since = self._begin_at(since)
        return self._replay(time, since, begun, on_chunk)

    @contextmanager
    def visit(self, time: float, on_chunk: Callable[[], None] = lambda: None) -> Iterator[Arrival]:
        """Stand at ``time`` meanwhile, and where it stood before afterwards, as if it had never left."""
        home, outer = self._leave(), self._visiting
        self._visiting = True
        try:
            yield self._go(time, on_chunk)
        finally:
            self._visiting = outer
            self._return(home)

    @contextmanager
    def anew(self, cache: CacheConfig, on_chunk: Callable[[], None] = lambda: None) -> Iterator[Arrival]:
        """Stand at the same moment of a stream that began with ``cache`` meanwhile, and where it stood afterwards.

        Raises:
            ConfigError: if the video cannot be read again, or ``cache`` does not fit the engine.
        """
        _check_keeps(cache)
        self._check_replayable("another stream of it cannot be begun")
        home, begun = self._leave(), clock.perf_counter()
        first, memories = self._first, self.memories
        try:
            self._first, self._events, self.memories = cache, [], Memories()
            self._begin_at(None)
            yield self._replay(home.at, None, begun, on_chunk)
        finally:
            self._first, self.memories = first, memories
            self._return(home)

    def restart(self, cache: CacheConfig, on_chunk: Callable[[], None] = lambda: None) -> Arrival:
        """Begin the stream anew with ``cache``, up to this moment. Memories of the stream there was are let go.

        Raises:
            ConfigError: as ``anew``; nothing has changed then.
        """
        _check_keeps(cache)
        self._check_replayable("it cannot be begun anew")
        home, begun, first = self._leave(), clock.perf_counter(), self._first
        try:
            self._first, self._events = cache, []
            self._begin_at(None)
        except ConfigError:
            self._first = first
            self._return(home)
            raise
        if home.reader is not None:
            home.reader.close()
        self.memories.forget_from(-1.0)
        return self._replay(home.at, None, begun, on_chunk)

    def replaced_by(self, open_other: Callable[[Engine], "Playback"]) -> "Playback":
        """Let ``open_other`` make another playback of the engine; if that fails, this stands where it stood.

        The checkpoints of this are deleted, and the file with its memories is closed.
        """
        home = self._leave()
        self.session.close()
        try:
            other = open_other(self.engine)
        except BaseException:
            self._return(home)
            raise
        if home.reader is not None:
            home.reader.close()
        self.memories.let_go()
        if self._kept is not None:
            self._kept.close()
        return other

    def _begin_at(self, since: float | None) -> float | None:
        """Open the memory of ``since``, or a new stream for None, in place of the session; return its moment."""
        memory = None if since is None else self.memories.recall(since)
        if memory is None:
            self._check_replayable("there is no memory of that moment or an earlier one")
        self._stop_reading()
        self.session.close()
        self._pending = self.also = None
        self.session = self._open(memory)
        self.ended = self.source is None or not self.source.replayable
        self._happen_again(-1 if memory is None else memory.chunks)
        return None if memory is None else memory.end

    def _replay(self, time: float, since: float | None, begun: float, on_chunk: Callable[[], None]) -> Arrival:
        """Ingest what ends by ``time``, and show the beginning of what does not."""
        replayed = 0
        self.at, self.also = self.session.end if self.session.chunks else self.start, None
        while (chunk := self.coming()) is not None and chunk.end <= time + SLACK:
            before = self.session.chunks
            self.step()
            self._happen_again(before)
            replayed += 1
            on_chunk()
        if chunk is not None and chunk.start <= time + SLACK:
            self.also = shown_until(chunk, time, self.session)
            self.at = time
        return Arrival(self.at, since, replayed, clock.perf_counter() - begun, abs(self.at - time) < SLACK)

    def _check_replayable(self, problem: str) -> None:
        if self.source is None or not self.source.replayable:
            why = "the video is not at hand" if self.source is None else "its frames are gone, as it is not a file"
            raise ConfigError(f"{problem}, and {why}")

    def _open(self, memory: Memory | None) -> VideoSession:
        cache = self._first if memory is None else memory.cache
        if self.engine.config.cache != cache:
            self.engine.use(cache)
        return VideoSession(self.engine) if memory is None else VideoSession.load(self.engine, memory)

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _leave(self) -> _Place:
        place = _Place(
            self.session.save() if self.session.chunks else None,
            self.engine.config.cache,
            self._events,
            self._reader,
            self._pending,
            self.also,
            self.at,
            self.ended,
        )
        self._reader = None
        self.ended = self.ended or self.source is None or not self.source.replayable
        return place

    def _return(self, place: _Place) -> None:
        self._stop_reading()
        self._reader, self._pending, self._events = place.reader, place.pending, place.events
        self.session.close()
        self.session = self._open(place.memory)
        self.also, self.at, self.ended = place.also, place.at, place.ended

    # What else happens to a stream -----------------------------------------------------------------

    def remember(self, turns: Sequence[Turn]) -> None:
        """Let a dialogue become part of what was seen.

        Raises:
            EngineError: if nothing was ingested yet, or see ``VideoSession.ingest``.
        """
        self._happen(turns=tuple(turns))

    def switch(self, cache: CacheConfig) -> None:
        """Let another strategy decide what is kept from here on. What is held stays.

        Raises:
            ConfigError: if it needs another cache than there is; nothing has changed then.
        """
        self._happen(cache=cache)

    def undo(self, on_chunk: Callable[[], None] = lambda: None) -> Arrival:
        """Stand at the same moment without the last ``remember`` or ``switch``.

        Raises:
            ConfigError: if there was none, or the frames since cannot be replayed.
        """
        if not self._events:
            raise ConfigError("nothing was remembered or switched that could be undone")
        self._check_replayable("it cannot be undone")
        begun, at = clock.perf_counter(), self.at
        *self._events, last = self._events
        self.memories.forget_from(last.end)
        since = self._begin_at(self.memories.nearest(at))
        return self._replay(at, since, begun, on_chunk)

    def _happen(self, turns: tuple[Turn, ...] = (), cache: CacheConfig | None = None) -> None:
        if cache is not None:
            _check_keeps(cache)
        if not self.session.chunks:
            raise EngineError("nothing was ingested yet; let the video play first")
        event = Event(self.session.chunks, self.session.end, turns, cache)
        self._apply(event)
        self._events = [*self._events, event]
        # Memories of this moment and later ones are of a stream in which this did not happen.
        self.memories.forget_from(event.end)
        self.keep()

    def _happen_again(self, after: int) -> None:
        """Apply what happened to the stream since ``after`` chunks were ingested, up to now."""
        for event in self._events:
            if after < event.chunks <= self.session.chunks:
                self._apply(event)

    def _apply(self, event: Event) -> None:
        if event.turns:
            self.session.remember(event.turns)
        if event.cache is not None:
            memory = self.session.save()
            switched = memory.under(event.cache)
            self.session.close()
            try:
                self.session = self._open(switched)
            except ConfigError:
                self.session = self._open(memory)
                raise


def _check_keeps(cache: CacheConfig) -> None:
    """Raise ConfigError if there would be nothing to save or to go back in."""
    if cache.strategy in BASELINES:
        raise ConfigError(
            f"strategy: {cache.strategy!r} keeps no cache that could be saved or gone back in; choose another, "
            "or use 'kvvideo analyze'"
        )
