"""vLLM's TritonAttention on GPUs."""

from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from kvvideo.plugin.attention import BoundedBackend, BoundedBuilder
from kvvideo.plugin.backends.dense import DenseImpl


class Impl(DenseImpl, TritonAttentionImpl):
    pass


class Builder(BoundedBuilder, TritonAttentionMetadataBuilder):
    pass


class Backend(BoundedBackend, TritonAttentionBackend):
    impl, builder = Impl, Builder
