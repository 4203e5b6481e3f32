"""A cue that both halves of a class show: each is tested with what the other told of it.

So all of its carriers are tested, and none with a cue that it was found in (cross-fitting:
Chernozhukov et al., Double/Debiased Machine Learning for Treatment and Structural Parameters,
2018). That doubles the carriers of a cue that few images hold.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from explainer.audit import cues
from explainer.audit.cues import Cue
from explainer.audit.extents import SECOND
from explainer.audit.growth import Gallery
from explainer.audit.proposals import aligned
from explainer.audit.sample import ClassSample

ENOUGH = SECOND.removed  # carriers to test: no more would lose the cue


def crossed(cue: Cue, sample: ClassSample, gallery: Gallery) -> Cue:
    """The cue with carriers and places of each half as the other half tells them.

    Unchanged where one does not show it by its pixels alone, as its first distinct cue at one
    place, or where its carriers are enough without: what the model makes of an image has no say in
    what the image is tested with.
    """
    tested = cue.carriers & sample.explained & ~sample.discovery
    is_plain = cue.is_distinct and cue.is_fixed and cue.overlay is None
    if not is_plain or int(tested.sum()) >= ENOUGH:
        return cue
    half = sample.discovery
    first, second = (_by_pixels(sample, gallery, each) for each in (half, ~half))
    if first is None or second is None:
        return cue
    if not (cues.are_same(cue, first) and cues.are_same(first, second)):
        return cue
    likeness = second.likeness + first.threshold - second.threshold
    return replace(
        first,
        likeness=torch.where(half, likeness, first.likeness),
        masks=torch.where(half[:, None, None], second.masks, first.masks),
        places=torch.where(half[:, None], second.places, first.places),
        is_crossed=True,
    )


def _by_pixels(
    sample: ClassSample, gallery: Gallery, discovery: Bool[Tensor, " images"]
) -> Cue | None:
    """The first distinct cue at one place that some of the images show, without maps or model."""
    seen = replace(sample, discovery=discovery)
    seeds = aligned(seen, gallery.mine, gallery.theirs)
    found = cues.found(seen, replace(gallery, discovery=discovery), seeds, None)
    return next((each for each in found if each.is_distinct and each.is_fixed), None)
