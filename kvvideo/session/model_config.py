"""Read a model's configuration."""

from functools import cache
from typing import Any

from kvvideo.errors import ConfigError, first_line
from kvvideo.plugin import compat
from kvvideo.session.environment import quiet_transformers

_ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"


@cache
def text_config(path: str) -> Any:
    """Return the language model's part of the configuration at ``path``.

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
    """Return the configuration at ``path``, a directory or hub name.

    Raises:
        ConfigError: if there is none that transformers can read.
    """
    compat.prepare()
    quiet_transformers()
    from transformers import AutoConfig

    try:
        # Said, for transformers would ask at the terminal whether to run what is in the folder.
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"cannot load model {path!r}: {first_line(error)}") from error


def computed_in(path: str, config: Any) -> Any:
    """Return the ``torch.dtype`` that ``config.dtype`` means for the model at ``path``.

    Raises:
        ConfigError: if it is none.
    """
    import torch

    dtype = text_config(path).dtype or torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"dtype: no {config.dtype!r}; choose one of auto, float32, bfloat16, float16")
    return dtype
