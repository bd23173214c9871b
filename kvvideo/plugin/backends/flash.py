"""vLLM's FlashAttention on GPUs."""

from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from kvvideo.plugin.attention import BoundedBackend, BoundedBuilder
from kvvideo.plugin.backends.dense import DenseImpl


class Impl(DenseImpl, FlashAttentionImpl):
    pass


class Builder(BoundedBuilder, FlashAttentionMetadataBuilder):
    pass


class Backend(BoundedBackend, FlashAttentionBackend):
    impl, builder = Impl, Builder
