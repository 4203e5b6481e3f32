"""Interventions on one cue: give it to images, take it from them, each beside matched controls."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from explainer.audit.classmates import Classmates, Mates
from explainer.audit.criteria import (
    is_cleared_by_others,
    is_rare,
    may_become_sure,
    stays_unsure,
)
from explainer.audit.cues import BACKGROUND, Cue
from explainer.audit.edits import edit_of, removal_of
from explainer.audit.evidence import Carrier, CueEvidence, Paste, Removal
from explainer.audit.extents import FIRST, RETURNS_OF_EACH, SECOND, Extent
from explainer.audit.interventions import (
    Control,
    Laboratory,
    have_elsewhere,
    moved,
    noise,
    share,
)
from explainer.audit.outcomes import Compared, Left, Pooled
from explainer.audit.regions import to_cells
from explainer.audit.sample import ClassSample
from explainer.audit.significance import lift, shift, wilson
from explainer.audit.stock import Stock, repeated
from explainer.audit.stopping import is_open

# Carriers in the half that is tested: as many, and this share of it.
LEAST_TESTED, LEAST_TESTED_SHARE = 4, 0.04
# A model that has learned a sticker may take noise for it: so noise is no control of the sticker's
# return to where it was.
NATURAL = (Control.OTHER_CLASS, Control.ELSEWHERE)
# A cue that such a part of the half holds, and so many images, is tested without a first look.
COMMON_SHARE, LEAST_COMMON = 0.25, 15
# The p-value of a shift that shows a cue without what the class's other images gain.
SHOWN = 0.01
# A first look at a cue, on discovery: so many carriers without it, or twice, and so many pastes.
LOOKED_AT, LEAST_DONORS = 12, 2
LEAST_COST, LEAST_T, OPEN_T, LEAST_FLIPS = 0.3, 1.5, 0.3, 0.25


def is_clear(log_odds: Iterable[Float[np.ndarray, " images"]]) -> bool:
    """Whether their mean is large; more are asked where the first leave it open."""
    asked = np.zeros(0)
    for part in log_odds:
        asked = np.concatenate([asked, part])
        mean, error = asked.mean(), asked.std() / asked.size**0.5
        if mean >= max(LEAST_COST, LEAST_T * error):
            return True
        if mean < OPEN_T * error:
            return False
    return False


@dataclass(frozen=True)
class Trial:
    """Tests cues of one class on its images but for those that they were found in."""

    lab: Laboratory
    stock: Stock
    seed: int

    @property
    def sample(self) -> ClassSample:
        """The class's images."""
        return self.stock.sample

    @cached_property
    def classmates(self) -> Classmates:
        """What becomes of the class's other images."""
        return Classmates(self.lab, self.stock)

    def is_held(self, cue: Cue) -> bool:
        """Whether enough right images of the discovery half hold a cue to look at what it does."""
        return len(self._held(cue)) >= LEAST_DONORS

    def is_common(self, cue: Cue) -> bool:
        """Whether a large part of the discovery half holds a cue."""
        held = cue.carriers[self.sample.discovery]
        return int(held.sum()) >= max(LEAST_COMMON, COMMON_SHARE * len(held))

    def is_promising(self, cue: Cue) -> bool:
        """Whether removing a cue costs its carriers log-odds, or pasting it flips other images.

        Parts of objects reach into the background: of that only flips count. What lies all over an
        image is given to the class's other images, where there are enough, since removing it costs
        all of them.
        """
        held = self._held(cue)
        held = held[self.stock.order(len(held))][: 2 * LOOKED_AT]
        if len(held) < LEAST_DONORS:
            return False
        return (cue.kind != BACKGROUND and self._shows(cue, held)) or self._flips(cue, held)

    def _held(self, cue: Cue) -> Int[Tensor, " carriers"]:
        """The right images of the discovery half that hold a cue."""
        return torch.nonzero(cue.carriers & self.sample.explained & self.sample.discovery).flatten()

    def _shows(self, cue: Cue, held: Int[Tensor, " carriers"]) -> bool:
        """Whether carriers lose log-odds without the cue, or others gain by it."""
        others = self.classmates.without(cue) if cue.is_of_whole else held[:0]
        parts = others[self.sample.discovery[others]][: 4 * LOOKED_AT].split(2 * LOOKED_AT)
        if len(parts[0]) < LOOKED_AT:
            return is_clear(self._cost(cue, part) for part in held.split(LOOKED_AT))
        return is_clear(self.classmates.gains(cue, held, part) for part in parts)

    def _cost(self, cue: Cue, carriers: Int[Tensor, " carriers"]) -> Float[np.ndarray, " carriers"]:
        """The log-odds that each loses with the cue, beyond what its control loses."""
        mine, masks = self.stock.mine(carriers), self.stock.masks(cue, carriers)
        edit, others = removal_of(cue, masks), self.stock.drawn(len(carriers)).crops
        spared = next(edit.spare(mine.crops, masks, others, self.stock.generator))
        taken = next(edit.take(mine.crops, masks, others))
        control, left = (Left.of(self.lab, mine, [crops]).log_odds for crops in (spared, taken))
        return (control - left)[0]

    def _flips(self, cue: Cue, held: Int[Tensor, " carriers"]) -> bool:
        recipients, donors = self.stock.drawn(LOOKED_AT).crops, repeated(held, LOOKED_AT)
        looked = self._compared(recipients, cue, donors, [Control.OTHER_CLASS])
        return share(looked.treated.flips) - looked.flips[Control.OTHER_CLASS] >= LEAST_FLIPS

    def of(self, cue: Cue) -> CueEvidence:
        """A cue's interventions, on more images where the first ones leave open what it is.

        These settle only what is far from a threshold, as Haybittle and Peto let a trial end
        early. What costs least and settles most comes first: what the class's other images clear
        is neither pasted nor removed.
        """
        found = self._untested(cue)
        tested = self.stock.tested(cue) & self.sample.explained
        halves = 2 if cue.is_crossed else 1
        share_of_half = LEAST_TESTED_SHARE * int((~self.sample.discovery).sum())
        least = max(halves * LEAST_TESTED, share_of_half)
        if int(tested.sum()) < least or (cue.is_fixed and stays_unsure(found)):
            return found
        carriers = torch.nonzero(tested).flatten()
        first, second = (extent.of_few(len(carriers)) for extent in (FIRST, SECOND))
        mates, found = self._with_others(cue, found, first)
        has_more = second.compared > first.compared
        if is_cleared_by_others(found) and may_become_sure(found) and has_more:
            (mates, found), has_more = self._with_others(cue, found, second), False
        if is_cleared_by_others(found):
            return found
        found = self._with_carriers(cue, found, carriers, first, mates)
        if is_open(found) and has_more:
            mates, found = self._with_others(cue, found, second)
        has_more = second.recipients > first.recipients or self._asks_mates(cue, found)
        if is_open(found) and not is_cleared_by_others(found) and has_more:
            found = self._with_carriers(cue, found, carriers, second, mates)
        return found

    def _untested(self, cue: Cue) -> CueEvidence:
        carriers = cue.carriers
        with_cue, without = self.sample.explained[carriers], self.sample.explained[~carriers]
        return CueEvidence(
            kind=cue.kind,
            origin=cue.origin,
            is_fixed=cue.is_fixed,
            area=share(cue.masks[carriers]),
            threshold=cue.threshold,
            carriers=self._carriers(cue),
            carrier_share=wilson(int(carriers.sum()), len(carriers)),
            accuracy_of_carriers=wilson(int(with_cue.sum()), len(with_cue)),
            accuracy_of_others=wilson(int(without.sum()), len(without)),
            paste=None,
            removal=None,
            others=None,
            gap=cue.gap,
        )

    def _with_carriers(
        self,
        cue: Cue,
        found: CueEvidence,
        tested: Int[Tensor, " carriers"],
        extent: Extent,
        mates: Mates,
    ) -> CueEvidence:
        asked = mates if self._asks_mates(cue, found) else None
        paste = self._paste(cue, tested, extent, asked)
        return replace(found, paste=paste, removal=self._removal(cue, tested, extent.removed))

    def _with_others(
        self, cue: Cue, found: CueEvidence, extent: Extent
    ) -> tuple[Mates, CueEvidence]:
        mates = self.classmates.of(cue, extent)
        return mates, replace(found, others=mates.others)

    def _asks_mates(self, cue: Cue, found: CueEvidence) -> bool:
        """Whether what the class's other images gain by a cue is one of its shifts."""
        is_told = cue.kind != BACKGROUND and not is_rare(found)
        return is_told and self.classmates.has_others(cue)

    def _carriers(self, cue: Cue) -> tuple[Carrier, ...]:
        cells = to_cells(cue.masks, self.lab.model.grid).flatten(1)
        return tuple(
            Carrier(
                image,
                float(cue.likeness[image]),
                tuple(torch.nonzero(cells[image]).flatten().tolist()),
            )
            for image in torch.nonzero(cue.carriers).flatten().tolist()
        )

    def _paste(
        self, cue: Cue, tested: Int[Tensor, " carriers"], extent: Extent, mates: Mates | None
    ) -> Paste:
        """Pastes and returns, and what the class's other images gain, if `mates` are given."""
        order = self.stock.order(len(tested))
        recipients = self.stock.different(extent.recipients).crops
        donors, controls = repeated(tested[order], len(recipients)), edit_of(cue).controls
        into_others = self._compared(recipients, cue, donors, controls)
        tested = tested[self.stock.order(len(tested))]
        back = self._returned(cue, tested, extent.returns)
        asked = [into_others, back]
        count = 4 if mates else 3  # where a third may be asked for, it counts, as both together do
        if mates and (mates.gained or count * self._least_p(cue, asked) >= SHOWN):
            asked.append(mates.gained or self.classmates.gained(cue, tested, extent.given))
        pooled = Pooled(asked)
        return Paste(
            flips=share(into_others.treated.flips),
            controls=into_others.flips,
            lift=into_others.lift(),
            shift=into_others.shift(),
            restored=back.shift(),
            p_value=min(1.0, count * self._least_p(cue, [*asked, pooled])),
            donors=len(donors.unique()),
            gained=asked[2].shift() if len(asked) > 2 else None,
            pooled=pooled.shift(),
        )

    def _returned(self, cue: Cue, tested: Int[Tensor, " carriers"], most: int) -> Compared:
        """Carriers that lost the cue and are given others', beside natural controls."""
        chosen = tested[:most]
        lost = self._without(cue, chosen)
        turns = min(RETURNS_OF_EACH, most // len(chosen))
        givers = torch.cat([tested.roll(-turn)[: len(chosen)] for turn in range(1, turns + 1)])
        natural = [control for control in edit_of(cue).controls if control in NATURAL]
        return self._compared(lost, cue, givers, natural)

    def _least_p(self, cue: Cue, asked: Sequence[Compared | Pooled]) -> float:
        """Of the shifts whose intervals are above 0, so that one is not told by another's."""
        shown = (each for each in asked if each.shift().low > 0)
        are_copies = cue.kind == "content"
        return min((each.p_value(self.seed, are_copies) for each in shown), default=1.0)

    def _compared(
        self,
        recipients: UInt8[Tensor, "recipients 3 height width"],
        cue: Cue,
        donors: Int[Tensor, " donors"],
        controls: Sequence[Control],
    ) -> Compared:
        """The donors' cues in the recipients, round by round, and controls in their places.

        Elsewhere is none of them where the masks leave none.
        """
        crops, masks = self.sample.crops[donors], self.stock.masks(cue, donors)
        sources = {Control.OTHER_CLASS: (self.stock.drawn(len(donors)).crops, masks)}
        if Control.NOISE in controls:
            sources[Control.NOISE] = (noise(crops, self.stock.generator), masks)
        if Control.ELSEWHERE in controls and have_elsewhere(masks):
            sources[Control.ELSEWHERE] = (crops, moved(masks, self.stock.generator))
        edit, target = edit_of(cue), self.sample.target
        return Compared(
            self.lab.pasted(target, edit.give(recipients, crops, masks)),
            {
                name: self.lab.pasted(target, edit.put(recipients, *source))
                for name, source in sources.items()
            },
            donors.view(-1, len(recipients)).numpy(),
        )

    def _without(
        self, cue: Cue, carriers: Int[Tensor, " carriers"]
    ) -> UInt8[Tensor, "carriers 3 height width"]:
        """Carriers' crops that have lost the cue."""
        others = self.stock.drawn(len(carriers)).crops
        masks = self.stock.masks(cue, carriers)
        return next(removal_of(cue, masks).take(self.sample.crops[carriers], masks, others))

    def _removal(self, cue: Cue, carriers: Int[Tensor, " carriers"], most: int) -> Removal:
        chosen = carriers[self.stock.order(len(carriers))][:most]
        mine, masks = self.stock.mine(chosen), self.stock.masks(cue, chosen)
        edit, others = removal_of(cue, masks), self.stock.drawn(len(chosen)).crops
        left = Left.of(self.lab, mine, edit.take(mine.crops, masks, others)).mean()
        spared = edit.spare(mine.crops, masks, others, self.stock.generator)
        control = Left.of(self.lab, mine, spared).mean()
        return Removal(
            without=float(left.kept.mean()),
            elsewhere=float(control.kept.mean()),
            drop=lift(control.kept, left.kept),
            cost=shift(control.log_odds, left.log_odds),
            images=len(chosen),
        )
