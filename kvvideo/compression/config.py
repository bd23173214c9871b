"""How the cache is bounded: one typed, validated config, the same for the CLI, Python and ``vllm serve``."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from kvvideo.compression import strategies
from kvvideo.compression.schedule import Schedule
from kvvideo.errors import ConfigError

KEY = "kvvideo"
"""Where the settings stand in vLLM's ``additional_config``."""

FORK_OF = "kvvideo_fork_of"
"""Key in ``SamplingParams.extra_args`` that names the session a question is asked of."""

CHOICES = {"score_norm": ("sum", "mean"), "positions": ("absolute", "contiguous")}


@dataclass(frozen=True)
class CacheConfig:
    """Settings of the bounded KV cache of one request.

    Attributes:
        strategy: name of the policy that decides what to keep; see ``kvvideo strategies``.
        max_tokens: threshold in tokens: the cache is compacted when it holds this many.
        ratio: share of ``max_tokens`` that a compaction keeps, unless ``budget`` says it in tokens.
        budget: tokens that a compaction keeps.
        sink: first tokens of the stream that are always kept, where the strategy has sinks. The
            default covers the system prompt and the opening of the user's turn.
        window: most recent tokens that are always kept. ``streaming`` and ``window`` keep nothing
            else that moves, so for them it sets the budget.
        queries: observation window: how many of the last queries of each step a strategy looks at
            that scores by attention; 0 for all of them. By default each has its own.
        score_norm: ``sum`` or ``mean``: whether attention received is divided by how many queries
            could see the token, for strategies that add it up.
        positions: ``absolute``: tokens keep the positions they were computed at; or ``contiguous``: the
            gaps that eviction leaves are closed whenever they come to more positions than the budget,
            so that no distance is longer than about the live cache and the budget.
        spare_rows: rows of side state kept ready for strategies that carry more than this one, so that
            a running engine can switch to them (``Engine.use``).

    Raises:
        ConfigError: naming the field and what is allowed.
    """

    strategy: str = "distinct"
    max_tokens: int = 4096
    ratio: float = 0.5
    budget: int | None = None
    sink: int = 32
    window: int | None = None
    queries: int | None = None
    score_norm: str = "sum"
    positions: str = "absolute"
    spare_rows: int = 0

    def __post_init__(self) -> None:
        known = strategies()
        if self.strategy not in known:
            raise ConfigError(f"strategy: no {self.strategy!r}; choose one of {', '.join(known)}")
        _whole("max_tokens", self.max_tokens, 2)
        _whole("sink", self.sink, 0)
        _whole("spare_rows", self.spare_rows, 0)
        if self.window is not None:
            _whole("window", self.window, 1)
        if self.budget is not None:
            _whole("budget", self.budget, 1)
        if self.queries is not None:
            _whole("queries", self.queries, 0)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}: no {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        number = isinstance(self.ratio, (int, float)) and not isinstance(self.ratio, bool)
        if not number or not 0 < self.ratio < 1:
            raise ConfigError(f"ratio: {self.ratio!r} is not between 0 and 1 (0.5 keeps half of max_tokens)")
        if self.kept >= self.max_tokens:
            raise ConfigError(
                f"{self._kept_field}: keeping {self.kept} tokens leaves nothing to evict at "
                f"max_tokens={self.max_tokens}; use less, or a larger max_tokens"
            )
        if self.strategy != "window" and self.sink >= self.kept:
            raise ConfigError(f"sink: {self.sink} sinks fill the whole budget of {self.kept} tokens; use fewer")
        if self.window is not None and self.window > self.kept:
            raise ConfigError(f"window: {self.window} is more than the budget of {self.kept} tokens")

    @property
    def _window_is_budget(self) -> bool:
        return self.window is not None and self.budget is None and self.strategy in ("streaming", "window")

    @property
    def _kept_field(self) -> str:
        return "window" if self._window_is_budget else "ratio" if self.budget is None else "budget"

    @property
    def kept(self) -> int:
        """Tokens that a compaction keeps, before rounding to blocks."""
        if self._window_is_budget:
            assert self.window is not None
            return self.window + (self.sink if self.strategy == "streaming" else 0)
        return int(self.max_tokens * self.ratio) if self.budget is None else self.budget

    def schedule(self, block_size: int) -> Schedule | None:
        """When to compact, with both counts rounded down to whole blocks; None for ``full``.

        Raises:
            ConfigError: if the rounding leaves less than one block to keep or to evict.
        """
        if self.strategy == "full":
            return None
        budget, max_tokens = (t // block_size * block_size for t in (self.kept, self.max_tokens))
        if not 0 < budget < max_tokens:
            raise ConfigError(
                f"max_tokens: {self.max_tokens} with a budget of {self.kept} rounds to "
                f"{max_tokens} and {budget} in blocks of {block_size} tokens; both must be whole "
                "blocks, the budget at least one and less than max_tokens"
            )
        if self.strategy != "window" and self.sink >= budget:
            raise ConfigError(f"sink: {self.sink} sinks fill the budget of {budget} tokens; use fewer")
        return Schedule(budget, max_tokens)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON has them; ``from_dict`` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: object) -> "CacheConfig":
        """The config that ``--additional-config '{"kvvideo": settings}'`` describes."""
        if not isinstance(settings, dict):
            raise ConfigError(f"{KEY}: settings must be a JSON object, not {settings!r}")
        allowed = [f.name for f in fields(cls)]
        if unknown := [str(name) for name in settings if name not in allowed]:
            raise ConfigError(f"{', '.join(unknown)}: not a setting; allowed are {', '.join(allowed)}")
        return cls(**settings)


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}: {value!r} is not a whole number of at least {least}")
