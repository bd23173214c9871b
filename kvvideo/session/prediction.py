"""Predict the tokens and memory of a run before any model is loaded."""

from dataclasses import dataclass
from typing import Any

from kvvideo.errors import ConfigError
from kvvideo.prompt import OPENING, chunk_text
from kvvideo.session import BASELINES
from kvvideo.session.config import EngineConfig
from kvvideo.session.hub import model_path
from kvvideo.session.index import bytes_of
from kvvideo.session.model_config import model_config
from kvvideo.session.pool import block_bytes, vector_bytes
from kvvideo.video.geometry import FACTOR
from kvvideo.video.plan import Plan

FRAME_TOKENS = 128
"""Most tokens for a pair of frames, where the model does not say what it was trained with: our choice."""


@dataclass(frozen=True)
class Prediction:
    """Tokens and memory of a stream.

    Attributes:
        tokens: computed in all, the text between the frames included.
        compactions: times the cache will be compacted.
        peak_tokens: most tokens held at once.
        bytes: size of the cache at its largest.
        index_bytes: host memory of the vectors that chunks are found by; 0 without them.
        full_bytes: size that it would reach without compression.
        last_position: M-RoPE position the stream reaches.
        trained_positions: the model's trained range of positions.
    """

    tokens: int
    compactions: int
    peak_tokens: int
    bytes: int
    index_bytes: int
    full_bytes: int
    last_position: int
    trained_positions: int


def frame_pixels(config: EngineConfig, frame_tokens: int | None = None) -> tuple[int, int]:
    """Return the smallest and largest area of a frame, in pixels, for at most ``frame_tokens`` tokens a pair."""
    if frame_tokens is None:
        own = getattr(model_config(model_path(config.model)), "kvvideo_frame_tokens", None)
        frame_tokens = FRAME_TOKENS if own is None else int(own)
    return min(4, frame_tokens) * FACTOR**2, frame_tokens * FACTOR**2


def predict(config: EngineConfig, planned: Plan, chunk_seconds: float, fps: float, start: float) -> Prediction:
    """Return what streaming ``planned`` in chunks of ``chunk_seconds`` at ``fps`` from ``start`` seconds will take.

    Raises:
        ConfigError: if the model cannot be used, or the video's length is unknown.
    """
    from transformers import AutoTokenizer

    if planned.chunks is None or planned.frames is None:
        raise ConfigError("the length of the video is unknown; say where to end")
    path = model_path(config.model)
    settings, tokenizer = model_config(path), AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    per_chunk = 2 * round(chunk_seconds * fps / 2)
    sizes = [per_chunk] * (planned.chunks - 1) + [planned.frames - per_chunk * (planned.chunks - 1)]
    tokens = position = len(tokenizer(OPENING).input_ids)
    for index, frames in enumerate(sizes):
        # The frames stand for one token, the video pad, in the text.
        text = len(tokenizer(chunk_text(start + index * chunk_seconds)).input_ids) - 1
        tokens += text + frames // 2 * planned.frame_tokens
        position += text + _span(settings, planned, frames, fps)
    size = 32
    per_block = block_bytes(path, config, size)
    schedule = config.cache.schedule(size)
    compacts = config.cache.strategy not in BASELINES
    peak = min(tokens, schedule.max_tokens) if schedule else tokens
    return Prediction(
        tokens=tokens,
        compactions=schedule.compactions(tokens) if schedule and compacts else 0,
        peak_tokens=peak,
        bytes=-(-peak // size) * per_block,
        index_bytes=bytes_of(planned.chunks, vector_bytes(path, config)) if config.index and compacts else 0,
        full_bytes=-(-tokens // size) * per_block,
        last_position=position,
        trained_positions=int(settings.text_config.max_position_embeddings),
    )


def _span(settings: Any, planned: Plan, frames: int, fps: float) -> int:
    """Return the M-RoPE positions that ``frames`` frames take up: the longest of their three axes."""
    seconds_per_grid = settings.vision_config.temporal_patch_size / fps
    last = int((frames // 2 - 1) * seconds_per_grid * settings.vision_config.tokens_per_second)
    return max(last + 1, planned.height // FACTOR, planned.width // FACTOR)
