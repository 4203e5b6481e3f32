"""Regions of an image as masks on the token grid: windows around a cell, and the background."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

# A window's side, and the background's width, as shares of the grid's shorter side.
WINDOW_SHARE, BACKGROUND_SHARE = 0.22, 0.27


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
    """The cells of which a mask of pixels covers a quarter or more: a thin frame has cells, too."""
    return functional.adaptive_avg_pool2d(masks[:, None].float(), grid)[:, 0] >= 0.25
