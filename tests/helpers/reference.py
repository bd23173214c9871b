"""The engine's work done a second time: plain transformers, one token stream, no blocks.

Nothing here comes from kvvideo. The rule is restated: whenever a stream holds ``max_tokens`` tokens, each KV
head of each layer keeps ``budget`` of them, and all later tokens attend to nothing else.
"""

import itertools
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


@dataclass(frozen=True)
class Held:
    """Tokens that one layer of a stream holds, and has seen.

    Attributes:
        keys, values: ``[heads, n, dim]``.
        positions: temporal positions, ``[heads, n]``.
        notes: what was written down of each token, ``[heads, n]``, all of attention added up over query heads:
            ``mass``, received from all queries so far; ``late``, from the last 16 of each step; ``window``, the
            average of the last 64, with those of steps before where a step is shorter; ``last``, from the last
            one, the same in all heads; ``patch``, number of the patch of the picture, -1 for text.
        plain: keys before rotation, ``[heads, n, dim]``.
        queries: all so far, before rotation, ``[seen, query_heads, dim]``.
        theta: base of the rotary frequencies.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    notes: dict[str, Tensor]
    plain: Tensor
    queries: Tensor
    theta: float


Keep = Callable[[Held, int], Tensor]
"""A strategy: from the tokens held and the budget to the indices kept, ``[heads, budget]``, ascending."""

NOTES = ("mass", "late", "window", "last", "patch")


@dataclass(frozen=True)
class Tokens:
    """A piece of a stream, ready for the language model: ids, embeddings, positions from 0, and patches."""

    ids: list[int]
    embeddings: Tensor
    positions: Tensor
    patches: Tensor

    def __len__(self) -> int:
        return len(self.ids)


class Model:
    """The weights, rounded to ``dtype``, in float32, with eager attention."""

    def __init__(self, path: str, dtype: torch.dtype = torch.float32) -> None:
        self.hf = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=dtype, attn_implementation="eager")
        self.hf = self.hf.eval().float()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.video = Qwen2VLVideoProcessor.from_pretrained(path, do_resize=False)
        self.config = self.hf.config
        self.queries: dict[int, Tensor] = {}
        self.keys: dict[int, Tensor] = {}
        """The queries and keys of each layer computed last, before rotation, ``[1, n, heads * dim]``."""
        for index, layer in enumerate(self.hf.model.language_model.layers):
            for found, part in ((self.queries, layer.self_attn.q_proj), (self.keys, layer.self_attn.k_proj)):
                part.register_forward_hook(
                    lambda module, inputs, output, index=index, found=found: found.update({index: output})
                )

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
        patches = torch.full_like(index, -1)
        with torch.inference_mode():
            embeddings = self.hf.get_input_embeddings()(index)
            if video is not None:
                shown = index == self.config.video_token_id
                embeddings[shown] = video
                _, rows, columns = positions[:, shown] - positions[:, shown][:, :1]
                patches[shown] = 1000 * rows + columns
        return Tokens(ids, embeddings, positions, patches)


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
        """Temporal positions, by layer, of the tokens held, ``[heads, n]``."""
        self.notes = [{name: torch.zeros(self.heads, 0) for name in NOTES} for _ in range(self.layers)]
        self.queries: list[list[Tensor]] = [[] for _ in range(self.layers)]
        self.plain = [torch.zeros(self.heads, 0, 0) for _ in range(self.layers)]
        """By layer, ``notes``, ``queries`` and ``plain`` as ``Held`` has them; queries still in pieces."""
        self.last: Tensor | None = None
        """Log probabilities of the token to come."""

    @property
    def live(self) -> int:
        return int(self.positions[0].shape[1])

    def fork(self) -> "Stream":
        """A copy that never evicts."""
        copy = Stream(self.model)
        copy.cache, copy.next, copy.last = deepcopy(self.cache), self.next, self.last
        copy.positions, copy.notes, copy.plain = list(self.positions), list(self.notes), list(self.plain)
        return copy

    def feed(self, tokens: Tokens) -> Tensor:
        """Compute ``tokens``; returns the log probabilities of what follows each, ``[n, vocabulary]``."""
        rows, at = [], 0
        positions = tokens.positions + self.next
        while at < len(tokens):
            room = len(tokens) - at if self.keep is None else self.max_tokens - self.live
            end = min(at + room, len(tokens))
            rows.append(self._forward(tokens.embeddings[at:end], positions[:, at:end], tokens.patches[at:end]))
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
    def _forward(self, embeddings: Tensor, positions: Tensor, patches: Tensor) -> Tensor:
        held, new = self.live, len(embeddings)
        mask = torch.full((new, held + new), float("-inf")).triu(held + 1)[None, None]
        output = self.model.hf.model.language_model(
            inputs_embeds=embeddings[None],
            position_ids=positions[:, None],
            past_key_values=self.cache,
            attention_mask={"full_attention": mask},
            use_cache=True,
            output_attentions=True,
        )
        for layer, weights in enumerate(output.attentions):
            received = weights[0].unflatten(0, (self.heads, -1)).sum(dim=1)
            old = {name: torch.nn.functional.pad(row, (0, new)) for name, row in self.notes[layer].items()}
            # Of no use are the queries of steps that end 64 tokens or more before the eviction.
            share = min(new, 64) / 64 if self.max_tokens - held - new < 64 else 0.0
            self.notes[layer] = {
                "mass": old["mass"] + received.sum(dim=1),
                "late": old["late"] + received[:, -16:].sum(dim=1),
                "window": share * received[:, -64:].mean(dim=1) + (1 - share) * old["window"],
                "last": received[:, -1].sum(dim=0).expand(self.heads, -1),
                "patch": torch.cat([old["patch"][:, :held], patches.expand(self.heads, -1)], dim=1),
            }
            self.queries[layer].append(self.model.queries[layer][0])
            keys = self.model.keys[layer][0].unflatten(1, (self.heads, -1)).transpose(0, 1)
            self.plain[layer] = torch.cat([self.plain[layer], keys], dim=1) if held else keys
            fresh = positions[0].expand(self.heads, -1)
            self.positions[layer] = torch.cat([self.positions[layer], fresh], dim=1)
        return self.model.hf.lm_head(output.last_hidden_state[0]).log_softmax(dim=-1)

    def _evict(self, keep: Keep) -> None:
        self.compactions += 1
        for layer, cached in enumerate(self.cache.layers):
            queries = torch.cat(self.queries[layer])
            self.queries[layer] = [queries]
            dim = cached.keys.shape[-1]
            theta = self.model.config.text_config.rope_parameters["rope_theta"]
            held = Held(
                cached.keys[0],
                cached.values[0],
                self.positions[layer],
                self.notes[layer],
                self.plain[layer],
                queries.unflatten(1, (-1, dim)),
                theta,
            )
            kept = keep(held, self.budget)
            assert kept.shape == (self.heads, self.budget)
            places = kept[None, ..., None].expand(-1, -1, -1, dim)
            cached.keys, cached.values = cached.keys.gather(2, places), cached.values.gather(2, places)
            self.positions[layer] = self.positions[layer].gather(1, kept)
            self.notes[layer] = {name: row.gather(1, kept) for name, row in self.notes[layer].items()}
            self.plain[layer] = self.plain[layer].gather(1, places[0])


class Contiguous(Stream):
    """A stream that closes the gaps eviction leaves: all keys are rotated anew, from how they were before rotation.

    A head's gaps are left alone until they come to more positions than the budget.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.axes = [torch.zeros(self.heads, 0, 3, dtype=torch.int64) for _ in range(self.layers)]
        """Return, by layer, the positions that the keys held are rotated to, ``[heads, n, 3]``."""

    def _forward(self, embeddings: Tensor, positions: Tensor, patches: Tensor) -> Tensor:
        fresh = positions.T.expand(self.heads, -1, -1)
        self.axes = [torch.cat([axes, fresh], dim=1) for axes in self.axes]
        return super()._forward(embeddings, positions, patches)

    def _evict(self, keep: Keep) -> None:
        before, numbers = self.axes, [plain.shape[1] for plain in self.plain]
        marked = [torch.arange(n).expand(self.heads, -1) for n in numbers]
        for notes, mark in zip(self.notes, marked, strict=True):
            notes["number"] = mark
        super()._evict(keep)
        rope = self.model.config.text_config.rope_parameters
        for layer, cached in enumerate(self.cache.layers):
            kept = self.notes[layer].pop("number")
            self.axes[layer] = torch.stack(
                [closed(axes, numbers, self.budget) for axes, numbers in zip(before[layer], kept.tolist(), strict=True)]
            )
            cached.keys = rotated(self.plain[layer], self.axes[layer], rope["rope_theta"], rope["mrope_section"])[None]


def closed(axes: Tensor, kept: list[int], slack: int) -> Tensor:
    """Positions ``[len(kept), 3]`` of one head's survivors, of the tokens at ``axes`` (``[n, 3]``): right-aligned."""
    all_times = sorted({int(t) for t in axes[:, 0]})
    times = sorted({int(axes[i, 0]) for i in kept})
    moved = {times[-1]: all_times[-1]}
    for earlier, later in reversed(list(itertools.pairwise(times))):
        step = later - all_times[all_times.index(later) - 1]
        moved[earlier] = moved[later] - step
    if moved[times[0]] - times[0] <= slack:
        return axes[kept]
    return torch.stack([axes[i] + moved[int(axes[i, 0])] - int(axes[i, 0]) for i in kept])


def rotated(plain: Tensor, axes: Tensor, theta: float, sections: Sequence[int]) -> Tensor:
    """Keys ``[heads, n, dim]`` as M-RoPE rotates them at positions ``[heads, n, 3]``."""
    half = plain.shape[-1] // 2
    followed = [axis for axis, count in enumerate(sections) for _ in range(count)]
    angles = axes[..., followed].double() * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    as_complex = torch.complex(plain[..., :half].double(), plain[..., half:].double())
    turned = as_complex * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1).float()


def keep_window(held: Held, budget: int) -> Tensor:
    """The most recent."""
    heads, n = held.positions.shape
    return torch.arange(n - budget, n).expand(heads, -1)


def keep_streaming(sink: int) -> Keep:
    """The first ``sink`` and the most recent."""

    def keep(held: Held, budget: int) -> Tensor:
        heads, n = held.positions.shape
        index = [*range(sink), *range(n - budget + sink, n)]
        return torch.tensor(index).expand(heads, -1)

    return keep


def keep_best(sink: int, score: Callable[[Held], Tensor], recent: int | None = None) -> Keep:
    """The first ``sink``, the last quarter of the budget or ``recent``, and of the rest what scores highest."""

    def keep(held: Held, budget: int) -> Tensor:
        heads, n = held.positions.shape
        last = budget // 4 if recent is None else recent
        middle = score(held)[:, sink : n - last]
        best = middle.argsort(dim=-1, descending=True)[:, : budget - sink - last] + sink
        fixed = torch.tensor([*range(sink), *range(n - last, n)]).expand(heads, -1)
        return torch.cat([fixed, best], dim=1).sort(dim=-1).values

    return keep


def keep_new_and_long(sink: int) -> Keep:
    """InfiniPot-V: by turns of a half each, what the last quarter shows least of, and the longest values."""

    def keep(held: Held, budget: int) -> Tensor:
        heads, n = held.positions.shape
        last = budget // 4
        latest, between = range(n - last, n), range(sink, n - last)
        rows = []
        for head in range(heads):
            length, patch = value_norm(held)[head], held.notes["patch"][head]
            keys = torch.nn.functional.normalize(held.keys[head].double(), dim=-1)
            likeness = {}
            for token in between:
                same = [i for i in latest if patch[i] == patch[token]]
                if patch[token] >= 0:
                    # One that is not shown again comes before all that are, the longest first.
                    likeness[token] = float((keys[same] @ keys[token]).mean()) if same else -2 - float(length[token])
            new = sorted(likeness, key=lambda t: likeness[t])[: (budget - sink - last) // 2]
            rest = sorted((t for t in between if t not in new), key=lambda t: -length[t])
            rows.append(sorted([*range(sink), *latest, *new, *rest[: budget - sink - last - len(new)]]))
        return torch.tensor(rows)

    return keep


def half_norm(held: Held) -> Tensor:
    """Norm of the first half of each key: other than the whole norm it depends on the position, so none tie."""
    return held.keys[..., : held.keys.shape[-1] // 2].norm(dim=-1)


def key_norm(held: Held) -> Tensor:
    """Short keys score high."""
    return -held.keys.norm(dim=-1)


def value_norm(held: Held) -> Tensor:
    return held.values.norm(dim=-1)


def key_difference(held: Held) -> Tensor:
    """Minus the cosine between each key and the mean direction of all."""
    directions = held.keys / held.keys.norm(dim=-1, keepdim=True)
    return -torch.cosine_similarity(directions, directions.mean(dim=1, keepdim=True), dim=-1)


def noted(name: str) -> Callable[[Held], Tensor]:
    return lambda held: held.notes[name]


def neighbourhood(recent: int) -> Callable[[Held], Tensor]:
    """SnapKV: attention from the observation window, averaged with two neighbours at each side."""

    def score(held: Held) -> Tensor:
        older = torch.nn.functional.pad(held.notes["window"][:, :-recent], (2, 2))
        pooled = older.unfold(1, 5, 1).mean(dim=-1)
        return torch.nn.functional.pad(pooled, (0, recent))

    return score


def expected_attention(held: Held) -> Tensor:
    """Return what normally distributed queries with this stream's moments would attend to over the next 512 positions."""
    heads, n, dim = held.keys.shape
    half = dim // 2
    frequencies = held.theta ** -(torch.arange(half, dtype=torch.float64) / half)
    coming = int(held.positions[0, -1]) + 1 + torch.arange(512, dtype=torch.float64)
    turns = torch.polar(torch.ones(()).double(), coming[:, None] * frequencies).mean(dim=0)
    keys = torch.complex(*held.keys.double().chunk(2, dim=-1))
    queries = torch.complex(*held.queries.double().chunk(2, dim=-1)).unflatten(1, (heads, -1))
    attention = torch.zeros(heads, n, dtype=torch.float64)
    for head in range(heads):
        for query in queries[:, head].unbind(dim=1):
            mean, off = query.mean(dim=0), query - query.mean(dim=0)
            # The variance of Re(conj(q) k) for a complex k, from the two second moments of a complex q.
            straight, pseudo = (off * off.conj()).mean(dim=0).real, (off * off).mean(dim=0)
            moved = keys[head] * turns.conj()
            variance = (moved.abs() ** 2 * straight + (moved.conj() ** 2 * pseudo).real).sum(dim=-1) / 2
            logits = (moved * mean.conj()).real.sum(dim=-1) / dim**0.5 + variance / (2 * dim)
            attention[head] += logits.softmax(dim=-1)
    return attention * held.values.norm(dim=-1)


def nearest_newer_key(held: Held) -> Tensor:
    """Distance of each key, before rotation and to 127 steps off its head's mean, to the nearest of a later token."""
    off = held.plain - held.plain.mean(dim=1, keepdim=True)
    steps = (127 * off / off.abs().amax(dim=(1, 2), keepdim=True)).round().double()
    apart = torch.cdist(steps, steps, compute_mode="donot_use_mm_for_euclid_dist")
    n = apart.shape[-1]
    earlier = torch.arange(n)[None, :] <= torch.arange(n)[:, None]
    return apart.masked_fill(earlier, torch.inf).min(dim=-1).values
