"""One pass of ``analyze`` over its video, under one strategy: what is asked on the way, and what is kept of it."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kvvideo.errors import FullError, KvvideoError
from kvvideo.runs import records
from kvvideo.runs.agenda import Agenda
from kvvideo.runs.pace import Stopwatch
from kvvideo.runs.records import Record
from kvvideo.runs.streaming import Meter, batches
from kvvideo.session import Engine, VideoSession, open_session
from kvvideo.session.memory import Memory
from kvvideo.types import CacheStats
from kvvideo.video import VideoReader

if TYPE_CHECKING:
    from kvvideo.runs.analyze import Answering


class Pass:
    """Streams the rest of a video into a session, and makes the records of what is asked meanwhile.

    Args:
        run: the run this is a part of.
        engine: uses the strategy already.
        reader: of the chunks after ``memory``; None if nothing more is read.
        agenda: what to ask; what it still holds afterwards was not asked.
        memory: checkpoint to resume from, or None to start over.
        answered: how many questions, the first of ``agenda``, were answered before an interruption.
        began: when the work under this strategy began, by ``time.perf_counter``.
        loading: seconds that loading the model took since then.
    """

    def __init__(
        self,
        run: "Answering",
        engine: Engine,
        reader: VideoReader | None,
        agenda: Agenda,
        memory: Memory | None,
        answered: int,
        began: float,
        loading: float = 0.0,
    ) -> None:
        self._run, self._reader, self._agenda = run, reader, agenda
        self._answered, self._began, self._seed = answered, began, engine.config.seed
        self._loading = loading
        self._strategy = engine.config.cache.strategy
        self._schedule = engine.config.cache.schedule(engine.block_size)
        self._common: dict[str, Any] = {
            "video": str(run.source.path),
            "model": engine.config.model,
            "strategy": self._strategy,
            "schedule": self._schedule,
        }
        self._session = open_session(engine) if memory is None else VideoSession.load(engine, memory)
        end = run.source.end if reader is None else run.source.ends(reader.info.duration)
        self._meter = Meter(self._session, self._schedule, end, reader)
        config, info = replace(run.config, cache=engine.config.cache), None if reader is None else reader.info
        self._watch = None if info is None else Stopwatch(config, run.source, info, run.load_seconds)
        # Samples that are not in the journal yet.
        self._fresh: list[tuple[float, Record]] = []

    def records(self) -> Iterator[Record]:
        """Yield an answer record as each answer is given, and the final record. The session is closed afterwards."""
        run, failure = self._run, None
        try:
            for asked in batches(
                self._session,
                run.hooks.watching(self._reader or ()),
                self._agenda,
                max_tokens=run.asking.max_answer_tokens,
                seed=self._seed,
                recall=run.recall,
                answered=self._answered,
                stopped=run.hooks.stopped,
                on_chunk=self._on_chunk,
            ):
                if self._watch is not None:
                    self._watch.answered(asked)
                batch = [records.answer(one, **self._common) for one in asked]
                # Where there is more room, what was asked too early is asked again.
                if not isinstance(asked[0].error, FullError):
                    run.kept.append(batch)
                self._answered += len(batch)
                yield from batch
        except KvvideoError as error:
            failure = error
            run.failures.append(error)
            if isinstance(error, FullError) and isinstance(self._session, VideoSession) and self._session.chunks:
                self._keep_samples()
                run.kept.checkpoint(self._session)
        except GeneratorExit:
            self._session.close()
            raise
        stats = self._session.stats() if self._session.alive else None
        self._session.close()
        run.end = max(run.end, self._session.end)
        if self._watch is not None:
            self._watch.keep()
        yield self._done(failure, stats)

    def _on_chunk(self) -> None:
        run, session, progress = self._run, self._session, self._meter.progress()
        run.hooks.chunk(progress)
        if self._watch is not None:
            self._watch.chunk(progress.cache.live)
        held = records.cache(progress.cache, self._schedule)
        run.samples[self._strategy].add(session.end, held)
        # The baselines keep no cache that could be saved; they begin anew, with what the journal has.
        if isinstance(session, VideoSession):
            self._fresh.append((session.end, held))
            if run.hooks.stopped() or run.kept.due(session.end, run.source.start or 0.0):
                self._keep_samples()
                run.kept.checkpoint(session)

    def _keep_samples(self) -> None:
        if self._fresh:
            self._run.kept.append([{"type": "samples", "strategy": self._strategy, "samples": self._fresh}])
            self._fresh = []

    def _done(self, failure: KvvideoError | None, stats: CacheStats | None) -> Record:
        """Return the final record, which the journal has too if the run is complete."""
        session, start = self._session, self._run.source.start or 0.0
        status, why = records.outcome(self._run.hooks.stopped(), failure)
        done = records.done(
            status,
            why,
            self._agenda.left(),
            stats,
            answers=self._answered,
            chunks=session.chunks,
            frames=session.frames,
            start=start,
            end=max(session.end, start),
            waited=0.0 if self._reader is None else self._reader.waited,
            seconds=time.perf_counter() - self._began,
            loading=self._loading,
            **self._common,
        )
        done |= records.subtitles(self._run.source.words_from)
        if status == "complete":
            self._keep_samples()
            self._run.kept.append([done])
        return done
