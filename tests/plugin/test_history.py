"""The header in which a folded stream says what it stands for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvvideo.plugin.history import BASE, HEADER_LENGTH, History, decode, encode

histories = st.builds(History, st.integers(HEADER_LENGTH, 5000), st.integers(0, 2**34))
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
