"""Synthetic clips: big coloured letters over a moving, cluttered background, and questions about them.

A clip is divided into slots of four seconds. A slot shows one capital letter in one of eight colours,
or none; each letter is shown at most once a clip, so every question has one answer.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from kvvideo.times import format_time

SLOT = 4.0
"""Length of a slot in seconds."""

WIDTH, HEIGHT = 256, 144

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

COLOURS = {
    "red": (228, 30, 38),
    "green": (40, 190, 60),
    "blue": (40, 80, 245),
    "yellow": (248, 226, 40),
    "white": (248, 248, 248),
    "purple": (160, 40, 205),
    "orange": (252, 134, 16),
    "cyan": (50, 216, 232),
}

NONE = "none"
NOT_SEEN = "not seen"

Kind = Literal["colour", "when", "now", "now colour"]

PHRASES: dict[Kind, tuple[str, ...]] = {
    "colour": (
        "What colour was the letter {letter}?",
        "What color was the letter {letter}?",
        "Which colour did the letter {letter} have?",
    ),
    "when": (
        "When did the letter {letter} appear?",
        "At what time did the letter {letter} appear?",
        "When was the letter {letter} on screen?",
    ),
    "now": (
        "Which letter is on screen now?",
        "What letter is on screen now?",
        "Which letter is shown now?",
    ),
    "now colour": (
        "What colour is the letter on screen now?",
        "What color is the letter on screen now?",
        "Which colour is the letter on screen?",
    ),
}
"""Wordings of each kind of question; the first is the usual one."""


@dataclass(frozen=True)
class Slot:
    """One slot: its ``start`` in seconds, and the letter it shows with its colour, or None for both."""

    start: float
    letter: str | None
    colour: str | None

    @property
    def end(self) -> float:
        """Seconds at which it ends."""
        return self.start + SLOT


@dataclass(frozen=True)
class Question:
    """A question, the moment it is asked at, and its one right answer.

    Attributes:
        t: seconds at which it is asked, after every frame shown up to then; None for the end.
        q: the question.
        answer: the exact answer of a right model.
        kind: of the question, as its world names it.
        age: seconds between the end of the slot it is about and the asking; 0 for a slot that still
            shows; None where the answer is "not seen".
    """

    t: float | None
    q: str
    answer: str
    kind: str
    age: float | None


def phrase(kind: Kind, rng: np.random.Generator, letter: str = "") -> str:
    """Draw a wording of a question about ``letter``, the usual one half of the time."""
    ways = PHRASES[kind]
    way = ways[0] if rng.random() < 0.5 else ways[rng.integers(len(ways))]
    return way.format(letter=letter)


@dataclass(frozen=True)
class Shape:
    """A muted shape that drifts across the background and wraps around."""

    kind: int
    colour: tuple[int, int, int]
    x: float
    y: float
    dx: float
    dy: float
    size: float
    turn: float


@dataclass(frozen=True)
class _Shot:
    """A background: a drifting gradient between two muted colours, and shapes over it."""

    start: float
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    wave: tuple[float, float, float, float]
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class _Look:
    """Style of one slot's letter; sizes and places are fractions of the picture."""

    size: float
    stretch: float
    shear: float
    turn: float
    bold: float
    outline: int
    x: float
    y: float
    dx: float
    dy: float
    shade: float


class Clip:
    """A clip that can be drawn at any time; equal arguments give equal pictures.

    Args:
        seed: random seed.
        slots: number of slots.
        density: part of the slots that show a letter, up to 26 letters; drawn from the seed if None.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
    """

    def __init__(
        self, seed: int, slots: int, density: float | None = None, width: int = WIDTH, height: int = HEIGHT
    ) -> None:
        rng = np.random.default_rng([seed, slots])
        self.width, self.height = width, height
        share = float(rng.uniform(0.1, 0.6)) if density is None else density
        count = min(len(LETTERS), max(1, round(share * slots)), slots)
        where = dict(zip(rng.choice(slots, count, replace=False).tolist(), rng.permutation(26), strict=False))
        names = list(COLOURS)
        self.slots = tuple(
            Slot(
                i * SLOT,
                LETTERS[where[i]] if i in where else None,
                names[rng.integers(len(names))] if i in where else None,
            )
            for i in range(slots)
        )
        self._looks = [_draw_look(rng) for _ in range(slots)]
        self._shots = [_draw_shot(rng, 0.0)]
        while (start := self._shots[-1].start + float(rng.uniform(8, 60))) < self.duration:
            self._shots.append(_draw_shot(rng, start))
        self._glyphs: dict[int, tuple[Image.Image, Image.Image | None]] = {}

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.slots) * SLOT

    def slot_index(self, t: float) -> int:
        """Return the index of the slot that shows at ``t`` seconds; the last one from the end on."""
        return min(int(t / SLOT + 1e-6), len(self.slots) - 1)

    def frame(self, t: float) -> npt.NDArray[np.uint8]:
        """Return the picture at ``t`` seconds: ``uint8 [height, width, 3]``, RGB."""
        picture = self._background(t)
        index = self.slot_index(t)
        slot = self.slots[index]
        if slot.letter is not None and slot.colour is not None:
            look = self._looks[index]
            if index not in self._glyphs:
                self._glyphs[index] = _draw_glyph(slot.letter, look, self.height)
            fill, edge = self._glyphs[index]
            progress = (t - slot.start) / SLOT
            room_x, room_y = max(0, self.width - fill.width), max(0, self.height - fill.height)
            x = round(room_x * min(1.0, max(0.0, look.x + look.dx * progress)))
            y = round(room_y * min(1.0, max(0.0, look.y + look.dy * progress)))
            if edge is not None:
                picture.paste((12, 12, 12), (x, y), edge)
            red, green, blue = (round(c * look.shade) for c in COLOURS[slot.colour])
            picture.paste((red, green, blue), (x, y), fill)
        return np.array(picture)

    def questions(
        self, rng: np.random.Generator, count: int, kinds: tuple[Kind, ...] = tuple(PHRASES), end: bool = True
    ) -> list[Question]:
        """Draw ``count`` questions along the clip, in order of time; the last at its end if ``end``."""
        whole = [i * SLOT + s for i in range(len(self.slots)) for s in (1, 2, 3)]
        times: list[float | None] = [*sorted(float(t) for t in rng.choice(whole, count - end))]
        return [self.question(t, kinds[rng.integers(len(kinds))], rng) for t in times + [None] * bool(count and end)]

    def question(self, t: float | None, kind: Kind, rng: np.random.Generator) -> Question:
        """Draw a question of ``kind`` asked at ``t`` seconds (None: at the end), with its answer."""
        now = self.duration if t is None else t
        current = self.slot_index(now)
        shown = self.slots[: current + 1]

        def age(slot: Slot) -> float:
            return max(0.0, now - slot.end)

        if kind == "now":
            return Question(t, phrase(kind, rng), shown[-1].letter or NONE, kind, 0.0)
        if kind == "now colour":
            return Question(t, phrase(kind, rng), shown[-1].colour or NONE, kind, 0.0)
        lettered = [slot for slot in shown if slot.letter is not None]
        if not lettered or rng.random() < 0.1:
            absent = sorted(set(LETTERS) - {slot.letter for slot in lettered})
            if absent:
                letter = absent[rng.integers(len(absent))]
                return Question(t, phrase(kind, rng, letter=letter), NOT_SEEN, kind, None)
        slot = lettered[rng.integers(len(lettered))]
        answer = cast(str, slot.colour) if kind == "colour" else format_time(slot.start)
        return Question(t, phrase(kind, rng, letter=cast(str, slot.letter)), answer, kind, age(slot))

    def _background(self, t: float) -> Image.Image:
        shot = next(s for s in reversed(self._shots) if s.start <= t or s is self._shots[0])
        fx, fy, speed, phase = shot.wave
        x, y = _grid()
        mix = 0.5 + 0.5 * np.sin(fx * x + fy * y + speed * t + phase)
        low, high = np.array(shot.low, np.float32), np.array(shot.high, np.float32)
        small = Image.fromarray((low + (high - low) * mix[..., None]).astype(np.uint8), "RGB")
        picture = small.resize((self.width, self.height), Image.Resampling.BILINEAR)
        draw = ImageDraw.Draw(picture)
        for shape in shot.shapes:
            draw_shape(draw, shape, t, self.width, self.height)
        return picture


def random_shape(rng: np.random.Generator, across: float, down: float, sizes: tuple[float, float]) -> Shape:
    """Draw how a shape looks that moves at most so fast, of a size between two."""
    return Shape(
        int(rng.integers(4)),
        _muted(rng),
        float(rng.uniform(0, 1.4)),
        float(rng.uniform(0, 1.4)),
        float(rng.uniform(-across, across)),
        float(rng.uniform(-down, down)),
        float(rng.uniform(*sizes)),
        float(rng.uniform(0, 6.28)),
    )


def draw_shape(draw: ImageDraw.ImageDraw, shape: Shape, t: float, width: int, height: int) -> None:
    """Draw ``shape`` as it is at ``t`` seconds into a picture of ``width`` x ``height``."""
    size = shape.size * height
    cx = ((shape.x + shape.dx * t) % 1.4 - 0.2) * width
    cy = ((shape.y + shape.dy * t) % 1.4 - 0.2) * height
    box = (cx - size, cy - size * 0.7, cx + size, cy + size * 0.7)
    if shape.kind == 0:
        draw.ellipse(box, fill=shape.colour)
    elif shape.kind == 1:
        draw.rectangle(box, fill=shape.colour)
    elif shape.kind == 2:
        draw.ellipse(box, outline=shape.colour, width=max(2, round(size * 0.2)))
    else:
        angle = shape.turn + 0.2 * t
        ex, ey = 1.6 * size * math.cos(angle), 1.6 * size * math.sin(angle)
        draw.line((cx - ex, cy - ey, cx + ex, cy + ey), fill=shape.colour, width=max(2, round(size * 0.25)))


@functools.lru_cache(maxsize=1)
def _grid() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the coordinates of the coarse grid that gradients are computed on, 0 to 1."""
    y, x = np.mgrid[0:1:18j, 0:1:32j].astype(np.float32)
    return x, y


def _muted(rng: np.random.Generator) -> tuple[int, int, int]:
    """Draw a dull colour, well apart from the letters' colours."""
    grey = rng.uniform(25, 125)
    red, green, blue = (int(c) for c in np.clip(grey + rng.uniform(-24, 24, 3), 8, 150))
    return red, green, blue


def _draw_shot(rng: np.random.Generator, start: float) -> _Shot:
    shapes = tuple(random_shape(rng, 0.06, 0.06, (0.08, 0.35)) for _ in range(int(rng.integers(3, 8))))
    wave = (
        float(rng.uniform(-6, 6)),
        float(rng.uniform(-6, 6)),
        float(rng.uniform(-0.6, 0.6)),
        float(rng.uniform(0, 6.28)),
    )
    return _Shot(start, _muted(rng), _muted(rng), wave, shapes)


def _draw_look(rng: np.random.Generator) -> _Look:
    return _Look(
        size=float(rng.uniform(0.45, 0.75)),
        stretch=float(rng.uniform(0.85, 1.25)),
        shear=float(rng.uniform(-0.22, 0.22)),
        turn=float(rng.uniform(-10, 10)),
        bold=float(rng.uniform(0, 0.045)),
        outline=int(rng.choice([0, 0, 2, 3])),
        x=float(rng.uniform(0, 1)),
        y=float(rng.uniform(0, 1)),
        dx=float(rng.uniform(-0.25, 0.25)),
        dy=float(rng.uniform(-0.25, 0.25)),
        shade=float(rng.uniform(0.9, 1.0)),
    )


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font: it comes with the package, so every machine draws the same letters.
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


def _draw_glyph(letter: str, look: _Look, height: int) -> tuple[Image.Image, Image.Image | None]:
    """Return the letter as a mask and, if it has one, its dark outline as a mask of the same size."""
    tall = round(look.size * height)
    # Capitals are about 0.7 of the font's size; drawn at twice the size, then turned and shrunk.
    font = _font(2 * round(tall / 0.7 / 4) * 4)
    bold = round(look.bold * 2 * tall)
    masks = []
    for stroke in (bold, bold + 2 * look.outline):
        canvas = Image.new("L", (6 * tall, 6 * tall), 0)
        ImageDraw.Draw(canvas).text((3 * tall, 3 * tall), letter, fill=255, font=font, anchor="mm", stroke_width=stroke)
        angle = math.radians(look.turn)
        cos, sin = math.cos(angle), math.sin(angle)
        a, b = cos / look.stretch, sin / look.stretch + look.shear
        c, d = -sin, cos
        mid = 3 * tall
        turned = canvas.transform(
            canvas.size,
            Image.Transform.AFFINE,
            (a, b, mid - a * mid - b * mid, c, d, mid - c * mid - d * mid),
            Image.Resampling.BILINEAR,
        )
        masks.append(turned)
    box = masks[1].getbbox() or (0, 0, 2, 2)
    size = (max(1, (box[2] - box[0]) // 2), max(1, (box[3] - box[1]) // 2))
    fill, edge = (m.crop(box).resize(size, Image.Resampling.BOX) for m in masks)
    return fill, edge if look.outline else None
