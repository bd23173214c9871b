"""``Memory``: a session outside of the engine, with everything that is needed to resume it."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


INDEX = ("index", "index_spans")
"""Names of the tensors that chunks are found by; a memory that an older version made has none."""
_OF_ALL = ("keys", "values", "log")


@dataclass(frozen=True)
class Memory:
    """A session's live cache at one moment of the video, in host memory.

    It does not depend on blocks or on how a backend packs them, so what one machine saved another can load.

    Attributes:
        model: name of the model.
        fingerprint: of its configuration and weights; a memory means nothing to another model.
        cache: how the cache is bounded.
        opening: text before the first chunk.
        position: M-RoPE position of the next token.
        live: tokens held.
        evicted: tokens gone.
        compactions: times the cache was compacted.
        chunks, frames: ingested so far.
        end: time in the source up to which was ingested, in seconds.
        tensors: ``keys`` and ``values`` ``[layers, kv_heads, live, head_dim]``, rotated, in the cache's
            dtype; ``state`` ``int32 [layers, rows, kv_heads, live]``, the side state; ``log`` ``float64
            [n, 4]``, first position, tokens, start and end in seconds of each chunk, and of each dialogue that
            was remembered, which takes no time; ``index`` and ``index_spans``, see ``ChunkIndex.as_tensors``; and
            ``stream.LAYER.NAME``, what the strategy remembers of the whole stream.
        source: which video it is and how it is looked at, as JSON has it; empty if unknown.
    """

    model: str
    fingerprint: str
    cache: CacheConfig
    opening: str
    position: int
    live: int
    evicted: int
    compactions: int
    chunks: int
    frames: int
    end: float
    tensors: "dict[str, Tensor]"
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def under(self, cache: CacheConfig) -> "Memory":
        """Return the same tokens for another strategy, whose side state and statistics of the stream begin at zero.

        Raises:
            ConfigError: if ``cache`` holds another number of tokens, or treats positions differently.
        """
        import torch

        from kvvideo.compression.rows import own_rows, state_rows

        if cache.strategy == "full" or self.cache.strategy == "full":
            raise ConfigError(
                "strategy: 'full' has no bound, and a cache with one cannot lose it on the way; start anew"
            )
        if (cache.budget_tokens, cache.max_tokens) != (self.cache.budget_tokens, self.cache.max_tokens):
            raise ConfigError(
                f"strategy: {cache.strategy!r} would keep {cache.budget_tokens} of {cache.max_tokens} tokens, and this "
                f"cache was made for {self.cache.budget_tokens} of {self.cache.max_tokens}; start anew for that"
            )
        if cache.positions != self.cache.positions:
            raise ConfigError("positions: they stay as the stream began with them; start anew to change them")
        state = self.tensors["state"]
        rows = torch.zeros((len(state), state_rows(cache), *state.shape[2:]), dtype=state.dtype)
        rows[:, : own_rows(cache)] = state[:, : own_rows(cache)]
        kept = {name: self.tensors[name] for name in (*_OF_ALL, *INDEX) if name in self.tensors}
        return replace(self, cache=cache, tensors={**kept, "state": rows})
