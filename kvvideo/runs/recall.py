"""Let a run look again: how many stretches each question is shown, and where their frames are to be had."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from kvvideo.errors import ConfigError
from kvvideo.session import EngineConfig, Recall
from kvvideo.session.allowance import chunk_tokens
from kvvideo.session.engine import CHUNKS
from kvvideo.session.memory import INDEX, Memory
from kvvideo.types import Chunk
from kvvideo.video import Source
from kvvideo.video.again import Again, FileAgain
from kvvideo.video.geometry import FACTOR

COUNT = 4
"""Stretches that a question is shown again: our choice; in the bundled model's world one is enough."""

MOST = CHUNKS - 1
"""Most stretches: a question may be shown so many chunks, the one it is asked in among them."""

KEEP_BYTES = 1_000_000_000
"""Size of the ring of frames of what cannot be read again, in bytes."""

Watching = Callable[[Iterable[Chunk]], Iterable[Chunk]]
"""Takes the chunks of a stream and gives the same."""


@dataclass(frozen=True)
class Looking:
    """Settings of looking again.

    Attributes:
        count: most stretches that a question is shown; 0 for none.
        frame_tokens: most tokens for a pair of their frames; None for as many as in the stream.
        keep_bytes: size of the frames that are kept of what cannot be read again; 0 to keep none.

    Raises:
        ConfigError: if ``count`` is out of range.
    """

    count: int = COUNT
    frame_tokens: int | None = None
    keep_bytes: int = KEEP_BYTES

    def __post_init__(self) -> None:
        if not 0 <= self.count <= MOST:
            raise ConfigError(f"recall: {self.count} is not 0 to {MOST} stretches")

    def room_in(self, config: EngineConfig, fps: float, chunk_seconds: float, max_pixels: int) -> EngineConfig:
        """Return ``config`` with room for what one question is shown; without an index if that is nothing.

        Args:
            config: of the engine.
            fps: frames per second of the stream.
            chunk_seconds: length of its chunks.
            max_pixels: largest area of its frames.
        """
        if not self.count:
            return replace(config, index=False)
        size = chunk_tokens(fps, chunk_seconds, self._pixels or max_pixels) + config.words_tokens
        return replace(config, again_tokens=self.count * size)

    def room_for(self, config: EngineConfig, memory: Memory) -> EngineConfig:
        """Return ``room_in`` for what ``memory`` is about; ``config`` as it is if the memory does not say."""
        fps, seconds, pixels = (memory.source.get(name) for name in ("fps", "chunk_seconds", "max_pixels"))
        return self.room_in(config, fps, seconds, pixels) if fps and seconds and pixels else config

    def of_file(self, source: Source) -> Recall | None:
        """Return how to look again at a file; None if that is not to be.

        Raises:
            VideoError: if it cannot be read.
        """
        return self.at(FileAgain(source, self._pixels)) if self.count else None

    def at(self, frames: Again | None) -> Recall | None:
        """Return how to look again at ``frames``; None if that is not to be, or there are none."""
        return Recall(self.count, frames) if self.count and frames is not None else None

    @property
    def _pixels(self) -> int | None:
        return None if self.frame_tokens is None else self.frame_tokens * FACTOR**2

    @contextmanager
    def during(self, source: Source, say: Callable[[str], None]) -> Iterator[tuple[Recall | None, Watching]]:
        """Give how to look again at ``source`` while it is streamed once, and what its chunks pass through.

        Args:
            source: the video. Frames of what cannot be read again are kept on the disk meanwhile.
            say: takes a line for the person who waits.

        Raises:
            VideoError: if the file cannot be read.
            ConfigError: if frames cannot be kept.
        """
        if not self.count or source.replayable:
            yield (self.of_file(source) if self.count else None), lambda chunks: chunks
        elif not self.keep_bytes:
            say(unkept(source))
            yield None, lambda chunks: chunks
        else:
            from kvvideo.storage.frames import KeptFrames
            from kvvideo.storage.scratch import scratch

            with scratch() as directory, closing(KeptFrames(directory, self.keep_bytes)) as ring:
                yield self.at(ring), lambda chunks: kept(chunks, ring.add)


OFF = Looking(0)
"""Questions see what is held, and no more."""


def unkept(source: Source) -> str:
    """Return the line about a ``source`` that cannot be looked at again."""
    return f"{source.path!r} can be read only once and its frames are not kept, so no question looks again"


def kept(chunks: Iterable[Chunk], add: Callable[[Chunk], None]) -> Iterator[Chunk]:
    """Yield ``chunks``, each added first to what is kept."""
    for chunk in chunks:
        add(chunk)
        yield chunk


def of_memory(
    memory: Memory, looking: Looking, source: Source | None, filed: Again | None, say: Callable[[str], None]
) -> Recall | None:
    """Return how to look again at what ``memory`` is about.

    Args:
        memory: of a version before there was an index, it has nothing that questions find chunks by.
        looking: how often.
        source: the video, if it is at hand.
        filed: frames in the memory's file, if there are any.
        say: takes a line for the person who waits.

    Raises:
        VideoError: if the file cannot be read.
    """
    if not looking.count:
        return None
    if is_old := memory.chunks > 0 and INDEX[0] not in memory.tensors:
        say("the memory was made by an older version, so no question looks again at what it has seen")
    if source is not None and source.replayable:
        return looking.of_file(source)
    if filed is None and not is_old:
        say("neither the video nor its frames are at hand, so no question looks again")
    return looking.at(filed)
