"""How many bytes a KV cache takes, from a model's configuration alone."""

from collections.abc import Iterable
from functools import cache
from typing import Any

from kvvideo.compression.rows import state_rows
from kvvideo.config import CacheConfig
from kvvideo.errors import ConfigError, first_line

_ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"


@cache
def text_config(path: str) -> Any:
    """The language model's part of the configuration at ``path``.

    Raises:
        ConfigError: if there is no model there, or not one of the Qwen2.5-VL kind.
    """
    config = model_config(path)
    names = getattr(config, "architectures", None) or [_ARCHITECTURE]
    if config.model_type != "qwen2_5_vl" or _ARCHITECTURE not in names:
        kind = f"{config.model_type} model" if config.model_type != "qwen2_5_vl" else f"{names[0]!r:.100}"
        raise ConfigError(f"{path!r} is a {kind}; kvvideo streams into qwen2_5_vl models")
    return config.text_config


@cache
def model_config(path: str) -> Any:
    """The configuration at ``path``, a directory or hub name."""
    from kvvideo import _compat

    _compat.prepare()
    from transformers import AutoConfig

    try:
        # Said, for transformers would ask at the terminal whether to run what is in the folder.
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"cannot load model {path!r}: {first_line(error)}") from error


def block_bytes(path: str, config: Any, block_size: int, ranks: int = 1) -> int:
    """Bytes of one block over all layers: keys, values and side state, each page padded as in the pool. Of several
    ``ranks`` of tensor parallelism, on each of them."""
    text, rows = text_config(path), state_rows(config.cache)
    page = page_bytes(text, block_size, computed_in(path, config).itemsize, rows, ranks)
    return page * int(text.num_hidden_layers)


def computed_in(path: str, config: Any) -> Any:
    """The ``torch.dtype`` that ``config.dtype`` means for the model at ``path``.

    Raises:
        ConfigError: if it is none.
    """
    import torch

    dtype = text_config(path).dtype or torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"dtype: no {config.dtype!r}; choose one of auto, float32, bfloat16, float16")
    return dtype


def spare_rows(cache: CacheConfig, others: Iterable[CacheConfig]) -> int:
    """Rows of side state to keep ready beside those of ``cache``, so that an engine can be switched to ``others``."""
    most = max((state_rows(other, spare=False) for other in others), default=0)
    return max(0, most - state_rows(cache, spare=False))


def page_bytes(text: Any, block_size: int, itemsize: int, state_rows: int, ranks: int = 1) -> int:
    """Bytes of one layer's page of ``block_size`` tokens on each of ``ranks``, which share the KV heads out."""
    heads = max(1, int(text.num_key_value_heads) // ranks)
    head_dim = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    size = heads * block_size * (2 * head_dim * itemsize + 4 * state_rows)
    return -(-size // 256) * 256
