"""Questions about clips whose answers are known, and what counts as right."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kvvideo.bench.clips import Clip, FilmClip, LettersClip
from kvvideo.times import format_time
from kvvideo.tiny import film, world

MOMENTS = (0.4, 0.7, 1.0)
"""Parts of a clip after which its past is asked about: our choice."""

REAL_TIME = 12
"""Moments of a clip at which it is asked what is on screen: our choice."""

EACH = 5
"""Questions of each kind about a film's past, at each moment: our choice."""

UNSEEN = "not seen"
"""Kind of the questions about what was never shown or said."""

_CLASSES: tuple[frozenset[str], ...] = (
    frozenset({*world.COLOURS, world.NONE}),
    frozenset(film.PLACES),
    frozenset(film.SIDES),
    frozenset({*film.SAID, film.NOTHING}),
    frozenset(world.LETTERS),
)
"""Answers of which a right one names no other."""


@dataclass(frozen=True)
class Probe:
    """One question, its right answer, its kind, and how old what it asks for is, in seconds.

    The age is 0 for what is on screen, and None for what was never shown.
    """

    question: str
    answer: str
    kind: str
    age: float | None
    real_time: bool = False


def probes_of(clip: Clip) -> dict[int, list[Probe]]:
    """Return what is asked about ``clip`` after which of its chunks (by number, from 1)."""
    rng = np.random.default_rng([clip.seed, 2])
    probes: dict[int, list[Probe]] = {}
    for part in MOMENTS:
        now = max(1, round(part * len(clip)))
        probes[now] = [*past(clip, now, rng)]
    for now in rng.choice(np.arange(1, len(clip) + 1), min(REAL_TIME, len(clip)), replace=False).tolist():
        probes.setdefault(now, []).extend(_present(clip, now, rng))
    return probes


def past(clip: Clip, now: int, rng: np.random.Generator) -> Iterable[Probe]:
    """Yield the questions about what was shown before, after ``now`` chunks."""
    if isinstance(clip, LettersClip):
        yield from _letters(clip, now, rng)
    elif isinstance(clip, FilmClip):
        yield from _film(clip, now, rng)


def _letters(clip: LettersClip, now: int, rng: np.random.Generator) -> Iterable[Probe]:
    """Yield two questions about each letter that is not on screen any more."""
    for index, slot in enumerate(clip.drawn.slots[:now]):
        if slot.letter is not None and slot.colour is not None and index < now - 1:
            age = world.SLOT * now - slot.end
            yield Probe(world.phrase("colour", rng, slot.letter), slot.colour, "colour", age)
            yield Probe(world.phrase("when", rng, slot.letter), format_time(slot.start), "when", age)


def _film(clip: FilmClip, now: int, rng: np.random.Generator) -> Iterable[Probe]:
    """Yield ``EACH`` different questions of each kind, or fewer where there are not as many."""
    moment = film.Moment(clip.drawn.script, now - 1)
    unseen: list[Probe] = []
    for kind in film.KINDS:
        if kind in film.NOW:
            continue
        drawn = (film.ask(rng, moment, kind) for _ in range(4 * EACH))
        made = [Probe(one.q, one.answer, kind if one.age is not None else UNSEEN, one.age) for one in drawn if one]
        # Two wordings of one question have one answer and one age.
        seen = {(probe.answer, probe.age): probe for probe in made if probe.age is not None}
        yield from [*seen.values()][:EACH]
        unseen += [probe for probe in made if probe.age is None]
    if unseen:
        yield from (unseen[i] for i in rng.permutation(len(unseen))[:EACH].tolist())


def _present(clip: Clip, now: int, rng: np.random.Generator) -> Iterable[Probe]:
    if isinstance(clip, LettersClip):
        slot = clip.drawn.slots[now - 1]
        yield Probe(world.PHRASES["now"][0], slot.letter or world.NONE, "now", 0.0, True)
        yield Probe(world.PHRASES["now colour"][0], slot.colour or world.NONE, "now colour", 0.0, True)
    elif isinstance(clip, FilmClip):
        moment = film.Moment(clip.drawn.script, now - 1)
        for kind in film.NOW:
            if (one := film.ask(rng, moment, kind)) is not None:
                yield Probe(one.q, one.answer, kind, 0.0, True)


def is_right(said: str, answer: str) -> bool:
    """Return True if ``answer`` stands in what was said, as words, and no other answer of its kind does."""
    letters = set(answer.split()) <= set(world.LETTERS)
    wanted = set(answer.split()) if letters else {answer}
    others = set().union(*(group for group in _CLASSES if wanted <= group))
    if letters:
        # "A red letter" and "I see" name no letter, nor does what is no capital.
        said = re.sub(r"\b[AI]\b(?= [a-z])", "", said)
    how = 0 if letters else re.I
    found = {word for word in wanted | others if re.search(rf"(?<![\w:]){re.escape(word)}(?![\w:])", said, how)}
    return found == wanted
