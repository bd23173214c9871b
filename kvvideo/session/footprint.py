"""The memory that a model takes beside its cache, by its files and its shape."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvvideo.session.config import EngineConfig
from kvvideo.session.hub import model_path
from kvvideo.session.model_config import computed_in, model_config
from kvvideo.session.pool import head_dim

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
    size: int = stored * width // own if stored else _all_parameters(model_config(path)) * width
    return size


def _stored(folder: Path) -> int:
    """Return the bytes of the weights in a model's folder, or that its index states; 0 if nothing says."""
    if found := sum(file.stat().st_size for file in folder.glob("*.safetensors")):
        return found
    try:
        return int(json.loads((folder / _INDEX).read_bytes())["metadata"]["total_size"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def parameters(config: Any) -> tuple[int, int, int]:
    """Return the parameters of a layer, of a block of the vision tower and of its merger; without norms and biases.

    Those are less than 0.1 % of Qwen2.5-VL (arXiv 2502.13923).
    """
    text, vision = config.text_config, config.vision_config
    hidden, wide = int(text.hidden_size), int(vision.hidden_size)
    heads = int(text.num_attention_heads) + int(text.num_key_value_heads)
    layer = 2 * hidden * head_dim(text) * heads + 3 * hidden * int(text.intermediate_size)
    return layer, wide * (4 * wide + 3 * int(vision.intermediate_size)), 4 * wide * (4 * wide + hidden)


def _all_parameters(config: Any) -> int:
    text, (layer, block, merger) = config.text_config, parameters(config)
    words = int(text.vocab_size) * int(text.hidden_size) * (1 if config.tie_word_embeddings else 2)
    return words + int(text.num_hidden_layers) * layer + int(config.vision_config.depth) * block + merger
