"""Every error kvvideo raises on purpose, and the exit code the CLI gives for it.

    KvvideoError (1)
    ├── ConfigError (2)        a setting, flag or file that cannot be used as given
    ├── VideoError (3)         an input that cannot be decoded
    ├── OutOfMemoryError (4)   the model or its KV pool does not fit
    └── EngineError (5)        vLLM failed, or ended a session
        └── FullError          a session has no room for what comes next, and goes on without it

A message says what was wrong, where, and what to do about it. Exit code 0 is success and 130 an
interrupted run whose answers so far were printed.
"""


class KvvideoError(Exception):
    """Base of all errors meant for people; ``exit_code`` is what the CLI exits with."""

    exit_code = 1


class ConfigError(KvvideoError):
    """A setting is unknown, out of range, or in conflict with another."""

    exit_code = 2


class VideoError(KvvideoError):
    """The input is missing, empty, corrupt, without video, or stopped yielding frames."""

    exit_code = 3


class OutOfMemoryError(KvvideoError):
    """The model, or the KV pool its sessions need, does not fit in memory."""

    exit_code = 4


class EngineError(KvvideoError):
    """vLLM failed, or a session was ended (preempted, aborted) before its answer."""

    exit_code = 5


class FullError(EngineError):
    """A session has no room for the next chunk or question; what it holds can still be asked about."""


INTERRUPTED = 130
"""Exit code after the first Ctrl-C: the chunk was finished and what there is was printed."""


def first_line(error: BaseException) -> str:
    """Return what an exception says, in one line."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
