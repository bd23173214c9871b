"""Find the live tokens of a request: pure arithmetic over its logical blocks."""

from typing import NamedTuple

from kvvideo.compression.schedule import Schedule

FORK, LOOKS = 1, 2
"""Null blocks that a fork's table begins with: of any, and of one that looks for chunks."""


class Layout(NamedTuple):
    """The cache of one request in a step from ``n0`` to ``n1`` computed tokens.

    Attributes:
        blocks: ranges of logical blocks that hold live tokens, oldest first; closed up, they are the
            block table that attention sees.
        length: live tokens, those of this step included.
        evictable: tokens, from the front, that the compaction after this step reduces to the budget; 0 if none is due.
    """

    blocks: tuple[range, ...]
    length: int
    evictable: int


def lay_out(n0: int, n1: int, schedule: Schedule | None, block_size: int, marks: int) -> Layout:
    """Return the layout in a step from ``n0`` to ``n1`` computed tokens.

    Args:
        n0: tokens computed before the step, those included that are gone.
        n1: tokens computed after it.
        schedule: when the cache is compacted; None for never.
        block_size: tokens of a block.
        marks: null blocks before the session's blocks that the request shares; 0 if it is no fork. A fork never
            compacts, because that would rewrite blocks that are not its own.
    """
    end = -(-n1 // block_size)
    if marks:
        return Layout((range(marks, end),), n1 - marks * block_size, 0)
    if schedule is None:
        return Layout((range(end),), n1, 0)
    before, after = schedule.compacted_upto(n0), schedule.compacted_upto(n1)
    if before == 0:
        return Layout((range(end),), n1, after)
    kept = range(schedule.budget // block_size)
    evictable = schedule.budget + after - before if after > before else 0
    return Layout((kept, range(before // block_size, end)), schedule.budget + n1 - before, evictable)
