"""Closing gaps: what stays as far apart as it was, and what moves up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvvideo.compression.gaps import close_gaps
from kvvideo.compression.rotary import Rotary


def moved(positions: list[int], kept: list[int]) -> list[int]:
    shifts = close_gaps(torch.tensor([positions], dtype=torch.int32), torch.tensor([kept]))[0]
    return [positions[i] + int(shift) for i, shift in zip(kept, shifts, strict=True)]


def test_text_moves_up_to_what_follows():
    assert moved([0, 1, 2, 3, 4, 5], [0, 1, 5]) == [3, 4, 5]


def test_a_frame_keeps_its_place_while_any_of_it_is_left():
    assert moved([0, 1, 3, 3, 3, 5, 5, 6], [1, 3, 6, 7]) == [1, 3, 5, 6]


def test_a_frame_that_is_gone_takes_its_step_along():
    assert moved([0, 1, 3, 3, 3, 5, 5, 6], [0, 1, 6, 7]) == [2, 3, 5, 6]


def test_survivors_end_where_all_ended():
    assert moved([0, 1, 2, 7], [0, 1]) == [6, 7]


@given(
    steps=st.lists(st.integers(0, 4), min_size=2, max_size=40),
    data=st.data(),
)
def test_no_distance_grows_and_no_order_changes(steps: list[int], data: st.DataObject):
    positions = torch.tensor(steps).cumsum(0).tolist()
    kept = sorted(data.draw(st.sets(st.integers(0, len(steps) - 1), min_size=1)))
    after = moved(positions, kept)
    before = [positions[i] for i in kept]
    assert after[-1] == positions[-1]
    for i in range(len(kept) - 1):
        gap = before[i + 1] - before[i]
        assert (0 < after[i + 1] - after[i] <= gap) if gap else after[i + 1] == after[i]
        if kept[i + 1] == kept[i] + 1:
            assert after[i + 1] - after[i] == gap
    assert moved(after, [*range(len(after))]) == after


def test_small_gaps_may_stay():
    positions, kept = torch.tensor([[0, 1, 2, 3, 4, 5]] * 2), torch.tensor([[0, 1, 5], [0, 4, 5]])
    assert close_gaps(positions, kept, slack=2).tolist() == [[3, 3, 0], [3, 0, 0]]
    assert close_gaps(positions, kept, slack=3).tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(
    ("dtype", "turns", "least", "low", "high"),
    [
        (torch.float32, 50, 2048, 0.0, 1e-5),
        (torch.bfloat16, 50, 2048, 0.001, 0.04),
        (torch.bfloat16, 1000, 1, 0.1, 0.5),
    ],
)
def test_drift_of_keys_turned_many_times(dtype: torch.dtype, turns: int, least: int, low: float, high: float):
    """Why gaps wait until they come to a budget: in bfloat16 each turn rounds, and small ones add up."""
    rotary = Rotary.of(64, 1e6, [8, 12, 12])
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(200, 64, generator=generator)
    steps = torch.randint(least, least + 60, (turns, 200), generator=generator)
    once = rotary.rotate(keys, rotary.angles64(steps.sum(dim=0)))
    turned = keys.to(dtype)
    for step in steps:
        turned = rotary.rotate(turned, rotary.angles64(step)).to(dtype)
    error = float((turned.float() - once).norm() / once.norm())
    print(f"{dtype}: {error:.5f} of a key's length after {turns} turns of {least} positions or more")
    assert low <= error < high


@given(
    seed=st.integers(0, 99),
    sections=st.sampled_from([[8, 12, 12], [16, 16, 0], [32]]),
    head=st.sampled_from([(), (3,)]),
)
def test_taking_rotation_off_is_turning_back(seed: int, sections: list[int], head: tuple[int, ...]):
    """Also at positions as far as any session goes, many of them shared."""
    rotary = Rotary.of(64, 1e6, sections)
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(*head, 50, 64, generator=generator).bfloat16()
    axes = torch.randint(0, [40, 128000][seed % 2], (len(sections), *head, 50), generator=generator)
    assert torch.equal(rotary.unrotate(keys, axes), rotary.rotate(keys, -rotary.angles(axes)))
