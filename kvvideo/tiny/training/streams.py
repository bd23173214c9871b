"""Random streams of the letters' world to train and test on: chunks taken from a bank of drawn slots, and questions.

A stream is made of slots in any order, each letter at most once, which is what a clip is to a model that only keeps
what it saw.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvvideo.times import format_time
from kvvideo.tiny import film, world
from kvvideo.tiny.training import packing
from kvvideo.tiny.training.packing import Ask, ChunkPlan, Encoder, Ints, Packed

KINDS: tuple[str, ...] = ("colour", "when", "now", "now colour", *film.KINDS)
"""Kinds of questions of both worlds; an ``Ask`` has its index."""

WEIGHTS: dict[world.Kind, float] = {"colour": 0.3, "when": 0.44, "now": 0.13, "now colour": 0.13}
"""Parts that each kind has of the questions: our choice."""

Times = npt.NDArray[np.float64]

GRIDS = 4
"""Frame pairs of a slot in the bank: four seconds at two frames a second."""

EMPTY = len(world.LETTERS)
"""The bank's letter index of a slot without a letter."""


@dataclass(frozen=True)
class Labels:
    """Labels of the bank's slots: ``letters [slots]`` (EMPTY: none) and ``colours [slots]``."""

    letters: npt.NDArray[np.int64]
    colours: npt.NDArray[np.int64]

    def by_letter(self) -> list[Ints]:
        """Return, for each letter and then for none, the slots that show it."""
        return [np.flatnonzero(self.letters == i) for i in range(EMPTY + 1)]


@dataclass(frozen=True)
class Plan:
    """Settings of a stream to draw.

    Attributes:
        chunks: number of chunks of four seconds.
        asks: number of questions.
        varied: True if it may have chunks of other lengths and shifted positions.
        start: seconds its first chunk begins at; drawn if None.
        latest: the last moment a stream may begin at if drawn, in seconds.
    """

    chunks: int
    asks: int
    varied: bool = True
    start: float | None = None
    latest: float = 7200.0


@dataclass(frozen=True)
class _Drawn:
    """A stream's slots in the bank, their times and letters; ``width`` is the slots of a chunk."""

    slots: Ints
    times: Times
    letters: Ints
    width: float


class Source:
    """Draws streams from a bank."""

    def __init__(self, labels: Labels, encode: Encoder) -> None:
        self._labels = labels
        self._by_letter = labels.by_letter()
        self._encode = encode
        self._colours = list(world.COLOURS)

    def draw(self, rng: np.random.Generator, plan: Plan) -> Packed:
        """Draw one stream with its questions, packed."""
        count = plan.chunks
        start = first_time(rng, plan)
        share = rng.uniform(0.1, 0.6) if count > 8 else rng.uniform(0.4, 1.0)
        lettered = min(EMPTY, count, max(int(rng.random() < 0.9), round(share * count)))
        letters = np.full(count, EMPTY)
        letters[rng.choice(count, lettered, replace=False)] = rng.permutation(EMPTY)[:lettered]
        slots = np.array([self._pick(rng, int(letter)) for letter in letters])
        times: Times = start + world.SLOT * np.arange(count, dtype=np.float64)
        way = rng.random() if plan.varied and count >= 4 else 1.0
        if way < 0.08:
            chunks, width = _split(slots, times), 0.5
        elif way < 0.12:
            chunks, width = _merge(slots, times), 2.0
        else:
            chunks = [ChunkPlan(float(t), s * GRIDS + np.arange(GRIDS)) for t, s in zip(times, slots, strict=True)]
            width = 1.0
        drawn = _Drawn(slots, times, letters, width)
        asks = [self._ask(rng, drawn) for _ in range(plan.asks)]
        offset = int(rng.integers(30000)) if plan.varied and rng.random() < 0.15 else 0
        return packing.pack(chunks, asks, self._encode, offset)

    def _pick(self, rng: np.random.Generator, letter: int) -> int:
        pool = self._by_letter[letter]
        return int(pool[rng.integers(len(pool))])

    def _ask(self, rng: np.random.Generator, drawn: _Drawn) -> Ask:
        """Draw a question at a random moment of the stream."""
        now = int(rng.integers(len(drawn.slots)))
        shown = GRIDS if rng.random() < 0.7 else int(rng.integers(1, GRIDS))
        chunk, seen = now, shown
        if drawn.width == 0.5:
            chunk, seen = 2 * now + (shown - 1) // 2, (shown - 1) % 2 + 1
        elif drawn.width == 2.0:
            chunk, seen = now // 2, shown + GRIDS * (now % 2)
        kind = list(WEIGHTS)[rng.choice(len(WEIGHTS), p=list(WEIGHTS.values()))]
        slot, letter = _subject(rng, kind, drawn, now)
        q, named = world.phrase(kind, rng, letter=letter), world.LETTERS.index(letter) if letter else -1
        if slot is None:
            return Ask(chunk, seen, q, world.NOT_SEEN, KINDS.index(kind), -1.0, named)
        if kind == "when":
            answer = format_time(float(drawn.times[slot]))
        elif drawn.letters[slot] == EMPTY:
            answer = world.NONE
        elif kind == "now":
            answer = world.LETTERS[drawn.letters[slot]]
        else:
            answer = self._colours[self._labels.colours[drawn.slots[slot]]]
        age = world.SLOT * max(0, now - slot - 1)
        return Ask(chunk, seen, q, answer, KINDS.index(kind), age, named)


def _subject(rng: np.random.Generator, kind: world.Kind, drawn: _Drawn, now: int) -> tuple[int | None, str]:
    """Draw the slot a question of ``kind`` is about (None: one not seen yet), and the letter to name."""
    if kind in {"now", "now colour"}:
        return now, ""
    letters = drawn.letters[: now + 1]
    # In a chunk of two slots only the first has its time written before it.
    step = 2 if drawn.width == 2.0 else 1
    full = np.flatnonzero(letters < EMPTY)
    timed = full[full % step == 0]
    pool = timed if kind == "when" else full
    absent = np.setdiff1d(np.arange(EMPTY), letters)
    if len(absent) and (not len(pool) or rng.random() < 0.1):
        return None, world.LETTERS[absent[rng.integers(len(absent))]]
    slot = int(pool[rng.integers(len(pool))])
    return slot, world.LETTERS[letters[slot]]


def first_time(rng: np.random.Generator, plan: Plan) -> float:
    """Return the seconds at which a stream's first chunk begins: as ``plan`` has it, or drawn."""
    if plan.start is not None:
        return plan.start
    # A short stream from 0:00 would never show a time with other digits, hence fewer of those.
    zero = 0.2 if plan.chunks < 16 else 0.5
    way = rng.random()
    if way < zero:
        return 0.0
    top = 600.0 if way < 0.8 else plan.latest
    start = world.SLOT * int(rng.integers(max(1, int(top / world.SLOT) - plan.chunks)))
    return start + (int(rng.integers(4)) if rng.random() < 0.1 else 0)


def _split(slots: Ints, times: Times) -> list[ChunkPlan]:
    """Return chunks of two seconds, two a slot."""
    half = np.arange(GRIDS // 2)
    return [
        ChunkPlan(float(t) + 2 * part, s * GRIDS + part * GRIDS // 2 + half)
        for t, s in zip(times, slots, strict=True)
        for part in (0, 1)
    ]


def _merge(slots: Ints, times: Times) -> list[ChunkPlan]:
    """Return chunks of eight seconds, of two slots each."""
    grids = (slots[:, None] * GRIDS + np.arange(GRIDS)).reshape(-1)
    return [ChunkPlan(float(t), grids[i * 2 * GRIDS : (i + 1) * 2 * GRIDS]) for i, t in enumerate(times[::2])]
