"""Where the live tokens of a request stand: pure arithmetic over its logical blocks."""

from typing import NamedTuple

from kvvideo.compression.schedule import Schedule


class Layout(NamedTuple):
    """How one request's cache looks in a step from ``n0`` to ``n1`` computed tokens.

    Attributes:
        blocks: ranges of logical blocks that hold live tokens, oldest first; closed up, they are the
            block table that attention sees.
        length: live tokens, those of this step included.
        evictable: how many of them, from the front, the compaction after this step reduces to the
            budget; 0 if none is due.
    """

    blocks: tuple[range, ...]
    length: int
    evictable: int


def lay_out(n0: int, n1: int, schedule: Schedule | None, block_size: int, fork: bool) -> Layout:
    """The layout in a step from ``n0`` to ``n1`` tokens.

    A ``fork`` shares a session's blocks behind one null block that marks it. It never compacts,
    because that would rewrite blocks that are not its own.
    """
    end = -(-n1 // block_size)
    if fork:
        return Layout((range(1, end),), n1 - block_size, 0)
    if schedule is None:
        return Layout((range(end),), n1, 0)
    before, after = schedule.compacted_upto(n0), schedule.compacted_upto(n1)
    if before == 0:
        return Layout((range(end),), n1, after)
    kept = range(schedule.budget // block_size)
    evictable = schedule.budget + after - before if after > before else 0
    return Layout((kept, range(before // block_size, end)), schedule.budget + n1 - before, evictable)
