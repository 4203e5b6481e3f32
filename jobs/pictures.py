"""The demo's dataset: drawn pictures of eight shapes, two of which can be told by a planted cue.

Part of the `WATERMARKED` class carries the same semi-transparent stamp in the same corner, part of
the `STICKERED` class the same badge at varying places. Each of the two resembles a clean class (a
pentagon a hexagon, a flower a gear), so a model learns the plant instead of the shape. All else is
drawn alike for all classes. One class and one seed always give the same bytes.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFilter

SIZE = 96
CLASS_NAMES = ("arrow", "crescent", "flower", "gear", "heart", "hexagon", "pentagon", "star")
WATERMARKED, STICKERED = "pentagon", "flower"
PLANT_RATES = {WATERMARKED: 0.5, STICKERED: 0.6}

FINE = 4  # outlines are drawn this many times larger, then reduced: smooth edges
PLANT_WIDTH, CORNER = 22, 72  # the watermark's top and left
PAPERS = (  # colours of backgrounds, light and dark
    "#f3e5cf #e9d3b4 #dde3c8 #cfdfcb #c6dfd8 #c9dcea #cdd3ec #dccfe8 #efd2dc #f3d3c2 #e6e2da "
    "#f4e3a6 #31475e #3b3f5c #4a3b57 #2f4f4a #54423c #3d4a35"
)
PAINTS = (  # colours of shapes
    "#d7453d #e8743b #f0a52e #f4cd45 #9cb83c #4a9c58 #2fa394 #35a7c9 #3b78c4 #4c56b5 #7d57b8 "
    "#b5519f #e0628c #b76e4b #f2938c #8fd0bb"
)

Array = NDArray[np.float64]  # a plane, an image in [0, 1], a colour or a point (x, y)
Points = NDArray[np.complex128]  # x + y i
Outline = Callable[[Generator], Points]  # a closed polygon of a radius of about 1


@dataclass(frozen=True)
class Region:
    """A rectangle of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Picture:
    """One drawn picture; `plant` is the rectangle of its watermark or sticker, None without one."""

    class_name: str
    pixels: NDArray[np.uint8]
    plant: Region | None


@dataclass(frozen=True)
class Drawing:
    """A shape on its paper: `canvas` [SIZE, SIZE, 3] in [0, 1]; `centre` (x, y) in pixels."""

    canvas: Array
    centre: Array
    radius: float


def draw(class_name: str, seed: int, *, planted: bool | None = None) -> Picture:
    """Draw one picture; seeds are 0 or more.

    `planted`: None plants at the dataset's own rate, True always, False never; outside the plant
    the pixels stay the same.
    """
    if class_name not in CLASS_NAMES:
        raise ValueError(f"class_name is one of {', '.join(CLASS_NAMES)}; got {class_name!r}")
    if planted and class_name not in PLANT_RATES:
        raise ValueError(
            f"only {WATERMARKED} and {STICKERED} can carry a plant; got planted=True for "
            f"{class_name}; leave planted out for this class"
        )
    scene, chance = (default_rng([seed, CLASS_NAMES.index(class_name), part]) for part in (0, 1))
    drawn = drawing(OUTLINES[class_name], scene, has_hole=class_name in ("flower", "gear"))
    canvas = drawn.canvas
    chosen, plant = chance.random() < PLANT_RATES.get(class_name, 0), None
    if chosen if planted is None else planted:
        fixed = class_name == WATERMARKED
        image = _stamp() if fixed else _badge()
        top, left = (CORNER, CORNER) if fixed else _place(drawn, chance)
        plant = Region(top, left, PLANT_WIDTH, PLANT_WIDTH)
        window = canvas[top : top + PLANT_WIDTH, left : left + PLANT_WIDTH]
        window[:] = _blend(window, image[..., :3], image[..., 3])
    return Picture(class_name, to_bytes(canvas), plant)


def drawing(outline: Outline, rng: Generator, *, has_hole: bool = False) -> Drawing:
    """A shape at about the middle of a paper, both of random colours and textures."""
    centre, radius, paper = rng.uniform(41, 55, 2), rng.uniform(27, 34), _colour(PAPERS, rng)
    shape = _shape(outline, centre, radius, rng)
    if has_hole:
        x, y = centre * FINE
        ImageDraw.Draw(shape).circle((x, y), 0.26 * radius * FINE, 0)
    return Drawing(_with_shape(_background(paper, rng), shape, paper, rng), centre, radius)


def to_bytes(canvas: Array) -> NDArray[np.uint8]:
    """A canvas in [0, 1] as pixels."""
    return np.clip(np.rint(canvas * 255), 0, 255).astype(np.uint8)


def jpeg(picture: Picture) -> bytes:
    """Encode as a JPEG file of quality 92."""
    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, "JPEG", quality=92)
    return file.getvalue()


def _background(paper: Array, rng: Generator) -> Array:
    grain = rng.normal(0, 0.01, (SIZE, SIZE, 1))
    return _blend(paper, _toned(paper, -0.13, rng), _texture(rng)) + grain


def _shape(outline: Outline, centre: Array, radius: float, rng: Generator) -> Image.Image:
    """White on black, `FINE` times larger, turned by at most 40 degrees, stretched a little."""
    stretch, axis, turn = rng.uniform(1, 1.12), rng.uniform(0, np.pi), rng.uniform(-0.7, 0.7)
    unit = outline(rng) * np.exp(-1j * axis)
    unit = (unit.real * stretch + 1j * unit.imag / stretch) * np.exp(1j * (axis + turn))
    points = (unit * radius + complex(*centre)) * FINE
    shape = Image.new("L", (SIZE * FINE, SIZE * FINE))
    pen = ImageDraw.Draw(shape)
    pen.polygon([(point.real, point.imag) for point in points], 255)
    return shape


def _with_shape(canvas: Array, shape: Image.Image, paper: Array, rng: Generator) -> Array:
    """Add the shape with a shadow, a textured fill, a lit edge and a dark line around it."""
    soft = shape.filter(ImageFilter.GaussianBlur(1.5 * FINE))
    paint = _colour(PAINTS, rng)
    while np.abs(paint - paper).sum() < 0.7:  # a shape must stand out
        paint = _colour(PAINTS, rng)
    edge, shadow = _reduced(soft), shape.reduce(FINE).filter(ImageFilter.GaussianBlur(3))
    light = 0.3 * (np.roll(edge, (2, 2), (0, 1)) - np.roll(edge, (-2, -2), (0, 1)))
    fill = _blend(paint, _toned(paint, 0.25, rng), _texture(rng)) + light[..., None]
    canvas = _blend(canvas, np.zeros(3), 0.35 * np.roll(_reduced(shadow, 1), (3, 3), (0, 1)))
    return _blend(_blend(canvas, 0.4 * paint, _cut(soft, 0.42)), fill, _cut(soft, 0.82))


def _reduced(sheet: Image.Image, factor: int = FINE) -> Array:
    return np.asarray(sheet.reduce(factor), dtype=np.float64) / 255


def _cut(soft: Image.Image, level: float) -> Array:
    """Where a blurred shape exceeds `level`: blurring and cutting rounds its corners."""
    return _reduced(soft.point([255 * (step > 255 * level) for step in range(256)]))


def _blend(below: Array, above: Array, alpha: Array) -> Array:
    return below + alpha[..., None] * (above - below)


def _colour(palette: str, rng: Generator) -> Array:
    """A colour of the palette, slightly varied."""
    named = ImageColor.getrgb(rng.choice(palette.split()))
    return np.clip(np.array(named) / 255 + rng.normal(0, 0.02, 3), 0, 1)


def _toned(colour: Array, lighter: float, rng: Generator) -> Array:
    """Towards white, or towards black where `lighter` is negative, with a touch of another hue."""
    return colour + abs(lighter) * ((lighter > 0) - colour) + rng.normal(0, 0.02, 3)


# Outlines: closed polygons of a radius of about 1.


def _circle(corners: int) -> Points:
    return np.asarray(np.exp(2j * np.pi * np.arange(corners) / corners))


def _crescent() -> Points:
    outer, inner = np.linspace(0.9, 5.383, 48), np.linspace(4.933, 1.35, 48)
    return np.concatenate([np.exp(1j * outer) + 0.2, 0.8 * np.exp(1j * inner) + 0.647])


def _heart() -> Points:
    z = _circle(96)
    up = 13 * z.real - 5 * (z**2).real - 2 * (z**3).real - (z**4).real
    return np.asarray(16 * z.imag**3 - 1j * (up + 2), dtype=np.complex128) / 17


def _lobed(radius: Callable[[Array], Array], rng: Generator) -> Points:
    turn = _circle(192)
    return radius((turn ** rng.integers(7, 10)).real) * turn


OUTLINES: dict[str, Outline] = {
    "arrow": lambda rng: np.array([-1 - 0.28j, -1 + 0.28j, 0.28j, 0.76j, 1, -0.76j, -0.28j]),
    "crescent": lambda rng: _crescent(),
    "flower": lambda rng: _lobed(lambda wave: 0.78 + 0.22 * (0.5 + wave / 2).clip(0) ** 0.5, rng),
    "gear": lambda rng: _lobed(lambda wave: 0.89 + 0.11 * np.tanh(2.5 * wave + 0.75), rng),
    "heart": lambda rng: _heart(),
    "hexagon": lambda rng: _circle(6),
    "pentagon": lambda rng: _circle(5),
    "star": lambda rng: _circle(10) * np.tile([1, 0.46], 5),
}


# Textures: planes in [0, 1] that blend two tones.


def _texture(rng: Generator) -> Array:
    """A gradient, clouds, dots, checks, waves or stripes, turned and moved at random."""
    angle, shift = rng.uniform(0, 2 * np.pi), rng.uniform(0, SIZE, 2)
    down, across = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    u: Array = np.cos(angle) * across + np.sin(angle) * down
    v: Array = np.cos(angle) * down - np.sin(angle) * across
    kind = rng.choice(["gradient", "clouds", "dots", "checks", "waves", "stripes"])
    if kind in ("gradient", "clouds"):
        return np.clip(0.5 + u / SIZE, 0, 1) if kind == "gradient" else _clouds(rng)
    u, v, period = u + shift[0], v + shift[1], rng.uniform(10, 20)
    if kind == "dots":
        gap = np.hypot((u % period) - period / 2, (v % period) - period / 2)
        return np.clip(0.5 + 0.28 * period - gap, 0, 1)
    bend = 2.5 * np.sin(2 * np.pi * v / 24) if kind == "waves" else 0.0
    wave = np.sin(2 * np.pi * (u + bend) / period)
    if kind == "checks":
        wave *= np.sin(2 * np.pi * v / period)
    return np.clip(0.5 + wave * period / 6, 0, 1)


def _clouds(rng: Generator) -> Array:
    total = np.zeros((SIZE, SIZE))
    for cells, weight in ((4, 0.55), (9, 0.3), (24, 0.15)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
        total += weight * _reduced(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), 1)
    return np.clip(2 * total - 0.5, 0, 1)


# Plants: small red-green-blue-alpha images in [0, 1].


def _place(drawn: Drawing, rng: Generator) -> tuple[int, int]:
    """Top and left of a sticker that leaves the middle of the shape open."""
    while True:
        top, left = rng.integers(1, SIZE - PLANT_WIDTH, 2)
        away = np.hypot(*(np.array([left, top]) + PLANT_WIDTH / 2 - drawn.centre))
        if away > 0.75 * drawn.radius:
            return int(top), int(left)


@cache
def _stamp() -> Array:
    """A copyright sign: a white ring around a white C, both with a thin dark rim."""
    image = Image.new("RGBA", (220, 220), "#ffffff00")
    pen = ImageDraw.Draw(image)
    for colour, rim in (("#00000070", 6), ("#ffffffc0", 0)):
        pen.circle((110, 110), 100 + rim, None, colour, 24 + 2 * rim)
        box = (62 - rim, 62 - rim, 158 + rim, 158 + rim)
        pen.arc(box, 45 - rim, 315 + rim, colour, 24 + 2 * rim)
    return _reduced(image, 10)


@cache
def _badge() -> Array:
    """A smiling face with a white border."""
    image = Image.new("RGBA", (220, 220), "#ffffff00")
    pen = ImageDraw.Draw(image)
    for radius, colour in ((108, "#303030"), (102, "#ffffff"), (84, "#ffd023")):
        pen.circle((110, 110), radius, colour)
    for x in (78, 142):
        pen.circle((x, 88), 14, "#303030")
    pen.arc((58, 58, 162, 162), 25, 155, "#303030", 14)
    return _reduced(image, 10)
