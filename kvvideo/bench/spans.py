"""Time named functions while they run, each without the named ones inside it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self


class Spans:
    """Time methods of objects while entered, and leave the objects as they were.

    On a GPU each method waits for the device before and after, so that launched work counts where it was
    launched. Host and device then never work at the same time, so all takes longer.

    Attributes:
        seconds: time in each part, without the parts inside it, by name.
        calls: number of calls of each.
    """

    def __init__(self) -> None:
        import torch

        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._inside: list[float] = []
        self._wait: Callable[[], None] = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        self._named: list[tuple[str, Any, str]] = []
        self._wrapped: list[tuple[Any, str]] = []

    def add(self, name: str, owner: Any, method: str) -> None:
        """Time ``owner.method`` as ``name``; several may share one. Nothing happens if there is no such method."""
        if hasattr(owner, method):
            self._named.append((name, owner, method))

    def __enter__(self) -> Self:
        for name, owner, method in self._named:
            setattr(owner, method, self._timed(name, getattr(owner, method)))
            self._wrapped.append((owner, method))
        return self

    def __exit__(self, *_: object) -> None:
        while self._wrapped:
            delattr(*self._wrapped.pop())

    def clear(self) -> None:
        """Forget what was measured."""
        self.seconds.clear()
        self.calls.clear()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time what runs inside as ``name``."""
        self._wait()
        self._inside.append(0.0)
        began = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            took = time.perf_counter() - began
            own = took - self._inside.pop()
            if self._inside:
                self._inside[-1] += took
            self.seconds[name] = self.seconds.get(name, 0.0) + own
            self.calls[name] = self.calls.get(name, 0) + 1

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.span(name):
                return function(*args, **kwargs)

        return timed
