"""Find words in memories and videos: one ranking of moments over all of them, and the moments cut out."""

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from kvvideo.errors import ConfigError, FullError, KvvideoError, VideoError
from kvvideo.outputs.paths import check, safe_name, stem_of
from kvvideo.outputs.schema import find as models
from kvvideo.runs import records
from kvvideo.runs.analyze import Asking, Hooks
from kvvideo.runs.ingest import play
from kvvideo.runs.origin import engine_for, video_of
from kvvideo.runs.playback import Playback
from kvvideo.runs.records import Record
from kvvideo.session import BASELINES, Engine, EngineConfig, VideoSession, open_engine
from kvvideo.session.hub import is_here, model_path
from kvvideo.session.memory import INDEX
from kvvideo.session.model_files import of_model
from kvvideo.session.prediction import frame_pixels
from kvvideo.storage.disk import durable
from kvvideo.storage.file import MemoryFile, is_memory_file
from kvvideo.times import format_time
from kvvideo.types import Hit
from kvvideo.video import Source, frame_at
from kvvideo.video.clips import cut
from kvvideo.video.decoder import check_file
from kvvideo.video.subtitles import AUTO

COUNT = 5
"""Moments that are listed if nobody says how many: our choice."""

_QUALITY = 92
"""Quality of the JPEG pictures that are cut out."""


@dataclass(frozen=True)
class Subject:
    """A memory or a video that is searched.

    Attributes:
        name: as it was given.
        config: of an engine for it.
        source: the video; None if it is not at hand.
        memory: the file with the memory; None for a video that is ingested first.
        kept: the file has the frames that the model saw, too.
    """

    name: str
    config: EngineConfig
    source: Source | None
    memory: Path | None = None
    kept: bool = False

    @property
    def video(self) -> str:
        """The video's name; the memory's where the video is not at hand."""
        return self.name if self.source is None else self.source.path


@dataclass(frozen=True)
class Found:
    """A moment that words are found at.

    Attributes:
        subject: where it is.
        hit: the stretch.
        best: the chunk in it that draws most attention.
        score: of that chunk, see ``score_of``.
    """

    subject: Subject
    hit: Hit
    best: Hit
    score: float


@dataclass(frozen=True)
class Searched:
    """The part of a subject that was searched, ``start`` to ``end`` in seconds of the source."""

    subject: Subject
    start: float
    end: float


def of_memory(
    path: Path, config: EngineConfig, *, video: str | None = None, model: str | None = None, dtype: str | None = None
) -> tuple[Subject, str]:
    """Return the memory in the file ``path`` as a subject, and a note on its video, which may be empty.

    Args:
        path: made by ``kvvideo ingest``.
        config: of the engine, but for what the memory says.
        video: where its video is now; None: where the memory says.
        model: where its model is now; None: what the memory says.
        dtype: of the model; None: what the memory says.

    Raises:
        ConfigError: if the file cannot be used, or was made with another model.
    """
    with MemoryFile(path) as file:
        memory, kept = file.memory(), file.frames() is not None
    if INDEX[0] not in memory.tensors:
        raise ConfigError(
            f"{str(path)!r} was made by an older version, without what words are found by; "
            "make it again with 'kvvideo ingest'"
        )
    source, note = video_of(memory, path, video)
    config = engine_for(memory, config, model, dtype)
    # One that must be downloaded first is known when it is loaded; the session looks again.
    if is_here(config.model) and of_model(model_path(config.model, weights=True)) != memory.fingerprint:
        raise ConfigError(
            f"{str(path)!r} was made with another model than {config.model!r}, or other weights of it: "
            f"{memory.model!r}; say where that is with --model"
        )
    return Subject(str(path), config, source, path, kept), note


def of_video(source: Source, config: EngineConfig) -> Subject:
    """Return a video as a subject, which is ingested as ``config`` says.

    Raises:
        ConfigError: if the strategy keeps no cache, or there is nothing to see in the part that is to be read.
        VideoError: if it cannot be decoded.
    """
    if config.cache.strategy in BASELINES:
        raise ConfigError(f"strategy: {config.cache.strategy!r} keeps no cache to find words in; choose another")
    if source.live is None:
        check_file(source.path)
    if source.replayable:
        with source.open() as reader:
            Asking(()).check(source, reader.info, config)
    return Subject(source.path, config, source)


def question_of(words: str) -> str:
    """Return the question that ``words`` are found by: themselves.

    On the bundled model they rank as well as any wording around them, and tell better which of several videos has them.

    Raises:
        ConfigError: if there are no words.
    """
    if not words.strip():
        raise ConfigError("words: there is nothing to find; write what was shown: 'the letter K'")
    return words.strip()


@dataclass
class Search:
    """A search of one or several subjects for words.

    Attributes:
        subjects: where to look.
        words: what to look for.
        count: moments to list.
        keep: where to write the memory of the only subject, a video; None to write none.
        hooks: called meanwhile. A search that is stopped looks at what was ingested by then.
        found: the moments, best first.
        searched: what was looked at.
        failure: what ended it early; None if nothing did.
        complete: everything was looked at.
    """

    subjects: Sequence[Subject]
    words: str
    count: int = COUNT
    keep: Path | None = None
    hooks: Hooks = field(default_factory=Hooks)
    found: list[Found] = field(default_factory=list)
    searched: list[Searched] = field(default_factory=list)
    failure: KvvideoError | None = None

    def __post_init__(self) -> None:
        question_of(self.words)

    @property
    def complete(self) -> bool:
        """True if everything was looked at."""
        return self.failure is None and len(self.searched) == len(self.subjects) and not self.hooks.stopped()

    def run(self) -> list[Found]:
        """Return the moments, best first. Subjects that share a model share an engine, one after the other."""
        groups: dict[tuple[str, str], list[Subject]] = {}
        for subject in self.subjects:
            groups.setdefault((subject.config.model, subject.config.dtype), []).append(subject)
        try:
            for same in groups.values():
                if self.searched and self.hooks.stopped():
                    break
                self.hooks.loading(same[0].config.model)
                caches = [subject.config.cache for subject in same]
                configs = [subject.config for subject in same]
                sizes = ("max_model_len", "step_tokens", "question_tokens")
                most = {name: max(getattr(one, name) for one in configs) for name in sizes}
                with closing(open_engine(replace(configs[0], **most), caches)) as engine:
                    for subject in same:
                        if not self.hooks.stopped():
                            self._look(engine, subject)
        except KvvideoError as error:
            self.failure = self.failure or error
        return self.found

    def _look(self, engine: Engine, subject: Subject) -> None:
        """Take the moments of ``subject`` into the ranking."""
        engine.use(subject.config.cache)
        with self._session(engine, subject) as (session, start):
            if session.chunks:
                found = [Found(subject, *moment) for moment in moments(session, self.words, self.count)]
                self.searched.append(Searched(subject, start, session.end))
                self.found = ranked([*self.found, *found], self.count)

    @contextmanager
    def _session(self, engine: Engine, subject: Subject) -> Iterator[tuple[VideoSession, float]]:
        """Open the session of ``subject``, with the moment at which it begins, in seconds."""
        if subject.memory is not None:
            with MemoryFile(subject.memory) as file:
                memory = file.memory()
            with VideoSession.load(engine, memory) as session:
                yield session, memory.source.get("start") or 0.0
            return
        assert subject.source is not None
        with closing(Playback(engine, subject.source, reader=subject.source.open())) as playback:
            try:
                play(playback, self.hooks.stopped, self.hooks.chunk)
            except (VideoError, FullError) as error:
                if not playback.session.chunks:
                    raise
                self.failure = self.failure or error
            if self.keep is not None and not self.hooks.stopped():
                playback.write(self.keep)
            yield playback.session, playback.start


def score_of(share: float, chunks: int) -> float:
    """Return how far a moment stands out, from 0, no more than any other, to 1, where all attention goes there.

    A share alone cannot be compared between videos: among fewer chunks each has a larger one. This is
    ``log(share x chunks) / log(chunks)``. On the bundled model, with a letter in one of two videos only, the right one
    is first in 99 % of 361 pairs, and by shares alone in 94 %.

    Args:
        share: of the question's attention, 0 to 1.
        chunks: among which it is shared.
    """
    if chunks < 2 or share <= 0:
        return 0.0
    return min(max(1 + math.log(share) / math.log(chunks), 0.0), 1.0)


def moments(session: VideoSession, words: str, count: int) -> list[tuple[Hit, Hit, float]]:
    """Return the best ``count`` moments of a session: of each the stretch, its best chunk and that one's score.

    A stretch of many chunks is not better than one of few: their sum is not compared.
    """
    (events,) = session.engine.drive(session.finding([question_of(words)]))
    chunks = len(session.index)
    return [(whole, best, score_of(best.score, chunks)) for whole, best in islice(events, count)]


def ranked(found: Iterable[Found], count: int) -> list[Found]:
    """Return the best ``count`` of ``found``, best first; of equals the earlier ones."""
    return sorted(found, key=lambda one: -one.score)[:count]


def picture_of(found: Found) -> npt.NDArray[np.uint8] | None:
    """Return the picture in the middle of a moment's best chunk; None if it is not to be had.

    It is ``uint8 [height, width, 3]`` RGB, of the video; or as the model saw it, where only a memory kept that.

    Raises:
        VideoError: if the video cannot be decoded there.
    """
    subject, middle = found.subject, (found.best.start + found.best.end) / 2
    if subject.source is not None and subject.source.replayable:
        return frame_at(subject.source.path, middle, subject.source.decoder)[1]
    if subject.memory is None or not subject.kept:
        return None
    with MemoryFile(subject.memory) as file:
        frames = file.frames()
        chunk = None if frames is None else frames.chunk(middle, found.best.end)
    return None if chunk is None else (chunk.until(middle) or chunk).frames[-1]


def find(
    *sources: str | os.PathLike[str] | Source, words: str, count: int = COUNT, subtitles: str = AUTO, **settings: Any
) -> list[Found]:
    """Return the moments of memories and videos that ``words`` are found at, best first.

    Videos are ingested first, under one strategy; their frames are as large as the model knows::

        for one in find("movie.kvv", words="the letter K"):
            print(one.hit.start, one.hit.end, one.score)

    Args:
        sources: memories and videos.
        words: what to look for.
        count: moments to return.
        subtitles: of videos named by a path: ``auto`` or ``off``, or a file; see ``kvvideo.video.subtitles.find``.
        settings: of ``EngineConfig``; memories say their model and cache themselves.

    Raises:
        ConfigError: a source or a setting cannot be used.
        VideoError: a video cannot be decoded.
        EngineError: vLLM failed.
    """
    config = EngineConfig(**settings)
    subjects = []
    for source in sources:
        if isinstance(source, Source):
            subjects.append(of_video(source, config))
        elif is_memory_file(os.fsdecode(source)):
            subjects.append(of_memory(Path(os.fsdecode(source)), config)[0])
        else:
            low, high = frame_pixels(config)
            video = Source(os.fsdecode(source), min_pixels=low, max_pixels=high).with_subtitles(subtitles)
            subjects.append(of_video(video, config.with_words_of(video)))
    search = Search(subjects, words, count)
    search.run()
    if search.failure is not None:
        raise search.failure
    return search.found


@dataclass(frozen=True)
class Cuts:
    """Folders that moments are cut out to, each as a file called after its rank, its video and its time.

    Attributes:
        clips: for the moments as mp4 files; None for none.
        frames: for a picture of each as JPEG files; None for none.
        force: replace files that are there.
    """

    clips: Path | None = None
    frames: Path | None = None
    force: bool = False

    def check(self, subjects: Iterable[Subject]) -> None:
        """Check that all moments can be cut out.

        Raises:
            ConfigError: if a folder is none, or a video is not at hand.
        """
        for name, folder in (("clips", self.clips), ("frames", self.frames)):
            if folder is None:
                continue
            check(folder / "1", force=True)
            for subject in subjects:
                if name == "frames" and subject.kept:
                    continue
                if subject.source is None:
                    raise ConfigError(
                        f"{name}: the video of {subject.name!r} is not at hand; say where it is with --video"
                    )
                if not subject.source.replayable:
                    raise ConfigError(f"{name}: {subject.name!r} is no file that could be cut; record it first")

    def cut(self, found: Found, rank: int) -> dict[str, str | None]:
        """Write the moment that is number ``rank``; return the names of its ``clip`` and its ``frame``.

        Raises:
            ConfigError: if a file is there already, or cannot be written.
            VideoError: if the video cannot be decoded there.
        """
        source, hit, made = found.subject.source, found.hit, dict[str, str | None]()
        at = format_time(hit.start).replace(":", "-")
        stem = f"{rank:02d}-{safe_name(stem_of(found.subject.video))}-{at}"
        for name, folder, ending in (("clip", self.clips, ".mp4"), ("frame", self.frames, ".jpg")):
            made[name] = None if folder is None else str(folder / (stem + ending))
        for path in filter(None, made.values()):
            check(Path(path), force=self.force)
        if made["clip"] is not None and source is not None:
            with _new(Path(made["clip"])) as temporary:
                cut(source.path, hit.start, hit.end, temporary)
        if made["frame"] is not None:
            picture = picture_of(found)
            if picture is None:
                raise ConfigError(f"frames: no picture of {format_time(hit.start)} is to be had any more")
            with _new(Path(made["frame"])) as temporary:
                Image.fromarray(picture).save(temporary, "JPEG", quality=_QUALITY)
        return made


@contextmanager
def _new(path: Path) -> Iterator[str]:
    """Give the name of a file that becomes ``path`` when it is complete; its folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{str(path.parent)!r} cannot be made: {error.strerror}") from error
    with durable(path) as stream:
        yield stream.name


def recorded(search: Search, cuts: Cuts) -> Iterator[Record]:
    """Run ``search`` and yield its records: the moments, best first, each once it is cut out, and a last one.

    A moment that cannot be cut out has a record all the same; ``search.failure`` says why.
    """
    began = time.perf_counter()
    for rank, found in enumerate(search.run(), 1):
        made: dict[str, str | None] = {"clip": None, "frame": None}
        if search.failure is None or isinstance(search.failure, VideoError):
            try:
                made = cuts.cut(found, rank)
            except KvvideoError as error:
                search.failure = search.failure or error
        yield hit(search, found, rank, made)
    yield done(search, time.perf_counter() - began)


def hit(search: Search, found: Found, rank: int, made: dict[str, str | None]) -> Record:
    """Return the record of one moment."""
    subject = found.subject
    record: models.Hit = {
        "type": "hit",
        "schema": records.SCHEMA,
        "rank": rank,
        "video": subject.video,
        "memory": None if subject.memory is None else str(subject.memory),
        "words": search.words,
        "start": round(found.hit.start, 3),
        "end": round(found.hit.end, 3),
        "score": round(found.score, 4),
        "share": round(min(found.best.score, 1.0), 6),
        "clip": made["clip"],
        "frame": made["frame"],
        "model": subject.config.model,
        "strategy": subject.config.cache.strategy,
    }
    return {**record}


def done(search: Search, seconds: float) -> Record:
    """Return the last record of a search that took so many seconds."""
    status, error = records.outcome(search.hooks.stopped() and not search.complete, search.failure)
    record: models.Done = {
        "type": "done",
        "schema": records.SCHEMA,
        "status": status,
        "error": error,
        "words": search.words,
        "hits": len(search.found),
        "searched": [
            {
                "video": one.subject.video,
                "memory": None if one.subject.memory is None else str(one.subject.memory),
                "start": round(one.start, 3),
                "end": round(one.end, 3),
            }
            for one in search.searched
        ],
        "seconds": round(seconds, 3),
    }
    return {**record}
