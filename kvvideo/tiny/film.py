"""The film world: places that come back, letters that come and go, lines that are said, and questions about them.

Nothing in it is right for a strategy by construction. A letter may show for two seconds or two minutes, return in
another colour or place, and be one of three at a time; stretches are empty or full of change. ``Script`` says what
happens, in slots of four seconds; ``kvvideo.tiny.scenery`` draws it.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from kvvideo.times import format_time
from kvvideo.tiny.world import COLOURS, LETTERS, NONE, NOT_SEEN, SLOT, Question

SIDES = ("left", "middle", "right")

PLACES = (
    "kitchen",
    "garden",
    "beach",
    "street",
    "forest",
    "desert",
    "mountain",
    "harbour",
    "library",
    "station",
    "tunnel",
    "field",
)

NOTHING = "nothing"
"""Answer where nothing was said about a letter."""

SAID = ("old", "new", "cheap", "heavy", "lost", "broken", "rare", "warm", "famous", "mine")
"""Words of the lines, of which each says one about a letter."""

LINES = ("the {letter} is {word}", "they say the {letter} is {word}", "this {letter} looks {word}")

FILLERS = ("it is late", "come along now", "wait here", "look at this", "we are nearly there")
"""Lines that nobody asks about."""

MOST = 6
"""Most times that a letter shows: our choice."""

Kind = Literal[
    "colour first",
    "colour last",
    "when first",
    "when last",
    "count",
    "after",
    "side",
    "place",
    "place at",
    "said",
    "shown now",
    "place now",
]

PHRASES: dict[Kind, tuple[str, ...]] = {
    "colour first": (
        "What colour was the letter {letter} the first time?",
        "What color was the letter {letter} the first time?",
        "Which colour did the letter {letter} have at first?",
    ),
    "colour last": (
        "What colour was the letter {letter} the last time?",
        "What color was the letter {letter} the last time?",
        "Which colour did the letter {letter} have at last?",
    ),
    "when first": (
        "When did the letter {letter} first appear?",
        "At what time did the letter {letter} first appear?",
        "When did the letter {letter} appear the first time?",
    ),
    "when last": (
        "When did the letter {letter} last appear?",
        "At what time did the letter {letter} last appear?",
        "When did the letter {letter} appear the last time?",
    ),
    "count": (
        "How many times did the letter {letter} appear?",
        "How often did the letter {letter} appear?",
        "How many times was the letter {letter} shown?",
    ),
    "after": (
        "Which letter appeared right after the letter {letter}?",
        "Which letter came right after the letter {letter}?",
        "What letter appeared next after the letter {letter}?",
    ),
    "side": (
        "On which side was the letter {letter} the {time} time?",
        "Which side was the letter {letter} on the {time} time?",
        "Where on screen was the letter {letter} the {time} time?",
    ),
    "place": (
        "In which place was the letter {letter} the {time} time?",
        "Which place was the letter {letter} in the {time} time?",
        "At which place was the letter {letter} the {time} time?",
    ),
    "place at": (
        "Which place was shown at {clock}?",
        "What place was shown at {clock}?",
        "Which place was on screen at {clock}?",
    ),
    "said": (
        "What was said about the letter {letter}?",
        "What did they say about the letter {letter}?",
        "What was the letter {letter} said to be?",
    ),
    "shown now": (
        "Which letters are on screen now?",
        "What letters are on screen now?",
        "Which letters are shown now?",
    ),
    "place now": (
        "Which place is on screen now?",
        "What place is on screen now?",
        "Which place is shown now?",
    ),
}
"""Wordings of each kind of question; the first is the usual one."""

KINDS: tuple[Kind, ...] = tuple(PHRASES)

NOW: tuple[Kind, ...] = ("shown now", "place now")
"""Kinds that ask what is on screen."""


@dataclass(frozen=True)
class Visit:
    """A letter on screen: on ``side`` (0 to 2) in ``colour``, from slot ``first`` through slot ``last``.

    ``half`` is True if it leaves in the middle of its last slot.
    """

    letter: str
    colour: str
    side: int
    first: int
    last: int
    half: bool

    @property
    def start(self) -> float:
        """Seconds at which it appears."""
        return self.first * SLOT

    @property
    def end(self) -> float:
        """Seconds at which it leaves."""
        return (self.last + 1 - 0.5 * self.half) * SLOT

    def shows(self, t: float) -> bool:
        """Return True if it is on screen at ``t`` seconds."""
        return self.start <= t + 1e-6 < self.end


@dataclass(frozen=True)
class Line:
    """A line that is said: its ``text``, and the letter and the word it is about, if any."""

    text: str
    letter: str | None = None
    word: str | None = None


@dataclass(frozen=True)
class Script:
    """A film without its pictures: ``places`` by slot, ``visits`` in order of time, ``lines`` by slot."""

    places: tuple[str, ...]
    visits: tuple[Visit, ...]
    lines: dict[int, Line] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    @functools.cached_property
    def by_letter(self) -> dict[str, list[Visit]]:
        """Visits of each letter, in order of time."""
        found: dict[str, list[Visit]] = {}
        for visit in self.visits:
            found.setdefault(visit.letter, []).append(visit)
        return found

    def part(self, first: int, end: int) -> "Script":
        """Return the slots from ``first`` up to ``end``; what was on screen before comes at the beginning."""
        visits = [
            replace(
                v, first=max(v.first, first) - first, last=min(v.last, end - 1) - first, half=v.half and v.last < end
            )
            for v in self.visits
            if v.first < end and v.last >= first
        ]
        lines = {slot - first: line for slot, line in self.lines.items() if first <= slot < end}
        return Script(self.places[first:end], tuple(sorted(visits, key=_order)), lines)


def _order(visit: Visit) -> tuple[int, int]:
    return visit.first, visit.side


def join(parts: Iterable[Script]) -> Script:
    """Return ``parts`` one after the other; of the lines about a letter only the first stays."""
    places: list[str] = []
    visits: list[Visit] = []
    lines: dict[int, Line] = {}
    said: set[str] = set()
    for part in parts:
        at = len(places)
        places += part.places
        visits += [replace(v, first=v.first + at, last=v.last + at) for v in part.visits]
        for slot, line in part.lines.items():
            if line.letter is None or line.letter not in said:
                lines[slot + at] = line
                said |= {line.letter} if line.letter else set()
    return Script(tuple(places), tuple(visits), lines)


def clashes(before: Script, after: Script) -> bool:
    """Return True if a letter of the last slot of ``before`` shows in the first of ``after``, as two visits of one."""
    last = {v.letter for v in before.visits if v.last == len(before) - 1}
    return any(v.first == 0 and v.letter in last for v in after.visits)


# What happens, drawn.


def draw_script(rng: np.random.Generator, slots: int) -> Script:
    """Draw a script: scenes of 12 seconds to two minutes at three to six places, empty or full."""
    places = [PLACES[i] for i in rng.permutation(len(PLACES))[: int(rng.integers(3, 7))]]
    scenes: list[Script] = []
    counts: dict[str, int] = {}
    length, place = 0, ""
    while length < slots:
        # As long as the last one may be cut.
        place = str(rng.choice([p for p in places if p != place]))
        count = min(slots - length, int(np.exp(rng.uniform(np.log(3), np.log(30)))))
        on_screen = {v.letter for v in scenes[-1].visits if v.last == len(scenes[-1]) - 1} if scenes else set()
        scene = draw_scene(rng, place, count, counts, on_screen)
        scenes.append(scene)
        length += count
    return with_lines(rng, join(scenes))


def draw_scene(
    rng: np.random.Generator,
    place: str,
    slots: int,
    counts: dict[str, int] | None = None,
    leaving: Iterable[str] = (),
) -> Script:
    """Draw a scene of ``slots`` slots without lines.

    Args:
        rng: random numbers.
        place: where it is.
        slots: its length.
        counts: times that each letter was shown before; brought up to date.
        leaving: letters that were on screen just before, which must not be the first to come.
    """
    counts = {} if counts is None else counts
    chance = float(rng.choice((0.0, 0.04, 0.12, 0.5), p=(0.2, 0.25, 0.35, 0.2)))
    free, gone = [0, 0, 0], dict.fromkeys(leaving, 0)
    visits: list[Visit] = []
    for slot in range(slots):
        for side in rng.permutation(3).tolist():
            if free[side] > slot or rng.random() >= chance:
                continue
            # A slot without it lies between two visits of a letter, else they would be one.
            possible = [c for c in LETTERS if counts.get(c, 0) < MOST - 1 and gone.get(c, -1) < slot]
            known = [c for c in possible if c in counts]
            pool = known if known and rng.random() < 0.5 else possible
            if not pool:
                continue
            letter = pool[rng.integers(len(pool))]
            last, half = _stay(rng, slot, slots)
            visits.append(Visit(letter, list(COLOURS)[rng.integers(len(COLOURS))], side, slot, last, half))
            counts[letter] = counts.get(letter, 0) + 1
            free[side], gone[letter] = last + 1, last + 1
    return Script((place,) * slots, tuple(sorted(visits, key=_order)))


def _stay(rng: np.random.Generator, slot: int, slots: int) -> tuple[int, bool]:
    """Draw a visit's last slot, and True if it leaves in the middle of it: two seconds to two minutes."""
    way = rng.random()
    if way < 0.45:
        return slot, bool(way < 0.2)
    beats = round(float(np.exp(rng.uniform(np.log(3), np.log(14 if way < 0.8 else 60)))))
    last = slot + (beats - 1) // 2
    return (slots - 1, False) if last >= slots else (last, beats % 2 == 1)


def with_lines(rng: np.random.Generator, script: Script) -> Script:
    """Return ``script`` with lines: about some letters while they show, or later, and some about nothing."""
    lines: dict[int, Line] = {}
    for letter, visits in script.by_letter.items():
        if rng.random() < 0.4:
            visit = visits[rng.integers(len(visits))]
            slot = int(rng.integers(visit.first, visit.last + 1) if rng.random() < 0.7 else rng.integers(len(script)))
            lines.setdefault(slot, line_about(rng, letter))
    for slot in rng.choice(len(script), len(script) // 12, replace=False).tolist():
        lines.setdefault(slot, Line(FILLERS[rng.integers(len(FILLERS))]))
    return replace(script, lines=lines)


def line_about(rng: np.random.Generator, letter: str) -> Line:
    """Draw a line about ``letter``."""
    word = SAID[rng.integers(len(SAID))]
    return Line(LINES[rng.integers(len(LINES))].format(letter=letter, word=word), letter, word)


# Questions.


@dataclass(frozen=True)
class Moment:
    """A script as seen up to ``slot``, of which ``seconds`` have passed; its clock begins at ``start``.

    Args:
        script: what happens.
        slot: the slot that shows.
        seconds: of it that were seen, 1 to 4.
        start: seconds that the clock shows at the beginning of the script.
    """

    script: Script
    slot: int
    seconds: float = SLOT
    start: float = 0.0

    @property
    def now(self) -> float:
        """Seconds of the script that were seen."""
        return self.slot * SLOT + self.seconds

    def clock(self, visit: Visit) -> str:
        """Return the clock time at which ``visit`` began."""
        return format_time(self.start + visit.start)

    @functools.cached_property
    def seen(self) -> dict[str, list[Visit]]:
        """Visits of each letter that were seen, in order of time."""
        found = {c: [v for v in visits if v.first <= self.slot] for c, visits in self.script.by_letter.items()}
        return {c: visits for c, visits in found.items() if visits}

    @property
    def shown(self) -> list[Visit]:
        """Visits on screen, from left to right."""
        last = self.now - 1.0
        return sorted((v for v in self.script.visits if v.shows(last)), key=lambda v: v.side)

    def next_after(self, letter: str) -> str | None:
        """Return the letter that appeared next after the only visit of ``letter``; None if that is not one letter."""
        visits = self.seen.get(letter, [])
        if len(visits) != 1:
            return None
        later = [v for v in self.script.visits if visits[0].first < v.first <= self.slot]
        first = [v for v in later if v.first == later[0].first]
        return first[0].letter if len(first) == 1 else None


def possible(moment: Moment, kind: Kind) -> list[str]:
    """Return what a question of ``kind`` can be about: letters, or slots as digits; one empty string for what shows."""
    if kind in NOW:
        return [""]
    if kind == "place at":
        return [str(slot) for slot in range(moment.slot)]
    seen = moment.seen
    if kind == "count":
        return [c for c, visits in seen.items() if len(visits) <= MOST]
    if kind == "after":
        return [c for c in seen if moment.next_after(c) is not None]
    if kind == "said":
        return [line.letter for slot, line in moment.script.lines.items() if line.letter and slot <= moment.slot]
    return list(seen)


def ask(rng: np.random.Generator, moment: Moment, kind: Kind, about: str | None = None) -> Question | None:
    """Draw a question of ``kind`` at ``moment``, or return None if none can be asked.

    Args:
        rng: random numbers.
        moment: what was seen.
        kind: of the question.
        about: a letter, or a slot as digits; drawn if None, one question in ten about a letter never seen.
    """
    if about is None:
        pool = possible(moment, kind)
        if kind not in (*NOW, "place at") and (not pool or rng.random() < 0.1):
            known = {line.letter for s, line in moment.script.lines.items() if s <= moment.slot}
            pool = [c for c in LETTERS if c not in (known if kind == "said" else moment.seen)]
        if not pool:
            return None
        about = pool[rng.integers(len(pool))]
    ways, first = PHRASES[kind], bool(rng.random() < 0.5)
    way = ways[0] if rng.random() < 0.5 else ways[rng.integers(len(ways))]
    if kind == "place at":
        slot = int(about)
        # Any even second, as a person would name one.
        clock = moment.start + slot * SLOT + 2.0 * float(rng.random() < 0.3)
        return Question(
            None, way.format(clock=format_time(clock)), moment.script.places[slot], kind, _age(moment, slot)
        )
    if kind == "place now":
        return Question(None, way, moment.script.places[moment.slot], kind, 0.0)
    if kind == "shown now":
        return Question(None, way, " ".join(v.letter for v in moment.shown) or NONE, kind, 0.0)
    q = way.format(letter=about, time="first" if first else "last")
    answer, age = _answer(moment, kind, about, first)
    return Question(None, q, answer, kind, age)


def _answer(moment: Moment, kind: Kind, letter: str, first: bool) -> tuple[str, float | None]:
    """Return the answer of a question about ``letter``, and how long ago that was."""
    if kind == "said":
        found = [(s, li) for s, li in moment.script.lines.items() if li.letter == letter and s <= moment.slot]
        return (str(found[0][1].word), _age(moment, found[0][0])) if found else (NOTHING, None)
    visits = moment.seen.get(letter, [])
    if not visits:
        return NOT_SEEN, None
    last = kind in ("colour last", "when last") or (kind in ("side", "place") and not first)
    visit = visits[-1 if last else 0]
    answers = {
        "count": str(len(visits)),
        "after": str(moment.next_after(letter)),
        "side": SIDES[visit.side],
        "place": moment.script.places[visit.first],
    }
    answer = answers.get(kind) or (visit.colour if kind.startswith("colour") else moment.clock(visit))
    return answer, max(0.0, moment.now - visit.end)


def _age(moment: Moment, slot: int) -> float:
    return max(0.0, moment.now - (slot + 1) * SLOT)
