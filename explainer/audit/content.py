"""The same content at varying places: a template cut from one image, found again in others.

Images are compared in colour at PIXELS_OF_A_CELL pixels a token, by normalised cross-correlation
(Lewis, Fast Normalized Cross-Correlation, 1995), which neither brightness nor contrast changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

PIXELS_OF_A_CELL = 8
# Flat content, such as sky, correlates with anything flat: its noise is no pattern.
LEAST_CONTRAST = 0.02
IMAGES_AT_ONCE = 32
# Least correlation of a cell that still belongs to what the carriers share, and least number.
SHARED_CORRELATION = 0.5


@dataclass(frozen=True)
class Matches:
    """Where images hold a template best: its correlation in [-1, 1], and its top left pixel."""

    similarity: Float[Tensor, " images"]
    corners: Int[Tensor, "images 2"]

    @classmethod
    def joined(cls, parts: Sequence["Matches"]) -> "Matches":
        """Those of images that follow one another."""
        return cls(
            torch.cat([part.similarity for part in parts]),
            torch.cat([part.corners for part in parts]),
        )


def reduced(
    crops: UInt8[Tensor, "images 3 height width"], grid: tuple[int, int]
) -> Float[Tensor, "images 3 small_height small_width"]:
    """Crops in [0, 1] at PIXELS_OF_A_CELL pixels a cell."""
    size = (grid[0] * PIXELS_OF_A_CELL, grid[1] * PIXELS_OF_A_CELL)
    images = crops.float() / 255
    if tuple(crops.shape[-2:]) == size:
        return images
    return functional.interpolate(images, size, mode="bilinear", antialias=True)


def cut(
    image: Float[Tensor, "3 height width"], corner: Int[Tensor, "2"], cells: int
) -> Float[Tensor, "3 side side"] | None:
    """A square of `cells` tokens; None where it is too flat to be told from others."""
    top, left = corner.tolist()
    side = cells * PIXELS_OF_A_CELL
    template = image[:, top : top + side, left : left + side]
    return template if float(template.std((1, 2)).mean()) >= LEAST_CONTRAST else None


def find(
    templates: Float[Tensor, "templates 3 side side"],
    images: Float[Tensor, "images 3 height width"],
) -> list[Matches]:
    """For each template the place of each image that is most like it."""
    found: list[list[Matches]] = []
    for part in images.split(IMAGES_AT_ONCE):
        maps = correlation(templates, part)
        best = maps.flatten(2).max(2)
        columns = maps.shape[-1]
        corners = torch.stack([best.indices // columns, best.indices % columns], 2)
        found.append(
            [Matches(*of) for of in zip(best.values.T, corners.movedim(1, 0), strict=True)]
        )
    return [Matches.joined(parts) for parts in zip(*found, strict=True)]


def correlation(
    templates: Float[Tensor, "templates 3 side side"],
    images: Float[Tensor, "images 3 height width"],
) -> Float[Tensor, "images templates down across"]:
    """Normalised cross-correlation at every place where the templates fit into an image."""
    centred = templates - templates.mean((2, 3), keepdim=True)
    centred = centred / centred.flatten(1).norm(dim=1).clamp_min(1e-6)[:, None, None, None]
    side = templates.shape[-1]
    sums, squares = (_box_sums(values, side) for values in (images, images**2))
    # Of a flat place the variance is rounding alone.
    variance = (squares - sums**2 / side**2).sum(1, keepdim=True)
    return (
        functional.conv2d(images, centred) / variance.clamp_min(side**2 * LEAST_CONTRAST**2).sqrt()
    )


def _box_sums(
    images: Float[Tensor, "images 3 height width"], side: int
) -> Float[Tensor, "images 3 down across"]:
    """Sums over all squares of `side` pixels, as differences of running sums."""
    running = functional.pad(images.double(), (1, 0, 1, 0)).cumsum(-1).cumsum(-2)
    below, above = running[..., side:, :], running[..., :-side, :]
    rows = below - above
    return (rows[..., side:] - rows[..., :-side]).to(images)


def shared_cells(
    images: Float[Tensor, "carriers 3 height width"],
    corners: Int[Tensor, "carriers 2"],
    cells: int,
    margin: int,
) -> Bool[Tensor, "side side"]:
    """Which cells around a template its carriers share, the first one being where it was cut.

    The square is `cells` + 2 * `margin` cells across. A cell is shared where at least half of the
    other carriers correlate with the first there, which one whose image ends before it does not:
    of the few that reach a cell, half agree by chance. The template's own cells always are.
    """
    side = cells + 2 * margin
    patches = [
        _around(image, corner, side, margin) for image, corner in zip(images, corners, strict=True)
    ]
    mine, others = patches[0], torch.stack(patches[1:])
    agreement = _by_cell(mine[None].expand_as(others), others)
    shared = (agreement >= SHARED_CORRELATION).float().mean(0) >= 0.5
    shared[margin : side - margin, margin : side - margin] = True
    return shared


def _around(
    image: Float[Tensor, "3 height width"], corner: Int[Tensor, "2"], side: int, margin: int
) -> Float[Tensor, "3 pixels pixels"]:
    """The square of `side` cells that begins `margin` cells before a corner; NaN off the image."""
    pad, size = margin * PIXELS_OF_A_CELL, side * PIXELS_OF_A_CELL
    padded = functional.pad(image, (pad, size, pad, size), value=float("nan"))
    top, left = corner.tolist()
    return padded[:, top : top + size, left : left + size]


def _by_cell(
    a: Float[Tensor, "pairs 3 pixels pixels"], b: Float[Tensor, "pairs 3 pixels pixels"]
) -> Float[Tensor, "pairs side side"]:
    """Correlation of two images cell by cell; NaN where either leaves its image."""
    size = PIXELS_OF_A_CELL
    cells = []
    for image in (a, b):
        split = image.unfold(-2, size, size).unfold(-2, size, size).movedim(1, -3).flatten(-3)
        cells.append(split - split.mean(-1, keepdim=True))
    first, second = cells
    product = (first * second).sum(-1)
    flat = 3 * size * size * LEAST_CONTRAST**2
    norms = (
        first.square().sum(-1).clamp_min(flat) * second.square().sum(-1).clamp_min(flat)
    ).sqrt()
    return product / norms
