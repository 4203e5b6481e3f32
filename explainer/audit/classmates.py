"""What becomes of a class's other images, which are without a cue, beside its carriers.

They hold the class's object, too. Where a cue has a place they are filled there, as carriers are.
What lies all over an image cannot be filled without harm; they are given it instead, beside what
another of them has in its stead: the object is as it was in both, and the harm is the same. So
they are given content that shows nowhere else.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from explainer.audit.cues import Cue
from explainer.audit.edits import cover, edit_of
from explainer.audit.evidence import Others
from explainer.audit.extents import Extent
from explainer.audit.interventions import Control, Laboratory
from explainer.audit.outcomes import Compared, Left, more_cost, more_kept, numbers, telling_fill
from explainer.audit.significance import difference
from explainer.audit.stock import Stock, repeated

# With fewer images of a class without a cue, most of them are carriers that were missed.
LEAST_OTHERS, LEAST_OTHERS_SHARE = 8, 0.15
# So many times as many are given a cue of whole images: few classes have one, and it gains less.
GIVEN = 3
MOST_CARRIERS = 80  # that stand beside the others; both are right or not


@dataclass(frozen=True)
class Mates:
    """What became of a class's other images; nothing where hardly any image is without the cue.

    `gained`: what they gained by what lies all over an image; of other cues see Classmates.gained.
    """

    others: Others | None = None
    gained: Compared | None = None


@dataclass(frozen=True)
class Classmates:
    """Compares a cue's carriers with the class's other images.

    `known` are log-odds of the class's images as they are, each asked for once.
    """

    lab: Laboratory
    stock: Stock
    known: dict[int, float] = field(default_factory=dict, init=False)

    def of(self, cue: Cue, extent: Extent) -> Mates:
        """The evidence of so many at most."""
        others = self.without(cue)
        if not len(others):
            return Mates()
        carriers = torch.nonzero(self.stock.tested(cue)).flatten()
        most = min(extent.compared, MOST_CARRIERS)
        carriers = carriers[self.stock.order(len(carriers))][:most]
        if cue.is_of_whole:
            return self._of_given(cue, carriers, others[: GIVEN * extent.compared])
        return Mates(self._covered(cue, carriers, others[: extent.compared]))

    def has_others(self, cue: Cue) -> bool:
        """Whether enough images are surely without the cue to tell anything by them."""
        least = max(LEAST_OTHERS, LEAST_OTHERS_SHARE * len(self.stock.sample))
        return int(cue.is_without.sum()) >= least

    def gained(self, cue: Cue, carriers: Int[Tensor, " carriers"], most: int) -> Compared:
        """What so many of the others gain by content at most; it has others.

        Where it moves each other's pixels would show their object a second time: it stands
        beside other classes', each of which is asked once.
        """
        others = self.without(cue)[:most]
        if cue.is_fixed:
            return self._given(cue, carriers, others)
        instead = self.stock.different(len(others)).crops
        return self._given(cue, carriers, others[: len(instead)], instead)

    def without(self, cue: Cue) -> Int[Tensor, " others"]:
        """Images without the cue in a random order; none where most would be missed carriers."""
        others = torch.nonzero(cue.is_without).flatten()
        return others[self.stock.order(len(others))] if self.has_others(cue) else others[:0]

    def gains(
        self, cue: Cue, carriers: Int[Tensor, " carriers"], others: Int[Tensor, " others"]
    ) -> Float[np.ndarray, " others"]:
        """The log-odds that each of some others gains by carriers' cue over another's of them."""
        compared = self._given(cue, carriers, others)
        control = compared.controls[Control.CLASSMATE]
        return numbers(compared.treated.log_odds - control.log_odds)[0]

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
        fill = telling_fill(theirs.kept, mine.kept)
        return Others(
            deficit=difference(
                float(after_others.kept.mean()),
                len(others),
                float(after.kept.mean()),
                len(carriers),
            ),
            excess=more_kept(theirs.kept[fill], mine.kept[fill]),
            excess_cost=more_cost(
                before_others[right_others] - theirs.log_odds[fill],
                before[right] - mine.log_odds[fill],
            ),
            right=int(right_others.sum()),
        )

    def _given(
        self,
        cue: Cue,
        carriers: Int[Tensor, " carriers"],
        others: Int[Tensor, " others"],
        instead: UInt8[Tensor, "others 3 height width"] | None = None,
    ) -> Compared:
        """The others, given carriers' cue, and something instead, or what another of them has."""
        edit, target = edit_of(cue), self.stock.sample.target
        donors, mine = repeated(carriers, len(others)), self.stock.mine(others).crops
        masks = self.stock.masks(cue, donors)
        given = edit.give(mine, self.stock.sample.crops[donors], masks)
        name = Control.CLASSMATE if instead is None else Control.OTHER_CLASS
        control = edit.put(mine, mine.roll(1, 0) if instead is None else instead, masks)
        return Compared(
            self.lab.pasted(target, given),
            {name: self.lab.pasted(target, control)},
            donors.numpy()[None],
        )

    def _of_given(
        self, cue: Cue, carriers: Int[Tensor, " carriers"], others: Int[Tensor, " others"]
    ) -> Mates:
        """What the others gain by the cue; and what carriers are without, given the others'."""
        compared = self._given(cue, carriers, others)
        held, masks = self.stock.mine(carriers), self.stock.masks(cue, carriers)
        without = self.stock.sample.crops[repeated(others, len(carriers))]
        lost = Left.of(self.lab, held, edit_of(cue).put(held.crops, without, masks))
        kept = compared.flips[Control.CLASSMATE]
        told = Others(
            deficit=difference(kept, len(others), float(lost.kept.mean()), len(carriers)),
            excess=compared.lift(),
            excess_cost=compared.shift(),
            right=len(others),
        )
        return Mates(told, compared)

    def _filled(
        self, cue: Cue, images: Int[Tensor, " images"], places: Int[Tensor, " images"]
    ) -> Left:
        """Images without what is at some images' places, with each fill."""
        mine, masks = self.stock.mine(images), self.stock.masks(cue, places)
        others = self.stock.drawn(len(images)).crops
        return Left.of(self.lab, mine, cover(mine.crops, masks, others))

    def _log_odds(self, images: Int[Tensor, " images"]) -> Float[np.ndarray, " images"]:
        new = [image for image in images.tolist() if image not in self.known]
        if new:
            mine = self.stock.mine(torch.tensor(new))
            asked = Left.of(self.lab, mine, [mine.crops]).log_odds[0]
            self.known.update(zip(new, asked.tolist(), strict=True))
        return np.array([self.known[image] for image in images.tolist()])
