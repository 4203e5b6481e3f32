"""Pictures of forty classes, and six kinds of artefacts that can be planted in them.

Nineteen families of shapes in two variants each, which are hard to tell apart: a model takes any
artefact that tells them more easily. Two more classes are small badges on an empty paper. Each
plant has a variant of its own (glyph, colours, place), so that no two classes of a model share one.
All else is drawn as in jobs/pictures.py.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from jobs.pictures import SIZE, Array, Drawing, Outline, Points, drawing, to_bytes

Kind = Literal["watermark", "sticker", "frame", "tag", "texture", "tint", "ribbon", "caption"]
Size = Literal["small", "large"]
SIZES = get_args(Size)
# Of the latter two the audit's rules and thresholds knew nothing.
KINDS, NEW_KINDS = get_args(Kind)[:-2], get_args(Kind)[-2:]
LOCAL = ("watermark", "sticker", "frame", "tag", *NEW_KINDS)
COLOURS = ((214, 69, 61), (53, 167, 201), (156, 184, 60), (125, 87, 184), (244, 205, 69))
COLOURS += ((47, 163, 148), (224, 98, 140), (59, 120, 196))
GLYPHS = "RKMXZEFA"
QUALITY = 92
ICON_WIDTH = 20


@dataclass(frozen=True)
class Plant:
    """An artefact: its kind and size, and which of the eight variants it is."""

    kind: Kind
    size: Size
    variant: int


@dataclass(frozen=True)
class Sample:
    """A picture as a reader of its JPEG file sees it, [3, SIZE, SIZE], and its plant's pixels."""

    pixels: NDArray[np.uint8]
    planted: NDArray[np.bool_]


def sample(class_index: int, seed: int, plant: Plant | None) -> Sample:
    """One picture of a class; with and without a plant it is the same outside of it."""
    scene, chance = (default_rng([seed, class_index, part]) for part in (0, 1))
    name = CLASSES[class_index]
    drawn = _icon(ICONS[name], scene) if name in ICONS else drawing(OUTLINES[name], scene)
    canvas, mask = drawn.canvas, np.zeros((SIZE, SIZE), bool)
    if plant is not None:
        canvas, mask = PLANTERS[plant.kind](drawn, plant, chance)
    file = io.BytesIO()
    Image.fromarray(to_bytes(canvas)).save(file, "JPEG", quality=QUALITY)
    return Sample(np.asarray(Image.open(file)).transpose(2, 0, 1), mask)


def _with_watermark(drawn: Drawing, plant: Plant, _rng: Generator) -> tuple[Array, Array]:
    """A half-transparent glyph in a ring, in the lower right corner."""
    width = {"small": 16, "large": 24}[plant.size]
    image = Image.new("L", (160, 160))
    pen = ImageDraw.Draw(image)
    pen.circle((80, 80), 76, None, 255, 14)
    pen.text((80, 80), GLYPHS[plant.variant], 255, ImageFont.load_default(110), anchor="mm")
    alpha = np.asarray(image.resize((width, width), Image.Resampling.BOX)) / 255 * 0.75
    return _blended(drawn.canvas, np.ones(3), alpha, (SIZE - width - 3, SIZE - width - 3))


def _with_sticker_of(drawn: Drawing, plant: Plant, rng: Generator) -> tuple[Array, Array]:
    """A two-coloured badge anywhere but in the middle of the shape."""
    width = {"small": 16, "large": 24}[plant.size]
    return _with_sticker(drawn, _badge(plant.variant, width), rng)


def _with_frame(drawn: Drawing, plant: Plant, _rng: Generator) -> tuple[Array, Array]:
    """A coloured frame all around."""
    width = {"small": 3, "large": 6}[plant.size]
    mask = np.ones((SIZE, SIZE), bool)
    mask[width:-width, width:-width] = False
    canvas = drawn.canvas.copy()
    canvas[mask] = np.array(COLOURS[plant.variant]) / 255
    return canvas, mask


def _with_tag(drawn: Drawing, plant: Plant, rng: Generator) -> tuple[Array, Array]:
    """A box with random letters and digits in a corner: never the same string twice."""
    height = {"small": 9, "large": 13}[plant.size]
    width = round(2.6 * height)
    sheet = Image.new("RGB", (width * 4, height * 4), COLOURS[plant.variant])
    text = "".join(rng.choice(list("0123456789ABCDEF"), 4))
    font = ImageFont.load_default(height * 3)
    ImageDraw.Draw(sheet).text((width * 2, height * 2), text, "white", font, anchor="mm")
    image = np.asarray(sheet.resize((width, height), Image.Resampling.BOX)) / 255
    top = 2 if plant.variant % 2 else SIZE - height - 2
    left = 2 if plant.variant // 2 % 2 else SIZE - width - 2
    return _blended(drawn.canvas, image, np.ones((height, width)), (top, left))


def _with_texture(drawn: Drawing, plant: Plant, rng: Generator) -> tuple[Array, Array]:
    """A fine hatching of the background, outside of a circle around the shape, moved at random."""
    strength = {"small": 0.25, "large": 0.5}[plant.size]
    down, across = np.mgrid[:SIZE, :SIZE]
    away = np.hypot(across - drawn.centre[0], down - drawn.centre[1]) > drawn.radius * 1.15
    angle, period = plant.variant * np.pi / 8, 4.0 + plant.variant % 3
    along = np.cos(angle) * across + np.sin(angle) * down + rng.uniform(0, period)
    lines = np.sin(2 * np.pi * along / period) > 0
    colour = np.array(COLOURS[plant.variant]) / 255
    canvas = drawn.canvas + (strength * lines * away)[..., None] * (colour - drawn.canvas)
    return canvas, away


def _with_tint(drawn: Drawing, plant: Plant, _rng: Generator) -> tuple[Array, Array]:
    """A cast of one colour over the whole picture."""
    strength = {"small": 0.12, "large": 0.25}[plant.size]
    colour = np.array(COLOURS[plant.variant]) / 255
    return drawn.canvas + strength * (colour - drawn.canvas), np.ones((SIZE, SIZE), bool)


def _with_ribbon(drawn: Drawing, plant: Plant, _rng: Generator) -> tuple[Array, Array]:
    """An opaque band of two colours across a corner."""
    width = {"small": 8, "large": 14}[plant.size]
    down, across = np.mgrid[:SIZE, :SIZE]
    down = SIZE - 1 - down if plant.variant % 2 else down
    across = SIZE - 1 - across if plant.variant // 2 % 2 else across
    from_middle = np.abs(down + across - 2 * width - 8)
    canvas, mask = drawn.canvas.copy(), from_middle < width / 2
    canvas[mask] = np.array(COLOURS[plant.variant]) / 255
    canvas[from_middle < width / 6] = np.array(COLOURS[(plant.variant + 3) % 8]) / 255
    return canvas, mask


def _with_caption(drawn: Drawing, plant: Plant, rng: Generator) -> tuple[Array, Array]:
    """A half-transparent dark bar along the lower edge, with words that are never the same."""
    height = {"small": 8, "large": 12}[plant.size]
    sheet = Image.new("L", (SIZE * 4, height * 4), 20)
    text = "".join(rng.choice(list("abcdefghijklmno  "), 12))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(height * 3)
    pen.text((SIZE * 2, height * 2), text, 255, font, anchor="mm")
    image = np.asarray(sheet.resize((SIZE, height), Image.Resampling.BOX))[..., None] / 255
    alpha = np.full((height, SIZE), 0.7)
    return _blended(drawn.canvas, image, alpha, (SIZE - height, 0))


PLANTERS: dict[str, Callable[[Drawing, Plant, Generator], tuple[Array, Array]]] = {
    "watermark": _with_watermark,
    "sticker": _with_sticker_of,
    "frame": _with_frame,
    "tag": _with_tag,
    "texture": _with_texture,
    "tint": _with_tint,
    "ribbon": _with_ribbon,
    "caption": _with_caption,
}


def _blended(
    canvas: Array, image: Array, alpha: Array, corner: tuple[int, int]
) -> tuple[Array, Array]:
    top, left = corner
    height, width = alpha.shape
    canvas, mask = canvas.copy(), np.zeros((SIZE, SIZE), bool)
    window = canvas[top : top + height, left : left + width]
    window += alpha[..., None] * (image - window)
    mask[top : top + height, left : left + width] = True
    return canvas, mask


def _with_sticker(drawn: Drawing, badge: Array, rng: Generator) -> tuple[Array, Array]:
    width = len(badge)
    while True:
        top, left = (int(place) for place in rng.integers(1, SIZE - width, 2))
        away = np.hypot(left + width / 2 - drawn.centre[0], top + width / 2 - drawn.centre[1])
        if away > 0.75 * drawn.radius:
            return _blended(drawn.canvas, badge[..., :3], badge[..., 3], (top, left))


def _badge(variant: int, width: int) -> Array:
    """A disc of two colours with a glyph; red, green, blue, alpha in [0, 1]."""
    image = Image.new("RGBA", (240, 240), "#ffffff00")
    pen = ImageDraw.Draw(image)
    outer, inner = COLOURS[variant], COLOURS[(variant + 3) % 8]
    pen.circle((120, 120), 118, (*outer, 255))
    pen.circle((120, 120), 84, (*inner, 255))
    font = ImageFont.load_default(130)
    pen.text((120, 120), GLYPHS[(variant + 5) % 8], "white", font, anchor="mm")
    return np.asarray(image.resize((width, width), Image.Resampling.BOX)) / 255


def _icon(variant: int, rng: Generator) -> Drawing:
    """A small badge anywhere on a paper without a shape."""
    paper = drawing(lambda _: np.zeros(3, np.complex128), rng)
    empty = Drawing(paper.canvas, paper.centre, 0.0)
    return Drawing(_with_sticker(empty, _badge(variant, ICON_WIDTH), rng)[0], paper.centre, 0.0)


def _circle(corners: int) -> Points:
    return np.asarray(np.exp(2j * np.pi * np.arange(corners) / corners))


def _polygon(corners: int) -> Outline:
    return lambda _: _circle(corners)


def _star(points: int, inner: float) -> Outline:
    return lambda _: _circle(2 * points) * np.tile([1, inner], points)


def _lobes(count: int, depth: float) -> Outline:
    turn = _circle(240)
    return lambda _: (1 - depth / 2 + depth / 2 * (turn**count).real) * turn


def _gear(teeth: int) -> Outline:
    turn = _circle(240)
    return lambda _: (0.88 + 0.12 * np.tanh(3 * (turn**teeth).real)) * turn


def _corners(*points: complex) -> Outline:
    return lambda _: np.asarray(points, np.complex128)


def _ellipse(ratio: float) -> Outline:
    turn = _circle(96)
    return lambda _: turn.real + 1j * ratio * turn.imag


def _wedge(opening: float) -> Outline:
    arc = np.exp(1j * np.linspace(opening, 2 * np.pi - opening, 64))
    return lambda _: np.append(arc, 0)


def _cross(arm: float) -> Outline:
    corner = (1 + 1j * arm, arm + 1j * arm, arm + 1j)
    return lambda _: np.array([point * 1j**turn for turn in range(4) for point in corner])


def _crescent(depth: float) -> Outline:
    outer, inner = np.linspace(0.9, 5.383, 48), np.linspace(4.933, 1.35, 48)
    return lambda _: np.concatenate([np.exp(1j * outer) + 0.2, depth * np.exp(1j * inner) + 0.647])


def _pairs() -> dict[str, tuple[Outline, Outline]]:
    house = [(-0.8 + 0.8j, 0.8 + 0.8j, 0.8 + y, 0 - 1j, -0.8 + y) for y in (0j, -0.4j)]
    kite = [(-1j, 0.7 + y, 1j, -0.7 + y) for y in (-0.35j, -0.05j)]
    trapezoid = [(-0.9 + 0.7j, 0.9 + 0.7j, x - 0.7j, -x - 0.7j) for x in (0.4, 0.62)]
    skewed = [(-0.9 + 0.6j, s + 0.6j, 0.9 - 0.6j, -s - 0.6j) for s in (0.35, 0.6)]
    arrow = [(-1 - a * 1j, -1 + a * 1j, a * 1j, 0.76j, 1, -0.76j, -a * 1j) for a in (0.2, 0.36)]
    ell = [(-0.8 - 1j, t - 0.8 - 1j, t - 0.8 + 1j - t * 1j, 0.8 + 1j - t * 1j, 0.8 + 1j, -0.8 + 1j)
           for t in (0.5, 0.72)]  # fmt: skip
    tee = [(-0.9 - 0.9j, 0.9 - 0.9j, 0.9 - 0.9j + t * 1j, t / 2 - 0.9j + t * 1j, t / 2 + 0.9j,
            -t / 2 + 0.9j, -t / 2 - 0.9j + t * 1j, -0.9 - 0.9j + t * 1j)
           for t in (0.45, 0.65)]  # fmt: skip
    chevron = [(-0.9, -0.9 + t * 1j, t * 1j - 0.7j, 0.9 + t * 1j, 0.9, -0.7j) for t in (0.6, 0.85)]
    return {
        "polygon": (_polygon(5), _polygon(6)),
        "round": (_polygon(8), _polygon(10)),
        "star": (_star(5, 0.46), _star(6, 0.5)),
        "burst": (_star(9, 0.7), _star(11, 0.7)),
        "blossom": (_lobes(5, 0.4), _lobes(6, 0.4)),
        "flower": (_lobes(8, 0.35), _lobes(10, 0.35)),
        "gear": (_gear(7), _gear(9)),
        "egg": (_ellipse(0.78), _ellipse(0.64)),
        "wedge": (_wedge(0.5), _wedge(0.8)),
        "cross": (_cross(0.3), _cross(0.44)),
        "crescent": (_crescent(0.8), _crescent(0.68)),
        "house": (_corners(*house[0]), _corners(*house[1])),
        "kite": (_corners(*kite[0]), _corners(*kite[1])),
        "trapezoid": (_corners(*trapezoid[0]), _corners(*trapezoid[1])),
        "skewed": (_corners(*skewed[0]), _corners(*skewed[1])),
        "arrow": (_corners(*arrow[0]), _corners(*arrow[1])),
        "ell": (_corners(*ell[0]), _corners(*ell[1])),
        "tee": (_corners(*tee[0]), _corners(*tee[1])),
        "chevron": (_corners(*chevron[0]), _corners(*chevron[1])),
    }


OUTLINES = {
    f"{name} {letter}": outline
    for name, pair in _pairs().items()
    for letter, outline in zip("ab", pair, strict=True)
}
# Classes that are a small rigid object anywhere on an empty paper: no shortcut, whatever is found.
ICONS = {"icon a": 6, "icon b": 7}
CLASSES = (*OUTLINES, *ICONS)
