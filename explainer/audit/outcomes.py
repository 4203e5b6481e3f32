"""What comes of interventions over many images, and how it exceeds its controls."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from explainer.audit.interventions import Control, Images, Laboratory, Pasted, own_log_odds, share
from explainer.audit.significance import (
    Estimate,
    between,
    difference,
    half_by,
    lift,
    shift,
    sign_flip,
    sums_by,
)

LEAST_WIDTH = 1e-3  # of an interval that a shift is weighed by, where all outcomes are alike


@dataclass(frozen=True)
class Left:
    """Whether an image stays its class with each fill, and that class's log-odds."""

    kept: Float[np.ndarray, "fills images"]
    log_odds: Float[np.ndarray, "fills images"]

    @classmethod
    def of(
        cls,
        lab: Laboratory,
        images: Images,
        edited: Iterable[UInt8[Tensor, "images 3 height width"]],
    ) -> "Left":
        """What the model makes of images that were edited, each in all of the ways."""
        logits = torch.stack([lab.logits(crops) for crops in edited])
        kept = (logits.argmax(-1) == images.classes).float()
        left = own_log_odds(logits, images.classes.expand(len(logits), -1))
        return cls(numbers(kept), numbers(left))

    def mean(self) -> "Left":
        """The mean over the fills, as of one."""
        return Left(self.kept.mean(0, keepdims=True), self.log_odds.mean(0, keepdims=True))

    def only(self, chosen: Bool[np.ndarray, " images"]) -> "Left":
        """Of some of the images."""
        return Left(self.kept[:, chosen], self.log_odds[:, chosen])


@dataclass(frozen=True)
class Compared:
    """A paste and its controls, each over the same recipients, and which donor each was given."""

    treated: Pasted
    controls: Mapping[Control, Pasted]
    donors: Int[np.ndarray, "rounds recipients"]

    @property
    def flips(self) -> Mapping[Control, float]:
        """The share of flips that each control causes."""
        return {name: share(each.flips) for name, each in self.controls.items()}

    def lift(self) -> Estimate:
        """The flips beyond those of the control that causes most."""
        flips: Bool[Tensor, "rounds recipients"]
        flips = max((each.flips for each in self.controls.values()), key=share)
        return lift(self.treated.flips.numpy(), flips.numpy(), self.donors)

    def shift(self) -> Estimate:
        """The log-odds beyond those of the control that raises them most."""
        return shift(numbers(self.treated.log_odds), self._most(), self.donors)

    def _most(self) -> Float[np.ndarray, "rounds recipients"]:
        """The log-odds of the control that raises them most."""
        gained = [numbers(each.log_odds) for each in self.controls.values()]
        return max(gained, key=lambda each: float(each.mean()))

    def p_value(self, seed: int, are_copies: bool) -> float:
        """Of the shift, over recipients, and over donors unless these are near-copies.

        It is the largest, of all controls.
        """
        treated = numbers(self.treated.log_odds)
        gains = [treated - numbers(each.log_odds) for each in self.controls.values()]
        units = [gain.mean(0) for gain in gains]
        if not are_copies:
            units += [sums_by(self.donors.ravel(), gain.ravel()) for gain in gains]
        return max(sign_flip(each, seed) for each in units)

    @property
    def gains(self) -> Float[np.ndarray, "rounds recipients"]:
        """What the shift is of, each."""
        return numbers(self.treated.log_odds) - self._most()


@dataclass(frozen=True)
class Pooled:
    """Comparisons of the same cue in different images, together, each beside its largest control.

    Each counts by how sure its shift is, as a fixed effect of a meta-analysis; a weak cue may show
    a little in all of them, and in none alone. All are given the same donors' cues.
    """

    compared: Sequence[Compared]

    def shift(self) -> Estimate:
        """The mean of the shifts; the wider their intervals, the less they weigh.

        Its interval is the wider of two: of shifts that have nothing in common, and of donors,
        whose cues do the same in all.
        """
        shifts, weights = [each.shift() for each in self.compared], self._weights()
        value = sum(w * each.value for w, each in zip(weights, shifts, strict=True))
        halves = (w * (each.high - each.low) / 2 for w, each in zip(weights, shifts, strict=True))
        errors = [each.gains - each.gains.mean() for each in self.compared]
        half = max(sum(each**2 for each in halves) ** 0.5, half_by(self._donors, self._all(errors)))
        return Estimate(value, value - half, value + half, sum(each.of for each in shifts))

    def p_value(self, seed: int, are_copies: bool) -> float:
        """Over the recipients of all, and over donors unless these are near-copies; the larger."""
        gains = [each.gains for each in self.compared]
        units = [self._all([each.sum(0, keepdims=True) / len(each) for each in gains])]
        if not are_copies:
            units.append(sums_by(self._donors, self._all(gains)))
        return max(sign_flip(each, seed) for each in units)

    @property
    def _donors(self) -> Int[np.ndarray, " all"]:
        return np.concatenate([each.donors.ravel() for each in self.compared])

    def _all(self, values: Sequence[Float[np.ndarray, "_ _"]]) -> Float[np.ndarray, " all"]:
        """Values of all comparisons, as parts of their mean."""
        parts = zip(self._weights(), values, strict=True)
        return np.concatenate([w * each.ravel() / each.size for w, each in parts])

    def _weights(self) -> list[float]:
        shifts = [each.shift() for each in self.compared]
        precise = [max(each.high - each.low, LEAST_WIDTH) ** -2 for each in shifts]
        return [each / sum(precise) for each in precise]


def telling_fill(
    others: Float[np.ndarray, "fills others"], carriers: Float[np.ndarray, "fills carriers"]
) -> int:
    """The fill that leaves the others right more often than the carriers by most; else the first.

    Around an image, or where an object lies, one of them may take all from both.
    """
    if not others.size or not carriers.size:
        return 0
    return int((others.mean(1) - carriers.mean(1)).argmax())


def more_kept(
    others: Float[np.ndarray, " others"], carriers: Float[np.ndarray, " carriers"]
) -> Estimate:
    """How many more of the others stay right than of the carriers; of none of either 0, +-1."""
    if not others.size or not carriers.size:
        return Estimate(0.0, -1.0, 1.0, 0)
    share, fewer = float(others.mean()), float(carriers.mean())
    return difference(share, others.size, fewer, carriers.size)


def more_cost(
    others: Float[np.ndarray, " others"], carriers: Float[np.ndarray, " carriers"]
) -> Estimate | None:
    """How much more log-odds carriers lose than the others; None of fewer than two of either."""
    return None if min(others.size, carriers.size) < 2 else between(carriers, others)


def numbers(values: Float[Tensor, "*any"]) -> Float[np.ndarray, "*any"]:
    """As numpy's, in float64."""
    return values.double().numpy()
