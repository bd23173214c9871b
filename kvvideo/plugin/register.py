"""The ``vllm.general_plugins`` entry point: vLLM calls ``register`` in every process it starts.

Registering changes nothing by itself: every class below behaves as vLLM's own until an engine is
configured with ``additional_config={"kvvideo": {...}}``.
"""

import os
from importlib.metadata import entry_points
from typing import NamedTuple

from kvvideo.errors import EngineError
from kvvideo.plugin import surface

GROUP = "vllm.general_plugins"
NAME = "kvvideo"
"""Group and name of the entry point."""

AGAIN = "install kvvideo again: pip install --force-reinstall --no-deps, and its folder"
"""Advice where it is missing or broken."""


class Problem(NamedTuple):
    """A reason why vLLM does not load the plug-in, and the remedy."""

    says: str
    mend: str


def problem() -> Problem | None:
    """Return why vLLM does not find the plug-in; None if it does."""
    if not any(point.name == NAME for point in entry_points(group=GROUP)):
        return Problem(f"it is not installed: the entry point {NAME} of {GROUP} is missing", AGAIN)
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and NAME not in allowed.split(","):
        return Problem(f"VLLM_PLUGINS={allowed} leaves it out", f"add {NAME} to VLLM_PLUGINS, or unset it")
    return None


def check_found() -> None:
    """Check that vLLM finds the plug-in.

    Raises:
        EngineError: saying why it does not, and what to do.
    """
    if found := problem():
        raise EngineError(f"vLLM does not load kvvideo's plug-in: {found.says}; {found.mend}")


def check_installed() -> None:
    """Check, before vLLM is imported, that it is a version that kvvideo knows and finds the plug-in.

    Raises:
        EngineError: saying what is wrong, and what to do.
    """
    surface.check_version()
    check_found()


def register() -> None:
    """Register the attention backends, the KV cache spec, the model and the video loader. Safe to call repeatedly.

    Raises:
        EngineError: if this vLLM is not one that kvvideo knows.
    """
    surface.check_version()
    surface.check()
    from vllm import ModelRegistry
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.kv_cache_interface import FullAttentionSpec
    from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

    from kvvideo.plugin.loader import LOADER, KvVideoLoader
    from kvvideo.plugin.model import KvVideoQwen
    from kvvideo.plugin.platform import is_cpu
    from kvvideo.plugin.spec import BoundedManager, BoundedSpec

    if is_cpu():
        register_backend(AttentionBackendEnum.CPU_ATTN, "kvvideo.plugin.backends.cpu.Backend")
    else:
        register_backend(AttentionBackendEnum.FLASH_ATTN, "kvvideo.plugin.backends.flash.Backend")
        register_backend(AttentionBackendEnum.TRITON_ATTN, "kvvideo.plugin.backends.triton.Backend")

    # The built-in specs must be there first: vLLM fills an empty registry only, and does so before it checks anything.
    KVCacheSpecRegistry.check_kv_cache_spec_registry({})
    KVCacheSpecRegistry.register(BoundedSpec, BoundedManager, uniform_type_base_spec=FullAttentionSpec)

    # The class itself, not its path: this also spares vLLM's model-inspection subprocess, seconds per start.
    ModelRegistry.register_model("Qwen2_5_VLForConditionalGeneration", KvVideoQwen)

    # For no model's processor: only who names it gets it.
    VIDEO_LOADER_REGISTRY.register(LOADER)(KvVideoLoader)
