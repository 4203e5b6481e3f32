"""Pictures of class heatmaps: PNG files, and a rendering for the terminal."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.text import Text

from explainer.plot import colours

CELL_SIDE = 24
MARGIN = 12
SCALE_WIDTH = 14


def png(mean: NDArray[np.floating], name: str, count: int) -> bytes:
    """A class's mean saliency map [rows, columns] with its scale from 0 to 1 and a caption."""
    rows, columns = mean.shape
    cells = Image.fromarray(colours(mean)).resize(
        (columns * CELL_SIDE, rows * CELL_SIDE), Image.Resampling.NEAREST
    )
    font = ImageFont.load_default(14)
    caption = f"{name if len(name) <= 40 else name[:39] + '…'}: mean saliency of {count} images"
    width = max(cells.width + SCALE_WIDTH + 3 * MARGIN + 24, round(font.getlength(caption)) + 24)
    picture = Image.new("RGB", (width, cells.height + 2 * MARGIN + 24), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN - 2), caption, "black", font)
    top, left = MARGIN + 24, MARGIN
    picture.paste(cells, (left, top))
    scale = Image.fromarray(colours(np.linspace(1, 0, cells.height)[:, None]))
    bar = left + cells.width + MARGIN
    picture.paste(scale.resize((SCALE_WIDTH, cells.height)), (bar, top))
    draw.text((bar + SCALE_WIDTH + 4, top - 4), "1", "black", font)
    draw.text((bar + SCALE_WIDTH + 4, top + cells.height - 14), "0", "black", font)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


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
