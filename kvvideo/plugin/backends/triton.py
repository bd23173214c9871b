"""vLLM's TritonAttention on GPUs."""

from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from kvvideo.plugin.attention import BoundedBackend, BoundedBuilder
from kvvideo.plugin.backends.dense import DenseImpl


class Impl(DenseImpl, TritonAttentionImpl):
    """Attention in one layer."""


class Builder(BoundedBuilder, TritonAttentionMetadataBuilder):
    """Metadata of a step."""


class Backend(BoundedBackend, TritonAttentionBackend):
    """The two of them."""

    impl, builder = Impl, Builder
