"""The ``vllm.general_plugins`` entry point: vLLM calls ``register`` in every process it starts.

Registering changes nothing by itself: every class below behaves as vLLM's own until an engine is
configured with ``additional_config={"kvvideo": {...}}``.
"""

from kvvideo.plugin import compat


def register() -> None:
    """Register the attention backends, the KV cache spec, the model and the video loader. Safe to call repeatedly."""
    compat.prepare()
    from vllm import ModelRegistry
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.kv_cache_interface import FullAttentionSpec
    from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

    from kvvideo.plugin.loader import LOADER, KvVideoLoader
    from kvvideo.plugin.model import KvVideoQwen2_5_VL
    from kvvideo.plugin.spec import BoundedManager, BoundedSpec

    if current_platform.is_cpu():
        register_backend(AttentionBackendEnum.CPU_ATTN, "kvvideo.plugin.backends.cpu.Backend")
    else:
        register_backend(AttentionBackendEnum.FLASH_ATTN, "kvvideo.plugin.backends.flash.Backend")
        register_backend(AttentionBackendEnum.TRITON_ATTN, "kvvideo.plugin.backends.triton.Backend")

    # The built-in specs must be there first: vLLM fills an empty registry only.
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(BoundedSpec, BoundedManager, uniform_type_base_spec=FullAttentionSpec)

    # The class itself, not its path: this also spares vLLM's model-inspection subprocess, seconds per start.
    ModelRegistry.register_model("Qwen2_5_VLForConditionalGeneration", KvVideoQwen2_5_VL)

    # For no model's processor: only who names it gets it.
    VIDEO_LOADER_REGISTRY.register(LOADER)(KvVideoLoader)
