"""Regions of an image as masks on the token grid: windows around a cell, and fixed ones."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

# Sides of a window and of a frame, as shares of the grid's shorter side.
WINDOW_SHARE, FRAME_SHARE, BACKGROUND_SHARE = 0.22, 0.15, 0.27


def window_side(grid: tuple[int, int]) -> int:
    """Cells across the window that a cue is first looked for in: 3 of 14."""
    return max(2, round(WINDOW_SHARE * min(grid)))


def windows(
    corners: Int[Tensor, "images 2"], side: int, grid: tuple[int, int]
) -> Bool[Tensor, "images rows columns"]:
    """Square windows by their top left cells (row, column)."""
    rows, columns = (torch.arange(size) for size in grid)
    top, left = corners[:, :1], corners[:, 1:]
    in_rows = (rows >= top) & (rows < top + side)
    in_columns = (columns >= left) & (columns < left + side)
    return in_rows[:, :, None] & in_columns[:, None, :]


def around(
    cells: Int[Tensor, " images"], side: int, grid: tuple[int, int]
) -> Int[Tensor, "images 2"]:
    """Top left cells of the windows around cells (row-major indices), moved to lie on the grid."""
    rows, columns = grid
    top = (cells // columns - side // 2).clamp(0, rows - side)
    left = (cells % columns - side // 2).clamp(0, columns - side)
    return torch.stack([top, left], 1)


def fixed(grid: tuple[int, int]) -> Mapping[str, Bool[Tensor, "rows columns"]]:
    """Regions at the same place of every image, from small to large: corners, edges, frame."""
    side, width = window_side(grid), max(1, round(FRAME_SHARE * min(grid)))
    rows, columns = grid
    row, column = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    top, bottom = row < side, row >= rows - side
    left, right = column < side, column >= columns - side
    above, below = row < width, row >= rows - width
    before, after = column < width, column >= columns - width
    everywhere = torch.ones(grid, dtype=torch.bool)
    return {
        "top left corner": top & left,
        "top right corner": top & right,
        "bottom left corner": bottom & left,
        "bottom right corner": bottom & right,
        "top edge": above & everywhere,
        "bottom edge": below & everywhere,
        "left edge": before & everywhere,
        "right edge": after & everywhere,
        "frame": above | below | before | after,
    }


def border(grid: tuple[int, int]) -> Bool[Tensor, "rows columns"]:
    """All fixed regions together."""
    return torch.stack(list(fixed(grid).values())).any(0)


def background(grid: tuple[int, int]) -> Bool[Tensor, "rows columns"]:
    """All but the middle, which is where the object of most photographs is."""
    width = max(1, round(BACKGROUND_SHARE * min(grid)))
    mask = torch.ones(grid, dtype=torch.bool)
    mask[width : grid[0] - width, width : grid[1] - width] = False
    return mask


def to_pixels(
    masks: Bool[Tensor, "images rows columns"], size: tuple[int, int]
) -> Bool[Tensor, "images height width"]:
    """Masks on the token grid as masks of pixels."""
    return functional.interpolate(masks[:, None].float(), size, mode="nearest")[:, 0] > 0.5


def to_cells(
    masks: Bool[Tensor, "images height width"], grid: tuple[int, int]
) -> Bool[Tensor, "images rows columns"]:
    """The cells of which a mask of pixels covers half or more."""
    return functional.adaptive_avg_pool2d(masks[:, None].float(), grid)[:, 0] >= 0.5
