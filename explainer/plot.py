"""Pictures of saliency: its colours, maps laid over images, and class heatmaps.

Arrays in, images or matplotlib figures out; pyplot and its state are left alone.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from explainer.lettering import fitted, font, legible
from explainer.preprocess import Box

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Perceptually uniform: inferno for saliency, berlin for differences (Crameri, Scientific colour
# maps, 2018), whose middle is dark.
Scale = Literal["inferno", "berlin"]
STRENGTH, UNSEEN = 0.7, 0.35
# A photograph of 100 million pixels would take gigabytes as floats.
PIXELS_AT_ONCE = 2**20
LETTERS, MARGIN, BAR, CELL = 14, 12, 14, 24
# Smaller images are enlarged, and captions have so many pixels at least.
LEAST_SIDE, LEAST_WIDTH = 320, 480


def colours(values: Float[np.ndarray, "..."], scale: Scale = "inferno") -> UInt8[np.ndarray, "..."]:
    """Red, green and blue of values in [0, 1], on a new last axis; berlin's middle is 0.5."""
    import matplotlib  # takes half a second, and most that decode draw nothing

    return np.asarray(matplotlib.colormaps[scale](values, bytes=True)[..., :3])


def overlay(
    pixels: UInt8[np.ndarray, "height width 3"],
    saliency: Float[np.ndarray, "rows columns"],
    seen: Box,
) -> Image.Image:
    """An image with its saliency map in [0, 1] over the part that the model has seen.

    `pixels` is the whole image at any size, and `seen` that part of it in its pixels, such as
    Preprocessing.seen; what lies outside is darkened. Colour covers more where saliency is larger.
    """
    height, width = pixels.shape[:2]
    left, top, right, bottom = seen
    down = _weights(saliency.shape[0], height, top, bottom)
    across = saliency @ _weights(saliency.shape[1], width, left, right).T
    row, column = np.arange(height) + 0.5, np.arange(width) + 0.5
    rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
    shown = np.empty_like(pixels)
    together = max(1, PIXELS_AT_ONCE // width)
    for start in range(0, height, together):
        band = slice(start, start + together)
        values = down[band] @ across
        alpha = (STRENGTH * values)[..., None]
        blended = (1 - alpha) * pixels[band] + alpha * colours(values)
        inside = (rows[band, None] & columns)[..., None]
        shown[band] = np.where(inside, blended, UNSEEN * pixels[band]).round()
    return Image.fromarray(shown)


def spread(
    saliency: Float[np.ndarray, "rows columns"], size: tuple[int, int], seen: Box
) -> Float[np.ndarray, "height width"]:
    """A map at every pixel of an image of `size` (height, width), linear between the middles of its
    cells, which divide `seen`; beyond the outermost middles it goes on unchanged."""
    left, top, right, bottom = seen
    down = _weights(saliency.shape[0], size[0], top, bottom)
    across = _weights(saliency.shape[1], size[1], left, right)
    return np.asarray(down @ saliency @ across.T)


def _weights(
    cells: int, pixels: int, start: float, end: float
) -> Float[np.ndarray, "pixels cells"]:
    """What each cell adds to each pixel along one side; the weights of a pixel sum to 1."""
    places = (np.arange(pixels) + 0.5 - start) / (end - start) * cells - 0.5
    places = np.clip(places, 0, cells - 1)
    return np.clip(1 - np.abs(places[:, None] - np.arange(cells)), 0, 1)


def beside(
    pixels: UInt8[np.ndarray, "height width 3"],
    saliency: Float[np.ndarray, "rows columns"],
    seen: Box,
    caption: Sequence[str],
    ends: tuple[str, str] = ("0", "1"),
) -> Image.Image:
    """An image, its overlay and the scale, below the lines of a caption.

    Sizes are those of `pixels`, or a whole multiple for images of less than LEAST_SIDE. A wide
    image lies above its overlay. `ends` are written at the ends of the scale.
    """
    height, width = pixels.shape[:2]
    factor = max(1, -(-LEAST_SIDE // max(height, width)))
    large = pixels.repeat(factor, 0).repeat(factor, 1)
    left, top, right, bottom = (factor * side for side in seen)
    covered = overlay(large, saliency, (left, top, right, bottom))
    is_wide = width > 2 * height
    size = max(LETTERS, (1 if is_wide else 2) * covered.width // 64)
    bar = _bar(covered.height, ends, size)
    down, across = (covered.height + MARGIN, 0) if is_wide else (0, covered.width + MARGIN)
    place = MARGIN + len(caption) * 3 * size // 2 + MARGIN // 2
    sheet = Image.new(
        "RGB",
        (
            max(across + covered.width + bar.width + 3 * MARGIN, LEAST_WIDTH),
            place + down + covered.height + MARGIN,
        ),
        "white",
    )
    sheet.paste(Image.fromarray(large), (MARGIN, place))
    sheet.paste(covered, (MARGIN + across, place + down))
    sheet.paste(bar, (MARGIN + across + covered.width + MARGIN, place + down))
    _write(sheet, caption, size)
    return sheet


def heatmap(mean: Float[np.ndarray, "rows columns"], caption: str) -> Image.Image:
    """A map in [0, 1], cell by cell, with its scale and a caption, as wide as that needs."""
    rows, columns = mean.shape
    cells = Image.fromarray(colours(mean)).resize(
        (columns * CELL, rows * CELL), Image.Resampling.NEAREST
    )
    bar = _bar(cells.height, ("0", "1"), LETTERS)
    letters = round(font(LETTERS).getlength(legible(caption)))
    width = max(cells.width + bar.width + MARGIN, letters + 1) + 2 * MARGIN
    place = 2 * MARGIN + LETTERS
    sheet = Image.new("RGB", (width, place + cells.height + MARGIN), "white")
    sheet.paste(cells, (MARGIN, place))
    sheet.paste(bar, (cells.width + 2 * MARGIN, place))
    _write(sheet, [caption], LETTERS)
    return sheet


def figure(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    saliency: Float[np.ndarray, "images maps rows columns"],
    titles: Sequence[Sequence[str]] = (),
    seen: Sequence[Box] = (),
) -> "Figure":
    """A row an image: it, and each of its maps laid over it; on the right the scale.

    `titles` are those of an image and of its maps; `seen` is by image the part that the model has
    seen, all of it where none is given, as of crops. Raises ValueError where the numbers differ.
    """
    from matplotlib.figure import Figure

    count, maps = saliency.shape[:2]
    named = [list(of_image) for of_image in titles] or [[""] * (maps + 1)] * count
    boxes = list(seen) or [(0.0, 0.0, float(i.shape[1]), float(i.shape[0])) for i in images]
    if not count == len(images) == len(named) == len(boxes):
        raise ValueError(
            f"images, saliency, titles and seen must be as many; got {len(images)}, {count}, "
            f"{len(named)} and {len(boxes)}"
        )
    if any(len(of_image) != maps + 1 for of_image in named):
        raise ValueError(f"titles must be {maps + 1} an image: its own, and one for each map")
    drawn = Figure(figsize=(2.4 * (maps + 1) + 0.8, 2.6 * count), layout="constrained")
    panels = drawn.subplots(count, maps + 1, squeeze=False)
    for row, image, of_image, box, names in zip(
        panels, images, saliency, boxes, named, strict=True
    ):
        pictures = [Image.fromarray(image), *(overlay(image, each, box) for each in of_image)]
        for axes, picture, name in zip(row, pictures, names, strict=True):
            axes.imshow(picture)
            _plain(axes, name)
    _colour_bar(drawn, list(panels.flat), "inferno", 0.0, 1.0)
    return drawn


def class_heatmaps(means: Mapping[str, Float[np.ndarray, "rows columns"]]) -> "Figure":
    """Class heatmaps beside each other, by their titles, on one scale from 0 to 1."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(2.4 * len(means) + 0.8, 2.8), layout="constrained")
    panels = drawn.subplots(1, len(means), squeeze=False)[0]
    for axes, (title, mean) in zip(panels, means.items(), strict=True):
        axes.imshow(mean, cmap="inferno", vmin=0, vmax=1)
        _plain(axes, title)
    _colour_bar(drawn, list(panels), "inferno", 0.0, 1.0)
    return drawn


def difference(
    first: Float[np.ndarray, "rows columns"],
    second: Float[np.ndarray, "rows columns"],
    title: str = "",
) -> "Figure":
    """Where one class heatmap is larger (red) or smaller (blue) than another."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(3.4, 2.8), layout="constrained")
    axes, change = drawn.subplots(), first - second
    largest = float(np.abs(change).max()) or 1.0
    axes.imshow(change, cmap="berlin", vmin=-largest, vmax=largest)
    _plain(axes, title)
    _colour_bar(drawn, [axes], "berlin", -largest, largest)
    return drawn


def _colour_bar(
    drawn: "Figure", panels: "list[Axes]", scale: Scale, low: float, high: float
) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = drawn.colorbar(ScalarMappable(Normalize(low, high), scale), ax=panels, shrink=0.8)
    bar.set_label("saliency" if scale == "inferno" else "difference in saliency", fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _plain(axes: "Axes", title: str) -> None:
    """No ticks, and a title that is text: to matplotlib a $ would begin a formula."""
    axes.set_axis_off()
    axes.set_title(fitted(title, LETTERS, 220), fontsize=9, parse_math=False)


def _bar(height: int, ends: tuple[str, str], size: int) -> Image.Image:
    """The scale, `height` pixels high, and on its right what stands at its lower and upper end."""
    width, (least, largest) = max(BAR, size), map(legible, ends)
    letters = max(font(size).getlength(text) for text in (least, largest))
    bar = Image.new("RGB", (width + 6 + round(letters), height), "white")
    shades = Image.fromarray(colours(np.linspace(1, 0, height)[:, None]))
    bar.paste(shades.resize((width, height)), (0, 0))
    pen = ImageDraw.Draw(bar)
    pen.text((width + 4, 0), largest, "black", font(size), anchor="lt")
    pen.text((width + 4, height - 1), least, "black", font(size), anchor="ls")
    return bar


def _write(sheet: Image.Image, lines: Sequence[str], size: int) -> None:
    """Lines of text at the top of a sheet."""
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        place = MARGIN, MARGIN + number * 3 * size // 2
        pen.text(place, fitted(line, size, sheet.width - 2 * MARGIN), "black", font(size))
