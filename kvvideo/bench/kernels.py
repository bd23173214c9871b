"""How near to the machine's limits scoring and compaction come, kernel by kernel, for one layer."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from kvvideo.compression.policy import LiveCache, attention_received
from kvvideo.compression.rotary import Rotary
from kvvideo.compression.strategies.distinct import distance_to_newer
from kvvideo.session import EngineConfig
from kvvideo.session.engine import _block_size, model_path
from kvvideo.session.memory import text_config

QUERIES = 64
"""Queries watched, as ``snapkv`` does."""


@dataclass(frozen=True)
class Kernel:
    """One step of the work in one layer.

    Attributes:
        name: what it does.
        ms: median milliseconds, of the Triton kernel on a GPU and of torch elsewhere.
        reference_ms: of torch on the same machine; None where that is what runs.
        bytes: fewest that must be read and written.
        operations: floating-point operations.
        limit_ms: the longer of what those take at the machine's copying and multiplying speeds, as measured.
        fraction: of the limit that was reached: ``limit_ms / ms``.
    """

    name: str
    ms: float
    reference_ms: float | None
    bytes: int
    operations: int
    limit_ms: float
    fraction: float


def run(config: EngineConfig) -> dict[str, Any]:
    """Measure all on random data of the shape that ``config``'s model and cache have."""
    import torch

    text = text_config(model_path(config.model))
    schedule = config.cache.schedule(_block_size())
    assert schedule is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    heads, q_heads = int(text.num_key_value_heads), int(text.num_attention_heads)
    size = int(getattr(text, "head_dim", None) or text.hidden_size // q_heads)
    n, budget, width = schedule.max_tokens, schedule.budget, dtype.itemsize
    random = torch.Generator(device).manual_seed(config.seed)
    keys, values = torch.randn(2, heads, n, size, generator=random, device=device).to(dtype)
    queries = torch.randn(QUERIES, q_heads, size, generator=random, device=device).to(dtype)
    rope = text.rope_parameters
    rotary = Rotary.of(size, float(rope["rope_theta"]), rope.get("mrope_section")).to(device)
    positions = torch.arange(n, dtype=torch.int32, device=device).expand(heads, -1).contiguous()
    live = LiveCache(keys, values, positions, torch.zeros_like(positions), {}, 0, size**-0.5, rotary)
    plain = keys.float()
    bandwidth, rates = _bandwidth(device), {t: _rate(device, t) for t in {dtype, torch.float32}}
    pairs = heads * n * (n - 1) // 2
    page = heads * n * 2 * size * width
    work: list[tuple[str, Callable[[], object], Callable[[], object] | None, int, int, Any]] = []
    attended = lambda: attention_received(queries, live)  # noqa: E731
    if device.type == "cuda":
        from kvvideo.compression.kernels import distance, selection
        from kvvideo.plugin.kernels import Pages

        blocks_of = torch.randperm(n // 16, device=device, generator=random)
        cache = torch.randn(n // 16, heads, 16, 2 * size, device=device, generator=random).to(dtype)
        state = torch.zeros(n // 16, 3, heads, 16, dtype=torch.int32, device=device)
        pages, one = Pages([cache], [state]), range(1)
        scores = torch.randn(heads, n, device=device, generator=random)
        kept = selection.choose(scores, budget, 32, budget // 10)
        moves = torch.full_like(kept, 3)
        rows = torch.zeros(3, heads, n, dtype=torch.int32, device=device)

        def gather() -> None:
            index = kept[..., None].expand(-1, -1, size)
            rotary.turn(keys.gather(1, index), rotary.far(moves)).to(dtype)
            values.gather(1, index)
            rows.gather(2, kept.expand(3, -1, -1))

        def best() -> None:
            fixed = scores.clone()
            fixed[:, :32] = torch.inf
            fixed[:, n - budget // 10 :] = torch.inf
            fixed.topk(budget, dim=-1).indices.sort(dim=-1)

        work += [
            (
                "read a layer's pages", lambda: pages.read(one, blocks_of, n),
                lambda: cache[blocks_of].transpose(0, 1).flatten(1, 2).contiguous(), 2 * page, 0, dtype,
            ),
            (
                "take rotation off keys",
                lambda: distance.turned_back(keys, positions, live.places, rotary.frequencies, rotary.axis),
                lambda: rotary.turn(keys, -rotary.angles(positions.expand(3, -1, -1))),
                heads * n * size * (width + 4), 6 * heads * n * size // 2, torch.float32,
            ),
            (
                "distance to the nearest newer key", lambda: distance.nearest_newer(plain, exact=False),
                lambda: distance_to_newer(plain), 4 * heads * n * size, 2 * size * pairs, torch.float32,
            ),
            ("choose the best", lambda: selection.choose(scores, budget, 32, budget // 10), best,
             4 * heads * n + 8 * heads * budget, 0, dtype),
            (
                "gather, rotate and scatter survivors",
                lambda: pages.write(
                    one, blocks_of[: budget // 16], kept, keys, values, rows, moves, rotary.frequencies, 2
                ),
                gather, 2 * heads * budget * 2 * size * width, 6 * heads * budget * size // 2, torch.float32,
            ),
        ]  # fmt: skip
        plainly = lambda: _in_torch(queries, live)  # noqa: E731
    else:
        plainly = None
        work.append(
            ("distance to the nearest newer key", lambda: distance_to_newer(plain), None, 4 * heads * n * size,
             2 * size * pairs, torch.float32)
        )  # fmt: skip
    work.append(
        (f"attention received from {QUERIES} queries", attended, plainly, heads * n * size * width,
         4 * size * q_heads * QUERIES * n, dtype)
    )  # fmt: skip
    found = []
    for name, kernel, reference, moved, operations, unit in work:
        limit = 1000 * max(moved / bandwidth, operations / rates[unit])
        ms = _time(kernel)
        found.append(
            Kernel(
                name, round(ms, 4), None if reference is None else round(_time(reference), 4), moved, operations,
                round(limit, 4), round(limit / ms, 3),
            )
        )  # fmt: skip
    return {
        "tokens": n, "kv_heads": heads, "head_dim": size, "dtype": str(dtype).removeprefix("torch."),
        "gigabytes_per_second": round(bandwidth / 1e9), "kernels": [asdict(kernel) for kernel in found],
        "teraflops": {str(unit).removeprefix("torch."): round(rate / 1e12, 2) for unit, rate in rates.items()},
    }  # fmt: skip


def _in_torch(queries: Any, live: LiveCache) -> Any:
    from kvvideo.compression.policy import attention

    return attention(queries, live).sum(dim=(1, 2))


def _time(action: Callable[[], object]) -> float:
    """Median milliseconds of ``action``, on a GPU with its second-level cache emptied before each run."""
    import torch

    if torch.cuda.is_available():
        from triton.testing import do_bench

        return float(do_bench(action, warmup=50, rep=200, return_mode="median"))
    took = []
    for _ in range(7):
        began = time.perf_counter()
        action()
        took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took[1:])


def _bandwidth(device: Any) -> float:
    """Bytes a second, read and written, of a large copy."""
    import torch

    count = 1 << (30 if device.type == "cuda" else 27)
    source = torch.randint(0, 100, (count,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * count / (_time(lambda: target.copy_(source)) / 1000)


def _rate(device: Any, dtype: Any) -> float:
    """Operations a second of a large matrix product; of float32 with the tensor cores that kernels use too."""
    import torch

    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return 2 * side**3 / (_time(lambda: a @ b) / 1000)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
