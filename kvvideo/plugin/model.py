"""Qwen2.5-VL whose M-RoPE positions go on where a folded history left off."""

from dataclasses import replace
from typing import Any

import torch
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from kvvideo.compression import places
from kvvideo.plugin import history
from kvvideo.plugin.attention import tell_tokens

_HALF = 32
"""Bits of a position; those above them hold the token's place."""


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2_5_VLMultiModalProcessor,
    info=Qwen2_5_VLProcessingInfo,
    dummy_inputs=Qwen2_5_VLDummyInputsBuilder,
)
class KvVideoQwen(Qwen2_5_VLForConditionalGeneration):
    """vLLM's own model in all but two places; weights load unchanged."""

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[torch.Tensor, int]:
        """Return M-RoPE positions ``int64 [3, len(input_tokens)]`` and what to add to a later token's index.

        Placeholders of a folded history get position 0: they are in the cache and never computed. What is shown again
        gets the positions at which it was streamed, as if it had never been evicted. Places stand in the
        high halves of the second row, which ``forward`` takes out again.

        Args:
            input_tokens: the request's, which may begin with a folded history.
            mm_features: its videos, at offsets among all of ``input_tokens``.
        """
        past = history.decode(input_tokens)
        if past is None:
            positions, delta = super().get_mrope_input_positions(input_tokens, mm_features)
            return self._add_places(positions, mm_features), delta
        full = torch.zeros(3, len(input_tokens), dtype=torch.int64)
        end = past.position
        if len(input_tokens) > past.length:
            shifted = [
                replace(f, mm_position=replace(f.mm_position, offset=f.mm_position.offset - past.length))
                for f in mm_features
            ]
            fresh, _ = super().get_mrope_input_positions(input_tokens[past.length :], shifted)
            begin = 0
            for feature, at in zip(shifted, past.shown_at, strict=False):
                # A chunk ends with the token that closes its video.
                closed = feature.mm_position.offset + feature.mm_position.length + 1
                fresh[:, begin:closed] += at - past.position - fresh[0, begin]
                begin = closed
            fresh[:, begin:] -= fresh[:, begin : begin + 1].clone()
            full[:, past.length :] = fresh + past.position
            end = int(full.max()) + 1
        return self._add_places(full, mm_features), end - len(input_tokens)

    def _add_places(self, positions: torch.Tensor, mm_features: list[Any]) -> torch.Tensor:
        """Write the tokens' places into the high halves of ``positions``, which reach ``forward`` as they are."""
        for offset, t, h, w, _ in self.iter_mm_grid_thw(mm_features):
            video = positions[:, offset : offset + t * h * w]
            video[1] += places.encode(video - video[:, :1]) << _HALF
        return positions

    def forward(self, input_ids: torch.Tensor | None, positions: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute as vLLM's model does; take the places out of ``positions`` first and tell the attention layers.

        Args:
            input_ids: ``int [tokens]``, or None where embeddings are given.
            positions: ``int64 [3, tokens]``, changed in place.
            *args: as of vLLM's model.
            **kwargs: as of vLLM's model.
        """
        if positions.ndim == 2:
            tell_tokens(torch.stack([positions[0], positions[1] >> _HALF]))
            # In place, for a captured graph reads the positions from where they are.
            positions[1] &= (1 << _HALF) - 1
        return super().forward(input_ids, positions, *args, **kwargs)


def next_position(hf_config: Any, token_ids: list[int], mm_features: list[Any]) -> int:
    """Return the M-RoPE position of the token after ``token_ids``: where ``get_mrope_input_positions`` would go on.

    Args:
        hf_config: a ``Qwen2_5_VLConfig``.
        token_ids: a request's, which may begin with a folded history.
        mm_features: its videos that are not folded, at offsets among all of ``token_ids``.
    """
    past = history.decode(token_ids)
    at, position = (0, 0) if past is None else (past.length, past.position)
    model = KvVideoQwen.__new__(KvVideoQwen)  # without its weights
    object.__setattr__(model, "config", hf_config)
    for offset, t, h, w, spacing in model.iter_mm_grid_thw(mm_features):
        position += offset - at + max(int((t - 1) * spacing), h - 1, w - 1) + 1
        at = offset + t * h * w
    return position + len(token_ids) - at
