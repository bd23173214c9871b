"""Settings are checked where they are given, and errors say what would be right."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvvideo.compression import load, strategies
from kvvideo.compression.config import CacheConfig
from kvvideo.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy": "steaming"}, ["strategy", "'steaming'", "streaming", "window", "full"]),
        ({"max_tokens": 1}, ["max_tokens", "at least 2"]),
        ({"max_tokens": 4096.0}, ["max_tokens", "4096.0", "whole number"]),
        ({"max_tokens": True}, ["max_tokens", "True"]),
        ({"max_tokens": "4096"}, ["max_tokens", "'4096'"]),
        ({"ratio": 0}, ["ratio", "between 0 and 1"]),
        ({"ratio": 1.0}, ["ratio", "between 0 and 1"]),
        ({"ratio": "half"}, ["ratio", "'half'"]),
        ({"ratio": float("nan")}, ["ratio", "nan"]),
        ({"budget": 0}, ["budget", "at least 1"]),
        ({"budget": 4096}, ["budget", "4096", "max_tokens=4096", "use less"]),
        ({"budget": 5000}, ["budget", "max_tokens=4096"]),
        ({"sink": -1}, ["sink", "at least 0"]),
        ({"sink": 2048}, ["sink", "2048", "budget", "fewer"]),
        ({"window": 0}, ["window", "at least 1"]),
        ({"strategy": "streaming", "window": 4096}, ["window", "max_tokens=4096"]),
        ({"window": 300, "budget": 200}, ["window", "300", "200"]),
        ({"windows": 300}, ["windows", "not a setting", "window", "sink", "ratio"]),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, Any], words: list[str]):
    with pytest.raises(ConfigError) as caught:
        CacheConfig.from_dict(settings)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message.startswith(words[0])


@pytest.mark.parametrize("settings", [None, [], "streaming", 3])
def test_settings_must_be_an_object(settings: object):
    with pytest.raises(ConfigError, match="JSON object"):
        CacheConfig.from_dict(settings)


def test_what_is_kept():
    assert CacheConfig().budget_tokens == 2048
    assert CacheConfig(ratio=0.25).budget_tokens == 1024
    assert CacheConfig(budget=1000).budget_tokens == 1000
    assert CacheConfig(strategy="streaming", window=1000).budget_tokens == 1032
    assert CacheConfig(window=1000).budget_tokens == 2048
    assert CacheConfig(strategy="window", window=1000).budget_tokens == 1000
    assert CacheConfig(strategy="streaming", window=1000, budget=1500).budget_tokens == 1500


def test_the_schedule_is_in_whole_blocks():
    schedule = CacheConfig(max_tokens=1000, budget=500, sink=4).schedule(32)
    assert schedule is not None
    assert (schedule.budget, schedule.max_tokens) == (480, 992)
    assert CacheConfig(strategy="full").schedule(32) is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_tokens": 63, "budget": 40, "sink": 4}, ["max_tokens", "32 and 32", "blocks of 32"]),
        ({"max_tokens": 100, "budget": 31, "sink": 4}, ["max_tokens", "96 and 0", "at least one"]),
        ({"max_tokens": 100, "budget": 63, "sink": 40}, ["sink", "40", "32"]),
    ],
)
def test_rounding_to_blocks_must_leave_something(settings: dict[str, Any], words: list[str]):
    with pytest.raises(ConfigError) as caught:
        CacheConfig(**settings).schedule(32)
    assert all(word in str(caught.value) for word in words), str(caught.value)


values = st.one_of(st.none(), st.booleans(), st.integers(-5, 5000), st.floats(-1, 2), st.sampled_from(strategies()))


def refused_field(make: Callable[[], object]) -> str | None:
    """The field that a ConfigError names; None if there is none."""
    try:
        make()
    except ConfigError as error:
        return str(error).partition(":")[0]
    return None


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(CacheConfig().as_dict(), values)))
def test_any_settings_are_used_or_refused_by_name(settings: dict[str, Any]):
    if field := refused_field(lambda: CacheConfig.from_dict(settings)):
        assert field in CacheConfig().as_dict()
        return
    config = CacheConfig.from_dict(settings)
    assert CacheConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert 0 < config.budget_tokens < config.max_tokens
    for size in (16, 32):
        if field := refused_field(lambda size=size: config.schedule(size)):
            assert field in ("max_tokens", "sink")
        elif schedule := config.schedule(size):
            assert schedule.budget % size == schedule.max_tokens % size == 0
            assert config.budget_tokens - size < schedule.budget <= config.budget_tokens
            assert config.max_tokens - size < schedule.max_tokens <= config.max_tokens
            assert load(config.strategy)(config, schedule.budget).budget == schedule.budget
        else:
            assert config.strategy == "full"
