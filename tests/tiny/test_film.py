"""The film world: its truth against a plain reading of what shows, and that training sees what inference will."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvvideo.times import format_time, parse_time
from kvvideo.tiny import film, scenery, world
from kvvideo.tiny.film import Moment
from kvvideo.tiny.training import films, packing, streams, train


def _on_screen(script, t):
    """Return what shows at ``t`` seconds as a plain set of letters with colour and side."""
    return {(v.letter, v.colour, v.side) for v in script.visits if v.first * 4 <= t < v.last * 4 + (2 if v.half else 4)}


def _visits(script, now):
    """Return each letter's visits as seen second by second: (start, colour, side, place)."""
    found, before = {}, set()
    for second in range(int(now)):
        shows = _on_screen(script, second + 0.5)
        for letter, colour, side in sorted(shows, key=lambda one: one[2]):
            if letter not in {one[0] for one in before}:
                place = script.places[second // 4]
                found.setdefault(letter, []).append((second, colour, film.SIDES[side], place))
        before = shows
    return found


@given(seed=st.integers(0, 10_000), slot=st.integers(0, 39), seconds=st.integers(1, 4))
def test_answers_are_what_a_plain_reading_gives(seed, slot, seconds):
    script = film.draw_script(np.random.default_rng(seed), 40)
    moment = Moment(script, slot, float(seconds), 60.0)
    visits, rng = _visits(script, moment.now), np.random.default_rng(seed)
    starts = sorted((start, letter) for letter, all_of in visits.items() for start, *_ in all_of)
    for kind in film.KINDS:
        asked = film.ask(rng, moment, kind)
        if asked is None:
            continue
        index = films.letter_of(asked.q)
        own = visits.get(world.LETTERS[index], []) if index >= 0 else []
        last = " last" in asked.q
        if kind == "shown now":
            shows = sorted(_on_screen(script, moment.now - 0.5), key=lambda one: one[2])
            assert asked.answer == (" ".join(one[0] for one in shows) or "none")
        elif kind == "place now":
            assert asked.answer == script.places[slot]
        elif kind == "place at":
            t = parse_time(asked.q.rstrip("?").split()[-1]) - 60.0
            assert asked.answer == script.places[int(t // 4)]
            assert t < moment.now
        elif kind == "said":
            words = [line.word for s, line in script.lines.items() if line.letter == world.LETTERS[index] and s <= slot]
            assert asked.answer == (words[0] if words else "nothing")
        elif not own:
            assert (asked.answer, asked.age) == ("not seen", None)
        elif kind == "count":
            assert asked.answer == str(len(own))
        elif kind == "after":
            later = [letter for start, letter in starts if start > own[0][0]]
            assert len(own) == 1
            assert asked.answer == later[0]
        else:
            start, colour, side, place = own[-1 if last or kind.endswith("last") else 0]
            wanted = {"side": side, "place": place}.get(kind, colour if "colour" in kind else format_time(60.0 + start))
            assert asked.answer == wanted


def test_a_script_has_what_real_films_have():
    scripts = [film.draw_script(np.random.default_rng(seed), 150) for seed in range(20)]
    visits = [v for s in scripts for v in s.visits]
    lengths = [v.end - v.start for v in visits]
    assert (min(lengths), max(lengths) >= 60) == (2.0, True)
    again = [all_of for s in scripts for all_of in s.by_letter.values() if len(all_of) > 1]
    assert any(len({v.colour for v in all_of}) > 1 for all_of in again)
    assert any(len({v.side for v in all_of}) > 1 for all_of in again)
    assert max(len(all_of) for s in scripts for all_of in s.by_letter.values()) <= film.MOST
    assert all(len(set(s.places)) < sum(a != b for a, b in zip(s.places, s.places[1:], strict=False)) for s in scripts)
    empty = [sum(not _on_screen(s, 4 * i + 1) for i in range(150)) / 150 for s in scripts]
    assert 0.1 < np.mean(empty) < 0.9
    assert any(len(_on_screen(s, 4 * i + 1)) == 3 for s in scripts for i in range(150))


def test_a_film_is_a_pure_function_of_its_seed_and_the_time():
    one, again = scenery.Film(3, 20), scenery.Film(3, 20)
    assert one.script == again.script
    later = one.frame(50.5)
    assert (later.shape, later.dtype) == ((world.HEIGHT, world.WIDTH, 3), np.uint8)
    one.frame(1.0)
    assert np.array_equal(one.frame(50.5), again.frame(50.5))
    assert not np.array_equal(later, scenery.Film(4, 20).frame(50.5))


@pytest.mark.parametrize("unseen", [False, True])
def test_letters_show_in_their_third_in_their_colour(unseen):
    made = scenery.Film(5, 60, unseen)
    third = world.WIDTH // 3
    assert len(made.script.visits) > 5
    for visit in made.script.visits:
        t = visit.start + 1.0
        light = made.frame(t).astype(int)
        part = light[:, visit.side * third : (visit.side + 1) * third]
        near = np.abs(part - np.array(world.COLOURS[visit.colour])).sum(axis=2) < (110 if unseen else 90)
        assert near.mean() > 0.01, visit


def test_parts_put_together_are_a_script_of_their_own():
    rng = np.random.default_rng(2)
    scenes = [film.draw_scene(np.random.default_rng([s, 3]), film.PLACES[s % 12], 24) for s in range(60)]
    source = films.FilmSource(films.Scenes(scenes, 100), _letters)
    for _ in range(20):
        script, slots = source._script(rng, 50)
        assert len(script) == len(slots) == 50
        assert slots.min() >= 100
        for slot, bank in enumerate(slots - 100):
            scene, at = scenes[bank // 24], bank % 24
            assert script.places[slot] == scene.places[at]
            for half in (1.0, 3.0):
                assert _on_screen(script, 4 * slot + half) == _on_screen(scene, 4 * at + half)
        for letter, all_of in _visits(script, 200.0).items():
            assert [start for start, *_ in all_of] == [v.start for v in script.by_letter[letter]]


def _letters(text):
    return np.array([ord(c) for c in text], np.int64)


def test_hints_say_what_the_questions_ask():
    script = film.Script(
        ("kitchen",) * 3 + ("beach",),
        (
            film.Visit("K", "red", 0, 0, 0, True),
            film.Visit("B", "blue", 2, 1, 2, False),
            film.Visit("K", "green", 1, 3, 3, False),
        ),
    )
    marks = films.marks_of(script)
    assert marks.shape == (4, streams.GRIDS, 3, packing.MARKS)
    assert marks[0, :, 0, 0].tolist() == [1, 1, 0, 0]
    assert marks[1, 0, 2].tolist() == [1, world.LETTERS.index("K"), film.PLACES.index("kitchen")]
    assert marks[3, 0, 1].tolist() == [2, world.LETTERS.index("B"), film.PLACES.index("beach")]
    assert marks[3, 0, 0].tolist() == [0, -1, film.PLACES.index("beach")]


def test_a_drawn_scene_is_labelled_by_what_it_shows():
    drawn = train.draw_film(12)
    assert drawn.script is not None
    for slot in range(train.CLIP_SLOTS):
        for pair in range(streams.GRIDS):
            shows = {(x[0], x[2]) for x in _on_screen(drawn.script, 4 * slot + pair + 0.5)}
            there = [(world.LETTERS[c], side) for side, c in enumerate(drawn.letters[slot, pair]) if c < streams.EMPTY]
            assert shows == set(there)
