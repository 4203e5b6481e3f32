"""What becomes of a class's other images, which are without a cue, beside its carriers.

They hold the class's object, too. Where a cue has a place they are filled there, as carriers are.
What lies all over an image cannot be filled without harm; they are given it instead, beside what
another of them has in its stead: the object is as it was in both, and the harm is the same.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from explainer.audit.cues import Cue
from explainer.audit.edits import edit_of, removal_of
from explainer.audit.evidence import Others
from explainer.audit.interventions import Laboratory
from explainer.audit.outcomes import Left, most_cost, most_kept
from explainer.audit.significance import Estimate, difference, lift, shift
from explainer.audit.stock import Stock, repeated

# With fewer images of a class without a cue, most of them are carriers that were missed.
LEAST_OTHERS, LEAST_OTHERS_SHARE = 8, 0.15
# So many times as many are given a cue of whole images: few classes have one, and it gains less.
GIVEN = 3


@dataclass(frozen=True)
class Classmates:
    """Compares a cue's carriers with the class's other images.

    `known` are log-odds of the class's images as they are, each asked for once.
    """

    lab: Laboratory
    stock: Stock
    known: dict[int, float] = field(default_factory=dict, init=False)

    def of(self, cue: Cue, most: int) -> Others | None:
        """The evidence of at most so many of each; None where hardly any image is without it."""
        sample = self.stock.sample
        others = torch.nonzero(cue.is_without).flatten()
        if len(others) < max(LEAST_OTHERS, LEAST_OTHERS_SHARE * len(sample)):
            return None
        carriers = torch.nonzero(cue.carriers & ~sample.discovery).flatten()
        carriers, others = (images[self.stock.order(len(images))] for images in (carriers, others))
        if cue.is_of_whole:
            return self._given(cue, carriers[:most], others[: GIVEN * most])
        return self._covered(cue, carriers[:most], others[:most])

    def _covered(
        self, cue: Cue, carriers: Int[Tensor, " carriers"], others: Int[Tensor, " others"]
    ) -> Others:
        """The others, treated as carriers are from which the cue is taken."""
        places = repeated(carriers, len(others))
        after, after_others = (
            self._filled(cue, images, at) for images, at in ((carriers, carriers), (others, places))
        )
        before, before_others = (self._log_odds(images) for images in (carriers, others))
        explained = self.stock.sample.explained
        right, right_others = (explained[i].numpy() for i in (carriers, others))
        mine, theirs = after.only(right), after_others.only(right_others)
        return Others(
            deficit=_deficit(after_others, after),
            excess=most_kept(theirs, mine),
            excess_cost=most_cost(
                before_others[right_others] - theirs.log_odds, before[right] - mine.log_odds
            ),
            right=int(right_others.sum()),
        )

    def _given(
        self, cue: Cue, carriers: Int[Tensor, " carriers"], others: Int[Tensor, " others"]
    ) -> Others:
        """The others, given carriers' cue and each other's; and carriers, given the others'."""
        edit, crops = edit_of(cue), self.stock.sample.crops
        donors, without = repeated(carriers, len(others)), repeated(others, len(carriers))
        mine, masks = self.stock.mine(others), self.stock.masks(cue, donors)
        given = Left.of(self.lab, mine, edit.give(mine.crops, crops[donors], masks))
        kept = Left.of(self.lab, mine, edit.put(mine.crops, mine.crops.roll(1, 0), masks))
        held, masks = self.stock.mine(carriers), self.stock.masks(cue, carriers)
        lost = Left.of(self.lab, held, edit.put(held.crops, crops[without], masks))
        number = donors.numpy()[None]
        return Others(
            deficit=_deficit(kept, lost),
            excess=lift(given.kept, kept.kept, number),
            excess_cost=shift(given.log_odds, kept.log_odds, number),
            right=len(others),
        )

    def _filled(
        self, cue: Cue, images: Int[Tensor, " images"], places: Int[Tensor, " images"]
    ) -> Left:
        """Images without what is at some images' places, with each fill."""
        mine, masks = self.stock.mine(images), self.stock.masks(cue, places)
        others = self.stock.drawn(len(images)).crops
        return Left.of(self.lab, mine, removal_of(cue, masks).cover(mine.crops, masks, others))

    def _log_odds(self, images: Int[Tensor, " images"]) -> Float[np.ndarray, " images"]:
        new = [image for image in images.tolist() if image not in self.known]
        if new:
            mine = self.stock.mine(torch.tensor(new))
            asked = Left.of(self.lab, mine, [mine.crops]).log_odds[0]
            self.known.update(zip(new, asked.tolist(), strict=True))
        return np.array([self.known[image] for image in images.tolist()])


def _deficit(others: Left, carriers: Left) -> Estimate:
    """How much more often the others are right than carriers that lost the cue."""
    sizes = (others.kept.shape[1], carriers.kept.shape[1])
    return difference(float(others.kept.mean()), sizes[0], float(carriers.kept.mean()), sizes[1])
