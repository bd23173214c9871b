"""Translate an ``EngineConfig`` into keyword arguments of vLLM's ``EngineArgs``."""

import os
from typing import Any

from kvvideo.compression.config import KEY, SPARE, CacheConfig
from kvvideo.plugin.platform import is_cpu
from kvvideo.plugin.settings import SCHEDULER
from kvvideo.session.config import EngineConfig
from kvvideo.session.hub import model_path, named
from kvvideo.session.model_config import computed_in

STEPS = (1, 2, 4, 8, 16, *range(32, 1025, 32))
"""Sizes of steps, in tokens, to capture in CUDA graphs; others are padded to the next, larger ones run bare."""


def engine_args(**settings: Any) -> dict[str, Any]:
    """Return keyword arguments that switch the bounded cache on in any vLLM entry point.

    >>> vllm.LLM("Qwen/Qwen2.5-VL-3B-Instruct", **kvvideo.engine_args(strategy="streaming", max_tokens=4096))

    Args:
        settings: fields of ``CacheConfig``, and ``spare_rows``, see ``EngineConfig``.

    Raises:
        ConfigError: naming the field and what is allowed.
    """
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    return {
        "additional_config": {KEY: {**CacheConfig.from_dict(settings).as_dict(), SPARE: settings.get(SPARE, 0)}},
        "scheduler_cls": SCHEDULER,
        "enable_prefix_caching": False,
        "async_scheduling": False,
    }


def common_arguments(config: EngineConfig) -> dict[str, Any]:
    """Return what ``config`` says to vLLM, its cache apart."""
    return {
        "model": named(config.model) if is_elsewhere(config) else model_path(config.model),
        "trust_remote_code": False,
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_batched_tokens": config.step_tokens,
        "max_num_seqs": config.sessions + config.questions,
        # Frames come in the model's own size; resizing them again could only blur them.
        "mm_processor_kwargs": {"do_resize": False, "cap_pixels_per_frame": False},
        "load_format": config.load_format,
        "seed": config.seed,
        "block_size": block_size(),
        "enforce_eager": is_cpu(),
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "skip_mm_profiling": True,
        **({} if is_cpu() or config.options.get("enforce_eager") else {"compilation_config": _graphs(config)}),
    }


def is_elsewhere(config: EngineConfig) -> bool:
    """Return True if another revision of the model is wanted, or in another place: vLLM gets that itself."""
    return not config.options.keys().isdisjoint({"revision", "download_dir"})


def _graphs(config: EngineConfig) -> dict[str, Any]:
    """Return what to capture in CUDA graphs: the vision tower, and steps of the sizes that chunks come in.

    Without them a GPU waits for the host most of the time: a chunk's kernels take less time than launching them.
    """
    steps = {"cudagraph_capture_sizes": [n for n in STEPS if n <= config.step_tokens] or [config.step_tokens]}
    if computed_in(model_path(config.model), config).itemsize > 2:
        return steps  # there is no FlashAttention in float32, and what is there instead waits for the GPU
    return {
        **steps,
        "cudagraph_mm_encoder": True,
        "encoder_cudagraph_token_budgets": [256, 512, 768, 1024],
        "encoder_cudagraph_max_vision_items_per_batch": 1,
        # A pair of frames is four tokens at least, so no chunk that fits a graph has more of them.
        "encoder_cudagraph_max_frames_per_batch": 256,
    }


def block_size() -> int:
    """Return the tokens of one KV block: the fewest that the platform's kernels take."""
    return 32 if is_cpu() else 16
