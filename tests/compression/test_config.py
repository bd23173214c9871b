"""Settings are checked where they are given, and errors say what would be right."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvvideo.compression import load, strategies
from kvvideo.compression.config import ALWAYS, CacheConfig
from kvvideo.errors import ConfigError
from kvvideo.session import EngineConfig, engine_args


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


def test_another_budget_keeps_the_proportion():
    assert CacheConfig().with_budget(1000) == CacheConfig(max_tokens=2000, budget=1000)
    assert CacheConfig(max_tokens=1000, budget=250).with_budget(500).max_tokens == 2000
    assert CacheConfig(strategy="window", window=1000).with_budget(2000).budget_tokens == 2000
    with pytest.raises(ConfigError, match="sink"):
        CacheConfig().with_budget(32)


def test_json_keeps_its_keys_and_their_order():
    """Memories, journals and batches of earlier versions have these bytes."""
    plain = (
        '{"strategy": "h2o", "max_tokens": 4096, "ratio": 0.5, "budget": null, "sink": 32, "window": null, '
        '"queries": null, "score_norm": "sum", "positions": "absolute", "spare_rows": 0}'
    )
    given = plain.replace('"queries": null, "score_norm": "sum"', '"queries": 16, "score_norm": "mean"')
    assert json.dumps(CacheConfig("h2o").as_dict()) == plain
    assert json.dumps(CacheConfig("h2o", queries=None, score_norm="sum").as_dict()) == plain
    assert json.dumps(CacheConfig("h2o", queries=16, score_norm="mean").as_dict()) == given
    for text in (plain, given, plain.replace('"spare_rows": 0', '"spare_rows": 3')):
        config = CacheConfig.from_dict(json.loads(text))
        assert json.dumps(config.as_dict()) == text.replace('"spare_rows": 3', '"spare_rows": 0')
        assert hash(config) == hash(pickle.loads(pickle.dumps(config)))


def test_a_strategy_reads_its_own_options():
    for settings, queries, norm in [
        ({}, 16, "sum"),
        ({"queries": None}, 16, "sum"),
        ({"queries": 0, "score_norm": "mean"}, 0, "mean"),
    ]:
        policy: Any = load("h2o")(CacheConfig("h2o", **settings), 64)
        assert (policy.queries, policy.score_norm) == (queries, norm)
    snapkv: Any = load("snapkv")(CacheConfig("snapkv"), 64)
    assert snapkv.queries == 64
    config = replace(CacheConfig("h2o", queries=4), strategy="snapkv", score_norm="mean")
    assert config == CacheConfig("snapkv:queries=4", score_norm="mean")
    assert load("snapkv")(config, 64).queries == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("strategy", ["h2o", "streaming"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": -1}, "queries: -1 is not a whole number of at least 0"),
        ({"queries": True}, "queries: True is not a whole number of at least 0"),
        ({"score_norm": "max"}, "score_norm: no 'max'; choose one of sum, mean"),
        ({"score_norm": None}, "score_norm: no None; choose one of sum, mean"),
        ({"options": 3}, "options: not a setting; allowed are strategy, "),
        ({"self": 3, "pace": 4}, "pace, self: not a setting; allowed are strategy, "),
        ({"spare_rows": -1}, "spare_rows: -1 is not a whole number of at least 0"),
    ],
)
def test_an_option_is_checked_whichever_strategy_reads_it(strategy: str, settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        CacheConfig.from_dict({"strategy": strategy, **settings})
    assert str(caught.value).startswith(message)


def test_options_that_json_always_had_are_as_strategies_declare_them():
    declared = {name: one for strategy in ("snapkv", "h2o") for name, one in load(strategy).options().items()}
    assert declared.keys() == ALWAYS.keys()
    assert declared["score_norm"].default == ALWAYS["score_norm"]
    assert all(one.help and one.source for one in declared.values())


def test_spare_rows_are_a_setting_of_the_engine():
    with pytest.raises(ConfigError, match="EngineConfig"):
        CacheConfig(spare_rows=3)
    with pytest.raises(ConfigError, match="spare_rows: -1"):
        EngineConfig(spare_rows=-1)
    told = engine_args(strategy="h2o", spare_rows=3)["additional_config"]["kvvideo"]
    assert told == {**CacheConfig("h2o").as_dict(), "spare_rows": 3}


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
