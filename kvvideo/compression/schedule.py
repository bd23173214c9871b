"""The schedule of compactions and the number of live tokens: pure functions of the token count.

Scheduler and workers never talk about eviction. Both derive it from ``n``, the number of computed
tokens of a request, so they agree by construction. *Which* tokens survive is the policy's business
and may differ per layer and KV head; *how many* is decided here, once for all.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Compact to ``budget`` tokens whenever ``max_tokens`` are alive.

    Both are in tokens and multiples of the block size, so that compaction frees whole blocks.

    Raises:
        ValueError: unless ``0 < budget < max_tokens``.
    """

    budget: int
    max_tokens: int

    def __post_init__(self) -> None:
        if not 0 < self.budget < self.max_tokens:
            raise ValueError(f"need 0 < budget < max_tokens, got {self.budget} and {self.max_tokens}")

    @property
    def interval(self) -> int:
        """Tokens between two compactions, each of which evicts just as many."""
        return self.max_tokens - self.budget

    def compacted_upto(self, n: int) -> int:
        """Return the tokens that have gone through a compaction once ``n`` are computed; 0 before the first."""
        if n < self.max_tokens:
            return 0
        return self.max_tokens + (n - self.max_tokens) // self.interval * self.interval

    def compactions(self, n: int) -> int:
        """Return the number of compactions by the time ``n`` tokens are computed."""
        compacted = self.compacted_upto(n)
        return 0 if compacted == 0 else 1 + (compacted - self.max_tokens) // self.interval

    def live(self, n: int) -> int:
        """Return the tokens still held once ``n`` are computed and due compactions are done; < ``max_tokens``."""
        compacted = self.compacted_upto(n)
        return n if compacted == 0 else self.budget + n - compacted

    def next_compaction(self, n: int) -> int:
        """Return the smallest count above ``n`` at which a compaction happens.

        Steps end there at the latest, which makes what is evicted depend on the tokens alone and
        never on how the scheduler happened to batch them.
        """
        return self.max_tokens if n < self.max_tokens else self.compacted_upto(n) + self.interval
