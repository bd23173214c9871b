"""Foretell what a run will write, and whether the disk has room for it."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvvideo.errors import ConfigError
from kvvideo.runs.ingest import part_of
from kvvideo.session import BASELINES, EngineConfig
from kvvideo.session.hub import model_path
from kvvideo.session.index import BYTES
from kvvideo.session.pool import block_bytes, vector_bytes
from kvvideo.session.prediction import BLOCK, stream_tokens
from kvvideo.sizes import format_size
from kvvideo.storage.jpegs import BYTES_PER_PIXEL
from kvvideo.video import Source, VideoInfo


@dataclass(frozen=True)
class Forecast:
    """Sizes of an ingest, foretold.

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
    sizes = [_bytes_after(config, counts, min(chunks, len(counts))) for chunks in moments]
    kept = min(sum(sizes), max_bytes)
    return Forecast(
        checkpoints=count,
        kept_checkpoints=count * kept // sum(sizes) if sizes else 0,
        checkpoint_bytes=_largest(config, counts),
        file_bytes=kept + _bytes_after(config, counts, len(counts)),
        frame_bytes=round(BYTES_PER_PIXEL * planned.frames * planned.height * planned.width) if keep_frames else 0,
    )


def checkpoint_bytes(config: EngineConfig, source: Source, info: VideoInfo) -> int:
    """Return the bytes of the largest checkpoint of ``analyze``; 0 if it takes none, or nobody knows the length."""
    counts = stream_tokens(config, source, info)
    return _largest(config, counts) if counts and config.cache.strategy not in BASELINES else 0


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


def _largest(config: EngineConfig, counts: Sequence[int]) -> int:
    schedule = config.cache.schedule(BLOCK)
    peak = counts[-1] if schedule is None else min(counts[-1], schedule.max_tokens)
    return memory_bytes(config, peak) + _index_bytes(config, len(counts))


def _bytes_after(config: EngineConfig, counts: Sequence[int], chunks: int) -> int:
    """Return the bytes of a memory after so many chunks, but for its head and what its strategy adds.

    ``counts`` are the tokens of the stream after each chunk.
    """
    schedule, tokens = config.cache.schedule(BLOCK), counts[chunks - 1]
    return memory_bytes(config, schedule.live(tokens) if schedule else tokens) + _index_bytes(config, chunks)


def memory_bytes(config: EngineConfig, tokens: int) -> int:
    """Return the bytes of ``tokens`` tokens in a file of a memory, but for its head, index and strategy's own."""
    return tokens * block_bytes(model_path(config.model), replace(config, spare_rows=0), BLOCK) // BLOCK


def _index_bytes(config: EngineConfig, chunks: int) -> int:
    # At most: one that has grown to its limit is halved.
    return min(chunks * vector_bytes(model_path(config.model), config), BYTES) if config.index else 0
