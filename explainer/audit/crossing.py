"""A cue that both halves of a class show: each is tested with what the other told of it.

So all of its carriers are tested, and none with a cue that it was found in (cross-fitting:
Chernozhukov et al., Double/Debiased Machine Learning for Treatment and Structural Parameters,
2018). That doubles the carriers of a cue that few images hold.
"""

from dataclasses import replace

import torch

from explainer.audit import cues
from explainer.audit.cues import Cue
from explainer.audit.growth import Gallery
from explainer.audit.proposals import aligned
from explainer.audit.sample import ClassSample

# Of a cue with as many carriers to test more tell little.
ENOUGH = 80


def crossed(cue: Cue, sample: ClassSample, gallery: Gallery) -> Cue:
    """The cue with carriers and places of the discovery half as the other half tells them.

    Unchanged where that does not show it by its pixels alone, as its first distinct cue at one
    place, or where its carriers are enough without.
    """
    tested = cue.carriers & sample.explained & ~sample.discovery
    is_alone = cue.is_distinct and cue.is_fixed and cue.overlay is None
    if not is_alone or int(tested.sum()) >= ENOUGH:
        return cue
    other = replace(sample, discovery=~sample.discovery)
    seeds = aligned(other, gallery.mine, gallery.theirs)
    found = cues.found(other, replace(gallery, discovery=other.discovery), seeds, None)
    twin = next((each for each in found if each.is_distinct and each.is_fixed), None)
    if twin is None or not cues.are_same(cue, twin):
        return cue
    half = sample.discovery
    likeness = twin.likeness + cue.threshold - twin.threshold
    return replace(
        cue,
        likeness=torch.where(half, likeness, cue.likeness),
        masks=torch.where(half[:, None, None], twin.masks, cue.masks),
        places=torch.where(half[:, None], twin.places, cue.places),
        is_crossed=True,
    )
