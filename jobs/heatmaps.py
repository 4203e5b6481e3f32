"""Pictures of class heatmaps as PNG files, and of maps and images for the terminal."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.color import Color
from rich.style import Style
from rich.text import Text

from explainer.plot import colours, heatmap

LONGEST_NAME = 40


def png(mean: NDArray[np.floating], name: str, count: int) -> bytes:
    """A class's mean saliency map [rows, columns] with its scale from 0 to 1 and a caption."""
    short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
    file = io.BytesIO()
    heatmap(mean, f"{short}: mean saliency of {count} images").save(file, "PNG")
    return file.getvalue()


SHADES = " ░▒▓█"


def terminal(mean: NDArray[np.floating]) -> Text:
    """A map [rows, columns] as coloured shades, two characters a cell, scaled to its own range."""
    low, high = mean.min(), mean.max()
    scaled = (mean - low) / (high - low) if high > low else np.zeros_like(mean)
    lines = []
    for values, rgb in zip(scaled, colours(scaled), strict=True):
        line = Text()
        for value, (red, green, blue) in zip(values, rgb, strict=True):
            shade = SHADES[round(float(value) * (len(SHADES) - 1))]
            line.append(2 * shade, style=f"rgb({red},{green},{blue})")
        lines.append(line)
    return Text("\n").join(lines)


def blocks(image: Image.Image, columns: int, lines: int) -> Text:
    """An image in two coloured halves a character, as large as fits into so many of them."""
    factor = min(columns / image.width, 2 * lines / image.height)
    width = max(1, round(factor * image.width))
    height = 2 * max(1, round(factor * image.height / 2))
    small = np.asarray(image.resize((width, height), Image.Resampling.BOX)).tolist()
    drawn = []
    for upper, lower in zip(small[::2], small[1::2], strict=True):
        line = Text()
        for above, below in zip(upper, lower, strict=True):
            line.append("▀", Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
        drawn.append(line)
    return Text("\n").join(drawn)
