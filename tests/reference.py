"""What the engine must compute, worked out a second time: plain transformers, one token stream, no blocks.

Nothing here comes from kvvideo. The rule is restated: whenever a stream holds ``max_tokens`` tokens, each KV
head of each layer keeps ``budget`` of them, and all later tokens attend to nothing else.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

Frames = npt.NDArray[np.uint8]
Keep = Callable[[Tensor, Tensor, int], Tensor]
"""``(keys [heads, n, dim], mass [heads, n], budget)`` to the indices kept, ``[heads, budget]``, ascending."""


@dataclass(frozen=True)
class Tokens:
    """A piece of a stream, ready for the language model: ids, embeddings and positions from 0."""

    ids: list[int]
    embeddings: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.ids)


class Model:
    """The weights in float32, with eager attention."""

    def __init__(self, path: str) -> None:
        self.hf = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.video = Qwen2VLVideoProcessor.from_pretrained(path, do_resize=False)
        self.config = self.hf.config

    def tokens(self, text: str | Sequence[int], frames: Frames | None = None, fps: float = 2.0) -> Tokens:
        """``text`` as tokens, ``frames`` in place of its one video placeholder."""
        ids = self.tokenizer.encode(text, add_special_tokens=False) if isinstance(text, str) else list(text)
        pad = self.config.video_token_id
        if frames is None:
            return self._embed(ids, _text(len(ids)), None)
        made = self.video([torch.from_numpy(frames).permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt")
        (grid,) = made["video_grid_thw"]
        merge = self.config.vision_config.spatial_merge_size
        t, h, w = int(grid[0]), int(grid[1]) // merge, int(grid[2]) // merge
        place = ids.index(pad)
        before, after = ids[:place], ids[place + 1 :]
        spacing = self.config.vision_config.tokens_per_second * self.config.vision_config.temporal_patch_size / fps
        # As in Qwen2.5-VL's paper and code: text goes on behind the largest position of the video, on any axis.
        video = grid_positions(t, h, w, spacing) + len(before)
        positions = torch.cat([_text(len(before)), video, _text(len(after)) + int(video.max()) + 1], dim=1)
        with torch.inference_mode():
            features = self.hf.model.get_video_features(made["pixel_values_videos"], made["video_grid_thw"])
        return self._embed(before + [pad] * (t * h * w) + after, positions, torch.cat(features.pooler_output))

    def _embed(self, ids: list[int], positions: Tensor, video: Tensor | None) -> Tokens:
        index = torch.tensor(ids, dtype=torch.int64)
        with torch.inference_mode():
            embeddings = self.hf.get_input_embeddings()(index)
            if video is not None:
                embeddings[index == self.config.video_token_id] = video
        return Tokens(ids, embeddings, positions)


def grid_positions(t: int, h: int, w: int, spacing: float) -> Tensor:
    """M-RoPE positions ``[3, t * h * w]`` of a video's tokens, relative to the text before it."""
    axes = (torch.arange(t) * spacing).long(), torch.arange(h), torch.arange(w)
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)


def _text(length: int) -> Tensor:
    return torch.arange(length).expand(3, -1)


class Stream:
    """Tokens fed one after the other, evicting as the rule says. ``keep`` None never evicts."""

    def __init__(self, model: Model, keep: Keep | None = None, budget: int = 0, max_tokens: int = 0) -> None:
        self.model, self.keep, self.budget, self.max_tokens = model, keep, budget, max_tokens
        self.cache: Any = DynamicCache(config=model.config.text_config)
        self.layers = model.config.text_config.num_hidden_layers
        self.heads = model.config.text_config.num_key_value_heads
        self.next = 0
        """M-RoPE position of the next token."""
        self.seen = 0
        self.compactions = 0
        self.positions = [torch.zeros(self.heads, 0, dtype=torch.int64) for _ in range(self.layers)]
        """Of each layer, the temporal positions of the tokens held, ``[heads, n]``."""
        self.mass = [torch.zeros(self.heads, 0) for _ in range(self.layers)]
        """Of each layer, the attention its tokens have received, over all queries and query heads so far."""
        self.last: Tensor | None = None
        """Log probabilities of the token to come."""

    @property
    def live(self) -> int:
        return int(self.positions[0].shape[1])

    def fork(self) -> "Stream":
        """A copy that never evicts."""
        copy = Stream(self.model)
        copy.cache, copy.next, copy.last = deepcopy(self.cache), self.next, self.last
        copy.positions, copy.mass = list(self.positions), list(self.mass)
        return copy

    def feed(self, tokens: Tokens) -> Tensor:
        """Compute ``tokens``; returns the log probabilities of what follows each, ``[n, vocabulary]``."""
        rows, at = [], 0
        positions = tokens.positions + self.next
        while at < len(tokens):
            room = len(tokens) - at if self.keep is None else self.max_tokens - self.live
            end = min(at + room, len(tokens))
            rows.append(self._forward(tokens.embeddings[at:end], positions[:, at:end]))
            if self.keep is not None and self.live == self.max_tokens:
                self._evict(self.keep)
            at = end
        self.next = int(positions.max()) + 1
        self.seen += len(tokens)
        result = torch.cat(rows)
        self.last = result[-1]
        return result

    def score(self, token_ids: Sequence[int]) -> tuple[list[float], list[float]]:
        """Feed generated tokens one by one; their log probabilities, and the best there were in their places."""
        chosen, best = [], []
        for token in token_ids:
            assert self.last is not None
            chosen.append(float(self.last[token]))
            best.append(float(self.last.max()))
            self.feed(self.model.tokens([token]))
        return chosen, best

    @torch.inference_mode()
    def _forward(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        held, new = self.live, len(embeddings)
        mask = torch.full((new, held + new), float("-inf")).triu(held + 1)[None, None]
        output = self.model.hf.model.language_model(
            inputs_embeds=embeddings[None], position_ids=positions[:, None], past_key_values=self.cache,
            attention_mask={"full_attention": mask}, use_cache=True, output_attentions=True,
        )  # fmt: skip
        for layer, weights in enumerate(output.attentions):
            received = weights[0].sum(dim=1).unflatten(0, (self.heads, -1)).sum(dim=1)
            received[:, :held] += self.mass[layer]
            self.mass[layer] = received
            fresh = positions[0].expand(self.heads, -1)
            self.positions[layer] = torch.cat([self.positions[layer], fresh], dim=1)
        return self.model.hf.lm_head(output.last_hidden_state[0]).log_softmax(dim=-1)

    def _evict(self, keep: Keep) -> None:
        self.compactions += 1
        for layer, cached in enumerate(self.cache.layers):
            kept = keep(cached.keys[0], self.mass[layer], self.budget)
            assert kept.shape == (self.heads, self.budget)
            places = kept[None, ..., None].expand(-1, -1, -1, cached.keys.shape[-1])
            cached.keys, cached.values = cached.keys.gather(2, places), cached.values.gather(2, places)
            self.positions[layer] = self.positions[layer].gather(1, kept)
            self.mass[layer] = self.mass[layer].gather(1, kept)


def keep_window(keys: Tensor, _: Tensor, budget: int) -> Tensor:
    """The most recent."""
    return torch.arange(keys.shape[1] - budget, keys.shape[1]).expand(keys.shape[0], -1)


def keep_streaming(sink: int) -> Keep:
    """The first ``sink`` and the most recent."""

    def keep(keys: Tensor, _: Tensor, budget: int) -> Tensor:
        n = keys.shape[1]
        index = [*range(sink), *range(n - budget + sink, n)]
        return torch.tensor(index).expand(keys.shape[0], -1)

    return keep


def keep_best(sink: int, score: Callable[[Tensor, Tensor], Tensor]) -> Keep:
    """The first ``sink``, the last quarter of the budget, and of the rest what scores highest."""

    def keep(keys: Tensor, mass: Tensor, budget: int) -> Tensor:
        n, recent = keys.shape[1], budget // 4
        middle = score(keys, mass)[:, sink : n - recent]
        best = middle.argsort(dim=-1, descending=True)[:, : budget - sink - recent] + sink
        fixed = torch.tensor([*range(sink), *range(n - recent, n)]).expand(keys.shape[0], -1)
        return torch.cat([fixed, best], dim=1).sort(dim=-1).values

    return keep


def half_norm(keys: Tensor, _: Tensor) -> Tensor:
    """Norm of the first half of each key: other than the whole norm it depends on the position, so none tie."""
    return keys[..., : keys.shape[-1] // 2].norm(dim=-1)


def attention_mass(_: Tensor, mass: Tensor) -> Tensor:
    return mass
