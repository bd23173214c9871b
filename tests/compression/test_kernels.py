"""The GPU's kernels do what torch does elsewhere. Without a GPU they run in Triton's interpreter, slowly but truly."""

import pytest
import torch

from kvvideo.compression import places
from kvvideo.compression.gaps import close_gaps
from kvvideo.compression.kernels import attention as attention_kernels
from kvvideo.compression.kernels import distance, selection
from kvvideo.compression.policy import LiveCache, attention
from kvvideo.compression.rotary import Rotary
from kvvideo.compression.rows import ROWS
from kvvideo.compression.strategies.distinct import distance_to_newer, in_steps
from kvvideo.plugin.kernels import KernelPages
from tests.helpers.engines import ON_GPU

DEVICE = "cuda" if ON_GPU else "cpu"
HALF = torch.bfloat16 if ON_GPU else torch.float16  # the interpreter cannot multiply bfloat16
SIZES = [(1, 1), (37, 5), (64, 64), (150, 33)]
"""Tokens and queries, on and off the edges of tiles."""


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def near(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    """Equal where infinite, and elsewhere apart by no more than a part of the largest."""
    finite = wanted.isfinite()
    assert torch.equal(found[~finite], wanted[~finite])
    if finite.any():
        assert float((found - wanted)[finite].abs().max()) <= tolerance * max(1.0, float(wanted[finite].abs().max()))


@pytest.mark.parametrize(("n", "count"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_attention_received(n: int, count: int, dtype: torch.dtype) -> None:
    heads, group, size = 2, 3, 16
    queries, keys = random(count, heads * group, size, dtype=dtype), random(heads, n, size, seed=1, dtype=dtype)
    for following in {0, (n - count) // 2}:
        nothing = torch.zeros(heads, n, dtype=torch.int32, device=DEVICE)
        live = LiveCache(keys, keys[:, :0], nothing, nothing, {}, 0, 0.25, Rotary.of(size, 1e4))
        wanted = attention(queries, live, following).sum(dim=(1, 2))
        found = attention_kernels.attention_received(queries, keys, 0.25, following)
        near(found, wanted, 1e-5 if dtype == torch.float32 else 2e-2)
        assert float(found.sum()) == pytest.approx(heads * group * count, rel=1e-4)


@pytest.mark.parametrize("n", [1, 63, 64, 200])
def test_distance_to_the_nearest_newer_key(n: int) -> None:
    steps = in_steps(random(2, n, 16) + 100.0)
    assert torch.equal(distance.nearest_newer(steps), distance_to_newer(steps))


def test_keys_are_unrotated() -> None:
    heads, n, size = 2, 70, 32
    keys, rotary = random(heads, n, size), Rotary.of(size, 1e6, [4, 6, 6])
    offsets = torch.stack([torch.arange(n) // 8, torch.arange(n) % 8 // 4, torch.arange(n) % 4])
    where = places.encode(offsets)
    where[:9] = 0  # text
    positions = (5000 + torch.arange(n)).int().expand(heads, -1).contiguous().to(DEVICE)
    where = where.int().expand(heads, -1).contiguous().to(DEVICE)
    rotary = rotary.to(torch.device(DEVICE))
    wanted = rotary.rotate(keys, -rotary.angles(places.axes(positions, where)))
    near(distance.unrotated(keys, positions, where, rotary.frequencies, rotary.axis), wanted, 1e-3)


@pytest.mark.parametrize(
    ("n", "budget", "sink", "recent"), [(10, 10, 2, 3), (100, 40, 5, 10), (130, 64, 0, 64), (300, 7, 7, 0)]
)
def test_the_best_are_chosen(n: int, budget: int, sink: int, recent: int) -> None:
    scores = random(3, n) - 0.5
    scores[0, n // 2 :] = -1.25  # many alike
    scores[1, ::3] = -torch.inf
    scores[2, 4] = torch.inf
    kept = selection.choose(scores, budget, sink, recent)
    assert (kept.diff(dim=-1) > 0).all()
    fixed = scores.clone()
    fixed[:, :sink] = torch.inf
    fixed[:, n - recent :] = torch.inf
    # Which of equal ones are taken is free.
    wanted = fixed.topk(budget, dim=-1).values
    assert torch.equal(fixed.gather(1, kept).sort(dim=-1, descending=True).values, wanted)
    assert set(range(sink)) | set(range(n - recent, n)) <= set(kept[0].tolist())


class Made:
    """Caches of random pages with side state, three rows of it, as vLLM lays them out: pages are padded."""

    def __init__(self, layers: int = 1, heads: int = 2, size: int = 32, dtype: torch.dtype = torch.float32) -> None:
        self.heads, self.slots, self.size, blocks, rows = heads, 16, size, 9, 3
        length = heads * self.slots * 2 * size
        raw = [random(blocks, length + 64, seed=3 + layer, dtype=dtype) for layer in range(layers)]
        self.caches = [page[:, :length].unflatten(1, (heads, self.slots, 2 * size)) for page in raw]
        words = torch.arange(layers * blocks * rows * heads * self.slots, dtype=torch.int32, device=DEVICE)
        self.states = list(words.view(layers, blocks, rows, heads, self.slots).unbind())
        self.pages = KernelPages(self.caches, self.states)

    def read(self, layers: range, blocks: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """In torch, what ``Pages.read`` should."""
        pages = torch.cat([self.caches[layer][blocks].transpose(0, 1).flatten(1, 2)[:, :n] for layer in layers])
        rows = [self.states[layer][blocks].permute(1, 2, 0, 3).flatten(2)[..., :n] for layer in layers]
        return *pages.chunk(2, dim=-1), torch.cat(rows, dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_pages_are_read(dtype: torch.dtype) -> None:
    made, blocks = Made(layers=3, dtype=dtype), torch.tensor([7, 2, 5], device=DEVICE)
    for n, layers in ((33, range(3)), (48, range(1, 2)), (1, range(1, 3))):
        found, wanted = made.pages.read(layers, blocks, n), made.read(layers, blocks, n)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert made.pages.read(range(2), blocks, 33, values=False)[1].shape == (4, 0, 32)


def test_parts_are_all_layers_in_order() -> None:
    made = Made(layers=3)
    assert [*made.pages.parts(48)] == [range(3)]
    assert [*made.pages.parts(1 << 20)] == [range(1), range(1, 2), range(2, 3)]


@pytest.mark.parametrize("layers", [range(1), range(1, 3)])
@pytest.mark.parametrize("closing", [False, True])
def test_survivors_are_gathered_turned_and_written(closing: bool, layers: range) -> None:
    """Into the very pages that they come from; all else there stays as it was."""
    made, blocks, budget, n = Made(layers=3), torch.tensor([7, 2, 5, 1], device=DEVICE), 32, 64
    heads = len(layers) * made.heads
    positions = (torch.arange(n) * 3).int().expand(heads, -1).contiguous()
    chosen = [torch.randperm(n, generator=torch.Generator().manual_seed(s))[:budget] for s in range(heads)]
    kept = torch.stack(chosen).sort(dim=-1).values
    rotary = Rotary.of(made.size, 1e6).to(torch.device(DEVICE))
    moves = (close_gaps(positions, kept) * 10_001).to(DEVICE) if closing else None
    kept = kept.to(DEVICE)
    read = made.pages.read(layers, blocks, n)
    keys, values, rows = (part.clone() for part in read)
    before, state_before = [torch.stack(parts) for parts in (made.caches, made.states)]
    made.pages.write(layers, blocks[:2], kept, *read, moves, rotary, moved_row=ROWS)
    places_kept = kept[..., None].expand(-1, -1, made.size)
    wanted_keys, wanted_values = keys.gather(1, places_kept), values.gather(1, places_kept)
    wanted_rows = rows.gather(2, kept.expand(3, -1, -1)).clone()
    if moves is not None:
        wanted_keys = rotary.rotate(wanted_keys, rotary.angles64(moves))
        wanted_rows[ROWS] += moves.int()
    found_keys, found_values, found_rows = made.read(layers, blocks, budget)
    near(found_keys, wanted_keys, 1e-5 if closing else 0.0)
    assert torch.equal(found_values, wanted_values)
    assert torch.equal(found_rows, wanted_rows)
    after, state_after = torch.stack(made.caches), torch.stack(made.states)
    for tensor in (before, state_before, after, state_after):
        tensor[layers.start : layers.stop, [7, 2]] = 0
    assert torch.equal(after, before)
    assert torch.equal(state_after, state_before)


def test_new_tokens_are_noted_in_all_layers() -> None:
    made = Made(layers=3, size=16)
    slots = torch.tensor([5, 17, 95, -1, 40], dtype=torch.int64, device=DEVICE)  # one is padding
    words = torch.tensor([[i * 10 for i in range(5)], [*range(5)]], dtype=torch.int32, device=DEVICE).T  # in columns
    wanted = torch.stack(made.states)
    for slot, row in zip(slots.tolist(), words.tolist(), strict=True):
        if slot >= 0:
            wanted[:, slot // 16, :, :, slot % 16] = torch.tensor([*row, 0], dtype=torch.int32, device=DEVICE)[:, None]
    made.pages.note(slots, words)
    assert torch.equal(torch.stack(made.states), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_keys_of_video_tokens_are_unrotated_and_added_up(dtype: torch.dtype) -> None:
    """Those of the tokens asked for, in the layers asked for, on top of what was there; text counts for nothing."""
    made, rotary = Made(layers=3, dtype=dtype), Rotary.of(32, 1e6, [4, 6, 6]).to(torch.device(DEVICE))
    order = torch.randperm(9 * made.slots, generator=torch.Generator().manual_seed(1))
    n = 70
    slots, tokens, layers = order[:n].to(DEVICE), slice(3, 69), range(1, 3)
    where = places.encode(torch.stack([torch.arange(n) // 8, torch.arange(n) % 8 // 4, torch.arange(n) % 4]))
    where[5:14] = 0  # text
    rows = torch.stack([torch.arange(n) // 8 + 31_000, where], dim=1).int().to(DEVICE)
    before = random(3, made.heads, made.size, seed=9)
    sums, wanted = before.clone(), before.clone()
    axes = places.axes(rows[:, 0], rows[:, 1])
    for layer in layers:
        keys = made.caches[layer][slots // made.slots, :, slots % made.slots, : made.size]
        plain = rotary.unrotate(keys, axes[:, :, None])
        plain[where == 0] = 0
        wanted[layer] += plain[tokens].sum(0)
    made.pages.add_up(layers, tokens, slots, rows, slots, rotary, sums[layers.start : layers.stop])
    near(sums, wanted, 1e-4 if dtype == torch.float32 else 1e-3)
    assert torch.equal(sums[0], before[0])
