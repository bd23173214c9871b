"""Random streams of the film world to train and test on: parts of drawn scenes, one after the other, and questions.

The truth follows from the scripts of the parts, so a bank of scenes gives more streams than could ever be drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvvideo.times import parse_time
from kvvideo.tiny import film, world
from kvvideo.tiny.film import Line, Moment, Script, Visit
from kvvideo.tiny.training import packing
from kvvideo.tiny.training.packing import Ask, ChunkPlan, Encoder, Ints, Packed
from kvvideo.tiny.training.streams import GRIDS, KINDS, Plan, first_time
from kvvideo.tiny.world import Question

WEIGHTS: dict[film.Kind, float] = {
    "colour first": 0.07,
    "colour last": 0.07,
    "when first": 0.09,
    "when last": 0.09,
    "count": 0.13,
    "after": 0.08,
    "side": 0.06,
    "place": 0.07,
    "place at": 0.07,
    "said": 0.17,
    "shown now": 0.06,
    "place now": 0.04,
}
"""Parts that each kind has of the questions: our choice, more of what earlier runs learned last (count, said)."""

FOLLOWING = 0.15
"""Part of the questions that another one came before: our choice."""


@dataclass(frozen=True)
class Scenes:
    """Scripts of a bank's scenes, all of one length; ``first`` is the bank's slot that the first one begins at."""

    scripts: Sequence[Script]
    first: int


class FilmSource:
    """Draws streams of films from a bank of scenes."""

    def __init__(self, scenes: Scenes, encode: Encoder) -> None:
        self._scenes, self._encode = scenes, encode
        order = np.argsort([len(script.visits) for script in scenes.scripts])
        # Quiet, ordinary and busy ones.
        self._classes = np.array_split(order, 3)

    def draw(self, rng: np.random.Generator, plan: Plan) -> Packed:
        """Draw one stream with its questions, packed."""
        start = first_time(rng, plan)
        script, slots = self._script(rng, plan.chunks)
        way = rng.random() if plan.varied and plan.chunks >= 4 else 1.0
        width = 0.5 if way < 0.08 else 1.0
        chunks = _chunks(script, slots, start, width)
        asks = [self._ask(rng, script, start, width) for _ in range(plan.asks)]
        offset = int(rng.integers(30000)) if plan.varied and rng.random() < 0.15 else 0
        return packing.pack(chunks, asks, self._encode, offset)

    def _script(self, rng: np.random.Generator, count: int) -> tuple[Script, Ints]:
        """Draw the script of a stream; return it and the bank's slot of each of its slots."""
        parts: list[Script] = []
        slots: list[Ints] = []
        counts: dict[str, int] = {}
        shares = rng.dirichlet((0.7, 1.0, 0.7))
        length = 0
        while length < count:
            group = self._classes[rng.choice(3, p=shares)]
            number = int(group[rng.integers(len(group))])
            whole = self._scenes.scripts[number]
            size = min(count - length, int(np.exp(rng.uniform(0, np.log(len(whole) + 1)))))
            first = int(rng.integers(len(whole) - size + 1))
            part = whole.part(first, first + size)
            if not _fits(part, parts[-1] if parts else None, counts):
                continue
            for visit in part.visits:
                counts[visit.letter] = counts.get(visit.letter, 0) + 1
            parts.append(part)
            slots.append(self._scenes.first + number * len(whole) + np.arange(first, first + size))
            length += size
        return film.with_lines(rng, film.join(parts)), np.concatenate(slots)

    def _ask(self, rng: np.random.Generator, script: Script, start: float, width: float) -> Ask:
        """Draw a question at a random moment of the stream."""
        now = int(rng.integers(len(script)))
        shown = GRIDS if rng.random() < 0.7 else int(rng.integers(1, GRIDS))
        chunk, grids = now, shown
        if width == 0.5:
            chunk, grids = 2 * now + (shown - 1) // 2, (shown - 1) % 2 + 1
        moment = Moment(script, now, float(shown), start)
        before: tuple[tuple[str, str], ...] = ()
        drawn = self._question(rng, moment)
        if rng.random() < FOLLOWING:
            before, drawn = self._follow(rng, moment, drawn)
        # "it" is the letter of the question before.
        letter = letter_of(before[0][0] if "it" in drawn.q.split() else drawn.q)
        age = -1.0 if drawn.age is None else drawn.age
        clock = -1
        if drawn.kind == "place at":
            # Of the chunk that shows what was on screen then.
            named = parse_time(drawn.q.rstrip("?").split()[-1])
            clock = int(start + (named - start) // world.SLOT * world.SLOT)
        return Ask(chunk, grids, drawn.q, drawn.answer, KINDS.index(drawn.kind), age, letter, before, clock)

    def _question(self, rng: np.random.Generator, moment: Moment, about: str | None = None) -> Question:
        kinds = list(WEIGHTS)
        while True:
            kind = kinds[rng.choice(len(kinds), p=list(WEIGHTS.values()))]
            if about is not None and about not in film.possible(moment, kind):
                continue
            if (drawn := film.ask(rng, moment, kind, about)) is not None:
                return drawn

    def _follow(
        self, rng: np.random.Generator, moment: Moment, earlier: Question
    ) -> tuple[tuple[tuple[str, str], ...], Question]:
        """Draw a question after ``earlier``: about the same letter, which it calls "it", or about anything."""
        index = letter_of(earlier.q)
        turn = ((earlier.q, earlier.answer),)
        letter = world.LETTERS[index]
        if index < 0 or letter not in moment.seen or rng.random() < 0.4:
            return turn, self._question(rng, moment)
        while (drawn := self._question(rng, moment, letter)).kind == earlier.kind:
            pass
        return turn, replace(drawn, q=drawn.q.replace(f"the letter {letter}", "it"))


def letter_of(q: str) -> int:
    """Return the index of the letter that a question names, or -1."""
    found = [word for word in q.rstrip("?").split() if len(word) == 1 and word in world.LETTERS]
    return world.LETTERS.index(found[0]) if found else -1


def _fits(part: Script, before: Script | None, counts: dict[str, int]) -> bool:
    own: dict[str, int] = {}
    for visit in part.visits:
        own[visit.letter] = own.get(visit.letter, 0) + 1
    if any(counts.get(letter, 0) + n > film.MOST for letter, n in own.items()):
        return False
    return before is None or not film.clashes(before, part)


def pairs_of(visit: Visit) -> Iterator[tuple[int, slice]]:
    """Yield each slot of ``visit``, and those of its pairs of frames that show it."""
    for slot in range(visit.first, visit.last + 1):
        yield slot, slice(0, GRIDS // 2 if visit.half and slot == visit.last else GRIDS)


def marks_of(script: Script) -> Ints:
    """Return what the hints ask of each pair at each side, ``[slots, GRIDS, sides, MARKS]``; see ``ChunkPlan``."""
    marks = np.zeros((len(script), GRIDS, len(film.SIDES), packing.MARKS), np.int64)
    marks[..., 1] = -1
    marks[..., 2] = np.array([film.PLACES.index(place) for place in script.places])[:, None, None]
    came: dict[str, int] = {}
    latest = len(world.LETTERS)
    newest = -1
    waiting = latest
    for visit in script.visits:
        came[visit.letter] = came.get(visit.letter, 0) + 1
        if visit.first != newest:
            # Of several that come at once the last one is to the right.
            newest, latest = visit.first, waiting
        waiting = world.LETTERS.index(visit.letter)
        for slot, pairs in pairs_of(visit):
            marks[slot, pairs, visit.side, 0] = came[visit.letter]
            marks[slot, pairs, visit.side, 1] = latest
    return marks


def _about(line: Line | None) -> tuple[int, int]:
    if line is None or line.letter is None or line.word is None:
        return packing.NOTHING
    return world.LETTERS.index(line.letter), film.SAID.index(line.word)


def _chunks(script: Script, slots: Ints, start: float, width: float) -> list[ChunkPlan]:
    marks = marks_of(script)
    made = []
    size = round(GRIDS * width)
    for slot, bank in enumerate(slots.tolist()):
        for first in range(0, GRIDS, size):
            at = start + slot * world.SLOT + first * world.SLOT / GRIDS
            grids = bank * GRIDS + first + np.arange(size)
            line = None if first else script.lines.get(slot)
            words = "" if line is None else line.text
            own = marks[slot, first : first + size]
            made.append(ChunkPlan(at, grids, words=words, about=_about(line), marks=own))
    return made
