"""Measure the time for which this process could have worked: limits do not run while it is stopped (Ctrl-Z).

Clocks go on then. So a thread looks at one all the time, and where it finds much more time gone than it waited, the
process was stopped.
"""

import threading
import time
from functools import cache

_LOOK_SECONDS = 0.25
"""Seconds between looks at the clock."""
_PAUSE_SECONDS = 1.0
"""Time between two looks that only a stop explains."""


class _Clock:
    """Find out when this process was stopped last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._resumed = self._looked
        threading.Thread(target=self._run, name="kvvideo-clock", daemon=True).start()

    def look(self) -> tuple[float, float]:
        """Return now, and when the process went on after its last stop, or the clock began (``time.monotonic``)."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked > _PAUSE_SECONDS:
                self._resumed = now
            self._looked = now
            return now, self._resumed

    def _run(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            self.look()


@cache
def _clock() -> _Clock:
    return _Clock()


def watch() -> None:
    """Begin to find out about stops."""
    _clock()


def since(moment: float) -> float:
    """Return seconds since ``moment`` (``time.monotonic``), or since this process was last stopped, if that is less."""
    now, resumed = _clock().look()
    return now - max(moment, resumed)


def is_stopped(pid: int) -> bool:
    """Return True if a process is stopped, so that it cannot work until somebody lets it go on."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False
