"""Events of a stream beside its chunks: a dialogue that was remembered, a switch of the strategy."""

from dataclasses import asdict, dataclass
from typing import Any, Self

from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.prompt import Turn
from kvvideo.session.memory import Memory


@dataclass(frozen=True)
class Event:
    """A dialogue remembered, or a switch of the strategy, once ``chunks`` chunks of a stream were ingested."""

    chunks: int
    end: float
    turns: tuple[Turn, ...] = ()
    cache: CacheConfig | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the event as JSON can hold it; ``from_dict`` reads that back."""
        return {**asdict(self), "cache": None if self.cache is None else self.cache.as_dict()}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Self:
        """Return the event that ``as_dict`` gave ``settings`` for."""
        cache = settings["cache"]
        return cls(
            int(settings["chunks"]),
            float(settings["end"]),
            tuple((str(q), str(a)) for q, a in settings["turns"]),
            None if cache is None else CacheConfig.from_dict(cache),
        )


def caches_of(memory: Memory) -> list[CacheConfig]:
    """Return the cache settings that the stream of ``memory`` began with, and those it was switched to."""
    first, events = happened(memory)
    return [first, *(event.cache for event in events if event.cache is not None)]


def happened(memory: Memory) -> tuple[CacheConfig, list[Event]]:
    """Return the cache settings that the stream of ``memory`` began with, and its events in order.

    Raises:
        ConfigError: if the memory does not say.
    """
    try:
        first = CacheConfig.from_dict(memory.source.get("first", memory.cache.as_dict()))
        return first, [Event.from_dict(event) for event in memory.source.get("events", [])]
    except (ConfigError, LookupError, TypeError, ValueError, AttributeError):
        raise ConfigError("the memory does not say how its stream began; make it again") from None
