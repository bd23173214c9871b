"""The desk: takes requests from other threads and answers them on one engine, all of them in the same steps."""

import logging
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from itertools import chain
from typing import Any

from kvvideo.errors import EngineError, KvvideoError
from kvvideo.session import Engine

logger = logging.getLogger("kvvideo.serve")

WAITING = 64
"""Requests that may wait; more are refused."""

PATIENCE = 5.0
"""Seconds in which a desk that is told to close ends what it has begun, as many as vLLM's server gets."""

Work = Generator[Any, None, None]
"""Yields what comes of a request, and None where the engine must step for it."""


class Crowded(Exception):
    """Too many requests wait, or the desk closes."""


class Ending(EngineError):
    """The desk closes before a request was answered."""

    def __init__(self) -> None:
        super().__init__("the server was told to end before this was answered")


class Late(BaseException):
    """The desk closes, and there is no more time for a request."""


class Job:
    """One request.

    Args:
        of: the memory that it is about.
        alone: True if no other request about that memory may be open meanwhile.
        begin: returns the work; called in the engine's thread.
        tell: takes what comes of it: items of the work, an exception in place of the rest, and None at the end.

    Attributes:
        dropped: nobody waits for it any more.
        stopped: no more of it is wanted than is at hand.
        stepped: the engine has begun to compute it.
        late: returns True once the desk has no more time for it.
    """

    def __init__(self, of: object, alone: bool, begin: Callable[["Job"], Work], tell: Callable[[Any], None]) -> None:
        self.of, self.alone = of, alone
        self.dropped = self.stopped = self.stepped = False
        self.late: Callable[[], bool] = lambda: False
        self._begin, self._tell = begin, tell
        self._work: Work | None = None

    def advance(self) -> bool:
        """Do what can be done before the next step; return True if nothing is left to do."""
        if self.dropped:
            self.end(None)
            return True
        if self._work is None:
            self._work = self._begin(self)
        return self._run(self._work.__next__)

    def fail(self, error: KvvideoError) -> bool:
        """Let the work know that the engine has failed, and do what it does then; return as ``advance``."""
        assert self._work is not None
        work = self._work
        return self._run(lambda: work.throw(error))

    def end(self, why: Exception | None) -> None:
        """End it wherever it is; ``why`` is told in place of what is left."""
        if self._work is not None:
            with suppress(Exception):  # an engine that has failed may fail again when it is to let go
                self._work.close()
        self._tell(why)

    def _run(self, resume: Callable[[], Any]) -> bool:
        try:
            while (item := resume()) is not None:
                self._tell(item)
                assert self._work is not None
                resume = self._work.__next__
            self.stepped = True
            return False
        except StopIteration:
            self._tell(None)
        except KvvideoError as error:
            self._tell(error)
        except Late:
            self._tell(Ending())
        except Exception as error:
            # Of one request; the others shall not suffer for it.
            if not self.dropped:
                logger.exception("a request failed")
            self._tell(error)
        return True


class Desk:
    """Answers requests on ``engine`` in the thread that calls ``run``.

    Requests begin in the order they came, each as soon as it can, and share the engine's steps. As many as ``engine``
    has places for questions are open at once.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # The only thing that other threads, and handlers of signals, touch.
        self._inbox = queue.SimpleQueue[Job | None]()
        self._waiting, self._open = deque[Job](), list[Job]()
        self._until = math.inf

    def take(self, job: Job) -> None:
        """Take a request, from any thread.

        Raises:
            Crowded: if it cannot be taken.
        """
        if self._until < math.inf or self._inbox.qsize() + len(self._waiting) >= WAITING:
            raise Crowded
        self._inbox.put(job)

    def close(self) -> None:
        """Take no more requests and let ``run`` return soon; from any thread, or a handler of signals."""
        self._until = min(self._until, time.monotonic() + PATIENCE)
        self._inbox.put(None)

    def run(self) -> None:
        """Answer until ``close`` is called.

        Raises:
            EngineError: vLLM failed; those who asked were told.
            OutOfMemoryError: likewise.
        """
        why: Exception = Ending()
        try:
            while self._until == math.inf or (self._open and time.monotonic() < self._until):
                self._open = [job for job in self._open if not job.advance()]
                self._begin()
                if self._open:
                    self._step()
        except KvvideoError as error:
            why = error
            raise
        finally:
            self.close()
            self._sort_in(wait=False)
            for job in chain(self._open, self._waiting):
                job.end(why)

    def _begin(self) -> None:
        """Open requests that can begin; where there is nothing to do, wait for one."""
        self._sort_in(wait=not (self._open or self._waiting) and self._until == math.inf)
        while self._waiting and len(self._open) < self._engine.config.questions and self._until == math.inf:
            job = self._waiting[0]
            job.late = self._is_late
            if any(other.of is job.of and (other.alone or job.alone) for other in self._open):
                return
            self._waiting.popleft()
            if not job.advance():
                self._open.append(job)

    def _is_late(self) -> bool:
        return time.monotonic() >= self._until

    def _sort_in(self, wait: bool) -> None:
        with suppress(queue.Empty):
            while True:
                job = self._inbox.get(block=wait)
                wait = False
                if job is not None:
                    self._waiting.append(job)

    def _step(self) -> None:
        try:
            self._engine.step()
        except KvvideoError as error:
            self._open = [job for job in self._open if not job.fail(error)]
            raise
        try:
            self._engine.check_progress()
        except KvvideoError as error:
            self._open = [job for job in self._open if not job.fail(error)]
