"""List the checks and run each in a process of its own (``__main__``), for what it loads may crash or hang."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from kvvideo.doctor.finding import Finding, broken
from kvvideo.errors import ConfigError, first_line

Check = Callable[[], Iterable[Finding]]

SECONDS = 180.0
"""Longest time of a check, chosen for importing all of vLLM from a slow disk."""

CHECKS = {
    "python": "kvvideo.doctor.machine:python",
    "memory": "kvvideo.doctor.machine:memory",
    "torch": "kvvideo.doctor.machine:torch",
    "companions": "kvvideo.doctor.libraries:companions",
    "vllm": "kvvideo.doctor.libraries:vllm",
    "decoders": "kvvideo.doctor.decoders:decoders",
    "model": "kvvideo.doctor.model:model",
    "places": "kvvideo.doctor.places:places",
}
"""Functions by name, which yield findings. That of ``model`` is told which one."""

_AGAIN = "install kvvideo and what it needs again, in a new virtual environment"


def examine(
    model: str, also: Mapping[str, Check] | None = None, only: Collection[str] | None = None
) -> Iterator[Finding]:
    """Run the checks and yield what they find, in their order, as soon as it is known.

    Args:
        model: model whose files are looked at.
        also: further checks by name, which run in this process.
        only: names of the checks to run; by default all.

    Raises:
        ConfigError: if there is no such check.
    """
    checks: dict[str, Check] = {name: partial(_apart, name, model) for name in CHECKS} | dict(also or {})
    if unknown := [name for name in only or () if name not in checks]:
        raise ConfigError(f"there is no check {', '.join(map(repr, unknown))}; there are {', '.join(checks)}")
    wanted = {name: check for name, check in checks.items() if not only or name in only}
    # Each is mostly another process; more at once than processors would only make all of them slower.
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        for found in [pool.submit(_isolated, name, check) for name, check in wanted.items()]:
            yield from found.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _isolated(name: str, check: Check) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check())
    except Exception as error:
        found.append(broken(name, f"could not be checked: {first_line(error)}", _AGAIN))
    return found


def _apart(name: str, model: str) -> Iterator[Finding]:
    """Run the check called ``name`` in a process of its own."""
    root = str(Path(__file__).parents[2])
    # Last: a checkout has metadata of its own, which must not hide what is installed.
    path = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), root) if p)
    try:
        # -P: what lies in the folder where somebody happens to be must not be imported.
        ended = subprocess.run(
            [sys.executable, "-P", "-m", "kvvideo.doctor", name, model],
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        yield from _findings(said)
        yield broken(name, f"did not end within {SECONDS:g} s and was stopped", _AGAIN)
        return
    yield from _findings(ended.stdout)
    if ended.returncode:
        last = ended.stderr.strip().rpartition("\n")[2]
        yield broken(name, f"{_how(ended.returncode)}{f': {last}' if last else ''}", _AGAIN)


def _findings(said: str) -> Iterator[Finding]:
    for line in said.splitlines():
        yield Finding(**json.loads(line))


def _how(code: int) -> str:
    return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended by itself (exit code {code})"
