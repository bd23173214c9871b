"""Floating-point operations of a chunk, whoever computes it, and a machine's rate of them."""

from dataclasses import dataclass

from kvvideo.bench.kernels import multiplying_rate, name_of
from kvvideo.session import EngineConfig
from kvvideo.session.hub import model_path
from kvvideo.session.model_config import computed_in, model_config


@dataclass(frozen=True)
class Operations:
    """Operations of matrix products; all else comes on top.

    Attributes:
        language: in the language model's layers, attention apart.
        vision: in the vision tower, its attention apart.
        attention: in the language model's attention to what is held.
    """

    language: int
    vision: int
    attention: int

    @property
    def all(self) -> int:
        """Sum of the three."""
        return self.language + self.vision + self.attention


def of_chunk(config: EngineConfig, tokens: float, video_tokens: int, live: float) -> Operations:
    """Return the operations of one chunk.

    Args:
        config: names the model.
        tokens: tokens of the chunk, its text included.
        video_tokens: those among them that stand for frames.
        live: tokens that each of them attends to, mean.
    """
    found = model_config(model_path(config.model))
    text, vision = found.text_config, found.vision_config
    width, wide, depth = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    head = getattr(text, "head_dim", None) or width // text.num_attention_heads
    queries, keys = head * text.num_attention_heads, head * text.num_key_value_heads
    layer = width * (2 * queries + 2 * keys) + 3 * width * wide
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    tower = vision.depth * (4 * vision.hidden_size**2 + 3 * vision.hidden_size * vision.intermediate_size)
    merged = vision.hidden_size * vision.spatial_merge_size**2
    patches = video_tokens * vision.spatial_merge_size**2
    return Operations(
        round(2 * tokens * depth * layer),
        2 * patches * (tower + pixels * vision.hidden_size) + 2 * video_tokens * merged * (merged + width),
        round(4 * tokens * depth * queries * live),
    )


def rate(config: EngineConfig) -> float:
    """Measure this machine's operations a second in a large product in the dtype of the model."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return multiplying_rate(device, computed_in(model_path(config.model), config))


def dtype(config: EngineConfig) -> str:
    """Return the name of the dtype that the model is computed in."""
    return name_of(computed_in(model_path(config.model), config))
