"""The memory that a model takes beside its cache, by its files and its shape."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvvideo.session.config import EngineConfig
from kvvideo.session.hub import model_path
from kvvideo.session.model_config import computed_in, model_config

RESERVE = 1_500_000_000
"""Bytes of a GPU for what is neither weights nor cache: CUDA's context, the vision tower, activations and graphs.

Our choice: at the shape of Qwen2.5-VL-3B they were measured at 0.6 GB without the context (docs/gpu.md).
"""

_INDEX = "model.safetensors.index.json"


def weight_bytes(config: EngineConfig) -> int:
    """Return the bytes of the model's weights: those of its files, of their index, or of its shape."""
    path = model_path(config.model)
    width, own = (computed_in(path, one).itemsize for one in (config, replace(config, dtype="auto")))
    stored = 0 if config.load_format == "dummy" else _stored(Path(path))
    size: int = stored * width // own if stored else _parameters(model_config(path)) * width
    return size


def _stored(folder: Path) -> int:
    """Return the bytes of the weights in a model's folder, or that its index states; 0 if nothing says."""
    if found := sum(file.stat().st_size for file in folder.glob("*.safetensors")):
        return found
    try:
        return int(json.loads((folder / _INDEX).read_bytes())["metadata"]["total_size"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _parameters(config: Any) -> int:
    """Return the parameters of Qwen2.5-VL (arXiv 2502.13923) but for norms and biases, which are less than 0.1 %."""
    text, vision = config.text_config, config.vision_config
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    dim = getattr(text, "head_dim", None) or hidden // heads
    layer = 2 * hidden * dim * (heads + text.num_key_value_heads) + 3 * hidden * text.intermediate_size
    words = text.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    wide = int(vision.hidden_size)
    block = wide * (4 * wide + 3 * vision.intermediate_size)
    merger = 4 * wide * (4 * wide + hidden)
    total: int = words + text.num_hidden_layers * layer + vision.depth * block + merger
    return total
