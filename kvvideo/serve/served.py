"""A memory that is served: its session stays open, and each question is asked on a fork of it."""

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from kvvideo.errors import ConfigError
from kvvideo.prompt import Turn, dialogue_text, question_text, system_text
from kvvideo.runs.agenda import Question
from kvvideo.runs.analyze import Hooks
from kvvideo.runs.ask import Saved, recording
from kvvideo.runs.events import caches_of
from kvvideo.runs.playback import Playback
from kvvideo.runs.records import Record
from kvvideo.serve.desk import Job, Late
from kvvideo.serve.notice import Shown, identity
from kvvideo.session import Answer, Engine, EngineConfig


@dataclass(frozen=True)
class Asked:
    """One question, as a chat completion asks it.

    Attributes:
        text: in words.
        at: moment it is asked at, in seconds; None for the end.
        dialogue: earlier questions and answers.
        system: instructions, in words; empty if there are none.
        sampling: ``max_tokens``, ``temperature`` and ``seed`` of ``Session.ask_all``.
    """

    text: str
    at: float | None
    dialogue: Sequence[Turn]
    system: str
    sampling: Mapping[str, Any]


@dataclass(frozen=True)
class Said:
    """An answer so far.

    Attributes:
        answer: what the model said.
        asked_at, answered_at: as in records.
        asked_tokens: tokens of the question, with the dialogue before it.
    """

    answer: Answer
    asked_at: float
    answered_at: float
    asked_tokens: int


class _Dropped(Exception):
    """Nobody waits for the answer any more, while frames are shown again."""


class Served:
    """A memory that is served.

    Args:
        name: by which clients know it.
        saved: the memory.
        said: lines that were said of it.
    """

    def __init__(self, name: str, saved: Saved, said: list[str]) -> None:
        self.name, self.saved = name, saved
        source = None if saved.source is None else replace(saved.source, subtitles=None).as_dict()
        if source is not None:
            source["path"] = os.path.abspath(source["path"])
        self.shown = Shown(name, identity(saved.file.path), saved.config.cache.strategy, source, said)
        self.end = saved.memory.end
        self._playback: Playback | None = None

    def open(self, engine: Engine) -> Playback:
        """Return its playback, which stands at the end; opened now if it is not, or if vLLM has ended its session.

        Raises:
            ConfigError: if the memory does not fit ``engine``.
            EngineError: if there is no room for it.
        """
        if self._playback is not None and not self._playback.session.alive:
            self._playback.close()
            self._playback = None
        if self._playback is None:
            self._playback = self.saved.playback(engine)
            # What is needed of it from now on is the session, and what it says of itself.
            self.saved = replace(self.saved, memory=replace(self.saved.memory, tensors={}))
        return self._playback

    def close(self) -> None:
        """End its session, and close the file."""
        if self._playback is not None:
            self._playback.close()
        self.saved.file.close()

    def goes_elsewhere(self, questions: Sequence[Question]) -> bool:
        """Return True if its session must be taken to other moments for these ``questions``."""
        return any(question.at is not None and question.at < self.end for question in questions)

    def recording(
        self, engine: Engine, questions: Sequence[Question], max_answer_tokens: int, job: Job
    ) -> Generator[Record | None, None, None]:
        """Do the work of ``kvvideo ask``: see ``runs.ask.recording``."""
        yield from recording(
            self.saved,
            self.open(engine),
            questions,
            began=time.perf_counter(),
            hooks=Hooks(stopped=lambda: job.stopped or job.dropped, chunk=lambda _: _in_time(job)),
            max_answer_tokens=max_answer_tokens,
        )

    def answering(self, engine: Engine, asked: Asked, job: Job) -> Generator[Said | None, None, None]:
        """Yield the answer to one question as its tokens come, and None where the engine must step for it."""
        playback = self.open(engine)
        turns = asked.dialogue if engine.knows_dialogue else ()
        # A model that makes nothing of a dialogue was not taught instructions either.
        system = asked.system if engine.knows_dialogue else ""
        prompt = system_text(system) + dialogue_text(turns) + question_text(asked.text)
        count = len(engine.tokenizer(prompt).input_ids)
        at = self.end if asked.at is None else min(asked.at, self.end)
        with ExitStack() as stack:
            answered_at, also = at, None
            if at < self.end:
                answered_at, also = stack.enter_context(_visited(playback, at, job)), playback.also
            options = {**asked.sampling, "dialogue": turns, "system": system, "recall": self.saved.recall}
            for item in stack.enter_context(closing(playback.session.asking([asked.text], also=also, **options))):
                yield None if item is None else Said(item[1], at, answered_at, count)


@contextmanager
def _visited(playback: Playback, at: float, job: Job) -> Iterator[float]:
    """Let ``playback`` stand at the moment ``at`` meanwhile; give the moment it stands at indeed."""

    def on_chunk() -> None:
        if job.dropped:
            raise _Dropped
        _in_time(job)

    with playback.visit(at, on_chunk) as arrival:
        yield arrival.at


def _in_time(job: Job) -> None:
    """Give up what takes longer than a server that ends has time for."""
    if job.late():
        raise Late


def together(memories: Sequence[Served]) -> EngineConfig:
    """Return the settings of an engine for all ``memories``.

    Raises:
        ConfigError: if one engine cannot have them all.
    """
    first, *others = (served.saved for served in memories)
    for other in others:
        if other.memory.fingerprint != first.memory.fingerprint:
            different = "another model"
        elif other.config.dtype != first.config.dtype:
            different = f"{other.config.dtype} instead of {first.config.dtype}"
        elif any(cache != first.config.cache for one in (first, other) for cache in caches_of(one.memory)):
            different = "other settings of the cache"
        else:
            continue
        raise ConfigError(
            f"{str(other.file.path)!r} was made with {different} than {str(first.file.path)!r}, and one engine cannot "
            "have both; serve it by itself, with another --port"
        )
    configs = [served.saved.config for served in memories]
    return replace(
        first.config,
        sessions=len(memories),
        question_tokens=max(config.question_tokens for config in configs),
        again_tokens=max(config.again_tokens for config in configs),
        max_model_len=max(config.max_model_len for config in configs),
        step_tokens=max(config.step_tokens for config in configs),
        spare_rows=max(config.spare_rows for config in configs),
    )
