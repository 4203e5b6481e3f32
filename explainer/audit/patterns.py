"""A cue by its pattern: what correlates with a window, where the colours are not alike.

What is half transparent varies with what is behind it; normalised cross-correlation (Lewis, Fast
Normalized Cross-Correlation, 1995) sees the pattern all the same.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from explainer.audit.content import FLAT, Seed
from explainer.audit.growth import (
    LEAST_CARRIERS,
    MARGIN,
    Gallery,
    Grown,
    Likeness,
    are_together,
    cut,
    stamped,
)

# A carrier's least correlation, and that of a cell which carriers share.
LEAST_CORRELATION, SHARED_CORRELATION = 0.6, 0.5
IMAGES_AT_ONCE = 32


def patterns(seeds: Sequence[Seed], gallery: Gallery) -> list[tuple[str, Grown]]:
    """What seeds of one size of window are as cues, by origin, where enough images hold it."""
    if not seeds:
        return []
    firsts = [seed.windows[0] for seed in seeds]
    corners = torch.tensor([(window.top, window.left) for window in firsts])
    templates = cut(gallery.mine[[w.image for w in firsts]], corners, seeds[0].side)
    ours, others = (_best(templates, images) for images in (gallery.mine, gallery.theirs))
    found = []
    for number, (seed, window) in enumerate(zip(seeds, firsts, strict=True)):
        held = Likeness(ours[0][:, number], others[0][:, number], ours[1][:, number],
                        LEAST_CORRELATION)  # fmt: skip
        if int((held.carriers & gallery.discovery).sum()) >= LEAST_CARRIERS:
            found.append((seed.origin, _grown(held, window.image, seed.side, gallery)))
    return found


def _best(
    templates: Float[Tensor, "templates 3 side side"],
    images: Float[Tensor, "images 3 height width"],
) -> tuple[Float[Tensor, "images templates"], Int[Tensor, "images templates 2"]]:
    """The largest correlation of each image with each template, and its top left pixel."""
    values, corners = [], []
    for part in images.split(IMAGES_AT_ONCE):
        maps = correlation(templates, part)
        best = maps.flatten(2).max(2)
        across = maps.shape[-1]
        values.append(best.values)
        corners.append(torch.stack([best.indices // across, best.indices % across], 2))
    return torch.cat(values), torch.cat(corners)


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
    return functional.conv2d(images, centred) / variance.clamp_min(side**2 * FLAT**2).sqrt()


def _box_sums(
    images: Float[Tensor, "images 3 height width"], side: int
) -> Float[Tensor, "images 3 down across"]:
    """Sums over all squares of `side` pixels, as differences of running sums."""
    running = functional.pad(images.double(), (1, 0, 1, 0)).cumsum(-1).cumsum(-2)
    below, above = running[..., side:, :], running[..., :-side, :]
    rows = below - above
    return (rows[..., side:] - rows[..., :-side]).to(images)


def _grown(held: Likeness, first: int, side: int, gallery: Gallery) -> Grown:
    """The cue around a template that was cut from the image `first`."""
    cells = side // gallery.cell
    carriers = torch.nonzero(held.carriers & gallery.discovery).flatten()
    order = torch.cat([torch.tensor([first]), carriers[carriers != first]])
    shape = shared_cells(gallery.mine[order], held.corners[order], cells, gallery.cell)
    places = held.corners / gallery.cell + cells / 2
    pixels = shape.repeat_interleave(gallery.cell, 0).repeat_interleave(gallery.cell, 1)
    masks = stamped(pixels, held.corners - MARGIN * gallery.cell, gallery.size)
    return Grown(held, masks, places, are_together(places[carriers]))


def shared_cells(
    images: Float[Tensor, "carriers 3 height width"],
    corners: Int[Tensor, "carriers 2"],
    cells: int,
    cell: int,
) -> Bool[Tensor, "side side"]:
    """Which cells around a template its carriers share, the first one being where it was cut.

    The square is `cells` + 2 * MARGIN cells of `cell` pixels across. A cell is shared where at
    least half of the other carriers correlate with the first there, which one whose image ends
    before it does not: of the few that reach a cell, half agree by chance. The template's own
    cells always are.
    """
    side = cells + 2 * MARGIN
    reach = side * cell
    padded = functional.pad(images, (reach,) * 4, value=float("nan"))
    patches = cut(padded, corners + reach - MARGIN * cell, reach)
    mine, others = patches[0], patches[1:]
    agreement = _by_cell(mine[None].expand_as(others), others, cell)
    shared = (agreement >= SHARED_CORRELATION).float().mean(0) >= 0.5
    shared[MARGIN : side - MARGIN, MARGIN : side - MARGIN] = True
    return shared


def _by_cell(
    a: Float[Tensor, "pairs 3 pixels pixels"], b: Float[Tensor, "pairs 3 pixels pixels"], size: int
) -> Float[Tensor, "pairs side side"]:
    """Correlation of two images cell by cell; NaN where either leaves its image."""
    cells = []
    for image in (a, b):
        split = image.unfold(-2, size, size).unfold(-2, size, size).movedim(1, -3).flatten(-3)
        cells.append(split - split.mean(-1, keepdim=True))
    first, second = cells
    product = (first * second).sum(-1)
    flat = 3 * size * size * FLAT**2
    norms = (
        first.square().sum(-1).clamp_min(flat) * second.square().sum(-1).clamp_min(flat)
    ).sqrt()
    return product / norms
