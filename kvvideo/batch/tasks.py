"""Join what one ingest can answer: all questions of a job file to the same video under the same settings."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from kvvideo.batch.jobs import READING, Asking, Job, JobsError
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, VideoError
from kvvideo.runs.agenda import Agenda, Question
from kvvideo.runs.recall import OFF, Looking
from kvvideo.session import EngineConfig
from kvvideo.video import Source
from kvvideo.video.cues import Subtitles
from kvvideo.video.subtitles import AUTO, find

ABREAST = 4
"""Videos whose subtitles are looked for at once, each by a process that takes 0.2 s to start."""

_CACHE = ("strategy", "budget", "max_tokens")


@dataclass(frozen=True)
class Defaults:
    """Settings of all jobs that do not have their own.

    Attributes:
        engine: the model, and how each cache is bounded.
        reading: how videos are looked at, as ``Source`` takes it.
        max_answer_tokens: longest answer.
        looking: how questions look again.
        subtitles: ``auto`` or ``off``; see ``kvvideo.video.subtitles.find``.
    """

    engine: EngineConfig
    reading: dict[str, Any] = field(default_factory=dict)
    max_answer_tokens: int = 128
    looking: Looking = OFF
    subtitles: str = AUTO


@dataclass(frozen=True)
class Want:
    """A question of a job, whose answer is wanted."""

    job: Job
    index: int

    @property
    def asking(self) -> Asking:
        """The question, and the right answer if it is known."""
        return self.job.askings[self.index]


@dataclass(frozen=True)
class Task:
    """One ingest of a video.

    Attributes:
        source: the video, and how it is looked at.
        fingerprint: of the file; None if it cannot be read.
        cache: how the session's cache is bounded.
        settings: names all that decides the answers, but for the file and the model's weights.
        wants: whose answer each question is: several jobs may ask the same.
        attempt: how often it was tried before.
    """

    source: Source
    fingerprint: str | None
    cache: CacheConfig
    settings: str
    wants: dict[Question, list[Want]]
    attempt: int = 0

    @property
    def key(self) -> str:
        """Name of the task, made of all that decides its answers, and of the video."""
        return _digest([self.settings, self.fingerprint, os.path.realpath(self.source.path)])

    @property
    def jobs(self) -> list[Job]:
        """The jobs it is for, in order."""
        return list({want.job.id: want.job for wants in self.wants.values() for want in wants}.values())

    def agenda(self) -> Agenda:
        """Return the agenda of its questions.

        Raises:
            ConfigError: if one of them is of a moment outside of what is read.
        """
        return Agenda([*self.wants], None, self.source.start or 0.0, self.source.end)

    def only(self, wants: Sequence[Want]) -> "Task":
        """Return the same ingest for ``wants`` alone."""
        chosen = {(want.job.id, want.index) for want in wants}
        left = {q: [w for w in some if (w.job.id, w.index) in chosen] for q, some in self.wants.items()}
        return replace(self, wants={question: some for question, some in left.items() if some})


def tasks_of(jobs: Sequence[Job], defaults: Defaults) -> list[Task]:
    """Return the tasks that answer ``jobs``, in the order of their first jobs; also of videos that are not there.

    Raises:
        JobsError: with all jobs whose settings are not possible.
    """
    findings: list[str] = []
    tasks: dict[str, Task] = {}
    said = _said(jobs, defaults)
    for job in jobs:
        try:
            task = _task(job, defaults, said[_wish(job, defaults)])
        except (ConfigError, VideoError) as error:
            findings.append(f"{job.where}: {error}")
            continue
        known = tasks.setdefault(task.key, task)
        for question, wants in task.wants.items() if known is not task else ():
            known.wants.setdefault(question, []).extend(wants)
    if findings:
        raise JobsError(findings)
    return list(tasks.values())


def _wish(job: Job, defaults: Defaults) -> tuple[str, str]:
    return job.video, job.settings.get("subtitles", defaults.subtitles)


def _said(jobs: Sequence[Job], defaults: Defaults) -> dict[tuple[str, str], Subtitles | VideoError | None]:
    """Return the subtitles of each video, by what its jobs wish; or why there are none."""

    def found(wish: tuple[str, str]) -> Subtitles | VideoError | None:
        try:
            return find(*wish)
        except VideoError as error:
            return error

    wishes = list({_wish(job, defaults) for job in jobs})
    with ThreadPoolExecutor(ABREAST, thread_name_prefix="kvvideo-subtitles") as threads:
        return dict(zip(wishes, threads.map(found, wishes), strict=True))


def _task(job: Job, defaults: Defaults, said: Subtitles | VideoError | None) -> Task:
    if isinstance(said, VideoError):
        raise said
    own = {name: job.settings[name] for name in _CACHE if name in job.settings}
    base = defaults.engine.cache
    if "budget" in own and "max_tokens" not in own and own["budget"] >= base.max_tokens:
        # A budget says what is kept; how much may pile up before is the command's to say, as a ratio if need be.
        own["max_tokens"] = math.ceil(own["budget"] / base.ratio)
    cache = replace(base, **own)
    cache.schedule(32)
    looked = defaults.reading | job.reading
    for name, key in READING.items():
        if job.settings.get(name) is not None:
            looked[key] = job.settings[name]
    source = replace(Source.from_dict({**Source(job.video, **looked).as_dict()}), subtitles=said)
    try:
        fingerprint = source.fingerprint()
    except VideoError:
        fingerprint = None
    engine = defaults.engine
    settings = _digest(
        [
            cache.as_dict(),
            source.reading(),
            engine.model,
            engine.dtype,
            engine.seed,
            engine.load_format,
            defaults.max_answer_tokens,
            [defaults.looking.count, defaults.looking.frame_tokens],
        ]
    )
    wants = {asking.question: [Want(job, index)] for index, asking in enumerate(job.askings)}
    task = Task(source, fingerprint, cache, settings, wants)
    task.agenda()
    return task


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
