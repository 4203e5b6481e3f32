"""Examine one class: screen half of its images for cues, then test each cue on the other half.

What is found on the images that it was looked for in would always look strong; so discovery and
test share no image of the class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from explainer.audit.cues import Cue, Finder
from explainer.audit.evidence import Carrier, ClassEvidence, CueEvidence, Paste, Removal
from explainer.audit.interventions import (
    Control,
    Fill,
    Images,
    Laboratory,
    filled,
    moved,
    noise,
    share,
)
from explainer.audit.regions import to_cells
from explainer.audit.screen import ClassSample, Screen
from explainer.audit.significance import lift, sign_flip, wilson

# Images of a class, or of other classes, with which nothing can be said.
LEAST_IMAGES = 8
DONORS, RECIPIENTS, LEAST_DONORS = 4, 40, 2
REMOVED = 32
MOST_CUES = 3
# Of a larger share of an image there is no elsewhere that leaves the object out.
LARGE = 0.25
FILLS = (Fill.MEAN, Fill.OTHER_CLASS)


@dataclass(frozen=True)
class Examination:
    """The evidence on a class, and its cues with their masks, in the same order."""

    evidence: ClassEvidence
    cues: tuple[Cue, ...]


def examine(
    lab: Laboratory, sample: ClassSample, pool: Images, rivals: Images, seed: int
) -> Examination:
    """Screen a class for cues and test them; the same for the same seed.

    `pool` holds rightly predicted images of many classes, in which those of this class are ignored;
    `rivals` some of the classes that it is mistaken for: a cue may tell it from these alone.
    """
    others = pool.only(pool.classes != sample.target)
    explained = int(sample.explained.sum())
    evidence = ClassEvidence(sample.target, len(sample), explained, hits=0, passes=0)
    for count, what in ((explained, "predicted as it"), (len(others), "of other classes")):
        if count < LEAST_IMAGES:
            reason = f"{count} images {what}; {LEAST_IMAGES} are needed"
            return Examination(replace(evidence, untestable=reason), ())
    before, generator = lab.passes, torch.Generator().manual_seed(seed)
    groups = [group for group in (others, rivals) if len(group)]
    hits = Screen(lab, sample, groups, generator).hits()
    strangers = Images.joined(groups).crops
    cues = tuple(Finder(sample, strangers).cues(hits)[:MOST_CUES]) if hits else ()
    trial = Trial(lab, sample, groups, generator, seed)
    tested = tuple(trial.of(cue) for cue in cues)
    evidence = replace(evidence, hits=len(hits), cues=tested, passes=lab.passes - before)
    return Examination(evidence, cues)


@dataclass(frozen=True)
class Trial:
    """Tests cues of one class on the half of its images that they were not found in."""

    lab: Laboratory
    sample: ClassSample
    recipients: Sequence[Images]
    generator: torch.Generator
    seed: int

    def of(self, cue: Cue) -> CueEvidence:
        """A cue's interventions."""
        carriers = cue.carriers
        right = carriers & self.sample.explained
        tested = torch.nonzero(right & ~self.sample.discovery).flatten()
        enough = len(tested) >= LEAST_DONORS
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
            paste=self._paste(cue, tested) if enough else None,
            removal=self._removal(cue, torch.nonzero(right).flatten()) if enough else None,
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
        treated = self._flips(drawn, crops, masks)
        others = self._drawn(len(donors)).crops
        controls = {
            Control.NOISE: self._flips(drawn, noise(crops, self.generator), masks),
            Control.OTHER_CLASS: self._flips(drawn, others, masks),
        }
        if not _is_large(masks):  # else elsewhere is where the object is
            controls[Control.ELSEWHERE] = self._flips(drawn, crops, moved(masks, self.generator))
        strongest = max(controls.values(), key=lambda flips: float(flips.mean()))
        return Paste(
            flips=float(treated.mean()),
            controls={name: float(flips.mean()) for name, flips in controls.items()},
            lift=lift(treated, strongest, self.seed),
            # By recipient: donors are near-copies of one another.
            p_value=max(
                sign_flip((treated * 1.0 - flips).mean(0), self.seed) for flips in controls.values()
            ),
            donors=len(donors),
        )

    def _flips(
        self,
        recipients: UInt8[Tensor, "recipients 3 height width"],
        donors: UInt8[Tensor, "donors 3 height width"],
        masks: Bool[Tensor, "donors height width"],
    ) -> Bool[np.ndarray, "donors recipients"]:
        return self.lab.flips(self.sample.target, recipients, donors, masks).numpy()

    def _removal(self, cue: Cue, carriers: Int[Tensor, " carriers"]) -> Removal:
        """On carriers of both halves: they were chosen for what they share, not for needing it."""
        chosen = carriers[self._order(len(carriers))][:REMOVED]
        crops, masks = self.sample.crops[chosen], cue.masks[chosen]
        mine = Images(crops, torch.full((len(chosen),), self.sample.target))
        others = self._drawn(len(chosen))
        kept = {fill: self._kept(mine, masks, fill, others.crops) for fill in FILLS}
        if _is_large(masks):
            control = {fill: self._kept(others, masks, fill, crops.flip(0)) for fill in FILLS}
        else:
            away = moved(masks, self.generator)
            control = {fill: self._kept(mine, away, fill, others.crops) for fill in FILLS}
        # The fill that leaves most of the class: what a fill destroys by itself is no dependence.
        best = max(FILLS, key=lambda fill: float(kept[fill].mean() - control[fill].mean()))
        return Removal(
            without=float(kept[best].mean()),
            elsewhere=float(control[best].mean()),
            drop=lift(control[best][None], kept[best][None], self.seed),
            images=len(chosen),
        )

    def _kept(
        self,
        images: Images,
        masks: Bool[Tensor, "images height width"],
        fill: Fill,
        others: UInt8[Tensor, "images 3 height width"],
    ) -> Bool[np.ndarray, " images"]:
        """Which images are still predicted as their class without what the masks cover."""
        left = filled(images.crops, masks, fill, others)
        return (self.lab.predict(left) == images.classes).numpy()

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


def _is_large(masks: Bool[Tensor, "images height width"]) -> bool:
    return share(masks) > LARGE
