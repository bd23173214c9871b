"""Tensor parallelism: each rank scores and compacts its own heads, and together they hold what one rank would."""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import engines

pytestmark = pytest.mark.slow

STRATEGIES = ("distinct", "full", "h2o", "snapkv", "expected-attention", "infinipot-v")

Found = dict[str, Any]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """Return what one rank found, and what two did."""
    if engines.ON_GPU and torch.cuda.device_count() < 2:
        pytest.skip("this machine has one GPU")
    # vLLM would give each rank a NUMA node of its own, of which there may be one.
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    found = []
    for count in (1, 2):
        path = tmp_path_factory.mktemp("ranks") / "found.pt"
        line = [sys.executable, "-m", "tests.helpers.ranks", str(path), str(count), ",".join(STRATEGIES)]
        result = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=400, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
        found.append(torch.load(path, weights_only=False))
    return found[0], found[1]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_hold_and_say_what_one_does(ranks: tuple[Found, Found], strategy: str) -> None:
    one, two = (found[strategy] for found in ranks)
    assert replace(one["stats"], bytes=0) == replace(two["stats"], bytes=0)
    # Each rank counts for itself how many queries it has seen.
    assert two["stats"].bytes == pytest.approx(one["stats"].bytes, abs=100)
    assert one["stats"].compactions == (0 if strategy == "full" else 4)
    assert one["timeline"] == two["timeline"]
    for single, shared in zip(one["ends"], two["ends"], strict=True):
        assert single[0] == shared[0]
        assert shared[1] == pytest.approx(single[1], abs=1e-4)
        assert np.array_equal(single[2], shared[2])
        for hit, other in zip(single[3], shared[3], strict=True):
            assert (hit.start, hit.end) == (other.start, other.end)
            assert other.score == pytest.approx(hit.score, abs=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_memory_of_two_ranks_is_that_of_one(ranks: tuple[Found, Found], strategy: str) -> None:
    one, two = (found[strategy]["tensors"] for found in ranks)
    assert one.keys() == two.keys() > {"index", "index_spans"}
    for name in one:
        assert one[name].shape == two[name].shape
        near = (1e-4 if name.startswith("index") else 1e-3) * (1 + float(one[name].double().abs().max()))
        assert float((one[name].double() - two[name].double()).abs().max()) < near
    for found in ranks:
        saved, loaded = found[strategy]["ends"]
        assert saved[:2] == loaded[:2]
        assert saved[3] == loaded[3]
        assert np.array_equal(saved[2], loaded[2])


def test_scoring_and_compacting_take_no_communication(ranks: tuple[Found, Found]) -> None:
    alone, two = ([found[strategy]["said"] for strategy in STRATEGIES] for found in ranks)
    assert all(len(said) == 1 for said in alone)
    for said in two:
        assert [meanwhile for _, meanwhile in said] == [0, 0]
        assert min(exchanges for exchanges, _ in said) > 0


def test_pools_are_shared_out(ranks: tuple[Found, Found]) -> None:
    one, two = ranks
    assert one["blocks"] == two["blocks"]
