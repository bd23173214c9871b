"""Scoring and compaction of one layer against the machine's limits, kernel by kernel."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from kvvideo.compression.policy import LiveCache, attention_received
from kvvideo.compression.rotary import Rotary
from kvvideo.compression.strategies.distinct import distance_to_newer, in_steps
from kvvideo.session import EngineConfig
from kvvideo.session.arguments import block_size
from kvvideo.session.hub import model_path
from kvvideo.session.model_config import text_config

QUERIES = 64
"""Queries watched, as ``snapkv`` does."""

NEAREST, RECEIVED = "distance to the nearest newer key", f"attention received from {QUERIES} queries"


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


class Work(NamedTuple):
    """Something to measure: ``unit`` is the dtype whose multiplying speed limits it."""

    name: str
    action: Callable[[], object]
    reference: Callable[[], object] | None
    bytes: int
    operations: int
    unit: Any


def run(config: EngineConfig) -> dict[str, Any]:
    """Measure all on random data of the shape that ``config``'s model and cache have."""
    layer = _Layer(config)
    work = [*(_on_gpu(layer) if layer.device.type == "cuda" else _on_cpu(layer))]
    bandwidth = _bandwidth(layer.device)
    rates = {unit: multiplying_rate(layer.device, unit) for unit in dict.fromkeys(item.unit for item in work)}
    found = []
    for name, action, reference, moved, operations, unit in work:
        limit = 1000 * max(moved / bandwidth, operations / rates[unit])
        ms, reference_ms = _time(action), None if reference is None else round(_time(reference), 4)
        found.append(Kernel(name, round(ms, 4), reference_ms, moved, operations, round(limit, 4), round(limit / ms, 3)))
    return {
        "tokens": layer.n,
        "kv_heads": layer.heads,
        "head_dim": layer.size,
        "dtype": name_of(layer.dtype),
        "gigabytes_per_second": round(bandwidth / 1e9),
        "kernels": [asdict(kernel) for kernel in found],
        "teraflops": {name_of(unit): round(rate / 1e12, 2) for unit, rate in rates.items()},
    }


class _Layer:
    """Random data of one layer, as a compaction finds it."""

    def __init__(self, config: EngineConfig) -> None:
        import torch

        text = text_config(model_path(config.model))
        schedule = config.cache.schedule(block_size())
        assert schedule is not None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.heads, self.q_heads = int(text.num_key_value_heads), int(text.num_attention_heads)
        self.size = int(getattr(text, "head_dim", None) or text.hidden_size // self.q_heads)
        self.n, self.budget, self.width = schedule.max_tokens, schedule.budget, self.dtype.itemsize
        self.random = torch.Generator(self.device).manual_seed(config.seed)
        rope = text.rope_parameters
        rotary = Rotary.of(self.size, float(rope["rope_theta"]), rope.get("mrope_section")).to(self.device)
        positions = torch.arange(self.n, dtype=torch.int32, device=self.device).expand(self.heads, -1).contiguous()
        keys, values = self.noise(2, self.heads, self.n, self.size)
        self.live = LiveCache(keys, values, positions, torch.zeros_like(positions), {}, 0, self.size**-0.5, rotary)
        self.queries = self.noise(QUERIES, self.q_heads, self.size)
        self.steps = in_steps(keys.float())

    def noise(self, *shape: int) -> Any:
        import torch

        return torch.randn(*shape, generator=self.random, device=self.device).to(self.dtype)

    @property
    def distances(self) -> tuple[int, int]:
        """Return the bytes and operations of finding each key's nearest newer one: half of all pairs."""
        return 4 * self.heads * self.n * self.size, self.size * self.heads * self.n * (self.n - 1)

    @property
    def attention(self) -> tuple[int, int]:
        """Return the bytes and operations of the attention received: logits twice, for row sums are needed first."""
        operations = 4 * self.size * self.q_heads * QUERIES * self.n
        return self.heads * self.n * self.size * self.width, operations


def _on_cpu(layer: _Layer) -> Iterator[Work]:
    import torch

    yield Work(NEAREST, lambda: distance_to_newer(layer.steps), None, *layer.distances, torch.int8)
    yield Work(RECEIVED, lambda: attention_received(layer.queries, layer.live), None, *layer.attention, layer.dtype)


def _on_gpu(layer: _Layer) -> Iterator[Work]:
    import torch

    from kvvideo.compression.kernels import distance, selection
    from kvvideo.compression.policy import attention

    live, heads, n, size, budget = layer.live, layer.heads, layer.n, layer.size, layer.budget
    rotary, sink, recent, scores = live.rotary, 32, budget // 10, layer.noise(heads, n).float()
    read, write = _moving(layer, selection.choose(scores, budget, sink, recent))

    def best() -> None:
        fixed = scores.clone()
        fixed[:, :sink] = torch.inf
        fixed[:, n - recent :] = torch.inf
        fixed.topk(budget, dim=-1).indices.sort(dim=-1)

    yield read
    yield Work(
        "take rotation off keys",
        lambda: distance.unrotated(live.keys, live.positions, live.places, rotary.frequencies, rotary.axis),
        lambda: rotary.rotate(live.keys, -rotary.angles(live.positions.expand(3, -1, -1))),
        heads * n * size * (layer.width + 4),
        3 * heads * n * size,
        torch.float32,
    )
    yield Work(
        NEAREST,
        lambda: distance.nearest_newer(layer.steps),
        lambda: distance_to_newer(layer.steps),
        *layer.distances,
        torch.float16,
    )
    yield Work(
        "choose the best",
        lambda: selection.choose(scores, budget, sink, recent),
        best,
        4 * heads * n + 8 * heads * budget,
        0,
        layer.dtype,
    )
    yield write
    yield Work(
        RECEIVED,
        lambda: attention_received(layer.queries, live),
        lambda: attention(layer.queries, live).sum(dim=(1, 2)),
        *layer.attention,
        layer.dtype,
    )


def _moving(layer: _Layer, kept: Any) -> tuple[Work, Work]:
    """Return the work of reading a layer's pages, and of writing the tokens ``kept``, ``int64 [heads, budget]``."""
    import torch

    from kvvideo.plugin.kernels import KernelPages

    live, heads, n, size, budget = layer.live, layer.heads, layer.n, layer.size, layer.budget
    blocks = torch.randperm(n // 16, device=layer.device, generator=layer.random)
    cache = layer.noise(n // 16, heads, 16, 2 * size)
    state = torch.zeros(n // 16, 3, heads, 16, dtype=torch.int32, device=layer.device)
    pages, one, rotary = KernelPages([cache], [state]), range(1), live.rotary
    moves, rows = torch.full_like(kept, 3), torch.zeros(3, heads, n, dtype=torch.int32, device=layer.device)

    def gather() -> None:
        index = kept[..., None].expand(-1, -1, size)
        rotary.rotate(live.keys.gather(1, index), rotary.angles64(moves)).to(layer.dtype)
        live.values.gather(1, index)
        rows.gather(2, kept.expand(3, -1, -1))

    read = Work(
        "read a layer's pages",
        lambda: pages.read(one, blocks, n),
        lambda: cache[blocks].transpose(0, 1).flatten(1, 2).contiguous(),
        4 * heads * n * size * layer.width,
        0,
        layer.dtype,
    )
    write = Work(
        "gather, rotate and scatter survivors",
        lambda: pages.write(one, blocks[: budget // 16], kept, live.keys, live.values, rows, moves, rotary, 2),
        gather,
        4 * heads * budget * size * layer.width,
        3 * heads * budget * size,
        torch.float32,
    )
    return read, write


def name_of(dtype: Any) -> str:
    """Return the name of a ``torch.dtype`` without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def _time(action: Callable[[], object]) -> float:
    """Return the median milliseconds of ``action``, on a GPU with its second-level cache emptied before each run."""
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
    """Measure the bytes a second, read and written, of a large copy."""
    import torch

    count = 1 << (30 if device.type == "cuda" else 27)
    source = torch.randint(0, 100, (count,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * count / (_time(lambda: target.copy_(source)) / 1000)


def multiplying_rate(device: Any, dtype: Any) -> float:
    """Measure the operations a second of a large matrix product, of float32 with tensor cores as in kernels."""
    import torch

    side = 8192 if device.type == "cuda" else 1024
    if dtype == torch.int8:
        a = torch.randint(-127, 128, (side, side), dtype=dtype, device=device)
        return 2 * side**3 / (_time(lambda: torch._int_mm(a, a)) / 1000)  # noqa: SLF001  (nothing public multiplies int8)
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return 2 * side**3 / (_time(lambda: a @ b) / 1000)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
