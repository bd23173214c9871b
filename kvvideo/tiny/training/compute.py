# ruff: noqa: TID253 - only training and its tests import this
"""The tiny model's forward pass as training needs it: many frame pairs, and packed streams, at once.

Both give what transformers' own forward gives (tests compare them); they differ in that all pictures
have one size, and in that a question's tokens see only their part of the stream.
"""

from typing import Any

import numpy.typing as npt
import torch
from torch.nn import functional as F  # noqa: N812  (torch's own name for it)

from kvvideo.tiny import model
from kvvideo.tiny.training.packing import Batch

ATTENTION = "kvvideo_packed"

_ROWS, _COLUMNS = model.FRAME_HEIGHT // model.PATCH, model.FRAME_WIDTH // model.PATCH


def load(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return ``array`` on ``device``; pinned on its way, so that the host need not wait for the device's queue."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def patchify(frames: torch.Tensor) -> torch.Tensor:
    """Return frame pairs ``uint8 or float [n, 2, 84, 140, 3]`` of 0..255 as normalised patches ``[n, 60, 1176]``."""
    mean = torch.tensor(model.MEAN, device=frames.device) * 255
    std = torch.tensor(model.STD, device=frames.device) * 255
    x = (frames.float() - mean) / std
    m, p = model.MERGE, model.PATCH
    x = x.view(len(x), model.PAIR, _ROWS // m, m, p, _COLUMNS // m, m, p, 3)
    return x.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(len(x), _ROWS * _COLUMNS, -1)


class Vision:
    """Qwen2.5-VL's vision tower over frame pairs of the one size the tiny model sees."""

    def __init__(self, visual: Any, config: Any, device: torch.device) -> None:
        self._visual = visual
        self._heads = config.num_heads
        self._full = set(config.fullatt_block_indexes)
        m = model.MERGE
        rows, columns = torch.meshgrid(torch.arange(_ROWS), torch.arange(_COLUMNS), indexing="ij")

        def blocks(x: torch.Tensor) -> torch.Tensor:
            return x.view(_ROWS // m, m, _COLUMNS // m, m).permute(0, 2, 1, 3).reshape(-1)

        rows, columns = blocks(rows), blocks(columns)
        size = config.window_size // model.PATCH
        window = (rows // size) * 100 + columns // size
        self._window = (window[:, None] == window[None, :]).to(device)
        dim = config.hidden_size // config.num_heads // 2
        rates = 1.0 / (10000.0 ** (torch.arange(0, dim, 2).float() / dim))
        angles = torch.cat([rows[:, None] * rates, columns[:, None] * rates], dim=1)
        angles = torch.cat([angles, angles], dim=1).to(device)
        self._cos, self._sin = angles.cos(), angles.sin()

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the tokens ``[n, TOKENS, hidden]`` of frame pairs ``[n, 2, 84, 140, 3]``."""
        visual = self._visual
        patches = patchify(frames)
        weight = visual.patch_embed.proj.weight
        x = F.linear(patches, weight.view(weight.shape[0], -1)).float()
        count, length, width = x.shape
        for number, block in enumerate(visual.blocks):
            qkv = block.attn.qkv(block.norm1(x)).view(count, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
            q, k = self._rotate(q).to(v.dtype), self._rotate(k).to(v.dtype)
            mask = None if number in self._full else self._window
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            x = x + block.attn.proj(out.transpose(1, 2).reshape(count, length, width))
            x = x + block.mlp(block.norm2(x))
        merged: torch.Tensor = visual.merger(x.reshape(count * length, width))
        return merged.view(count, model.TOKENS, -1).float()

    def _rotate(self, x: torch.Tensor) -> torch.Tensor:
        low, high = x.float().chunk(2, dim=-1)
        return x.float() * self._cos + torch.cat([-high, low], dim=-1) * self._sin


class PackedMask:
    """Attention mask of a batch's forks, as a bias that is added to attention's scores.

    Attributes:
        stream: number of tokens of a stream; the forks' come after them.
        forks: ``[B, 1, F, S + F]`` for the forks; the stream itself is plainly causal.
    """

    def __init__(self, batch: Batch, device: torch.device, dtype: torch.dtype) -> None:
        limit, fork = load(batch.limit, device).int(), load(batch.fork, device).int()
        self.stream = batch.ids.shape[1] - limit.shape[1]
        s = torch.arange(self.stream, device=device, dtype=torch.int32)
        f = torch.arange(limit.shape[1], device=device, dtype=torch.int32)
        seen = s[None, None, :] < limit[:, :, None]
        own = (fork[:, :, None] == fork[:, None, :]) & (f[None, :] <= f[:, None])
        self.forks = _bias(torch.cat([seen, own], dim=2), dtype)


def _bias(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    bias = torch.zeros(allowed.shape, device=allowed.device, dtype=dtype)
    # Far below any score, and far from overflowing in a kernel that scales it.
    return bias.masked_fill_(~allowed, -30000.0)[:, None]


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: PackedMask,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    mask = attention_mask
    groups = module.num_key_value_groups
    query, key = query.to(value.dtype), key.to(value.dtype)
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    s = mask.stream
    q, k, v = (x[:, :, :s] for x in (query, key, value))
    first = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    second = F.scaled_dot_product_attention(query[:, :, s:], key, value, attn_mask=mask.forks)
    return torch.cat([first, second], dim=2).transpose(1, 2), None


def use_packed_attention(whole: Any) -> None:
    """Let ``whole``, a Qwen2.5-VL, read packed streams; its language model then takes a PackedMask."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attend)
    whole.model.language_model.config._attn_implementation = ATTENTION  # noqa: SLF001  (nothing public takes one part)


def answer_logits(whole: Any, batch: Batch, bank: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
    """Return the logits ``[N, vocabulary]`` at the batch's ``where``.

    Args:
        whole: the model, after ``use_packed_attention``.
        batch: packed streams.
        bank: ``[cells, hidden]`` embeddings of the bank's video tokens.
        shift: ``[B]`` added to each stream's cells, to take another version of the same pictures.
    """
    device = bank.device
    text = whole.model.language_model
    ids, cells = load(batch.ids, device), load(batch.cells, device)
    positions, where = load(batch.positions, device), load(batch.where, device)
    shifted = cells if shift is None else cells + shift[:, None]
    seen = F.embedding(shifted.clamp(min=0), bank).float()
    embeds = torch.where((cells >= 0)[..., None], seen, text.embed_tokens(ids))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    mask = PackedMask(batch, device, dtype)
    hidden = text(
        inputs_embeds=embeds, position_ids=positions, attention_mask={"full_attention": mask}, use_cache=False
    ).last_hidden_state
    picked = hidden.reshape(-1, hidden.shape[-1])[where]
    logits: torch.Tensor = whole.lm_head(picked).float()
    return logits
