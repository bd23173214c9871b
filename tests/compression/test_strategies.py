"""Each strategy keeps what its formula says, worked out a second time: float64, token by token, in plain loops.

The second time nothing comes from kvvideo. A token there is a number in the stream, so side state needs no moving.
"""

import cmath
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from kvvideo import compression
from kvvideo.compression import places
from kvvideo.compression.config import CacheConfig
from kvvideo.compression.policy import LiveCache, ScorePolicy
from kvvideo.compression.rotary import Rotary

HEADS, GROUP, DIM, THETA = 2, 2, 8, 100.0
SECTIONS = [1, 1, 2]
BUDGET, MAX_TOKENS, SINK = 24, 40, 3

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass
class Made:
    """A stream: queries as rotated and as not, keys, values, M-RoPE positions, and (row, column) of video tokens."""

    queries: Array
    plain: Array
    keys: Array
    values: Array
    axes: list[tuple[int, int, int]]
    patches: list[tuple[int, int] | None]
    offsets: list[tuple[int, int, int] | None]

    def __len__(self) -> int:
        return len(self.axes)


def rotate(x: Array, axes: tuple[int, int, int]) -> Array:
    follows = [axis for axis, count in enumerate(SECTIONS) for _ in range(count)]
    out = x.copy()
    for i in range(DIM // 2):
        turned = complex(x[i], x[i + DIM // 2]) * cmath.exp(1j * axes[follows[i]] * frequency(i))
        out[i], out[i + DIM // 2] = turned.real, turned.imag
    return out


def frequency(pair: int) -> float:
    return THETA ** (-2 * pair / DIM)


def made(seed: int, length: int = 150) -> Made:
    """Text and chunks of video in turn; keys and queries have a mean, as those of real models do."""
    random = np.random.default_rng(seed)
    axes, patches, offsets = [], [], []
    at = 0
    while len(axes) < length:
        for _ in range(int(random.integers(1, 6))):
            axes.append((at, at, at))
            patches.append(None)
            offsets.append(None)
            at += 1
        frames, rows, columns = random.integers(1, 5), random.integers(1, 4), random.integers(1, 4)
        for t in range(int(frames)):
            for h in range(int(rows)):
                for w in range(int(columns)):
                    axes.append((at + 2 * t, at + h, at + w))
                    patches.append((h, w))
                    offsets.append((2 * t, h, w))
        at = max(max(a) for a in axes) + 1
    axes, patches, offsets = axes[:length], patches[:length], offsets[:length]
    plain = random.normal(size=(length, HEADS * GROUP, DIM)) + random.normal(size=(HEADS * GROUP, DIM))
    keys = random.normal(size=(length, HEADS, DIM)) + random.normal(size=(HEADS, DIM))
    values = 0.1 * random.normal(size=(length, HEADS, DIM))
    # As in the engine, what is compared starts from the same float32 numbers.
    queries = np.stack([[rotate(q, axes[i]) for q in row] for i, row in enumerate(plain)]).astype(np.float32)
    rotated = np.stack([[rotate(k, axes[i]) for k in row] for i, row in enumerate(keys)]).astype(np.float32)
    values = values.astype(np.float32)
    float64 = np.float64
    return Made(queries.astype(float64), plain, rotated.astype(float64), values.astype(float64), axes, patches, offsets)


def steps_of(sizes: Sequence[int], length: int) -> Iterator[tuple[int, int, bool]]:
    """Yield the bounds of each step and True if a compaction follows: ``sizes`` in turn, cut at compactions."""
    at, live, turn = 0, 0, 0
    while at < length:
        size = min(sizes[turn % len(sizes)], MAX_TOKENS - live, length - at)
        at, live, turn = at + size, live + size, turn + 1
        compacts = live == MAX_TOKENS
        yield at - size, at, compacts
        live = BUDGET if compacts else live


def config_of(strategy: str, options: dict[str, Any]) -> CacheConfig:
    return CacheConfig(strategy, **{"max_tokens": MAX_TOKENS, "budget": BUDGET, "sink": SINK, **options})


def kept_by(strategy: str, stream: Made, sizes: Sequence[int], **options: Any) -> list[list[list[int]]]:
    """Return what the strategy keeps at each compaction, head by head: numbers of tokens in the stream."""
    policy = compression.load(strategy)(config_of(strategy, options), BUDGET)
    rotary = Rotary.of(DIM, THETA, SECTIONS)

    def of_all(per_token: Sequence[int]) -> torch.Tensor:
        return torch.tensor(per_token, dtype=torch.int32).expand(HEADS, -1)

    place = [0 if o is None else int(places.encode(torch.tensor(o)[:, None])) for o in stream.offsets]
    keys, values = (torch.from_numpy(x).float().transpose(0, 1) for x in (stream.keys, stream.values))
    temporal, place_of = of_all([a[0] for a in stream.axes]), of_all(place)
    numbers = torch.zeros(HEADS, 0, dtype=torch.int64)
    state = {name: torch.zeros(HEADS, 0) for name in policy.state}
    memory: dict[str, torch.Tensor] = {}
    result = []
    for start, end, compacts in steps_of(sizes, len(stream)):
        numbers = torch.cat([numbers, torch.arange(start, end).expand(HEADS, -1)], dim=1)
        state = {n: torch.cat([row, torch.zeros(HEADS, end - start)], dim=1) for n, row in state.items()}
        wide = numbers[..., None].expand(-1, -1, DIM)
        live = LiveCache(
            keys.gather(1, wide),
            values.gather(1, wide),
            temporal.gather(1, numbers),
            place_of.gather(1, numbers),
            state,
            0,
            DIM**-0.5,
            rotary,
            memory,
        )
        if policy.observes() and policy.watches(MAX_TOKENS - len(live)):
            policy.observe(torch.from_numpy(stream.queries[start:end]).float(), live)
        if compacts:
            kept = policy.select(live)
            numbers = numbers.gather(1, kept)
            state = {name: row.gather(1, kept) for name, row in state.items()}
            result.append(numbers.tolist())
    return result


class Tied(Exception):
    """Two tokens have the same score, and one of them is to be kept."""


@dataclass
class Plain:
    """The stream as the formulas see it.

    Attributes:
        held: of each head, the tokens held.
        notes: of each head, what is written down of a token.
        watched: all tokens whose queries have been seen.
    """

    stream: Made
    options: dict[str, Any]
    held: list[list[int]] = field(default_factory=lambda: [[] for _ in range(HEADS)])
    notes: list[dict[str, dict[int, float]]] = field(
        default_factory=lambda: [defaultdict(lambda: defaultdict(float)) for _ in range(HEADS)]
    )
    watched: list[int] = field(default_factory=list)

    def weights(self, head: int, query_head: int, token: int) -> dict[int, float]:
        """Softmax attention of ``token``'s query over the tokens held that are not later."""
        visible = [other for other in self.held[head] if other <= token]
        query = self.stream.queries[token, query_head]
        raised = {o: math.exp(float(query @ self.stream.keys[o, head]) / math.sqrt(DIM)) for o in visible}
        return {other: value / sum(raised.values()) for other, value in raised.items()}

    def group(self, head: int) -> range:
        return range(head * GROUP, (head + 1) * GROUP)

    def best(self, head: int, scores: dict[int, float], recent: int, sink: int = SINK) -> list[int]:
        held = self.held[head]
        fixed = held[:sink] + held[len(held) - recent :]
        rest = sorted((t for t in held if t not in fixed), key=lambda t: -scores[t])
        chosen = BUDGET - len(fixed)
        if 0 < chosen < len(rest) and scores[rest[chosen - 1]] == scores[rest[chosen]]:
            raise Tied
        return sorted(fixed + rest[:chosen])


Watch = Callable[[Plain, list[int]], None]
Choose = Callable[[Plain, int], list[int]]


def blind(plain: Plain, step: list[int]) -> None:
    """Looks at no query."""


def watch_heavy(plain: Plain, step: list[int]) -> None:
    count = plain.options.get("queries", 16) or len(step)
    for head in range(HEADS):
        for token in step[-count:]:
            for query_head in plain.group(head):
                for other, weight in plain.weights(head, query_head, token).items():
                    plain.notes[head]["mass"][other] += weight
            for other in plain.held[head]:
                plain.notes[head]["seen"][other] += other <= token


def choose_heavy(plain: Plain, head: int) -> list[int]:
    mass, seen = plain.notes[head]["mass"], plain.notes[head]["seen"]
    mean = plain.options.get("score_norm") == "mean"
    scores = {t: mass[t] / seen[t] if mean else mass[t] for t in plain.held[head]}
    return plain.best(head, scores, plain.options.get("window", BUDGET * 8 // 10))


def watch_window(plain: Plain, step: list[int]) -> None:
    window = plain.options.get("queries") or 64
    if MAX_TOKENS - len(plain.held[0]) >= window:
        return
    last = step[-window:]
    for head in range(HEADS):
        now: dict[int, float] = defaultdict(float)
        for token in last:
            for query_head in plain.group(head):
                for other, weight in plain.weights(head, query_head, token).items():
                    now[other] += weight / len(last) / GROUP
        share = len(last) / window
        for other in plain.held[head]:
            old = plain.notes[head]["attention"][other]
            plain.notes[head]["attention"][other] = share * now[other] + (1 - share) * old


def choose_pooled(plain: Plain, head: int) -> list[int]:
    recent = plain.options.get("window", min(64, BUDGET // 4))
    older = plain.held[head][: len(plain.held[head]) - recent]
    row = [0.0, 0.0, *(plain.notes[head]["attention"][t] for t in older), 0.0, 0.0]
    scores = {t: sum(row[i : i + 5]) / 5 for i, t in enumerate(older)}
    return plain.best(head, scores, recent)


def watch_last(plain: Plain, step: list[int]) -> None:
    row: dict[int, float] = defaultdict(float)
    for head in range(HEADS):
        for query_head in plain.group(head):
            for other, weight in plain.weights(head, query_head, step[-1]).items():
                row[other] += weight
    for head in range(HEADS):
        plain.notes[head]["last"] = row


def choose_last(plain: Plain, head: int) -> list[int]:
    return plain.best(head, plain.notes[head]["last"], recent=1, sink=0)


def unit(x: Array) -> Array:
    return x / math.sqrt(sum(float(v) ** 2 for v in x))


def choose_unlike(plain: Plain, head: int) -> list[int]:
    units = {t: unit(plain.stream.keys[t, head]) for t in plain.held[head]}
    anchor = unit(sum(units.values(), np.zeros(DIM)))
    return plain.best(head, {t: -float(u @ anchor) for t, u in units.items()}, plain.options.get("window", BUDGET // 4))


def choose_short_keys(plain: Plain, head: int) -> list[int]:
    scores = {t: -float(np.linalg.norm(plain.stream.keys[t, head])) for t in plain.held[head]}
    return plain.best(head, scores, plain.options.get("window", BUDGET // 4))


def choose_long_values(plain: Plain, head: int) -> list[int]:
    scores = {t: float(np.linalg.norm(plain.stream.values[t, head])) for t in plain.held[head]}
    return plain.best(head, scores, plain.options.get("window", BUDGET // 4))


def choose_new_and_long(plain: Plain, head: int) -> list[int]:
    held, stream = plain.held[head], plain.stream
    recent = plain.options.get("window", BUDGET // 4)
    latest = held[len(held) - recent :]
    between = held[SINK : len(held) - recent]
    length = {t: float(np.linalg.norm(stream.values[t, head])) for t in held}
    matched, unmatched = {}, []
    for token in between:
        if stream.patches[token] is None:
            continue
        same = [t for t in latest if stream.patches[t] == stream.patches[token]]
        cosines = [float(unit(stream.keys[token, head]) @ unit(stream.keys[t, head])) for t in same]
        if same:
            matched[token] = sum(cosines) / len(cosines)
        else:
            unmatched.append(token)
    order = sorted(unmatched, key=lambda t: -length[t]) + sorted(matched, key=lambda t: matched[t])
    left = BUDGET - SINK - recent
    new = order[: left // 2]
    long = sorted((t for t in between if t not in new), key=lambda t: -length[t])[: left - len(new)]
    return sorted(held[:SINK] + new + long + latest)


def watch_all(plain: Plain, step: list[int]) -> None:
    plain.watched += step


def choose_expected(plain: Plain, head: int) -> list[int]:
    stream, held = plain.stream, plain.held[head]
    start = stream.axes[held[-1]][0] + 1
    half = DIM // 2
    turns = [sum(cmath.exp(1j * p * frequency(i)) for p in range(start, start + 512)) / 512 for i in range(half)]
    expected: dict[int, float] = defaultdict(float)
    for query_head in plain.group(head):
        queries = stream.plain[plain.watched, query_head]
        mean = queries.mean(axis=0)
        covariance = np.zeros((DIM, DIM))
        rotation = np.zeros((DIM, DIM))
        for i in range(half):
            pair = np.array([i, i + half])
            covariance[np.ix_(pair, pair)] = np.cov(queries[:, pair].T, bias=True)
            c, s = turns[i].real, turns[i].imag
            rotation[np.ix_(pair, pair)] = [[c, -s], [s, c]]
        mean, covariance = rotation @ mean, rotation @ covariance @ rotation.T
        logits = {}
        for token in held:
            key = stream.keys[token, head]
            logits[token] = float(key @ mean) / math.sqrt(DIM) + float(key @ covariance @ key) / (2 * DIM)
        top = max(logits.values())
        total = sum(math.exp(z - top) for z in logits.values())
        for token, z in logits.items():
            expected[token] += math.exp(z - top) / total / GROUP
    scores = {t: expected[t] * float(np.linalg.norm(stream.values[t, head])) for t in held}
    return plain.best(head, scores, plain.options.get("window", BUDGET // 4))


def choose_unrepeated(plain: Plain, head: int) -> list[int]:
    stream, held = plain.stream, plain.held[head]
    keys = {t: rotate(stream.keys[t, head], tuple(-a for a in stream.axes[t])) for t in held}
    mean = np.mean([keys[t] for t in held], axis=0)
    step = max(float(np.abs(keys[t] - mean).max()) for t in held) / 127
    steps = {t: np.rint((keys[t] - mean) / step) for t in held}
    scores = {
        t: min((float(np.linalg.norm(steps[t] - steps[o])) for o in held if o > t), default=math.inf) for t in held
    }
    return plain.best(head, scores, plain.options.get("window", BUDGET // 10))


FORMULAS: dict[str, tuple[Watch, Choose]] = {
    "h2o": (watch_heavy, choose_heavy),
    "snapkv": (watch_window, choose_pooled),
    "tova": (watch_last, choose_last),
    "keydiff": (blind, choose_unlike),
    "knorm": (blind, choose_short_keys),
    "value-norm": (blind, choose_long_values),
    "infinipot-v": (blind, choose_new_and_long),
    "expected-attention": (watch_all, choose_expected),
    "distinct": (blind, choose_unrepeated),
}


def expected_of(strategy: str, stream: Made, sizes: Sequence[int], **options: Any) -> list[list[list[int]]]:
    watch, choose = FORMULAS[strategy]
    plain = Plain(stream, options)
    result = []
    for start, end, compacts in steps_of(sizes, len(stream)):
        for held in plain.held:
            held.extend(range(start, end))
        watch(plain, [*range(start, end)])
        if compacts:
            plain.held = [choose(plain, head) for head in range(HEADS)]
            result.append([list(held) for held in plain.held])
    return result


CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in FORMULAS),
    *((name, {"window": 10}) for name in FORMULAS if name != "tova"),
    ("h2o", {"queries": 0, "window": 5}),
    ("h2o", {"queries": 4, "window": 5}),
    ("h2o", {"queries": 4, "window": 5, "score_norm": "mean"}),
    ("h2o", {"queries": 0, "window": 5, "score_norm": "mean"}),
    ("snapkv", {"queries": 8}),
    ("snapkv", {"queries": 1}),
    ("snapkv", {"queries": 0}),
]


# The same in each run: in others two scores may be too close to tell apart in float32. Not of hypothesis, whose choice,
# derandomized too, depends on the numbers in all modules that happen to be loaded.
EXAMPLES = [
    (seed, [chance.randint(1, 60) for _ in range(chance.randint(1, 6))])
    for seed in range(100, 140)
    for chance in (Random(seed),)
]


@pytest.mark.parametrize(("strategy", "options"), CASES, ids=str)
def test_the_tokens_kept_are_those_of_the_formula(strategy: str, options: dict[str, Any]):
    compared = 0
    for seed, sizes in EXAMPLES:
        stream = made(seed, length=120)
        try:
            expected = expected_of(strategy, stream, sizes, **options)
        except Tied:
            continue
        kept = kept_by(strategy, stream, sizes, **options)
        assert len(kept) == 6
        assert kept == expected, (seed, sizes)
        compared += 1
    assert compared >= 30


@pytest.mark.parametrize("strategy", list(FORMULAS))
def test_each_strategy_describes_itself(strategy: str):
    policy = compression.load(strategy)
    assert policy.summary
    assert "\n" not in policy.summary
    assert "arXiv" in policy.source


@pytest.mark.parametrize("strategy", list(FORMULAS))
def test_nothing_waits_for_the_device(strategy: str):
    """Tensors without numbers in them: whatever would have to read one fails."""
    policy = compression.load(strategy)(CacheConfig(strategy, 10_000, budget=BUDGET, sink=SINK), BUDGET)
    device = torch.device("meta")
    keys = torch.empty(HEADS, 100, DIM, dtype=torch.bfloat16, device=device)
    whole = torch.empty(HEADS, 100, dtype=torch.int32, device=device)
    state = {name: torch.empty(HEADS, 100, device=device) for name in policy.state}
    rotary = Rotary.of(DIM, THETA, SECTIONS).to(device)
    live = LiveCache(keys, keys, whole, whole, state, 0, DIM**-0.5, rotary)
    if policy.observes():
        for _ in range(2):
            policy.observe(torch.empty(80, HEADS * GROUP, DIM, dtype=torch.bfloat16, device=device), live)
    assert all(row.dtype == torch.float32 for row in live.state.values())
    assert all(memory.dtype == torch.float32 for memory in live.stream.values())
    kept = policy.select(live)
    assert kept.shape == (HEADS, BUDGET)
    assert kept.device == device


STEADY = [("h2o", {"queries": 0, "window": 5}), ("tova", {}), ("keydiff", {}), ("infinipot-v", {}), ("distinct", {})]


@pytest.mark.parametrize(("strategy", "options"), [*STEADY, ("expected-attention", {})], ids=str)
def test_how_a_stream_is_cut_into_steps_does_not_matter(strategy: str, options: dict[str, Any]):
    stream = made(1)
    whole = kept_by(strategy, stream, [MAX_TOKENS], **options)
    assert whole == kept_by(strategy, stream, [1], **options) == kept_by(strategy, stream, [7, 19], **options)


def live_cache(strategy: str, n: int, video: bool = True) -> tuple[ScorePolicy, LiveCache]:
    policy = compression.load(strategy)(CacheConfig(strategy, 10_000, budget=BUDGET, sink=SINK), BUDGET)
    assert isinstance(policy, ScorePolicy)
    keys, values = torch.randn(2, HEADS, n, DIM, generator=torch.Generator().manual_seed(n))
    positions = torch.arange(n, dtype=torch.int32).expand(HEADS, -1)
    place = places.encode(torch.stack([torch.arange(n), torch.zeros(n), torch.arange(n) % 4]).long()) * video
    state = {name: torch.zeros(HEADS, n) for name in policy.state}
    rotary = Rotary.of(DIM, THETA, SECTIONS)
    return policy, LiveCache(keys, values, positions, place.int().expand(HEADS, -1), state, 0, DIM**-0.5, rotary)


def test_h2o_watches_a_long_step_block_by_block():
    """All at once they give the same, which ``tests/helpers/toys.py`` has for a strategy."""
    from tests.helpers import toys

    policy, live = live_cache("h2o", 300)
    _, other = live_cache("h2o", 300)
    queries = torch.randn(250, HEADS * GROUP, DIM, generator=torch.Generator().manual_seed(0))
    config = CacheConfig("h2o", 10_000, budget=BUDGET, sink=SINK, queries=0, score_norm="mean")
    type(policy)(config, BUDGET).observe(queries, live)
    toys.Heavy(policy.config, BUDGET).observe(queries, other)
    torch.testing.assert_close(live.state["mass"], other.state["mass"])
    seen = torch.tensor([min(250, 300 - token) for token in range(300)]).float()
    assert torch.equal(live.state["seen"], seen.expand(HEADS, -1))


def test_infinipot_v_drops_what_recent_frames_repeat():
    policy, live = live_cache("infinipot-v", 40)
    live.keys[:, 10] = live.keys[:, 38]  # the same patch, and now the same picture
    live.values[:, 10] = 0.01
    # Only one recent token of that patch remains, so nothing blurs the likeness.
    live.places[0, 34] = live.places[0, 35]
    assert 10 not in policy.select(live)[0]


def test_infinipot_v_of_text_alone_is_value_norm():
    policy, live = live_cache("infinipot-v", 40, video=False)
    assert torch.equal(policy.select(live), live_cache("value-norm", 40)[0].select(live))


def test_expected_attention_remembers_as_much_as_it_says():
    policy, live = live_cache("expected-attention", 40)
    for _ in range(3):
        policy.observe(torch.randn(5, HEADS * GROUP, DIM), live)
    held = sum(t.numel() * t.element_size() for t in live.stream.values())
    assert held == type(policy).stream_bytes(HEADS * GROUP, DIM)


def test_expected_attention_knows_queries_without_their_positions():
    """However far a query was turned, the mean is that of the query itself."""
    policy, live = live_cache("expected-attention", 40, video=False)
    plain = torch.randn(HEADS * GROUP, DIM)
    angles = live.rotary.angles(torch.arange(40).expand(3, -1))
    queries = live.rotary.rotate(plain.expand(40, -1, -1), angles[:, None])
    for start in range(0, 40, 10):
        part = LiveCache(
            live.keys[:, : start + 10],
            live.values[:, : start + 10],
            live.positions[:, : start + 10],
            live.places[:, : start + 10],
            {},
            0,
            live.scale,
            live.rotary,
            live.stream,
        )
        policy.observe(queries[start : start + 10], part)
    torch.testing.assert_close(live.stream["mean"], plain)
    assert live.stream["spread"].abs().max() < 1e-5
