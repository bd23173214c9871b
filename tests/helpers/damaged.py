"""Read a corpus of damaged videos as every command does, and report how each file ended.

    python -m tests.helpers.damaged
    python -m tests.helpers.damaged --json --keep corpus/

A file may end in frames, in frames and then one clear error, or in one clear error: in bounded time and memory.
Anything else is a fault, and the exit code is 1.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from kvvideo.errors import VideoError
from kvvideo.video import DECODERS, Live, VideoReader, plan
from tests.helpers.damage import Damaged, corpus

SECONDS = 60.0
"""One file may take this long on a busy machine."""
CHUNKS = 1000
"""Chunks to read of one file at most: some say they last for weeks, and are read as far as anyone likes to."""
STALL_SECONDS = 30.0
"""Silence after which a decoder counts as hanging."""
SMALL: dict[str, Any] = {"fps": 2.0, "chunk_seconds": 4.0, "min_pixels": 1, "max_pixels": 4 * 784}
"""Settings with which the files are looked at."""


@dataclass
class Outcome:
    """Outcome of reading one file.

    Attributes:
        kind, name: of the file.
        frames: how many were read.
        error: the error after them; empty if there was none.
        fault: what is wrong with that; empty if nothing is.
        seconds: it took.
        peak: most memory of the process that decodes, in bytes.
    """

    kind: str
    name: str
    frames: int = 0
    error: str = ""
    fault: str = ""
    seconds: float = 0.0
    peak: int = 0


def examine(damaged: Damaged, **options: Any) -> Outcome:
    """Read one file to its end; ``options`` are those of ``VideoReader``."""
    outcome, began = Outcome(damaged.kind, damaged.path.name), time.monotonic()
    Measured.latest.pid = 0
    try:
        with VideoReader(damaged.path, **SMALL, stall_seconds=STALL_SECONDS, **options) as reader:
            plan(reader.info, **SMALL)
            for number, chunk in enumerate(reader):
                outcome.frames += len(chunk.frames)
                if number >= CHUNKS:
                    break
    except VideoError as error:
        outcome.error = str(error)
        outcome.fault = _fault(outcome.error)
    except Exception as error:
        outcome.error = outcome.fault = f"{type(error).__name__}: {error}"
    outcome.seconds = time.monotonic() - began
    outcome.peak = Measured.peaks.get(Measured.latest.pid, 0)
    if outcome.seconds > SECONDS:
        outcome.fault = outcome.fault or f"it took {outcome.seconds:.0f} s"
    if not outcome.error and not outcome.frames:
        outcome.fault = outcome.fault or "neither frames nor an error"
    return outcome


def _fault(message: str) -> str:
    """Return what is wrong with an error for people; empty if nothing is."""
    if "\n" in message or not message.isprintable():
        return "more than one line"
    if message.startswith("decoder ") and "failed on" in message:
        return f"an exception nobody thought of: {message}"
    if "gave no frame" in message:
        return f"it hung: {message}"
    if "was killed" in message or "ended (exit" in message:
        return f"it crashed: {message}"
    return ""


class Measured(subprocess.Popen[bytes]):
    """A process of which the most memory that it had is noted, by its id."""

    peaks: ClassVar[dict[int, int]] = {}
    latest = threading.local()
    """``pid``: that of the process that this thread started last, even if its reader failed while it was made."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.latest.pid = self.pid

    def _try_wait(self, flags: int) -> tuple[int, int]:
        try:
            process, status, usage = os.wait4(self.pid, flags)
        except ChildProcessError:
            return self.pid, 0
        if process:
            self.peaks[process] = usage.ru_maxrss << 10
        return process, status

    def _internal_poll(self, **_: object) -> int | None:
        # Unlike this, the original does not ask by _try_wait.
        if self.returncode is None and self._waitpid_lock.acquire(False):  # type: ignore[attr-defined]
            try:
                process, status = self._try_wait(os.WNOHANG)
                if process:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                self._waitpid_lock.release()  # type: ignore[attr-defined]
        return self.returncode


def examine_all(files: Iterable[Damaged], at_once: int = 2, **options: Any) -> list[Outcome]:
    """Examine ``files``, some at once, in order."""
    with mock.patch.object(subprocess, "Popen", Measured), ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda damaged: examine(damaged, **options), files))


def table(outcomes: list[Outcome]) -> Iterator[str]:
    """Return the outcomes by kind, in Markdown."""
    yield "| damage | files | read to the end | read in part, one error | one error | faults | longest | most memory |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    kinds = {outcome.kind: [other for other in outcomes if other.kind == outcome.kind] for outcome in outcomes}
    for kind, some in {**kinds, "all": outcomes}.items():
        whole = sum(not outcome.error for outcome in some)
        part = sum(bool(outcome.error and outcome.frames) for outcome in some)
        faults = sum(bool(outcome.fault) for outcome in some)
        seconds, peak = max(outcome.seconds for outcome in some), max(outcome.peak for outcome in some)
        yield (
            f"| {kind} | {len(some)} | {whole} | {part} | {len(some) - whole - part} | {faults} | {seconds:.1f} s "
            f"| {peak >> 20} MiB |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Read a corpus of damaged videos, and report how each file ended.")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus")
    parser.add_argument("--keep", type=Path, help="write the corpus to this folder and leave it there")
    parser.add_argument("--decoder", default="pyav", choices=DECODERS)
    parser.add_argument("--follow", action="store_true", help="read the files as if they were still being written")
    parser.add_argument("--json", action="store_true", help="print a line of JSON a file, not the table")
    arguments = parser.parse_args()
    logging.getLogger("kvvideo").setLevel(logging.ERROR)
    live = Live(retry_seconds=0.5, follow=True) if arguments.follow else None
    with tempfile.TemporaryDirectory(prefix="kvvideo-damaged-") as directory:
        folder = arguments.keep or Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        outcomes = examine_all(corpus(folder, arguments.seed), decoder=arguments.decoder, live=live)
    lines = (json.dumps(asdict(outcome)) for outcome in outcomes) if arguments.json else table(outcomes)
    print(*lines, sep="\n")
    faults = [outcome for outcome in outcomes if outcome.fault]
    for outcome in faults:
        print(f"{outcome.name}: {outcome.fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
