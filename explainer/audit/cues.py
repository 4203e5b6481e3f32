"""Cues: what images of a class hold and those of other classes do not, and who carries it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from explainer.audit import regions
from explainer.audit.content import Seed, widened
from explainer.audit.growth import LEAST_GAP, Gallery, Grown, grow
from explainer.audit.overlays import Overlay
from explainer.audit.patterns import patterns
from explainer.audit.sample import ClassSample

# Two cues are one where half of the carriers of one carry the other, and there overlap by so much.
SAME_CARRIERS, SAME_PIXELS = 0.5, 0.3
# With fewer images of other classes, what whole images hold tells any class from these by chance.
LEAST_STRANGERS = 60
BACKGROUND, MARK = "background", "mean edges"
OF_WHOLE = ("texture", "colours")  # what whole images hold


@dataclass(frozen=True)
class Cue:
    """What images of a class share, and where.

    `kind`: `content` is alike to the pixel; the `background` is all but the middle of an image;
    a `texture` moves, its waves are alike; `colours` are those of whole images.
    `masks` are pixels of the crops, `places` their centres in cells (row, column). An image is a
    carrier from `threshold` on, and is without the cue below `absent`; between, it may hold it, and
    counts as neither. `rank` is larger the more carriers there are, and the less other
    classes' images are like them. What `is_crossed` is told, in either half of the class's images,
    by what the other half holds.
    """

    kind: Literal["content", "background", "texture", "colours"]
    origin: str
    likeness: Float[Tensor, " images"]
    threshold: float
    masks: Bool[Tensor, "images height width"]
    places: Float[Tensor, "images 2"]
    is_fixed: bool
    rank: float = 0.0
    absent: float = float("inf")
    overlay: Overlay | None = None
    is_crossed: bool = False

    @property
    def carriers(self) -> Bool[Tensor, " images"]:
        """The images that hold the cue."""
        return self.likeness >= self.threshold

    @property
    def is_without(self) -> Bool[Tensor, " images"]:
        """The images that surely do not."""
        return self.likeness < min(self.absent, self.threshold)

    @property
    def gap(self) -> float:
        """How far the typical carrier is above the threshold; 0 where likeness has no scale."""
        if self.kind != "content" or not self.carriers.any():
            return 0.0
        return float(self.likeness[self.carriers].median()) - self.threshold

    @property
    def is_distinct(self) -> bool:
        """Whether it is either there or not."""
        return self.gap >= LEAST_GAP

    @property
    def is_of_whole(self) -> bool:
        """Whether it lies all over an image, so that nothing of it can be filled without harm."""
        return self.kind in OF_WHOLE


def found(
    sample: ClassSample, gallery: Gallery, seeds: Sequence[Seed], mark: Cue | None
) -> list[Cue]:
    """The distinct cues that grow from seeds, and a mark, best first.

    The best are those of most and most similar carriers.
    """
    cues = [] if mark is None else [mark]
    for side in sorted({seed.side for seed in seeds}):
        alike = [seed for seed in seeds if seed.side == side]
        grown = [(seed.origin, grow(seed, gallery)) for seed in alike]
        cues += [_cue(origin, each, sample) for origin, each in grown if each is not None]
        by_pattern = patterns(alike, gallery)
        cues += [_cue(origin, each, sample) for origin, each in by_pattern]
    kept: list[Cue] = []
    for cue in sorted(cues, key=lambda cue: -cue.rank):
        if not any(are_same(cue, other) for other in kept):
            kept.append(cue)
    return kept


def of_mark(
    sample: ClassSample, grown: Grown, others: UInt8[Tensor, "others 3 height width"]
) -> Cue:
    """A mark at one place as a cue; `others` are other classes' crops.

    What lies over its carriers is told by those of the discovery half.
    """
    cue = _cue(MARK, grown, sample)
    (region,) = widened(cue.masks[:1], sample.grid)
    overlay = Overlay.between(sample.crops[cue.carriers & sample.discovery], others, region)
    return replace(cue, overlay=overlay) if overlay.is_half_transparent(cue.masks[0]) else cue


def _cue(origin: str, grown: Grown, sample: ClassSample) -> Cue:
    likeness = grown.likeness
    held = likeness.mine[likeness.carriers & sample.discovery]
    lead = float(held.median()) - max(0.0, float(likeness.theirs.quantile(0.9)))
    return Cue(
        kind="content",
        origin=origin,
        likeness=likeness.mine,
        threshold=likeness.threshold,
        masks=_of_pixels(grown, sample.size),
        places=grown.places,
        is_fixed=grown.is_fixed,
        rank=len(held) * lead,
    )


def _of_pixels(grown: Grown, size: tuple[int, int]) -> Bool[Tensor, "images height width"]:
    """A cue's regions as masks of pixels: one of all images where all are the same."""
    if grown.masks.stride(0):
        return regions.to_pixels(grown.masks, size)
    return regions.to_pixels(grown.masks[:1], size).expand(len(grown.masks), -1, -1)


def are_same(cue: Cue, other: Cue) -> bool:
    """Whether two cues have the same carriers, mostly, and lie at the same places in these."""
    both = cue.carriers & other.carriers
    fewest = min(int(cue.carriers.sum()), int(other.carriers.sum()))
    if int(both.sum()) < SAME_CARRIERS * fewest:
        return False
    masks, others = cue.masks[both].flatten(1), other.masks[both].flatten(1)
    common = (masks & others).sum(1)
    smaller = torch.minimum(masks.sum(1), others.sum(1))
    return float((common >= SAME_PIXELS * smaller).float().mean()) >= 0.5


def background(sample: ClassSample) -> Cue:
    """All but the middle of each image that is predicted as the class."""
    mask = regions.to_pixels(regions.background(sample.grid)[None], sample.size)
    return Cue(
        kind="background",
        origin=BACKGROUND,
        likeness=sample.explained.float(),
        threshold=0.5,
        masks=mask.expand(len(sample), -1, -1),
        places=sample.middles,
        is_fixed=True,
    )
