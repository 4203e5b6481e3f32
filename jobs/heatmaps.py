"""Pictures of class heatmaps: PNG files, and a rendering for the terminal."""

import io

import numpy as np
from numpy.typing import NDArray
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
