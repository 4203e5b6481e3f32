"""A mark at one place, told by the edges that a class's images have on average and others have not.

What is half transparent, or lies on few of the images, is alike in no window of two of them; in the
mean of a hundred, objects and papers blur, and what stays at its place is left (Dekel et al., On
the Effectiveness of Visible Watermarks, CVPR 2017, who estimate a watermark by the median gradient
of the images that hold it).

Shapes: C = 6 edges a pixel, of three channels, to the right and downwards.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from explainer.audit.growth import (
    LEAST_PIXELS,
    PLACED_ROUNDS,
    Gallery,
    Grown,
    Likeness,
    closed,
    in_place,
    template,
)

ROUNDS = 3
# Chi-square of a pixel's six mean edges against other classes', averaged with its neighbours': that
# of two groups of the same pictures stays below, at all places of an image.
LEAST_CHI_SQUARE = 30.0
OF_LARGEST = 0.2  # a mark's weaker parts have so much of its largest
LEAST_CORRELATION, LEAST_CARRIERS = 0.3, 4
SMOOTH, REACH, RIDGE = 3, 3, 1e-3
# Other classes' images so many deviations beyond most hold the mark, too, and tell nothing of it.
BEYOND, OF_NORMAL = 5.0, 1.4826
# Of a mark's carriers at least all but so many have edges there, so much of what is typical.
PLAIN_SHARE, PLAIN = 0.1, 0.5
OPAQUE = 0.3  # of an opaque mark's region so much, at least, is alike in the images that hold it


def mark(gallery: Gallery) -> Grown | None:
    """The mark that a class's discovery half holds; None where its mean edges are like others'."""
    mine, theirs = edges(gallery.mine), edges(gallery.theirs)
    typical, spread = theirs.mean(0), (theirs.var(0) + RIDGE).sqrt()
    members = torch.nonzero(gallery.discovery).flatten()
    for _ in range(ROUNDS):
        strength = chi_square(mine[members], theirs)
        region = strength >= max(LEAST_CHI_SQUARE, OF_LARGEST * float(strength.max()))
        if int(region.sum()) < LEAST_PIXELS:
            return None
        pattern = region * (mine[members].mean(0) - typical) / spread
        held, others = (
            _correlation((each - typical) / spread * region, pattern) for each in (mine, theirs)
        )
        nowhere = torch.zeros(len(mine), 2, dtype=torch.long)
        likeness = Likeness(held, _without(others), nowhere, LEAST_CORRELATION)
        members = torch.nonzero(likeness.carriers & gallery.discovery).flatten()
        if len(members) < LEAST_CARRIERS:
            return None
    whole = closed(region, REACH)
    centre = torch.nonzero(whole).float().mean(0) / gallery.cell
    count = len(mine)
    likeness = _of_opaque(whole, members, gallery) or likeness
    return Grown(likeness, whole.expand(count, -1, -1), centre.expand(count, -1), is_fixed=True)


def _of_opaque(
    region: Bool[Tensor, "height width"], members: Int[Tensor, " members"], gallery: Gallery
) -> Likeness | None:
    """Likeness by the pixels that an opaque mark's carriers have alike; None where these are few.

    Its edges change their sign where what is behind it is lighter than the mark, so that they miss
    carriers. What is not opaque has less alike than its edges tell, and fewer carriers then.
    """
    least = max(LEAST_CARRIERS, len(members))
    drawn = (edges(gallery.mine) * region).flatten(1).norm(dim=1)
    typical = float(drawn[members].median())
    for _ in range(PLACED_ROUNDS):
        alike = template(gallery.mine[members], gallery.theirs)
        alike = replace(alike, mask=alike.mask & region)
        if int(alike.mask.sum()) < max(LEAST_PIXELS, OPAQUE * int(region.sum())):
            return None
        found = in_place(alike, gallery)
        members = torch.nonzero(found.carriers & gallery.discovery).flatten()
        if len(members) < least:
            return None
        # A class's plain background is alike, too, but has no edges where the mark is.
        if float(drawn[found.carriers].quantile(PLAIN_SHARE)) < PLAIN * typical:
            return None
    return found


def edges(
    images: Float[Tensor, "images 3 height width"],
) -> Float[Tensor, "images 6 height width"]:
    """Differences of neighbours, each at the pixel before the edge; none at the last ones."""
    right = functional.pad(images[..., 1:] - images[..., :-1], (0, 1))
    down = functional.pad(images[..., 1:, :] - images[..., :-1, :], (0, 0, 0, 1))
    return torch.cat([right, down], 1)


def chi_square(
    mine: Float[Tensor, "images 6 height width"], theirs: Float[Tensor, "others 6 height width"]
) -> Float[Tensor, "height width"]:
    """How far mean edges of two groups differ around each pixel, in squared standard errors."""
    error = sum(each.var(0) / len(each) for each in (mine, theirs)) + RIDGE**2
    squares = ((mine.mean(0) - theirs.mean(0)).square() / error).sum(0)
    around = functional.avg_pool2d(squares[None], SMOOTH, 1, SMOOTH // 2, count_include_pad=False)
    return around[0]


def _without(correlations: Float[Tensor, " others"]) -> Float[Tensor, " plain"]:
    """Those of other classes' images but for what is far beyond most (by the median deviation)."""
    middle = correlations.median()
    spread = OF_NORMAL * (correlations - middle).abs().median()
    return correlations[correlations <= middle + BEYOND * spread]


def _correlation(
    images: Float[Tensor, "images 6 height width"], pattern: Float[Tensor, "6 height width"]
) -> Float[Tensor, " images"]:
    """Of edges with a pattern's, whatever its contrast is."""
    norms = images.flatten(1).norm(dim=1) * pattern.norm()
    return (images * pattern).flatten(1).sum(1) / norms.clamp_min(RIDGE)
