"""The header in which a folded stream says what it stands for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvvideo.plugin.history import BASE, HEADER_LENGTH, History, decode, encode, most_shown

positions = st.integers(0, 2**34)
histories = st.builds(
    History, st.integers(HEADER_LENGTH + 15, 5000), positions, st.lists(positions, max_size=3).map(tuple)
)
ids = st.lists(st.integers(0, 150_000), max_size=200)


@given(histories, ids)
def test_it_is_read_back_whatever_follows(history: History, after: list[int]):
    encoded = encode(history)
    assert len(encoded) == history.length
    assert decode(encoded + after) == history
    assert all(0 <= token < BASE for token in encoded)


@given(histories, st.data())
def test_a_cut_or_foreign_header_is_none(history: History, data: st.DataObject):
    encoded = encode(history)
    assert decode(encoded[: data.draw(st.integers(0, history.length - 1))]) is None
    at = data.draw(st.integers(0, 5))
    assert decode([*encoded[:at], encoded[at] + 1, *encoded[at + 1 :]]) is None


@given(ids)
def test_a_prompt_is_not_mistaken_for_one(prompt: list[int]):
    assert decode(prompt) is None


def test_too_short_a_stream_cannot_carry_it():
    with pytest.raises(ValueError, match="cannot carry"):
        encode(History(HEADER_LENGTH - 1, 5))
    with pytest.raises(ValueError, match="cannot carry"):
        encode(History(HEADER_LENGTH + 9, 5, (1, 2)))
    assert [most_shown(HEADER_LENGTH + extra) for extra in (0, 4, 5, 10, 10_000)] == [0, 0, 1, 2, BASE - 1]
