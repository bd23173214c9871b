"""vLLM's FlashAttention on GPUs."""

from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from kvvideo.plugin.attention import BoundedBackend, BoundedBuilder
from kvvideo.plugin.backends.dense import DenseImpl


class Impl(DenseImpl, FlashAttentionImpl):
    """Attention in one layer."""


class Builder(BoundedBuilder, FlashAttentionMetadataBuilder):
    """Metadata of a step."""


class Backend(BoundedBackend, FlashAttentionBackend):
    """The two of them."""

    impl, builder = Impl, Builder
