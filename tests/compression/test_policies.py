"""Each strategy keeps the tokens of one layer that it should."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvvideo import compression
from kvvideo.compression import policy as policies
from kvvideo.compression.config import CacheConfig
from kvvideo.compression.policy import LiveCache, Policy, attention_received
from kvvideo.compression.rotary import Rotary
from kvvideo.compression.strategies.distinct import distance_to_newer, in_steps
from kvvideo.errors import ConfigError
from tests.helpers import toys


def live(n: int, heads: int = 2, seed: int = 0, state: tuple[str, ...] = ()) -> LiveCache:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, heads, n, 8, generator=generator)
    positions = torch.arange(n, dtype=torch.int32).expand(heads, -1)
    places = torch.zeros(heads, n, dtype=torch.int32)
    zero = {name: torch.zeros(heads, n) for name in state}
    return LiveCache(keys, values, positions, places, zero, 0, 8**-0.5, Rotary.of(8, 1e4))


def make(strategy: str, budget: int, **settings: Any) -> Policy:
    config = CacheConfig(strategy=strategy, max_tokens=10_000, budget=budget, **settings)
    return compression.load(strategy)(config, budget)


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    toys.register()


def evicting_strategies() -> list[str]:
    toys.register()
    return [name for name in compression.strategies() if compression.load(name).bounded and name != "wrong"]


@pytest.mark.parametrize("strategy", evicting_strategies())
@given(budget=st.integers(4, 60), extra=st.integers(0, 100), heads=st.integers(1, 4), seed=st.integers(0, 99))
def test_every_strategy_keeps_its_budget_in_order(strategy: str, budget: int, extra: int, heads: int, seed: int):
    policy = make(strategy, budget, sink=min(3, budget - 1))
    cache = live(budget + extra, heads, seed, policy.state)
    if policy.observes():
        random = torch.Generator().manual_seed(seed)
        policy.observe(torch.randn(min(5, len(cache)), heads * 2, 8, generator=random), cache)
    kept = policy.select(cache)
    assert kept.shape == (heads, budget)
    assert kept.dtype == torch.int64
    assert (kept.diff(dim=-1) > 0).all()
    assert 0 <= kept.min() <= kept.max() < len(cache)


_HEADS_ALIKE = [name for name in evicting_strategies() if compression.load(name).heads_alike]


@pytest.mark.parametrize("strategy", _HEADS_ALIKE)
def test_heads_of_two_layers_are_chosen_for_as_in_each(strategy: str):
    policy = make(strategy, 20, sink=3)
    layers = [live(50, 2, seed, policy.state) for seed in (1, 2)]
    for seed, cache in enumerate(layers):
        for name in policy.state:
            cache.state[name].copy_(live(50, 2, 10 + seed).keys[..., 0].abs())
    both = replace(
        layers[0],
        **{part: torch.cat([getattr(c, part) for c in layers]) for part in ("keys", "values", "positions", "places")},
        state={name: torch.cat([c.state[name] for c in layers]) for name in policy.state},
    )
    assert torch.equal(policy.select(both), torch.cat([policy.select(cache) for cache in layers]))


@pytest.mark.parametrize("strategy", [*_HEADS_ALIKE, "expected-attention"])
def test_a_long_cache_is_worked_on_a_few_heads_at_a_time(strategy: str, monkeypatch: pytest.MonkeyPatch):
    """The same tokens stay, and no more is looked at in one go than ``AT_ONCE`` bytes, or one head."""
    own = make(strategy, 20, sink=3)
    cache = live(300, 5, 1, own.state)
    random = torch.Generator().manual_seed(1)
    if own.observes():
        own.observe(torch.randn(80, 10, 8, generator=random), cache)
    whole = own.select(cache)
    monkeypatch.setattr(policies, "AT_ONCE", 2 * 300 * 8 * 4)
    parts = list(cache.parts())
    assert [len(part.keys) for part in parts] == [2, 2, 1]
    found = torch.cat([own.select(part) for part in parts]) if own.heads_alike else own.select(cache)
    assert torch.equal(found, whole)


def test_many_queries_are_watched_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch):
    cache = live(300, 2)
    queries = torch.randn(150, 4, 8, generator=torch.Generator().manual_seed(1))
    whole, seen = attention_received(queries, cache), []
    monkeypatch.setattr(policies, "AT_ONCE", 7 * 4 * 4 * 300)
    one = policies.attention

    def watched(block: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(len(block))
        return one(block, *rest)

    monkeypatch.setattr(policies, "attention", watched)
    torch.testing.assert_close(attention_received(queries, cache), whole)
    assert max(seen) == 7
    assert sum(seen) == 150


def test_streaming_keeps_sinks_and_the_most_recent():
    kept = make("streaming", 6, sink=2).select(live(10))
    assert kept.tolist() == [[0, 1, 6, 7, 8, 9]] * 2


def test_window_keeps_the_most_recent_only():
    assert make("window", 4, sink=2).select(live(10)).tolist() == [[6, 7, 8, 9]] * 2


def test_scores_decide_between_sinks_and_recent_per_head():
    cache = live(12)
    cache.keys.zero_()
    cache.keys[0, 5] = 3.0
    cache.keys[1, 7] = 3.0
    kept = make("half-norm", 4, sink=1, window=2).select(cache)
    assert kept.tolist() == [[0, 5, 10, 11], [0, 7, 10, 11]]


def test_full_keeps_everything():
    assert make("full", 4, sink=1).select(live(7)).tolist() == [[*range(7)]] * 2


def test_what_is_listed_without_importing_is_what_the_classes_say():
    described, unusable = compression.described()
    policies, _ = compression.load_all()
    assert unusable == []
    assert described == {name: (policy.summary, policy.source) for name, policy in policies.items()}
    assert len(described) >= 14


def test_each_built_in_strategy_describes_itself():
    for name in ("full", "streaming", "window"):
        policy = compression.load(name)
        assert policy.summary
        assert policy.source
        assert "\n" not in policy.summary


def test_an_unknown_strategy_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"no 'nothing'; choose one of .*streaming.*window"):
        compression.load("nothing")


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize(("n", "size"), [(1, 4), (2, 4), (40, 256), (512, 8), (513, 8), (1300, 3)])
def test_distances_to_newer_keys_are_exact(n: int, size: int, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a processor multiplies, and wherever tiles begin and end."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: small)
    steps = torch.randint(-127, 128, (2, n, size), generator=torch.Generator().manual_seed(n), dtype=torch.int8)
    steps[0, -1], steps[0, 0] = 127, -127
    exact = (steps.long()[:, :, None] - steps.long()[:, None]).square().sum(dim=-1)
    earlier = torch.ones(n, n, dtype=torch.bool).tril()
    assert torch.equal(distance_to_newer(steps), exact.float().masked_fill(earlier, torch.inf).amin(dim=-1))


def test_keys_in_steps_keep_their_distances() -> None:
    x = torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 300.0])[:, None, None]
    steps, step = in_steps(x + 1000), (x - x.mean(dim=1, keepdim=True)).abs().amax(dim=(1, 2)) / 127
    assert steps.abs().amax(dim=(1, 2)).tolist() == [127, 127]
    off = torch.cdist(steps.float(), steps.float()) * step[:, None, None] - torch.cdist(x, x)
    assert (off.abs() <= step[:, None, None] * 16**0.5).all()
    assert not in_steps(torch.ones(1, 3, 4)).any()
