"""Keys and values read out of a paged cache are the ones that vLLM's own operator has put there."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kvvideo.plugin.backends.dense import DenseImpl
from kvvideo.plugin.pages import side_state

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM's build for GPUs lacks the CPU's kernels")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def random_cache(heads: int, size: int, dim: int, blocks: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(size + dim)
    return tuple(torch.randn(blocks * size, heads, dim, generator=generator).to(dtype) for _ in range(2))


def check_round_trip(impl: Any, reader: Any, layer: Any, cache: torch.Tensor, size: int, heads: int, dim: int) -> None:
    keys, values = random_cache(heads, size, dim, 3, cache.dtype)
    # Blocks 4, 1 and 2 of the cache, their slots in reverse order.
    slots = torch.cat([torch.arange(size) + block * size for block in (4, 1, 2)])
    order = torch.arange(len(slots) - 1, -1, -1)
    reader.write_slots(impl, layer, cache, slots[order], keys[order].contiguous(), values[order].contiguous())
    for side, expected in enumerate((keys, values)):
        assert torch.equal(
            reader.read_blocks(impl, layer, cache, torch.tensor([4, 1, 2]), side).transpose(0, 1), expected
        )


@on_cpu
@pytest.mark.parametrize("isa", ["amx", "vec", "vec16"])
@pytest.mark.parametrize("dim", [32, 64, 80, 96, 128, 256])
def test_every_packing_is_understood(isa: str, dim: int):
    from kvvideo.plugin.backends.cpu import Impl

    if isa == "amx" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("this processor has no AMX")
    size = 16 if isa == "vec16" else 32
    cache = torch.zeros(5, 2, size, 2 * dim, dtype=torch.bfloat16)
    check_round_trip(SimpleNamespace(head_size=dim), Impl, SimpleNamespace(isa=isa), cache, size, 2, dim)


@on_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("dim", [32, 64, 128])
def test_cpu(dtype: torch.dtype, size: int, dim: int):
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    from kvvideo.plugin.backends.cpu import Impl

    layer = SimpleNamespace(isa=_get_attn_isa(dtype, size, dim))
    cache = torch.zeros(5, 2, size, 2 * dim, dtype=dtype)
    check_round_trip(SimpleNamespace(head_size=dim), Impl, layer, cache, size, 2, dim)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense(dtype: torch.dtype):
    cache = torch.zeros(5, 2, 16, 2 * 64, dtype=dtype)
    check_round_trip(SimpleNamespace(head_size=64), DenseImpl, None, cache, 16, 2, 64)


@on_gpu
@pytest.mark.parametrize("order", ["LBNHC", "LBHNC", "BLNHC", "BLHNC"])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("flash", torch.bfloat16),
        ("flash", torch.float16),
        ("triton", torch.bfloat16),
        ("triton", torch.float16),
        ("triton", torch.float32),
    ],
)
def test_gpu(backend: str, dtype: torch.dtype, order: str):
    """We read what the GPU's own operator writes, and write what it would have written, and no more."""
    from importlib import import_module

    impl = import_module(f"kvvideo.plugin.backends.{backend}").Impl
    heads, size, dim, blocks, layers, state = 2, 16, 64, 5, 3, 256
    keys, values = (part.cuda() for part in random_cache(heads, size, dim, 3, dtype))
    slots = torch.cat([torch.arange(size) + block * size for block in (4, 1, 2)]).cuda()
    one = torch.ones((), device="cuda")
    layer = SimpleNamespace(_k_scale=one, _v_scale=one)
    own = impl.__new__(impl)
    own.head_size, own.kv_cache_dtype, own.attn_type = dim, "auto", "decoder"
    own._is_per_token_head_quant, own.num_kv_heads = False, heads
    page = heads * size * 2 * dim + state // dtype.itemsize
    inside = {"N": heads * 2 * dim, "H": 2 * dim} if "NHC" in order else {"N": 2 * dim, "H": size * 2 * dim}
    block, first = (page, blocks * page) if order[0] == "L" else (layers * page, page)
    raws = [torch.full((layers * blocks * page,), 7, dtype=dtype, device="cuda") for _ in range(2)]
    theirs, ours = (
        raw.as_strided((blocks, heads, size, 2 * dim), (block, inside["H"], inside["N"], 1), first) for raw in raws
    )
    own.do_kv_cache_update(layer, keys, values, theirs, slots)
    for side, expected in enumerate((keys, values)):
        live = torch.tensor([4, 1, 2], device="cuda")
        assert torch.equal(own.read_blocks(layer, theirs, live, side).transpose(0, 1), expected)
    reverse = torch.arange(len(slots) - 1, -1, -1, device="cuda")
    own.write_slots(layer, ours, slots[reverse], keys[reverse], values[reverse])
    assert torch.equal(*raws)


@settings(deadline=None)
@given(
    heads=st.integers(1, 4),
    rows=st.integers(1, 3),
    dim=st.sampled_from([32, 64]),
    padding=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_side_state_lies_in_the_padding_of_its_page(heads: int, rows: int, dim: int, padding: int, dtype: torch.dtype):
    """Writing all of it changes no key or value, and the other way round, with the layers' pages interleaved."""
    size, blocks, layers = 32, 4, 3
    keys_and_values = heads * size * 2 * dim
    page = keys_and_values * dtype.itemsize + 4 * rows * heads * size + 256 * padding
    raw = torch.zeros(blocks * layers * page, dtype=torch.uint8)
    spec: Any = SimpleNamespace(
        state_offset=keys_and_values * dtype.itemsize, num_kv_heads=heads, block_size=size, state_rows=rows
    )
    caches = [
        raw.view(dtype).as_strided(
            (blocks, heads, size, 2 * dim),
            (layers * page // dtype.itemsize, size * 2 * dim, 2 * dim, 1),
            layer * page // dtype.itemsize,
        )
        for layer in range(layers)
    ]
    states = [side_state(cache, spec) for cache in caches]
    for number, (cache, state) in enumerate(zip(caches, states, strict=True)):
        assert state.shape == (blocks, rows, heads, size)
        cache.fill_(number + 1)
        state.fill_(-number - 1)
    for number, (cache, state) in enumerate(zip(caches, states, strict=True)):
        assert (cache == number + 1).all()
        assert (state == -number - 1).all()
