"""Stream a video once and write down what is remembered of it: a ``.kvv`` file.

While it works, the checkpoints are in a directory beside that file, with ``.part`` added to its name, and so are the
frames if they are kept. After a crash a run goes on from the latest checkpoint.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, FullError, VideoError
from kvvideo.runs.playback import Playback
from kvvideo.runs.streaming import Meter
from kvvideo.session import Engine, EngineConfig
from kvvideo.session.memory import Memory
from kvvideo.storage.checkpoints import SLACK, Checkpoints, milliseconds
from kvvideo.storage.file import MemoryFile, is_memory_file, write
from kvvideo.storage.frames import KeptFrames
from kvvideo.storage.workspace import Busy, Workspace, facts_of, was_begun
from kvvideo.times import format_time
from kvvideo.types import CacheStats, Progress
from kvvideo.video import Source, VideoReader

NAMES = {
    "chunk_seconds": "chunk",
    "start": "from",
    "end": "to",
    "min_pixels": "frame-tokens",
    "max_pixels": "frame-tokens",
}
"""Options of the command line for settings that have another name."""


def part_of(output: Path) -> Path:
    """Return the directory of the checkpoints while ``output`` is being made."""
    return output.with_name(output.name + ".part")


@dataclass(frozen=True)
class Ingested:
    """Result of an ingest.

    Attributes:
        chunks: ingested in all.
        frames: ingested in all.
        end: moment of the source up to which was ingested, in seconds.
        since: moment that an interrupted run was resumed from; None if there was none.
        checkpoints: how many are in the file, besides the memory at the end.
        bytes: size of the file; None if it was interrupted and there is none.
        cache: what the session held at the end.
        error: what ended it before the end of the video, if anything did.
    """

    chunks: int
    frames: int
    end: float
    since: float | None
    checkpoints: int
    bytes: int | None
    cache: CacheStats
    error: VideoError | FullError | None


class Part:
    """The directory of one run that makes ``output``, checked before a model is loaded, and locked for this process.

    Args:
        output: the file to make.
        source: the video.
        cache: settings of the strategy.
        dtype: of the model; the memory depends on both, and on the model.
        keep_frames: put all frames into the file, too.
        resume: go on from what an interrupted run left.
        restart: throw that away.
        force: replace a memory at ``output``.

    Attributes:
        memory: checkpoint to resume from, or None to start over.

    Raises:
        ConfigError: if ``output`` cannot be made, or what was left is of another run.
        VideoError: if the video cannot be read.
    """

    def __init__(
        self,
        output: Path,
        source: Source,
        cache: CacheConfig,
        dtype: str = "auto",
        *,
        keep_frames: bool = False,
        resume: bool = False,
        restart: bool = False,
        force: bool = False,
    ) -> None:
        self.output, self._source, self._keeps_frames = output, source, keep_frames
        self.memory: Memory | None = None
        if resume and restart:
            raise ConfigError("resume, restart: an interrupted run is either gone on with or thrown away; give one")
        self._about = _about(source, cache, dtype)
        _check_output(output)
        directory = part_of(output)
        # An interrupted run may replace what is there: it was asked when it began.
        if output.exists() and not force and not (resume and was_begun(directory)):
            raise ConfigError(f"{str(output)!r} exists; add --force to replace it, or choose another name with -o")
        try:
            self._space = Workspace(directory)
        except Busy:
            raise ConfigError(
                f"another kvvideo is making {str(output)!r}; wait for it, or choose another name"
            ) from None
        except OSError as error:
            raise ConfigError(
                f"{str(directory)!r} cannot be made: {error.strerror}; choose a place that can be written to"
            ) from error
        try:
            self._look(source, resume, restart)
        except BaseException:
            self.close()
            raise

    @property
    def directory(self) -> Path:
        """Path of the checkpoints meanwhile."""
        return self._space.path

    @property
    def resumable(self) -> bool:
        """True if there is a checkpoint to resume from."""
        return any(self.directory.glob("*.safetensors"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another run have it. Checkpoints stay, for that to go on from; without any, nothing does."""
        if self._space.held and not self.resumable:
            with suppress(ConfigError):
                self.remove()
        self._space.close()

    def begin(self, fingerprint: str) -> None:
        """Note the model, as soon as it is known.

        Raises:
            ConfigError: if what is resumed was made with another, or the directory cannot be written to.
        """
        if self.memory is None:
            try:
                self._space.begin({**self._about, "model": fingerprint})
            except OSError as error:
                raise ConfigError(f"{str(self.directory)!r} cannot be used: {error.strerror}") from error
        elif (self._space.about or {}).get("model") != fingerprint:
            raise ConfigError(f"{str(self.directory)!r} was begun with another model; use that, or add --restart")

    @contextmanager
    def frames(self) -> Iterator[KeptFrames | None]:
        """Keep frames in the directory, if they are wanted; they stay for a run that goes on from here.

        Those of what ``memory`` has seen are there, decoded again if need be.

        Raises:
            ConfigError: if they cannot be kept.
            VideoError: if the video cannot be read again.
        """
        if not self._keeps_frames:
            yield None
            return
        frames = KeptFrames(self.directory)
        try:
            if self.memory is not None:
                _fill(frames, self._source, self.memory)
            yield frames
        finally:
            frames.close(keep=True)

    def remove(self) -> None:
        """Delete the directory: what was made of it is complete."""
        try:
            self._space.remove()
        except OSError as error:
            raise ConfigError(f"{str(self.directory)!r} cannot be removed: {error.strerror}") from error

    def _look(self, source: Source, resume: bool, restart: bool) -> None:
        before = self._space.about
        if before is None or restart:
            return
        with Checkpoints(self.directory) as left:
            times, latest = left.times, left.latest() if resume else None
        if not times:
            return
        if not resume:
            going_on = f"--resume to go on from {format_time(times[-1])}, or " if source.replayable else ""
            raise ConfigError(
                f"{str(self.directory)!r} is of an interrupted run: add {going_on}--restart to begin anew"
            )
        self._compare(before)
        self.memory = latest

    def _compare(self, before: dict[str, Any]) -> None:
        """Raise ConfigError, naming what differs, unless the run that was interrupted is this one."""
        name = str(self.directory)
        if before.get("video") != self._about["video"]:
            raise ConfigError(f"the video has changed since {name!r} was begun; add --restart to begin anew")
        differences = []
        for part in ("reading", "cache"):
            was, now = before.get(part), self._about[part]
            was = was if isinstance(was, dict) else {}
            differences += [
                f"{NAMES.get(key, key.replace('_', '-'))} was {was.get(key)!r} and is {now[key]!r}"
                for key in now
                if was.get(key) != now[key]
            ]
        if before.get("dtype") != self._about["dtype"]:
            differences.append(f"dtype was {before.get('dtype')!r} and is {self._about['dtype']!r}")
        if differences:
            raise ConfigError(
                f"{name!r} was begun with other settings: {'; '.join(differences)}. Use those, or add --restart"
            )


def ingest(
    engine: Engine,
    source: Source,
    part: Part,
    *,
    every: float = 60.0,
    max_bytes: int | None = None,
    reader: VideoReader | None = None,
    stopped: Callable[[], bool] = lambda: False,
    on_chunk: Callable[[Progress], None] = lambda _: None,
    on_write: Callable[[], None] = lambda: None,
) -> Ingested:
    """Stream ``source`` to its end, and write ``part.output``.

    Args:
        engine: has the cache settings of ``part``.
        source: the video.
        part: where the checkpoints are meanwhile.
        every: seconds of video between checkpoints; 0 for none.
        max_bytes: what the checkpoints may take up; beyond that the densest are left out.
        reader: reads ``source`` already, after the chunks of ``part.memory``.
        stopped: asked after every chunk; once true, nothing more is ingested. A checkpoint is taken; or of what is no
            file, and so cannot be gone on with, what there is is written.
        on_chunk: told after every chunk how far it is.
        on_write: called before the file is written, checkpoints and all.

    Raises:
        VideoError: if not even the first chunk could be read. Where a later one fails, what there is is written.
        ConfigError: if something cannot be written; the run can be gone on with then.
        EngineError: see ``VideoSession.ingest``; likewise.
    """
    part.begin(engine.fingerprint)
    failure: VideoError | FullError | None = None
    with Checkpoints(part.directory, max_bytes) as store, part.frames() as frames:
        latest = part.memory
        playback = Playback(engine, source, checkpoints=store, every=every, memory=latest, reader=reader)
        try:
            session = playback.session
            try:
                play(playback, stopped, on_chunk, frames)
            except (VideoError, FullError) as error:
                if not session.chunks:
                    raise
                failure = error
            since = None if latest is None else latest.end
            done = Ingested(session.chunks, session.frames, session.end, since, 0, None, session.stats(), failure)
            # What cannot be read again cannot be gone on with either: that much of it is what there will be.
            if stopped() and (source.replayable or not session.chunks):
                playback.keep()
                store.flush()
                return replace(done, checkpoints=len(store.times))
            memory = playback.save()
        finally:
            playback.close()
        on_write()
        store.flush()
        write(part.output, memory, store, frames)
    part.remove()
    with MemoryFile(part.output) as file:
        return replace(done, checkpoints=len(file.times) - 1, bytes=part.output.stat().st_size)


def _fill(frames: KeptFrames, source: Source, memory: Memory) -> None:
    """Decode again what ``memory`` has seen and ``frames`` has not: a crash lost the last, or none were wanted then."""
    starts = memory.tensors["log"][:, 2].tolist()
    lost = sorted({milliseconds(start) for start in starts} - {*frames.keys()})
    if not lost:
        return
    first = sum(milliseconds(start) < lost[0] for start in starts)
    with source.open(skip_chunks=first) as reader:
        for chunk in reader:
            if chunk.start > memory.end - SLACK:
                break
            frames.add(chunk)


def play(
    playback: Playback,
    stopped: Callable[[], bool],
    on_chunk: Callable[[Progress], None],
    frames: KeptFrames | None = None,
) -> None:
    """Ingest the chunks to come, keep their frames, and tell of each."""
    reader = playback.reader()
    end = None if reader is None or playback.source is None else playback.source.ends(reader.info.duration)
    schedule = playback.engine.config.cache.schedule(playback.engine.block_size)
    meter = Meter(playback.session, schedule, end, reader)
    while not stopped() and (chunk := playback.step()) is not None:
        if frames is not None:
            frames.add(chunk)
        on_chunk(meter.progress())


def is_made(output: Path, source: Source, config: EngineConfig, keep_frames: bool = False) -> bool:
    """Return True if ``output`` is the file that this ingest would make. The model goes by its name."""
    if not is_memory_file(output) or not output.exists():
        return False
    with MemoryFile(output) as file:
        if keep_frames and file.frames() is None:
            return False
        memory = file.memory()
    wanted = {**source.as_dict(), "fingerprint": source.fingerprint(), "path": memory.source.get("path")}
    said = wanted.pop("subtitles", None), memory.source.get("subtitles")
    cues = [None if one is None else one.get("cues") for one in said]
    made = {name: memory.source.get(name) for name in wanted}
    same = (made, memory.cache, memory.model) == (wanted, config.cache, config.model) and cues[0] == cues[1]
    # Where a dialogue was remembered, somebody has talked with it since.
    return same and not memory.source.get("events")


def recorded_tokens(output: Path) -> int | None:
    """Return the ``max_tokens`` of the run that makes ``output`` and was interrupted, or has made it; None without."""
    if (about := facts_of(part_of(output))) is not None:
        tokens = about["cache"].get("max_tokens") if isinstance(about.get("cache"), dict) else None
        return tokens if isinstance(tokens, int) else None
    if not output.exists() or not is_memory_file(output):
        return None
    with suppress(ConfigError), MemoryFile(output) as file:
        return file.memory().cache.max_tokens
    return None


def _about(source: Source, cache: CacheConfig, dtype: str) -> dict[str, Any]:
    """Return the facts that tell a run from others, as JSON has them; the model is not known yet."""
    return {
        "video": source.fingerprint(),
        "path": str(source.path),
        "reading": {"subtitles": None, **source.reading()},
        "cache": cache.as_dict(),
        "dtype": dtype,
    }


def _check_output(output: Path) -> None:
    """Raise ConfigError if a memory cannot or should not be written there, even with ``force``."""
    name = str(output)
    if output.is_dir():
        raise ConfigError(f"{name!r} is a folder; name a file in it")
    if not output.parent.is_dir():
        raise ConfigError(f"there is no folder {str(output.parent)!r} to write {output.name!r} to")
    if output.exists() and not is_memory_file(output):
        raise ConfigError(f"{name!r} exists and is not a kvvideo memory, so it is not replaced; choose another name")
