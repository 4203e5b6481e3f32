"""From a window that a few images share to a cue: which pixels are alike, and who carries them.

Carriers are told by the pixels of the window that are alike among them; only then the region is
extended around it, or, where the content lies at one place, over the whole image. Carriers that
were chosen by what surrounds the content would make that alike, too.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from explainer.audit.content import Seed
from explainer.audit.search import Searchable, Template

ROUNDS, PLACED_ROUNDS, MOST_MEMBERS = 3, 2, 24
# Of the carriers of a window so many are those of the whole, too.
KEPT_SHARE = 0.7
SPARSE = 16  # pixels between those of other classes' images that stand for all of theirs
# A pixel is alike where three quarters of the members are so near their median, in [0, 1], and
# nearer by so much than half of other classes' images are. Farther than FAR counts as FAR.
ALIKE_SHARE, ALIKE, NEARER = 0.75, 0.08, 0.4
FAR = 0.12
# A carrier is more like the cue than this share of other classes' images, and at least so much.
OF_OTHERS, LEAST_LIKENESS = 0.99, 0.35
LEAST_CARRIERS = 2
LEAST_AROUND, MOST_AROUND = 0.45, 0.65
# What is alike all over is the same image, and nothing of it.
MOST_OF_IMAGE = 0.6
LEAST_PIXELS = 8
CLOSED = 2  # half the width of the holes that are filled
# Cells around a window that may belong to the cue; those of one place lie within so many cells.
MARGIN, FIXED_CELLS, FIXED_SHARE = 2, 1.0, 0.8
LEAST_TO_ALIGN = 4  # so many images are alike at one place by more than chance
# Content whose typical carrier is so far above the threshold is there or not, as what was put into
# images is; objects that look alike differ by degrees, down to those of other classes.
LEAST_GAP = 0.3


@dataclass(frozen=True)
class Gallery:
    """Reduced images of a class and of others; `discovery` is half of the former.

    `cell`: pixels across a token.
    """

    mine: Float[Tensor, "images 3 height width"]
    theirs: Float[Tensor, "others 3 height width"]
    discovery: Bool[Tensor, " images"]
    cell: int

    @property
    def size(self) -> tuple[int, int]:
        return (self.mine.shape[-2], self.mine.shape[-1])

    @cached_property
    def searchable(self) -> tuple[Searchable, Searchable]:
        """Both, as they are searched for templates."""
        return Searchable.of(self.mine), Searchable.of(self.theirs)


@dataclass(frozen=True)
class Likeness:
    """How much each image holds of a template: 1 all, 0 as little as other classes' typical one."""

    mine: Float[Tensor, " images"]
    theirs: Float[Tensor, " others"]
    corners: Int[Tensor, "images 2"]
    least: float = LEAST_LIKENESS

    @property
    def threshold(self) -> float:
        """The likeness that a carrier has, from that of images that are none."""
        return max(self.least, float(self.theirs.quantile(OF_OTHERS)))

    @property
    def carriers(self) -> Bool[Tensor, " images"]:
        return self.mine >= self.threshold

    @property
    def gap(self) -> float:
        """How far the typical carrier is above the threshold; 0 without carriers."""
        held = self.mine[self.carriers]
        return float(held.median()) - self.threshold if len(held) else 0.0


@dataclass(frozen=True)
class Grown:
    """A cue in reduced images: likeness, region, centre in cells, and whether at one place."""

    likeness: Likeness
    masks: Bool[Tensor, "images height width"]
    places: Float[Tensor, "images 2"]
    is_fixed: bool


def grow(seed: Seed, gallery: Gallery) -> Grown | None:
    """The cue that a seed's windows belong to; None where they share too little, or by chance."""
    placed = _of_aligned(seed, gallery)
    if placed is not None and placed.likeness.gap >= LEAST_GAP:
        return placed
    side = seed.side
    images = [window.image for window in seed.windows]
    corners = torch.tensor([(window.top, window.left) for window in seed.windows])
    anywhere = gallery.theirs[:, :, ::SPARSE, ::SPARSE].movedim(1, -1).reshape(-1, 3, 1, 1)
    for _ in range(ROUNDS):
        windows = cut(gallery.mine[images], corners, side)
        core = template(windows, anywhere)
        if int(core.mask.sum()) < LEAST_PIXELS:
            return None
        held = likeness(core, gallery)
        members = held.carriers & gallery.discovery & _inside(held.corners, side, gallery.size)
        if int(members.sum()) < LEAST_CARRIERS:
            return None
        chosen = torch.nonzero(members).flatten()[:MOST_MEMBERS]
        images, corners = chosen.tolist(), held.corners[chosen]
    places = (held.corners + _centre(core.mask)) / gallery.cell
    fixed = _at_one_place(core, held, places, chosen, gallery)
    return fixed or _moving(core, held, places, chosen, gallery, anywhere)


def _of_aligned(seed: Seed, gallery: Gallery) -> Grown | None:
    """The cue over the whole image, where enough windows lie at the very same place; else None.

    What is as plain as a tag's paper is alike in windows anywhere, which hide where it is.
    """
    places = {(window.top, window.left) for window in seed.windows}
    if len(places) > 1 or len(seed.windows) < LEAST_TO_ALIGN:
        return None
    chosen = torch.tensor([window.image for window in seed.windows])
    return _over_image(chosen, LEAST_PIXELS, KEPT_SHARE * len(chosen), gallery)


def template(
    members: Float[Tensor, "members 3 height width"],
    others: Float[Tensor, "others 3 down across"],
) -> Template:
    """The members' median, and where they are alike and others' pixels are not.

    `others` are images of the same size, or single pixels; NaN, off an image, is like nothing.
    """
    median = members.nanmedian(0).values
    away = (members - median).abs().mean(1).nan_to_num(nan=float("inf"))
    spread = away.kthvalue(max(1, round(ALIKE_SHARE * len(members))), 0).values
    strange = (others - median).abs().mean(1).median(0).values
    alike = (spread <= ALIKE) & (spread < NEARER * strange)
    share = functional.avg_pool2d(alike[None, None].float(), 3, 1, 1, count_include_pad=False)
    around = share[0, 0]
    # A line along the border stays, single pixels go, and small holes are filled.
    mask = (alike & (around >= LEAST_AROUND)) | (around >= MOST_AROUND)
    return Template(median.nan_to_num(), mask)


def likeness(found: Template, gallery: Gallery) -> Likeness:
    """How much each image holds of a template at the place that holds most of it."""
    mine, theirs = (images.distances(found) for images in gallery.searchable)
    best = mine.flatten(1).min(1)
    others = theirs.flatten(1).min(1).values
    across = mine.shape[-1]
    top, left = (int(cells.min()) for cells in torch.nonzero(found.mask, as_tuple=True))
    corners = torch.stack([best.indices // across - top, best.indices % across - left], 1)
    return _likeness(best.values, others, corners)


def _likeness(mine: Tensor, others: Tensor, corners: Int[Tensor, "images 2"]) -> Likeness:
    typical = others.median().clamp_min(1e-4)
    return Likeness(1 - mine / typical, 1 - others / typical, corners)


def _at_one_place(
    core: Template,
    held: Likeness,
    places: Float[Tensor, "images 2"],
    chosen: Int[Tensor, " members"],
    gallery: Gallery,
) -> Grown | None:
    """The cue over the whole image, where its carriers are alike at one place; else None."""
    together = are_together(places[chosen])
    if not together and len(chosen) < LEAST_TO_ALIGN:
        return None
    least = LEAST_PIXELS if together else int(core.mask.sum())
    kept = KEPT_SHARE * int((held.carriers & gallery.discovery).sum())
    return _over_image(chosen, least, kept, gallery)


def _over_image(
    chosen: Int[Tensor, " members"], least: int, kept: float, gallery: Gallery
) -> Grown | None:
    """What some images hold alike at its own place, of so many pixels and carriers at least."""
    for _ in range(PLACED_ROUNDS):
        whole = template(gallery.mine[chosen], gallery.theirs)
        if int(whole.mask.sum()) < least or float(whole.mask.float().mean()) > MOST_OF_IMAGE:
            return None
        found = in_place(whole, gallery)
        members = torch.nonzero(found.carriers & gallery.discovery).flatten()
        if len(members) < kept:
            return None
        chosen = members[:MOST_MEMBERS]
    masks = closed(whole.mask).expand(len(gallery.mine), -1, -1)
    centres = (_centre(whole.mask) / gallery.cell).expand(len(gallery.mine), -1)
    return Grown(found, masks, centres, is_fixed=True)


def in_place(whole: Template, gallery: Gallery) -> Likeness:
    """How much each image holds of a template as large as the images, at the template's own place.

    A pixel far away counts as one that is unlike: pixels of a seam are blends with what is beside
    it, which differs.
    """
    mine, theirs = (
        (images - whole.pixels).abs().mean(1).clamp(max=FAR)[:, whole.mask].mean(1)
        for images in (gallery.mine, gallery.theirs)
    )
    return _likeness(mine, theirs, torch.zeros(len(mine), 2, dtype=torch.long))


def _moving(
    core: Template,
    held: Likeness,
    places: Float[Tensor, "images 2"],
    chosen: Int[Tensor, " members"],
    gallery: Gallery,
    anywhere: Float[Tensor, "pixels 3 1 1"],
) -> Grown:
    """The cue with what surrounds it alike in its carriers, at each image's own place."""
    margin = MARGIN * gallery.cell
    side = len(core.mask) + 2 * margin
    padded = functional.pad(gallery.mine, (side,) * 4, value=float("nan"))
    corners = held.corners - margin
    around = cut(padded[chosen], corners[chosen] + side, side)
    mask = template(around, anywhere).mask
    mask[margin : side - margin, margin : side - margin] |= core.mask
    return Grown(held, stamped(closed(mask), corners, gallery.size), places, is_fixed=False)


def stamped(
    mask: Bool[Tensor, "side side"], corners: Int[Tensor, "images 2"], size: tuple[int, int]
) -> Bool[Tensor, "images height width"]:
    """A square region at each image's place, by its top left pixel; what lies off it is cut."""
    (height, width), side = size, len(mask)
    sheets = torch.zeros(len(corners), height + 2 * side, width + 2 * side, dtype=torch.bool)
    for sheet, (top, left) in zip(sheets, (corners + side).tolist(), strict=True):
        sheet[top : top + side, left : left + side] = mask
    return sheets[:, side : side + height, side : side + width]


def closed(mask: Bool[Tensor, "height width"], reach: int = CLOSED) -> Bool[Tensor, "height width"]:
    """A region without its small holes, such as the letters of a tag, which differ."""
    size = 2 * reach + 1
    wide = functional.max_pool2d(mask[None, None].float(), size, 1, reach)
    return -functional.max_pool2d(-wide, size, 1, reach)[0, 0] > 0.5


def are_together(places: Float[Tensor, "carriers 2"]) -> bool:
    """Whether most places, in cells, are the same; a few may be no carriers'."""
    away = (places - places.median(0).values).abs().amax(1)
    return float((away <= FIXED_CELLS).float().mean()) >= FIXED_SHARE


def cut(
    images: Float[Tensor, "members 3 height width"], corners: Int[Tensor, "members 2"], side: int
) -> Float[Tensor, "members 3 side side"]:
    """A square of each image by its top left pixel."""
    return torch.stack(
        [
            image[:, top : top + side, left : left + side]
            for image, (top, left) in zip(images, corners.tolist(), strict=True)
        ]
    )


def _inside(
    corners: Int[Tensor, "images 2"], side: int, size: tuple[int, int]
) -> Bool[Tensor, " images"]:
    return ((corners >= 0) & (corners + side <= torch.tensor(size))).all(1)


def _centre(mask: Bool[Tensor, "height width"]) -> Float[Tensor, "2"]:
    """Of a mask's box, in pixels."""
    rows, columns = torch.nonzero(mask, as_tuple=True)
    return torch.tensor(
        [float(rows.min() + rows.max() + 1) / 2, float(columns.min() + columns.max() + 1) / 2]
    )
