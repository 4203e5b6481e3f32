"""Where a cue lies in an image: the cells of its carrier as rectangles of the image's pixels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainer.preprocess import Box
from jobs.export_findings import Carrier
from jobs.export_plan import Exported

Place = tuple[int, int, int, int]  # first row and column, and those after the last


def cells_in_pixels(exported: Exported, carrier: Carrier, image: Mapping[str, Any]) -> list[Box]:
    """The cells of a carrier's cue as rectangles of its image, which do not overlap.

    In pixels of the file as stored, EXIF orientation not applied, without what lies beyond it.
    """
    rows, columns = exported.grid
    height, width = image["height"], image["width"]
    left, top, right, bottom = exported.finished.preprocessing.seen(height, width)
    across, down = (right - left) / columns, (bottom - top) / rows
    boxes = []
    for first_row, first_column, last_row, last_column in rectangles(
        np.array(carrier.cells, bool).reshape(rows, columns)
    ):
        box = (
            max(left + first_column * across, 0.0),
            max(top + first_row * down, 0.0),
            min(left + last_column * across, float(width)),
            min(top + last_row * down, float(height)),
        )
        if box[0] < box[2] and box[1] < box[3]:
            boxes.append(box)
    return boxes


def rectangles(cells: NDArray[np.bool_]) -> list[Place]:
    """Rectangles that cover just these cells: runs along rows, joined with equal ones below."""
    done: list[Place] = []
    growing: dict[tuple[int, int], int] = {}  # from columns to the first row
    for row in range(len(cells) + 1):
        runs = _runs(cells[row]) if row < len(cells) else []
        for ended in [columns for columns in growing if columns not in runs]:
            done.append((growing.pop(ended), ended[0], row, ended[1]))
        for columns in runs:
            growing.setdefault(columns, row)
    return sorted(done)


def _runs(line: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Where stretches of cells begin, and where they end."""
    steps = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(steps[::2], steps[1::2], strict=True)]
