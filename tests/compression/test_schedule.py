"""Compactions and live tokens are a function of the token count, on which both sides of vLLM rely."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvvideo.compression.schedule import Schedule
from kvvideo.plugin.layout import lay_out

BLOCK = 16


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    budget = draw(st.integers(1, 40))
    return Schedule(budget * BLOCK, draw(st.integers(budget + 1, 90)) * BLOCK)


counts = st.integers(0, 20_000)
steps = st.lists(st.integers(1, 3000), max_size=30)


def walk(schedule: Schedule, sizes: list[int], start: int = 0) -> list[tuple[int, int]]:
    """The steps from ``n0`` to ``n1`` that computing ``sizes`` more tokens takes, none across a compaction."""
    n, made = start, []
    for size in sizes:
        end = n + size
        while n < end:
            stop = min(end, schedule.next_compaction(n))
            made.append((n, stop))
            n = stop
    return made


@given(schedules(), st.integers(0, 2000))
def test_counting_one_by_one_gives_the_same(schedule: Schedule, n: int):
    """The rule in words: whenever ``max_tokens`` are alive, ``budget`` of them stay."""
    live = evicted = times = 0
    for _ in range(n):
        live += 1
        if live == schedule.max_tokens:
            evicted += live - schedule.budget
            live, times = schedule.budget, times + 1
    assert schedule.live(n) == live
    assert schedule.compactions(n) == times
    assert n - schedule.live(n) == evicted


@given(schedules(), counts)
def test_next_compaction_is_the_next_count_at_which_the_past_changes(schedule: Schedule, n: int):
    following = schedule.next_compaction(n)
    assert n < following <= n + max(schedule.max_tokens, schedule.interval)
    assert schedule.compacted_upto(following - 1) == schedule.compacted_upto(n)
    assert schedule.compacted_upto(following) == following
    assert schedule.live(following) == schedule.budget


@given(schedules(), steps)
def test_live_tokens_never_reach_the_bound_and_eviction_frees_whole_blocks(schedule: Schedule, sizes: list[int]):
    n = 0
    for n0, n1 in walk(schedule, sizes):
        layout = lay_out(n0, n1, schedule, BLOCK, marks=0)
        assert n0 == n
        assert layout.length == schedule.live(n0) + n1 - n0 <= schedule.max_tokens
        assert schedule.live(n1) < schedule.max_tokens
        assert layout.evictable % BLOCK == 0
        # No step crosses a compaction, so one that is due takes all there is.
        due = schedule.live(n1) != layout.length
        assert layout.evictable == (layout.length if due else 0)
        n = n1
    assert n == sum(sizes)


@given(schedules(), st.integers(0, 5000), st.integers(1, 3000))
def test_blocks_cover_exactly_the_live_tokens(schedule: Schedule, n0: int, size: int):
    """Also in a step that does cross compactions, as no scheduler of ours makes."""
    n1 = n0 + size
    layout = lay_out(n0, n1, schedule, BLOCK, marks=0)
    blocks = [block for part in layout.blocks for block in part]
    assert blocks == sorted(set(blocks))
    assert len(blocks) == -(-layout.length // BLOCK)
    assert blocks[-1] == (n1 - 1) // BLOCK
    gone = range(schedule.budget // BLOCK, schedule.compacted_upto(n0) // BLOCK)
    assert not set(blocks) & set(gone)
    assert sorted([*blocks, *gone]) == [*range(-(-n1 // BLOCK))]


@given(schedules(), steps, st.integers(0, 3000))
def test_a_fold_changes_nothing_to_come(schedule: Schedule, before: list[int], after: int):
    """A stream rewritten as its live tokens evicts as if it had not been."""
    n = sum(before)
    folded = schedule.live(n)
    assert schedule.live(folded) == folded
    assert schedule.compacted_upto(folded) == 0
    assert schedule.live(folded + after) == schedule.live(n + after)
    assert schedule.next_compaction(folded) - folded == schedule.next_compaction(n) - n
    assert [(b - a) for a, b in walk(schedule, [after], folded)] == [(b - a) for a, b in walk(schedule, [after], n)]


@given(st.integers(0, 50), st.integers(1, 900), st.integers(1, 400))
def test_a_fork_skips_its_mark_and_keeps_the_rest(shared: int, n: int, size: int):
    n0 = (shared + 1) * BLOCK + n % BLOCK
    layout = lay_out(n0, n0 + size, Schedule(16, 32), BLOCK, marks=1)
    assert layout.evictable == 0
    assert layout.length == n0 + size - BLOCK
    assert [block for part in layout.blocks for block in part] == [*range(1, -(-(n0 + size) // BLOCK))]


@given(counts, st.integers(1, 3000))
def test_without_a_schedule_everything_stays(n: int, size: int):
    layout = lay_out(n, n + size, None, BLOCK, marks=0)
    assert layout == ((range(-(-(n + size) // BLOCK)),), n + size, 0)


@pytest.mark.parametrize(("budget", "max_tokens"), [(0, 16), (16, 16), (32, 16), (-16, 16)])
def test_a_schedule_needs_something_to_keep_and_to_evict(budget: int, max_tokens: int):
    with pytest.raises(ValueError, match="0 < budget < max_tokens"):
        Schedule(budget, max_tokens)
