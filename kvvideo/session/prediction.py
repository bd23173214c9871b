"""Predict the tokens and memory of a run, and refuse what cannot end well, before any model is loaded."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from typing import Any

from kvvideo.errors import ConfigError
from kvvideo.prompt import OPENING, bounded, chunk_text
from kvvideo.session import BASELINES
from kvvideo.session.config import EngineConfig
from kvvideo.session.footprint import RESERVE, weight_bytes
from kvvideo.session.hub import model_path
from kvvideo.session.index import bytes_of
from kvvideo.session.model_config import model_config
from kvvideo.session.pool import block_bytes, pool_bytes, vector_bytes
from kvvideo.times import format_time
from kvvideo.video import Plan, Source, VideoInfo
from kvvideo.video.geometry import FACTOR

FRAME_TOKENS = 128
"""Most tokens for a pair of frames, where the model does not say what it was trained with: our choice."""

BLOCK = 32
"""Tokens of a block: what is counted here in blocks of 32 holds for those of 16, too."""


@dataclass(frozen=True)
class Prediction:
    """Tokens and memory of a stream.

    Attributes:
        frame_tokens: for a pair of frames.
        tokens: computed in all, the text between the frames included.
        compactions: times the cache will be compacted.
        peak_tokens: most tokens held at once.
        budget_tokens: tokens held after a compaction; None if there is none.
        bytes: size of the cache at its largest.
        index_bytes: host memory of the vectors that chunks are found by; 0 without them.
        full_bytes: size that it would reach without compression.
        weight_bytes: size of the model.
        pool_bytes: size of the pool that the cache and its questions have; None for what vLLM finds.
        reserve_bytes: of a GPU for all else, about; 0 on a CPU.
        last_position: M-RoPE position the stream reaches.
        trained_positions: the model's trained range of positions.
    """

    frame_tokens: int
    tokens: int
    compactions: int
    peak_tokens: int
    budget_tokens: int | None
    bytes: int
    index_bytes: int
    full_bytes: int
    weight_bytes: int
    pool_bytes: int | None
    reserve_bytes: int
    last_position: int
    trained_positions: int


def frame_pixels(config: EngineConfig, frame_tokens: int | None = None) -> tuple[int, int]:
    """Return the smallest and largest area of a frame, in pixels, for at most ``frame_tokens`` tokens a pair."""
    if frame_tokens is None:
        own = getattr(model_config(model_path(config.model)), "kvvideo_frame_tokens", None)
        frame_tokens = FRAME_TOKENS if own is None else int(own)
    return min(4, frame_tokens) * FACTOR**2, frame_tokens * FACTOR**2


def predict(config: EngineConfig, source: Source, info: VideoInfo) -> Prediction:
    """Return what streaming ``source``, of which ``info`` is known, will take.

    Raises:
        ConfigError: if the model cannot be used, or the video's length is unknown.
    """
    import torch

    planned, path = source.plan(info), model_path(config.model)
    if planned.chunks is None:
        raise ConfigError("the length of the video is unknown; say where to end")
    parts = _parts(config, source, planned)
    tokens = sum(part[0] for part in parts)
    per_block = block_bytes(path, config, BLOCK)
    schedule = config.cache.schedule(BLOCK)
    compacts = config.cache.strategy not in BASELINES
    peak = min(tokens, schedule.max_tokens) if schedule else tokens
    compactions = schedule.compactions(tokens) if schedule and compacts else 0
    on_gpu = torch.version.cuda is not None or torch.version.hip is not None
    return Prediction(
        frame_tokens=planned.frame_tokens,
        tokens=tokens,
        compactions=compactions,
        peak_tokens=peak,
        budget_tokens=schedule.budget if schedule and compactions else None,
        bytes=-(-peak // BLOCK) * per_block,
        index_bytes=bytes_of(planned.chunks, vector_bytes(path, config)) if config.index and compacts else 0,
        full_bytes=-(-tokens // BLOCK) * per_block,
        weight_bytes=weight_bytes(config),
        pool_bytes=config.kv_bytes or pool_bytes(config, BLOCK),
        reserve_bytes=RESERVE if on_gpu else 0,
        last_position=sum(part[1] for part in parts),
        trained_positions=int(model_config(path).text_config.max_position_embeddings),
    )


def stream_tokens(config: EngineConfig, source: Source, info: VideoInfo) -> list[int]:
    """Return the tokens of the stream after each chunk; none if the video's length is unknown."""
    return [*accumulate(tokens for tokens, _ in _parts(config, source, source.plan(info)))]


def words_tokens(config: EngineConfig, source: Source, info: VideoInfo) -> int:
    """Return the tokens of the stream that are words of its subtitles; 0 if the video's length is unknown."""
    bare = replace(source, subtitles=None)
    all_tokens, others = (sum(tokens for tokens, _ in _parts(config, one, one.plan(info))) for one in (source, bare))
    return all_tokens - others


def check_room(config: EngineConfig, source: Source, info: VideoInfo, questions: Sequence[str] = ()) -> None:
    """Check that a stream that nothing is evicted of fits the longest request, with the longest of ``questions``.

    Nothing is checked of a bounded cache, nor if the video's length is unknown. ``questions`` are texts as the model is
    given them.

    Raises:
        ConfigError: saying how far it would come.
    """
    if config.cache.schedule(BLOCK) is not None:
        return
    # A question is asked on a fork, which has the marks of one in a block of its own.
    asked = max((_count(config, question) + BLOCK for question in questions), default=0)
    limit = config.max_model_len
    counts = stream_tokens(config, source, info)
    fitting = bisect_left(counts, limit - asked)
    if fitting == len(counts):
        return
    end = (source.start or 0.0) + fitting * source.chunk_seconds
    raise ConfigError(
        f"strategy: {config.cache.strategy!r} forgets nothing, and the {counts[-1]} tokens of {source.path!r} are more "
        f"than max_model_len={limit} has room for; "
        + (f"add --to {format_time(end)}, " if fitting else "")
        + "raise --max-model-len, or choose another strategy"
    )


def _parts(config: EngineConfig, source: Source, planned: Plan) -> list[tuple[int, int]]:
    """Return tokens and M-RoPE positions of each chunk, the opening among those of the first."""
    if planned.chunks is None or planned.frames is None:
        return []
    settings, found = model_config(model_path(config.model)), []
    per_chunk, left, text = 2 * round(source.chunk_seconds * source.fps / 2), planned.frames, _count(config, OPENING)
    for index in range(planned.chunks):
        frames = min(per_chunk, left)
        # The frames stand for one token, the video pad, in the text.
        text += _count(config, _text(config, source, index)) - 1
        positions = text + _span(settings, planned, frames, source.fps)
        found.append((text + frames // 2 * planned.frame_tokens, positions))
        left, text = left - frames, 0
    return found


def _text(config: EngineConfig, source: Source, index: int) -> str:
    """Return the text of chunk number ``index``."""
    start = (source.start or 0.0) + index * source.chunk_seconds
    if source.subtitles is None:
        return chunk_text(start)
    end = min(start + source.chunk_seconds, math.inf if source.end is None else source.end)
    words = " ".join(words for _, words in source.subtitles.between(start, end))
    return chunk_text(start, bounded(words, end - start, lambda text: _count(config, text)))


def _count(config: EngineConfig, text: str) -> int:
    return len(_tokenizer(model_path(config.model))(text).input_ids)


@cache
def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def _span(settings: Any, planned: Plan, frames: int, fps: float) -> int:
    """Return the M-RoPE positions that ``frames`` frames take up: the longest of their three axes."""
    seconds_per_grid = settings.vision_config.temporal_patch_size / fps
    last = int((frames // 2 - 1) * seconds_per_grid * settings.vision_config.tokens_per_second)
    return max(last + 1, planned.height // FACTOR, planned.width // FACTOR)
