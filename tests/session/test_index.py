"""An index alone: what it keeps, how it stays small, and what it finds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvvideo.session.index import BYTES, ChunkIndex, Found

LAYERS, HEADS, KV_HEADS, DIM = 2, 4, 2, 8
ENTRY = LAYERS * KV_HEADS * DIM * 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(count: int, limit: int = BYTES, seed: int = 0) -> tuple[ChunkIndex, Tensor, list[float]]:
    """Return an index of ``count`` chunks of different lengths, their keys, and the moments between them."""
    keys, times = random(count, LAYERS, KV_HEADS, DIM, seed=seed), [0.0]
    index = ChunkIndex(limit)
    for number, key in enumerate(keys):
        times.append(times[-1] + 1 + number % 3)
        index.append(key, times[-2], times[-1])
    return index, keys, times


def spans(index: ChunkIndex) -> list[tuple[float, float, int]]:
    held = index.as_tensors()
    return [(start, end, int(chunks)) for start, end, chunks in held["index_spans"].tolist()] if held else []


@given(count=st.integers(1, 700), room=st.integers(1, 40), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_entries_are_means_of_neighbours_and_cover_all_of_time(count: int, room: int, seed: int) -> None:
    """Each chunk counts alike in the one entry that it is part of, and there are never more than there is room for."""
    index, keys, times = filled(count, room * ENTRY, seed)
    assert index.bytes == len(index) * ENTRY <= room * ENTRY
    first = 0
    for (start, end, chunks), vector in zip(spans(index), index.as_tensors()["index"], strict=True):
        assert (start, end) == (times[first], times[first + chunks])
        torch.testing.assert_close(vector, keys[first : first + chunks].mean(0), rtol=0, atol=1e-5)
        first += chunks
    assert first == count


@pytest.mark.parametrize("room", [1, 2, 5, 64])
def test_the_limit_holds_after_every_chunk(room: int) -> None:
    index = ChunkIndex(room * ENTRY)
    for number in range(300):
        index.append(random(LAYERS, KV_HEADS, DIM, seed=number), number, number + 1)
        assert index.bytes <= room * ENTRY
        # Nothing is merged without need.
        assert len(index) >= min(number + 1, room // 2)


def test_a_chunk_is_worth_as_much_in_half_precision() -> None:
    index = ChunkIndex(4 * ENTRY // 2)
    keys = random(16, LAYERS, KV_HEADS, DIM).bfloat16()
    for number, key in enumerate(keys):
        index.append(key, number, number + 1)
    held = index.as_tensors()["index"]
    assert held.dtype == torch.bfloat16
    assert len(held) <= 4
    first = 0
    for (_, _, chunks), vector in zip(spans(index), held, strict=True):
        wanted = keys[first : first + chunks].float().mean(0)
        torch.testing.assert_close(vector.float(), wanted, rtol=0.02, atol=0.02)
        first += chunks


def test_ten_hours_of_the_7b_model_are_small() -> None:
    """28 layers, 4 KV heads of 128 numbers in bfloat16, a chunk every four seconds."""
    index, key = ChunkIndex(), torch.zeros(28, 4, 128, dtype=torch.bfloat16)
    for number in range(9000):
        index.append(key, 4.0 * number, 4.0 * number + 4)
        assert number > 0 or index.bytes <= 32_000
        assert index.bytes <= 256_000_000
    assert sum(chunks for _, _, chunks in spans(index)) == 9000
    assert spans(index)[-1][1] == 36_000.0


@given(count=st.integers(0, 200), room=st.integers(1, 40), more=st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_an_index_that_was_saved_goes_on_as_if_it_was_not(count: int, room: int, more: int) -> None:
    index, _, times = filled(count, room * ENTRY)
    before = index.as_tensors()
    loaded = ChunkIndex.of_tensors(before, room * ENTRY)
    assert len(loaded) == len(index)
    for number in range(more):
        for one in (index, loaded):
            one.append(random(LAYERS, KV_HEADS, DIM, seed=number), times[-1] + number, times[-1] + number + 1)
    mine, theirs = index.as_tensors(), loaded.as_tensors()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    # Neither the saved tensors nor the other index were written to.
    again = filled(count, room * ENTRY)[0].as_tensors()
    assert all(torch.equal(before[name], again[name]) for name in again)


def test_what_an_older_version_saved_has_an_empty_index() -> None:
    assert len(ChunkIndex.of_tensors({"keys": torch.zeros(1)})) == 0
    assert ChunkIndex().as_tensors() == {}
    assert ChunkIndex().bytes == 0


def found(index: ChunkIndex, query: Tensor) -> list[Found]:
    return [*index.find(query)]


@given(count=st.integers(0, 80), seed=st.integers(0, 99), gap=st.integers(0, 80), sharp=st.floats(0.1, 5.0))
@settings(max_examples=80, deadline=None)
def test_events_are_apart_cover_all_and_come_best_first(count: int, seed: int, gap: int, sharp: float) -> None:
    """An event is one stretch of neighbours, none across a gap in time, whose best entry is the one named."""
    index, keys = ChunkIndex(), random(count, LAYERS, KV_HEADS, DIM, seed=seed)
    for number, key in enumerate(keys):
        index.append(key, number + 10.0 * (number >= gap), number + 1 + 10.0 * (number >= gap))
    query = sharp * random(LAYERS, HEADS, DIM, seed=seed + 1)
    events = found(index, query)
    if not count:
        assert events == []
        return
    scores = index.scores(query).tolist()
    assert sum(scores) == pytest.approx(1, abs=1e-4)
    assert [event.best.score for event in events] == sorted((e.best.score for e in events), reverse=True)
    starts = [start for start, _, _ in spans(index)]
    covered = []
    for whole, best in events:
        inside = [n for n, (start, end, _) in enumerate(spans(index)) if whole.start <= start and end <= whole.end]
        assert (whole.start, whole.end) == (starts[inside[0]], spans(index)[inside[-1]][1])
        assert best.score == max(scores[n] for n in inside)
        assert spans(index)[starts.index(best.start)][:2] == (best.start, best.end)
        assert whole.score == pytest.approx(sum(scores[n] for n in inside))
        assert all(scores[n] >= best.score / 2 for n in inside)
        assert len(inside) == 1 or not inside[0] < gap <= inside[-1]
        covered += inside
    assert sorted(covered) == [*range(count)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_chunks_are_found_too(count: int) -> None:
    index, keys, _ = filled(count)
    query = keys[-1].repeat_interleave(HEADS // KV_HEADS, dim=1) * 5
    events = found(index, query)
    assert (events[0].best.start, events[0].best.end) == spans(index)[-1][:2]
    assert sum(event.whole.score for event in events) == pytest.approx(1)


def drifting(logits: Tensor, drift: float) -> ChunkIndex:
    """An index whose entries have these logits (``[entries]``), and ``drift`` more with each."""
    index = ChunkIndex()
    for number, logit in enumerate(logits.tolist()):
        key = torch.zeros(LAYERS, KV_HEADS, DIM)
        key[..., 0] = (logit + drift * number) * math.sqrt(DIM)
        index.append(key, float(number), float(number + 1))
    return index


@given(
    count=st.integers(8, 400),
    where=st.floats(0, 1),
    drift=st.floats(-2, 2),
    height=st.floats(3.0, 10.0),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_a_drift_in_time_hides_no_peak(count: int, where: float, drift: float, height: float, seed: int) -> None:
    """However steep, and wherever the peak is: scores are those without the drift, and the peak is found first."""
    peak, query = min(int(where * count), count - 1), torch.zeros(LAYERS, HEADS, DIM)
    query[..., 0] = 1.0
    logits = random(count, seed=seed).clamp(-1, 1) / 4
    logits[peak] += height
    still, moved = drifting(logits, 0.0), drifting(logits, drift)
    torch.testing.assert_close(moved.scores(query), still.scores(query), rtol=2e-3, atol=1e-6)
    assert found(moved, query)[0].best.start == peak
