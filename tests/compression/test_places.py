"""A token's place and its temporal position give its position on all three axes back."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from kvvideo.compression import places


@given(
    base=st.integers(0, 1 << 30),
    frames=st.integers(1, 9),
    rows=st.integers(1, 7),
    columns=st.integers(1, 9),
    spacing=st.integers(1, 200),
)
def test_axes_come_back(base: int, frames: int, rows: int, columns: int, spacing: int):
    axes = (torch.arange(frames) * spacing, torch.arange(rows), torch.arange(columns))
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    place = places.encode(offsets)
    assert place.max() < 1 << 31
    assert place.unique().numel() == place.numel()
    assert place.min() > 0
    narrow = (base + offsets[0]).int(), place.int()
    assert torch.equal(places.axes(*narrow), base + offsets)
    patches = places.patch(place.int()).view(frames, -1)
    assert (patches == patches[0]).all()
    assert patches[0].unique().numel() == rows * columns


def test_text_has_no_place():
    positions, none = torch.arange(5, dtype=torch.int32), torch.zeros(5, dtype=torch.int32)
    assert (places.patch(none) == -1).all()
    assert torch.equal(places.axes(positions, none), positions.long().expand(3, -1))


def test_what_lies_beyond_the_limits_is_counted_as_lying_at_them():
    far = torch.tensor([[5000], [5000], [5000]])
    assert places.axes(torch.tensor([5000]), places.encode(far)).max() <= 5000
    assert 0 < places.encode(far) < 1 << 31
