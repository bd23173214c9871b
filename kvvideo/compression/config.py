"""``CacheConfig``: how the cache is bounded. One typed, checked config for the CLI, Python and ``vllm serve``."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from kvvideo.compression import find_option, load, strategies
from kvvideo.compression.options import Option, check_choice, check_whole
from kvvideo.compression.schedule import Schedule
from kvvideo.errors import ConfigError

KEY = "kvvideo"
"""Key of the settings in vLLM's ``additional_config``."""

SPARE = "spare_rows"
"""Key there of ``EngineConfig.spare_rows``, a setting of an engine that stands among those of its cache."""

FORK_OF = "kvvideo_fork_of"
"""Key in ``SamplingParams.extra_args`` that names the session a question is asked of."""

LOOKS = "kvvideo_looks"
"""Key there that is true for a question that only looks for the chunks it would attend to."""

SHOWN_AT = "kvvideo_shown_at"
"""Key there of the M-RoPE positions at which a question's first chunks were streamed, which it is shown again."""

WAYS = ("absolute", "contiguous")
"""Ways to treat the positions of tokens that survive."""

ALWAYS: dict[str, Any] = {"queries": None, "score_norm": "sum"}
"""Options of strategies that JSON has had from the first, whatever the strategy, and their values if not given."""

_SETTINGS = ("strategy", "max_tokens", "ratio", "budget", "sink", "window")


@dataclass(frozen=True, init=False)
class CacheConfig:
    """Settings of the bounded KV cache of one request.

    Attributes:
        strategy: name of the policy that decides what to keep; see ``kvvideo strategies``. Options of its own may
            follow the name: ``NAME:OPTION=VALUE:…``.
        max_tokens: threshold in tokens: the cache is compacted when it holds this many.
        ratio: the budget as a share of ``max_tokens``, unless ``budget`` gives it in tokens.
        budget: the budget in tokens. ``budget_tokens`` resolves the two.
        sink: first tokens of the stream that are always kept, where the strategy has sinks. The
            default covers the system prompt and the opening of the user's turn.
        window: most recent tokens that are always kept. ``streaming`` and ``window`` keep nothing
            else that moves, so for them it sets the budget.
        positions: ``absolute``: tokens keep the positions they were computed at; or ``contiguous``: the
            gaps that eviction leaves are closed whenever they come to more positions than the budget,
            so that no distance is longer than about the live cache and the budget.
        options: the strategy's own options that were given, name and value. Each is also an argument by its name:
            ``CacheConfig(strategy="h2o", queries=0)``. One that only another strategy has is checked and not used.

    Raises:
        ConfigError: naming the setting and what is allowed.
    """

    strategy: str = "distinct"
    max_tokens: int = 4096
    ratio: float = 0.5
    budget: int | None = None
    sink: int = 32
    window: int | None = None
    positions: str = "absolute"
    options: tuple[tuple[str, Any], ...] = ()

    def __init__(
        self,
        /,
        strategy: str = strategy,
        max_tokens: int = max_tokens,
        ratio: float = ratio,
        budget: int | None = budget,
        sink: int = sink,
        window: int | None = window,
        *,
        positions: str = positions,
        options: Iterable[tuple[str, Any]] = (),
        **own: Any,
    ) -> None:
        name, *typed = strategy.split(":") if isinstance(strategy, str) else [strategy]
        known = strategies()
        if name not in known:
            raise ConfigError(f"strategy: no {name!r}; choose one of {', '.join(known)}")
        given = {**dict(options), **own, **dict(_parsed(name, text) for text in typed)}
        settings = {
            "strategy": name,
            "max_tokens": max_tokens,
            "ratio": ratio,
            "budget": budget,
            "sink": sink,
            "window": window,
            "positions": positions,
            "options": tuple(sorted(one for one in given.items() if one not in ALWAYS.items())),
        }
        for field, value in settings.items():
            object.__setattr__(self, field, value)
        self._check()

    def _declared(self) -> dict[str, Option[Any]]:
        """Return the options that were given as strategies declare them."""
        found = {name: option for name, _ in self.options if (option := find_option(self.strategy, name))}
        if unknown := [name for name, _ in self.options if name not in found]:
            if SPARE in unknown:
                raise ConfigError(f"{SPARE}: a setting of the engine; give it to EngineConfig")
            allowed = dict.fromkeys([*CacheConfig().as_dict(), *load(self.strategy).options()])
            raise ConfigError(f"{', '.join(unknown)}: not a setting; allowed are {', '.join(allowed)}")
        return found

    def _check(self) -> None:
        declared = self._declared()
        check_whole("max_tokens", self.max_tokens, 2)
        check_whole("sink", self.sink, 0)
        if self.window is not None:
            check_whole("window", self.window, 1)
        if self.budget is not None:
            check_whole("budget", self.budget, 1)
        for name, value in self.options:
            declared[name].check(value)
        check_choice("positions", self.positions, WAYS)
        number = isinstance(self.ratio, (int, float)) and not isinstance(self.ratio, bool)
        if not number or not 0 < self.ratio < 1:
            raise ConfigError(f"ratio: {self.ratio!r} is not between 0 and 1 (0.5 keeps half of max_tokens)")
        budget = self.budget_tokens
        if budget >= self.max_tokens:
            raise ConfigError(
                f"{self._budget_field}: keeping {budget} tokens leaves nothing to evict at "
                f"max_tokens={self.max_tokens}; use less, or a larger max_tokens"
            )
        if self.strategy != "window" and self.sink >= budget:
            raise ConfigError(f"sink: {self.sink} sinks fill the whole budget of {budget} tokens; use fewer")
        if self.window is not None and self.window > budget:
            raise ConfigError(f"window: {self.window} is more than the budget of {budget} tokens")

    @property
    def _window_is_budget(self) -> bool:
        return self.window is not None and self.budget is None and self.strategy in ("streaming", "window")

    @property
    def _budget_field(self) -> str:
        return "window" if self._window_is_budget else "ratio" if self.budget is None else "budget"

    @property
    def budget_tokens(self) -> int:
        """The budget: tokens that a compaction keeps, before ``schedule`` rounds it to blocks."""
        if self._window_is_budget:
            assert self.window is not None
            return self.window + (self.sink if self.strategy == "streaming" else 0)
        return int(self.max_tokens * self.ratio) if self.budget is None else self.budget

    def with_budget(self, tokens: int) -> "CacheConfig":
        """Return the same settings with a budget of ``tokens``, and ``max_tokens`` in the same proportion to it.

        Raises:
            ConfigError: if the other settings do not go with that budget.
        """
        max_tokens = self.max_tokens * tokens // self.budget_tokens
        return replace(self, budget=tokens, max_tokens=max(max_tokens, tokens + 1))

    def schedule(self, block_size: int) -> Schedule | None:
        """Return when to compact, with both counts rounded down to whole blocks; None for ``full``.

        Args:
            block_size: tokens in a block.

        Raises:
            ConfigError: if the rounding leaves less than one block to keep or to evict.
        """
        if self.strategy == "full":
            return None
        budget, max_tokens = (t // block_size * block_size for t in (self.budget_tokens, self.max_tokens))
        if not 0 < budget < max_tokens:
            raise ConfigError(
                f"max_tokens: {self.max_tokens} with a budget of {self.budget_tokens} rounds to "
                f"{max_tokens} and {budget} in blocks of {block_size} tokens; both must be whole "
                "blocks, the budget at least one and less than max_tokens"
            )
        if self.strategy != "window" and self.sink >= budget:
            raise ConfigError(f"sink: {self.sink} sinks fill the budget of {budget} tokens; use fewer")
        return Schedule(budget, max_tokens)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON has them; ``from_dict`` reads them back."""
        own = dict(self.options)
        return {
            **{name: getattr(self, name) for name in _SETTINGS},
            **{name: own.pop(name, value) for name, value in ALWAYS.items()},
            "positions": self.positions,
            SPARE: 0,
            **own,
        }

    @classmethod
    def from_dict(cls, settings: object) -> "CacheConfig":
        """Return the config that ``--additional-config '{"kvvideo": settings}'`` describes; an engine reads ``SPARE``.

        Raises:
            ConfigError: naming the setting and what is allowed.
        """
        if not isinstance(settings, dict):
            raise ConfigError(f"{KEY}: settings must be a JSON object, not {settings!r}")
        own = {str(name): value for name, value in settings.items() if name not in ("options", SPARE)}
        if "options" in settings:
            own["options"] = [("options", settings["options"])]  # a name that no strategy has
        config = cls(**own)
        check_whole(SPARE, settings.get(SPARE, 0), 0)
        return config


def _parsed(strategy: str, text: str) -> tuple[str, Any]:
    """Return name and value of an option of ``strategy`` that was typed as ``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    name = name.replace("-", "_")
    if not equals:
        raise ConfigError(f"strategy: {text!r} sets no option; write {strategy}:OPTION=VALUE")
    option = find_option(strategy, name)
    return name, value if option is None else option.parse(value)
