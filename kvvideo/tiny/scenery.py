"""Pictures of the film world: places with a camera that pans over them, and letters in front."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from kvvideo.tiny import film
from kvvideo.tiny.film import PLACES, Script, Visit
from kvvideo.tiny.world import COLOURS, HEIGHT, SLOT, WIDTH, Shape, draw_shape, random_shape

WIDE, TALL = 416, 176
"""Size of the whole of a place, over which the camera pans."""

Colour = tuple[int, int, int]

STROKES: dict[str, str] = {
    "A": "04 20 44|12 32",
    "B": "00 04 34 43 32 02|32 41 30 00",
    "C": "41 30 10 01 03 14 34 43",
    "D": "00 04 24 43 41 20 00",
    "E": "40 00 04 44|02 32",
    "F": "40 00 04|02 32",
    "G": "41 30 10 01 03 14 34 43 42 22",
    "H": "00 04|40 44|02 42",
    "I": "10 30|20 24|14 34",
    "J": "40 43 34 14 03",
    "K": "00 04|40 02 44",
    "L": "00 04 44",
    "M": "04 00 23 40 44",
    "N": "04 00 44 40",
    "O": "10 01 03 14 34 43 41 30 10",
    "P": "04 00 30 41 32 02",
    "Q": "10 01 03 14 34 43 41 30 10|22 44",
    "R": "04 00 30 41 32 02|22 44",
    "S": "41 30 10 01 32 43 34 14 03",
    "T": "00 40|20 24",
    "U": "00 03 14 34 43 40",
    "V": "00 24 40",
    "W": "00 14 22 34 40",
    "X": "00 44|40 04",
    "Y": "00 22 40|22 24",
    "Z": "00 40 04 44",
}
"""Capitals as strokes on a grid of 5 x 5 points, column and row each: a second face, drawn here."""


class Film:
    """A film that can be drawn at any time; equal arguments give equal pictures.

    Args:
        seed: random seed.
        slots: number of slots of four seconds.
        unseen: True for a style that the bundled model was not trained on: a face of broken strokes, other light and
            colours, lasting grain, and a camera that moves faster.
        script: what happens; drawn from the seed if None.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
    """

    def __init__(
        self,
        seed: int,
        slots: int,
        unseen: bool = False,
        script: Script | None = None,
        width: int = WIDTH,
        height: int = HEIGHT,
    ) -> None:
        self.script = film.draw_script(np.random.default_rng([seed, slots]), slots) if script is None else script
        rng = np.random.default_rng([seed, slots, 11])
        self.seed, self.width, self.height, self._unseen = seed, width, height, unseen
        self._views = _draw_views(rng, self.script, unseen)
        self._looks = {visit: _draw_look(rng, unseen) for visit in self.script.visits}
        self._pictures: dict[str, Image.Image] = {}
        self._glyphs: dict[Visit, tuple[Image.Image, Image.Image]] = {}

    def slot_index(self, t: float) -> int:
        """Return the index of the slot that shows at ``t`` seconds; the last one from the end on."""
        return min(int(t / SLOT + 1e-6), len(self.script) - 1)

    def frame(self, t: float) -> npt.NDArray[np.uint8]:
        """Return the picture at ``t`` seconds: ``uint8 [height, width, 3]``, RGB."""
        slot = self.slot_index(t)
        picture = self._background(slot, t)
        for visit in self.script.visits:
            if visit.shows(t):
                self._paste(picture, visit, t)
        if self._unseen:
            noise = np.random.default_rng([self.seed, round(t * 1000)]).normal(0, 7, (self.height, self.width, 1))
            return np.clip(np.asarray(picture, np.float32) + noise, 0, 255).astype(np.uint8)
        return np.array(picture)

    def _background(self, slot: int, t: float) -> Image.Image:
        view = self._views[slot]
        name = self.script.places[slot]
        if name not in self._pictures:
            # The same place looks the same whenever it comes back in a film.
            self._pictures[name] = paint(np.random.default_rng([self.seed, PLACES.index(name)]), name, self._unseen)
        wide = round(view.zoom * WIDE), round(view.zoom * TALL)
        high = min(wide[1], TALL, round(wide[1] * 0.8))
        across = min(WIDE - 2, round(high * self.width / self.height))
        room_x, room_y = WIDE - across, TALL - high
        # To and fro, so that it never leaves the place.
        x = room_x * (0.5 + 0.5 * math.sin(view.phase + view.speed * t))
        y = room_y * (0.5 + 0.5 * math.sin(view.lift))
        box = (x, y, x + across, y + high)
        made = self._pictures[name].resize((self.width, self.height), Image.Resampling.BILINEAR, box=box)
        made = ImageEnhance.Brightness(made).enhance(view.light)
        draw = ImageDraw.Draw(made)
        for shape in view.shapes:
            draw_shape(draw, shape, t, self.width, self.height)
        return made

    def _paste(self, picture: Image.Image, visit: Visit, t: float) -> None:
        look = self._looks[visit]
        if visit not in self._glyphs:
            self._glyphs[visit] = draw_letter(visit.letter, look, self.width, self.height)
        fill, edge = self._glyphs[visit]
        third = self.width / len(film.SIDES)
        progress = math.sin(0.4 * (t - visit.start))
        room_x, room_y = max(0.0, third - fill.width), max(0, self.height - fill.height)
        x = round(visit.side * third + room_x * min(1.0, max(0.0, look.x + look.dx * progress)))
        y = round(room_y * min(1.0, max(0.0, look.y + look.dy * progress)))
        picture.paste((12, 12, 12), (x, y), edge)
        red, green, blue = (round(c * look.shade) for c in COLOURS[visit.colour])
        picture.paste((red, green, blue), (x, y), fill)


@dataclass(frozen=True)
class _View:
    """A scene's camera and light, and what moves through it."""

    zoom: float
    phase: float
    speed: float
    lift: float
    light: float
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Look:
    """Style of one visit's letter; sizes and places are parts of its third of the picture."""

    tall: float
    wide: float
    turn: float
    bold: float
    face: str
    x: float
    y: float
    dx: float
    dy: float
    shade: float


def _draw_views(rng: np.random.Generator, script: Script, unseen: bool) -> list[_View]:
    """Draw one view for each stretch at a place; return them by slot."""
    views: list[_View] = []
    for slot, place in enumerate(script.places):
        if slot and place == script.places[slot - 1]:
            views.append(views[-1])
            continue
        passing = int(rng.integers(0, 4)) if rng.random() < 0.5 else 0
        views.append(
            _View(
                zoom=float(rng.uniform(0.75, 1.0)),
                phase=float(rng.uniform(0, 2 * math.pi)),
                speed=float(rng.uniform(0.1, 0.25) if unseen else rng.uniform(0, 0.12)),
                lift=float(rng.uniform(0, 2 * math.pi)),
                light=float(rng.uniform(0.6, 1.15) if unseen else rng.uniform(0.75, 1.1)),
                shapes=tuple(random_shape(rng, 0.08, 0.04, (0.05, 0.15)) for _ in range(passing)),
            )
        )
    return views


def _draw_look(rng: np.random.Generator, unseen: bool) -> Look:
    face = "broken" if unseen else str(rng.choice(("font", "strokes"), p=(0.65, 0.35)))
    return Look(
        tall=float(rng.uniform(0.38, 0.6)),
        wide=float(rng.uniform(0.62, 0.9)),
        turn=float(rng.uniform(-9, 9)),
        bold=float(rng.uniform(0, 0.05)),
        face=face,
        x=float(rng.uniform(0, 1)),
        y=float(rng.uniform(0, 1)),
        dx=float(rng.uniform(-0.3, 0.3)),
        dy=float(rng.uniform(-0.3, 0.3)),
        shade=float(rng.uniform(0.88, 1.0)),
    )


# Letters.


def draw_letter(letter: str, look: Look, width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """Return the letter as a mask, and with a dark outline around it as a mask of the same size."""
    tall, wide = round(look.tall * height), round(look.wide * width / len(film.SIDES))
    scale, edge = 2, 3
    size = (scale * wide, scale * tall)
    canvas = _face(letter, look, size)
    canvas = canvas.rotate(look.turn, Image.Resampling.BILINEAR, expand=True)
    box = canvas.getbbox() or (0, 0, 2, 2)
    shape = canvas.crop(box).resize((wide - 2 * edge, tall - 2 * edge), Image.Resampling.BOX)
    fill = Image.new("L", (wide, tall), 0)
    fill.paste(shape, (edge, edge))
    return fill, fill.filter(ImageFilter.MaxFilter(2 * edge - 1))


def _face(letter: str, look: Look, size: tuple[int, int]) -> Image.Image:
    wide, tall = size
    if look.face == "font":
        # Capitals are about 0.7 of the font's size.
        font = ImageFont.load_default(round(tall / 0.7))
        canvas = Image.new("L", (3 * tall, 3 * tall), 0)
        draw = ImageDraw.Draw(canvas)
        middle = (1.5 * tall, 1.5 * tall)
        draw.text(middle, letter, fill=255, font=font, anchor="mm", stroke_width=round(look.bold * tall))
        canvas = canvas.crop(canvas.getbbox() or (0, 0, 2, 2))
        # An I is not drawn as wide as a W.
        narrow = min(wide, max(round(0.45 * wide), round(canvas.width * tall / canvas.height * 1.1)))
        return _centred(canvas.resize((narrow, tall), Image.Resampling.BILINEAR), size)
    canvas = Image.new("L", size, 0)
    draw = ImageDraw.Draw(canvas)
    thick = max(3, round((0.09 + look.bold) * tall))
    pad = thick / 2 + 1
    step_x, step_y = (wide - 2 * pad) / 4, (tall - 2 * pad) / 4
    for stroke in STROKES[letter].split("|"):
        points = [(pad + int(p[0]) * step_x, pad + int(p[1]) * step_y) for p in stroke.split()]
        if look.face == "broken":
            _dashes(draw, points, thick)
        else:
            draw.line(points, fill=255, width=thick, joint="curve")
        for x, y in points:
            draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
    return canvas


def _dashes(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], thick: int) -> None:
    for (ax, ay), (bx, by) in itertools.pairwise(points):
        count = max(2, round(math.hypot(bx - ax, by - ay) / (1.1 * thick)))
        for i in range(count):
            x, y = ax + (bx - ax) * (i + 0.5) / count, ay + (by - ay) * (i + 0.5) / count
            half = 0.45 * thick
            draw.rectangle((x - half, y - half, x + half, y + half), fill=255)


def _centred(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    canvas = Image.new("L", size, 0)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas


# Places.


def paint(rng: np.random.Generator, name: str, unseen: bool = False) -> Image.Image:
    """Return the whole of a place called ``name``, ``WIDE`` x ``TALL``; each seed furnishes it in its own way."""
    picture = Image.new("RGB", (WIDE, TALL))
    _PAINTERS[name](rng, ImageDraw.Draw(picture), _Palette(rng, 26 if unseen else 14))
    return picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.0))))


class _Palette:
    """Colours near those of a place; dull, so that letters stand out."""

    def __init__(self, rng: np.random.Generator, spread: float) -> None:
        self._rng, self._spread = rng, spread
        self._cast = rng.normal(0, spread / 2, 3)

    def __call__(self, red: float, green: float, blue: float) -> Colour:
        drawn = np.array((red, green, blue)) + self._cast + self._rng.normal(0, self._spread / 2, 3)
        r, g, b = (int(c) for c in np.clip(drawn, 6, 190))
        return r, g, b


def _horizon(draw: ImageDraw.ImageDraw, at: float, above: Colour, below: Colour) -> None:
    draw.rectangle((0, 0, WIDE, at), fill=above)
    draw.rectangle((0, at, WIDE, TALL), fill=below)


def _kitchen(rng: np.random.Generator, draw: ImageDraw.ImageDraw, colour: _Palette) -> None:
    """Paint tiles on the wall, and cupboards below."""
    low, size = rng.uniform(0.5, 0.65) * TALL, float(rng.uniform(14, 22))
    draw.rectangle((0, 0, WIDE, TALL), fill=colour(150, 150, 140))
    for row in range(math.ceil(low / size)):
        for column in range(math.ceil(WIDE / size)):
            if (row + column) % 2:
                draw.rectangle(
                    (column * size, row * size, (column + 1) * size, (row + 1) * size), fill=colour(95, 110, 115)
                )
    draw.rectangle((0, low, WIDE, TALL), fill=colour(100, 66, 40))
    x = float(rng.uniform(0, 30))
    while x < WIDE:
        wide = float(rng.uniform(34, 60))
        draw.rectangle((x, low + 10, x + wide - 5, TALL - 6), outline=colour(48, 30, 18), width=3)
        x += wide


def _garden(rng: np.random.Generator, draw: ImageDraw.ImageDraw, colour: _Palette) -> None:
    """Paint a lawn with many flowers, and a hedge behind."""
    at = rng.uniform(0.25, 0.4) * TALL
    _horizon(draw, at, colour(36, 70, 34), colour(80, 130, 60))
    for _ in range(int(rng.integers(60, 110))):
        x, y, r = rng.uniform(0, WIDE), rng.uniform(at, TALL), rng.uniform(2, 5)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour(*((160, 70, 110), (165, 150, 70))[rng.integers(2)]))
    for x in range(0, WIDE, 20):
        r = rng.uniform(14, 24)
        draw.ellipse((x - r, at - r, x + r, at + r / 2), fill=colour(30, 62, 28))


def _beach(rng: np.random.Generator, draw: ImageDraw.ImageDraw, colour: _Palette) -> None:
    """Paint sky, sea with waves, and sand."""
    sky, sea = rng.uniform(0.25, 0.4) * TALL, rng.uniform(0.6, 0.75) * TALL
    _horizon(draw, sky, colour(130, 160, 185), colour(35, 95, 140))
    for _ in range(24):
        x, y, w = rng.uniform(0, WIDE), rng.uniform(sky + 4, sea), rng.uniform(10, 40)
        draw.line((x, y, x + w, y), fill=colour(120, 160, 180), width=2)
    draw.rectangle((0, sea, WIDE, TALL), fill=colour(175, 155, 110))


def _street(rng: np.random.Generator, draw: ImageDraw.ImageDraw, colour: _Palette) -> None:
    """Paint houses with rows of windows over a dark road."""
    road = rng.uniform(0.7, 0.82) * TALL
    _horizon(draw, road, colour(120, 130, 140), colour(45, 45, 48))
    x = 0.0
    while x < WIDE:
        wide, top = float(rng.uniform(40, 80)), float(rng.uniform(0, 0.3)) * TALL
        draw.rectangle((x, top, x + wide, road), fill=colour(85, 78, 76))
        for wx in np.arange(x + 6, x + wide - 8, 14).tolist():
            for wy in np.arange(top + 8, road - 10, 17).tolist():
                draw.rectangle((wx, wy, wx + 7, wy + 9), fill=colour(150, 140, 100))
        x += wide
    for x in range(0, WIDE, 50):
        draw.rectangle((x, (road + TALL) / 2 - 1, x + 24, (road + TALL) / 2 + 2), fill=colour(150, 150, 140))


def _forest(rng: np.random.Generator, draw: ImageDraw.ImageDraw, colour: _Palette) -> None:
    """Paint dark trunks before a dark green."""
    draw.rectangle((0, 0, WIDE, TALL), fill=colour(22, 48, 30))
    for _ in range(int(rng.integers(18, 28))):
        x, wide = rng.uniform(0, WIDE), rng.uniform(5, 15)
        draw.polygon([(x, 0), (x + wide, 0), (x + wide * 1.3, TALL), (x - wide * 0.3, TALL)], fill=colour(66, 46, 30))
    for _ in range(40):
        x, y, r = rng.uniform(0, WIDE), rng.uniform(0, TALL * 0.3), rng.uniform(8, 18)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour(26, 70, 36))


def _desert(rng: np.random.Generator, draw: ImageDraw.ImageDraw, colour: _Palette) -> None:
    """Paint dunes of orange sand under a pale sky."""
    draw.rectangle((0, 0, WIDE, TALL), fill=colour(150, 140, 120))
    for layer in range(4):
        base, high, phase = TALL * (0.35 + 0.16 * layer), rng.uniform(8, 22), rng.uniform(0, 6.28)
        points = [(x, base + high * math.sin(x / 45 + phase)) for x in range(0, WIDE + 8, 8)]
        shade = 1 - 0.13 * layer
        draw.polygon([*points, (WIDE, TALL), (0, TALL)], fill=colour(178 * shade, 118 * shade, 62 * shade))


def _mountain(rng: np.random.Generator, draw: ImageDraw.ImageDraw, colour: _Palette) -> None:
    """Paint grey peaks with snow."""
    draw.rectangle((0, 0, WIDE, TALL), fill=colour(95, 120, 160))
    for x in sorted(rng.uniform(0, WIDE, int(rng.integers(6, 10)))):
        top, half = rng.uniform(0.05, 0.4) * TALL, rng.uniform(50, 90)
        draw.polygon([(x - half, TALL), (x, top), (x + half, TALL)], fill=colour(80, 82, 92))
        draw.polygon(
            [(x - half * 0.3, top + 0.3 * (TALL - top)), (x, top), (x + half * 0.3, top + 0.3 * (TALL - top))],
            fill=colour(182, 184, 188),
        )


def _harbour(rng: np.random.Generator, draw: ImageDraw.ImageDraw, colour: _Palette) -> None:
    """Paint masts and hulls over dark water."""
    sea = rng.uniform(0.55, 0.7) * TALL
    _horizon(draw, sea, colour(140, 135, 140), colour(24, 50, 66))
    for x in np.arange(rng.uniform(0, 30), WIDE, rng.uniform(34, 48)).tolist():
        top = rng.uniform(0.05, 0.2) * TALL
        draw.line((x, top, x, sea), fill=colour(60, 45, 35), width=3)
        draw.line((x, top, x + 16, sea), fill=colour(60, 45, 35), width=1)
        hull = colour(*((110, 30, 30), (30, 40, 80), (120, 115, 100))[rng.integers(3)])
        draw.polygon([(x - 16, sea - 8), (x + 16, sea - 8), (x + 10, sea + 10), (x - 10, sea + 10)], fill=hull)


def _library(rng: np.random.Generator, draw: ImageDraw.ImageDraw, colour: _Palette) -> None:
    """Paint shelves full of books."""
    draw.rectangle((0, 0, WIDE, TALL), fill=colour(52, 34, 22))
    high = float(rng.uniform(30, 42))
    kinds = ((110, 40, 36), (40, 66, 60), (120, 100, 60), (50, 50, 90), (90, 84, 80))
    for y in np.arange(4, TALL, high).tolist():
        x = 0.0
        while x < WIDE:
            wide, less = float(rng.uniform(4, 10)), float(rng.uniform(0, 8))
            draw.rectangle((x, y + less, x + wide - 1, y + high - 6), fill=colour(*kinds[rng.integers(5)]))
            x += wide


def _station(rng: np.random.Generator, draw: ImageDraw.ImageDraw, colour: _Palette) -> None:
    """Paint tracks that run to one point, under a roof of beams."""
    x, y = rng.uniform(0.35, 0.65) * WIDE, rng.uniform(0.4, 0.55) * TALL
    _horizon(draw, y, colour(115, 118, 122), colour(72, 66, 62))
    for end in np.linspace(-1.2 * WIDE, 2.2 * WIDE, 15):
        draw.line((x, y, end, TALL), fill=colour(150, 148, 146), width=3)
        draw.line((x, y, end, 0), fill=colour(60, 64, 70), width=4)


def _tunnel(rng: np.random.Generator, draw: ImageDraw.ImageDraw, colour: _Palette) -> None:
    """Paint rings that get lighter towards the end of a dark tube."""
    x, y = rng.uniform(0.4, 0.6) * WIDE, rng.uniform(0.4, 0.6) * TALL
    draw.rectangle((0, 0, WIDE, TALL), fill=colour(16, 16, 20))
    for ring in range(9):
        half = (1 - ring / 9) ** 1.3
        light = 20 + 14 * ring * (1 if ring % 2 else 0.5)
        box = (x - half * WIDE * 0.6, y - half * TALL * 0.9, x + half * WIDE * 0.6, y + half * TALL * 0.9)
        draw.ellipse(box, fill=colour(light, light, light * 1.1))


def _field(rng: np.random.Generator, draw: ImageDraw.ImageDraw, colour: _Palette) -> None:
    """Paint rows of yellow corn under a blue sky."""
    at = rng.uniform(0.3, 0.45) * TALL
    _horizon(draw, at, colour(90, 130, 175), colour(150, 130, 50))
    middle = rng.uniform(0.3, 0.7) * WIDE
    for end in np.linspace(-1.5 * WIDE, 2.5 * WIDE, 30):
        draw.line((middle + (end - middle) * 0.25, at, end, TALL), fill=colour(100, 84, 28), width=4)


_PAINTERS = {
    "kitchen": _kitchen,
    "garden": _garden,
    "beach": _beach,
    "street": _street,
    "forest": _forest,
    "desert": _desert,
    "mountain": _mountain,
    "harbour": _harbour,
    "library": _library,
    "station": _station,
    "tunnel": _tunnel,
    "field": _field,
}
