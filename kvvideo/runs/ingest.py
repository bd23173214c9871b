"""Stream a video once and write down what is remembered of it: a ``.kvv`` file.

While it works, the checkpoints are in a directory beside that file, with ``.part`` added to its name, and so are the
frames if they are kept. After a crash a run goes on from the latest checkpoint.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError, FullError, VideoError
from kvvideo.runs.pace import Stopwatch
from kvvideo.runs.playback import Playback
from kvvideo.runs.streaming import Meter
from kvvideo.session import Engine, EngineConfig
from kvvideo.session.hub import model_path
from kvvideo.session.index import BYTES
from kvvideo.session.memory import Memory
from kvvideo.session.pool import block_bytes, vector_bytes
from kvvideo.session.prediction import BLOCK, stream_tokens
from kvvideo.sizes import format_size
from kvvideo.storage.checkpoints import SLACK, Checkpoints, milliseconds
from kvvideo.storage.file import MemoryFile, is_memory_file, write
from kvvideo.storage.frames import KeptFrames
from kvvideo.storage.jpegs import BYTES_PER_PIXEL
from kvvideo.storage.workspace import Busy, Workspace, was_begun
from kvvideo.times import format_time
from kvvideo.types import CacheStats, Progress
from kvvideo.video import Source, VideoInfo, VideoReader

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
    watch: Stopwatch | None = None,
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
        watch: measures the pace of this run, which is kept.

    Raises:
        VideoError: if not even the first chunk could be read. Where a later one cannot, or has no room, what there is
            is written.
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
                play(playback, stopped, on_chunk, frames, watch)
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
    watch: Stopwatch | None = None,
) -> None:
    """Ingest the chunks to come, keep their frames, tell of each, and keep their pace."""
    reader = playback.reader()
    end = None if reader is None or playback.source is None else playback.source.ends(reader.info.duration)
    schedule = playback.engine.config.cache.schedule(playback.engine.block_size)
    meter = Meter(playback.session, schedule, end, reader)
    while not stopped() and (chunk := playback.step()) is not None:
        if frames is not None:
            frames.add(chunk)
        progress = meter.progress()
        if watch is not None:
            watch.chunk(progress.cache.live)
        on_chunk(progress)
    if watch is not None:
        watch.keep()


def is_made(output: Path, source: Source, config: EngineConfig, keep_frames: bool = False) -> bool:
    """Return True if ``output`` is the file that this ingest would make. The model goes by its name."""
    if not is_memory_file(output) or not output.exists():
        return False
    with MemoryFile(output) as file:
        if keep_frames and file.frames() is None:
            return False
        memory = file.memory()
    wanted = {**source.as_dict(), "fingerprint": source.fingerprint(), "path": memory.source.get("path")}
    made = {name: memory.source.get(name) for name in wanted}
    same = (made, memory.cache, memory.model) == (wanted, config.cache, config.model)
    # Where a dialogue was remembered, somebody has talked with it since.
    return same and not memory.source.get("events")


@dataclass(frozen=True)
class Forecast:
    """What an ingest will write.

    Attributes:
        checkpoints: taken on the way.
        kept_checkpoints: of them in the file, about: some are left out if there is no room for all.
        checkpoint_bytes: size of the largest.
        file_bytes: size of the file without frames, at most.
        frame_bytes: what the frames add to it, about; 0 if none are kept.
    """

    checkpoints: int
    kept_checkpoints: int
    checkpoint_bytes: int
    file_bytes: int
    frame_bytes: int


def forecast(
    config: EngineConfig, source: Source, info: VideoInfo, every: float, max_bytes: int, keep_frames: bool
) -> Forecast | None:
    """Return what ``ingest`` will write; None if the length of the video is not known.

    Args:
        config: of the engine.
        source: the video.
        info: of the video.
        every: seconds of video between checkpoints; 0 for none.
        max_bytes: what the checkpoints may take up.
        keep_frames: True if all frames are put into the file, too.
    """
    planned, counts = source.plan(info), stream_tokens(config, source, info)
    if not counts or planned.frames is None:
        return None
    count = min(len(counts), math.ceil(len(counts) * source.chunk_seconds / every)) - 1 if every else 0
    moments = (max(n, math.ceil(n * every / source.chunk_seconds)) for n in range(1, count + 1))
    sizes = [_memory_bytes(config, counts, min(chunks, len(counts))) for chunks in moments]
    kept = min(sum(sizes), max_bytes)
    schedule = config.cache.schedule(BLOCK)
    peak = counts[-1] if schedule is None else min(counts[-1], schedule.max_tokens)
    return Forecast(
        checkpoints=count,
        kept_checkpoints=count * kept // sum(sizes) if sizes else 0,
        checkpoint_bytes=_token_bytes(config, peak) + _index_bytes(config, len(counts)),
        file_bytes=kept + _memory_bytes(config, counts, len(counts)),
        frame_bytes=round(BYTES_PER_PIXEL * planned.frames * planned.height * planned.width) if keep_frames else 0,
    )


def check_disk(output: Path, wanted: Forecast) -> None:
    """Check that the disk has room for ``output`` while it is made: checkpoints and frames are there twice then.

    Raises:
        ConfigError: naming what is needed and what is free.
    """
    if not output.parent.is_dir():
        return
    # What an interrupted run left is gone on with, or replaced.
    left = sum(path.stat().st_size for path in part_of(output).glob("*.*") if path.is_file())
    free = shutil.disk_usage(output.parent).free + left
    needed = 2 * (wanted.file_bytes + wanted.frame_bytes)
    if needed > free:
        without = ", leave --keep-frames out" if wanted.frame_bytes else ""
        raise ConfigError(
            f"{str(output)!r} takes about {format_size(needed)} of the disk while it is made, and {format_size(free)} "
            f"are free there; choose another place with -o{without}, or fewer checkpoints (--max-disk 1GB)"
        )


def _memory_bytes(config: EngineConfig, counts: Sequence[int], chunks: int) -> int:
    """Return the bytes of a memory after so many chunks, but for its head and what its strategy adds.

    ``counts`` are the tokens of the stream after each chunk.
    """
    schedule, tokens = config.cache.schedule(BLOCK), counts[chunks - 1]
    return _token_bytes(config, schedule.live(tokens) if schedule else tokens) + _index_bytes(config, chunks)


def _token_bytes(config: EngineConfig, tokens: int) -> int:
    return tokens * block_bytes(model_path(config.model), replace(config, spare_rows=0), BLOCK) // BLOCK


def _index_bytes(config: EngineConfig, chunks: int) -> int:
    # At most: one that has grown to its limit is halved.
    return min(chunks * vector_bytes(model_path(config.model), config), BYTES) if config.index else 0


def _about(source: Source, cache: CacheConfig, dtype: str) -> dict[str, Any]:
    """Return the facts that tell a run from others, as JSON has them; the model is not known yet."""
    reading = {name: value for name, value in source.as_dict().items() if name != "path"}
    return {
        "video": source.fingerprint(),
        "path": str(source.path),
        "reading": reading,
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
