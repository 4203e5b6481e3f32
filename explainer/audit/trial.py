"""Interventions on one cue: paste it, remove it, each beside matched controls."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from explainer.audit.content import pixels_of_a_cell
from explainer.audit.cues import BACKGROUND, Cue
from explainer.audit.evidence import Carrier, CueEvidence, Paste, Removal
from explainer.audit.interventions import (
    Control,
    Fill,
    Images,
    Laboratory,
    Pasted,
    filled,
    moved,
    noise,
    own_log_odds,
    share,
)
from explainer.audit.regions import to_cells
from explainer.audit.sample import ClassSample
from explainer.audit.significance import Estimate, difference, lift, shift, sign_flip, wilson
from explainer.reference import log_odds

DONORS, RECIPIENTS, LEAST_TESTED = 3, 24, 4
REMOVED = 32
# With fewer images of a class without a cue, most of them are carriers that were missed.
LEAST_OTHERS, LEAST_OTHERS_SHARE = 8, 0.15
# A first look at a cue, on discovery: so many carriers without it, so many pastes.
LOOKED_AT, LOOKED_DONORS, LOOKED_RECIPIENTS = 12, 2, 6
LEAST_COST, LEAST_T, LEAST_FLIPS = 0.3, 1.5, 0.25
# Of a larger share of an image there is no elsewhere that leaves the object out.
LARGE = 0.45
FILLS = (Fill.SURROUND, Fill.OTHER_CLASS)


@dataclass(frozen=True)
class Trial:
    """Tests cues of one class on the half of its images that they were not found in."""

    lab: Laboratory
    sample: ClassSample
    recipients: Sequence[Images]
    generator: torch.Generator
    seed: int

    def is_promising(self, cue: Cue) -> bool:
        """Whether removing a cue costs its carriers log-odds, or pasting it flips other images.

        Parts of objects reach into the background: of that only flips count.
        """
        held = torch.nonzero(cue.carriers & self.sample.explained & self.sample.discovery).flatten()
        held = held[self._order(len(held))][:LOOKED_AT]
        if len(held) < LOOKED_DONORS:
            return False
        return (cue.kind != BACKGROUND and self._costs(cue, held)) or self._flips(cue, held)

    def _costs(self, cue: Cue, held: Int[Tensor, " carriers"]) -> bool:
        crops, masks = self.sample.crops[held], widened(cue.masks[held], self.sample.grid)
        left, control = (
            log_odds(self.lab.logits(filled(crops, m, Fill.SURROUND, crops)), self.sample.target)
            for m in (masks, self._elsewhere(masks))
        )
        costs = control - left
        mean, spread = float(costs.mean()), float(costs.std())
        return mean >= LEAST_COST and mean >= LEAST_T * spread / len(costs) ** 0.5

    def _flips(self, cue: Cue, held: Int[Tensor, " carriers"]) -> bool:
        donors, recipients = held[:LOOKED_DONORS], self._drawn(LOOKED_RECIPIENTS).crops
        strangers = self._drawn(len(donors)).crops
        with_cue, without = (
            share(self._pasted(recipients, pixels, cue.masks[donors]).flips)
            for pixels in (self.sample.crops[donors], strangers)
        )
        return with_cue - without >= LEAST_FLIPS

    def of(self, cue: Cue) -> CueEvidence:
        """A cue's interventions."""
        carriers = cue.carriers
        right = carriers & self.sample.explained
        tested = torch.nonzero(right & ~self.sample.discovery).flatten()
        enough = len(tested) >= LEAST_TESTED
        with_cue, without = self.sample.explained[carriers], self.sample.explained[~carriers]
        removal = self._removal(cue, tested) if enough else None
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
            paste=self._paste(cue, tested) if enough else None,
            removal=removal,
            deficit=None if removal is None else _deficit(with_cue, without, removal),
        )

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

    def _paste(self, cue: Cue, tested: Int[Tensor, " carriers"]) -> Paste:
        donors = tested[self._order(len(tested))][:DONORS]
        drawn = self._drawn(RECIPIENTS).crops
        crops, masks = self.sample.crops[donors], cue.masks[donors]
        treated = self._pasted(drawn, crops, masks)
        controls = {
            Control.NOISE: self._pasted(drawn, noise(crops, self.generator), masks),
            Control.OTHER_CLASS: self._pasted(drawn, self._drawn(len(donors)).crops, masks),
        }
        if not _is_large(masks):  # else elsewhere is where the object is
            controls[Control.ELSEWHERE] = self._pasted(drawn, crops, self._elsewhere(masks))
        most_flips = max(controls.values(), key=lambda each: share(each.flips))
        gained = {name: _numbers(each.log_odds) for name, each in controls.items()}
        most_gained = max(gained.values(), key=lambda each: float(each.mean()))
        return Paste(
            flips=share(treated.flips),
            controls={name: share(each.flips) for name, each in controls.items()},
            lift=lift(treated.flips.numpy(), most_flips.flips.numpy(), self.seed),
            shift=shift(_numbers(treated.log_odds), most_gained, self.seed),
            # By recipient: donors are near-copies of one another.
            p_value=max(
                sign_flip((_numbers(treated.log_odds) - each).mean(0), self.seed)
                for each in gained.values()
            ),
            donors=len(donors),
        )

    def _pasted(
        self,
        recipients: UInt8[Tensor, "recipients 3 height width"],
        donors: UInt8[Tensor, "donors 3 height width"],
        masks: Bool[Tensor, "donors height width"],
    ) -> Pasted:
        return self.lab.paste(self.sample.target, recipients, donors, masks)

    def _removal(self, cue: Cue, carriers: Int[Tensor, " carriers"]) -> Removal:
        chosen = carriers[self._order(len(carriers))][:REMOVED]
        crops = self.sample.crops[chosen]
        masks = widened(cue.masks[chosen], self.sample.grid)  # a seam is the cue still
        mine = Images(crops, torch.full((len(chosen),), self.sample.target))
        others = self._drawn(len(chosen))
        left = self._left(mine, masks, others.crops)
        if _is_large(masks):
            control = self._left(others, masks, crops.flip(0))
        else:
            control = self._left(mine, self._elsewhere(masks), others.crops)
        return Removal(
            without=float(left.kept.mean()),
            elsewhere=float(control.kept.mean()),
            drop=lift(control.kept, left.kept, self.seed),
            cost=shift(control.log_odds, left.log_odds, self.seed),
            images=len(chosen),
        )

    def _left(
        self,
        images: Images,
        masks: Bool[Tensor, "images height width"],
        others: UInt8[Tensor, "images 3 height width"],
    ) -> "Left":
        """What is left of each image's class without what the masks cover."""
        filled_in = [filled(images.crops, masks, fill, others) for fill in FILLS]
        logits = torch.stack([self.lab.logits(each) for each in filled_in])
        kept = (logits.argmax(-1) == images.classes).float().mean(0)
        left = own_log_odds(logits, images.classes.expand(len(FILLS), -1)).mean(0)
        return Left(_numbers(kept)[None], _numbers(left)[None])

    def _elsewhere(self, masks: Bool[Tensor, "images height width"]) -> Tensor:
        return moved(masks, self.generator)

    def _drawn(self, count: int) -> Images:
        """So many recipients, of all groups alike; twice where there are not as many."""
        share = -(-count // len(self.recipients))
        drawn = [
            group.only(self._order(len(group)).repeat(-(-share // len(group)))[:share])
            for group in self.recipients
        ]
        return Images.joined(drawn).only(torch.arange(count))

    def _order(self, count: int) -> Int[Tensor, " count"]:
        return torch.randperm(count, generator=self.generator)


@dataclass(frozen=True)
class Left:
    """The share of fills with which an image stays its class, and that class's mean log-odds."""

    kept: Float[np.ndarray, "1 images"]
    log_odds: Float[np.ndarray, "1 images"]


def _deficit(
    with_cue: Bool[Tensor, " carriers"], without: Bool[Tensor, " others"], removal: Removal
) -> Estimate | None:
    """How much more often others are right than carriers are whose cue is removed."""
    least = LEAST_OTHERS_SHARE * (len(with_cue) + len(without))
    if len(without) < max(LEAST_OTHERS, least):
        return None
    left = share(with_cue) * removal.without
    return difference(share(without), len(without), left, len(with_cue))


def widened(
    masks: Bool[Tensor, "images height width"], grid: tuple[int, int]
) -> Bool[Tensor, "images height width"]:
    """Masks that reach further by most of a pixel in which cues are looked for."""
    reach = masks.shape[-2] * 2 // (grid[0] * pixels_of_a_cell(grid) * 3)
    wide = functional.max_pool2d(masks[:, None].float(), 2 * reach + 1, 1, reach)
    return wide[:, 0] > 0


def _is_large(masks: Bool[Tensor, "images height width"]) -> bool:
    return share(masks) > LARGE


def _numbers(values: Float[Tensor, "*any"]) -> Float[np.ndarray, "*any"]:
    return values.double().numpy()
