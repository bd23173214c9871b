"""Models of true size without weights: Qwen2.5-VL's published shapes, for ``load_format="dummy"``."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from kvvideo.errors import ConfigError
from kvvideo.session.config import EngineConfig
from kvvideo.session.hub import TINY, model_path

SHAPES: dict[str, dict[str, Any]] = {
    "3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
"""The language models' sizes, from the configurations of Qwen2.5-VL-3B and 7B (arXiv 2502.13923, table 1)."""

_TEXT = {
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]},
}
_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}


@cache
def directory(shape: str) -> Path:
    """Return a directory with a model of that shape, without weights, and the bundled model's tokenizer.

    It is deleted when the process ends.

    Raises:
        ConfigError: if there is no such shape.
    """
    if shape not in SHAPES:
        raise ConfigError(f"shape: no {shape!r}; choose one of {', '.join(SHAPES)}")
    weights = Path(model_path(TINY))
    made = Path(tempfile.mkdtemp(prefix=f"kvvideo-{shape}-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    for file in weights.iterdir():
        if file.suffix == ".json" and file.name not in ("config.json", "eval.json"):
            shutil.copy(file, made)
    config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    sizes = dict(SHAPES[shape])
    layers = sizes["num_hidden_layers"]
    config["text_config"] |= _TEXT | sizes | {"layer_types": ["full_attention"] * layers}
    config["vision_config"] |= _VISION | {"out_hidden_size": sizes["hidden_size"]}
    config |= {"dtype": "bfloat16", "tie_word_embeddings": sizes["tie_word_embeddings"]}
    # The bundled model's own, which a model of this size does not share.
    del config["kvvideo_frame_tokens"], config["kvvideo_dialogue"]
    (made / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return made


def shaped(config: EngineConfig, shape: str | None) -> EngineConfig:
    """Return ``config`` with a made-up model of ``shape``; unchanged without one."""
    from dataclasses import replace

    return config if shape is None else replace(config, model=str(directory(shape)), load_format="dummy")
