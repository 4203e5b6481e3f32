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
    lift,
    shift,
    sign_flip,
)

LEAST_HALF = 1e-6  # half of an interval that is weighed by, where all outcomes are alike


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
        units = [each for gain in gains for each in self._units(gain, are_copies)]
        return max(sign_flip(each, seed) for each in units)

    def gains(self, are_copies: bool) -> list[Float[np.ndarray, " units"]]:
        """How much the shift is of each recipient and, unless they are near-copies, donor."""
        return self._units(numbers(self.treated.log_odds) - self._most(), are_copies)

    def _units(
        self, gain: Float[np.ndarray, "rounds recipients"], are_copies: bool
    ) -> list[Float[np.ndarray, " units"]]:
        if are_copies:
            return [gain.mean(0)]
        _, number = np.unique(self.donors, return_inverse=True)
        by_donor = np.bincount(number.ravel(), gain.ravel()) / np.bincount(number.ravel())
        return [gain.mean(0), by_donor]


@dataclass(frozen=True)
class Pooled:
    """Comparisons of the same cue in different images, together.

    Each counts by how sure its shift is, as a fixed effect of a meta-analysis; a weak cue may show
    in all of them, and in none alone.
    """

    compared: Sequence[Compared]

    def shift(self) -> Estimate:
        """The mean of the shifts; the wider their intervals, the less they weigh."""
        shifts, weights = [each.shift() for each in self.compared], self._weights()
        value = sum(w * each.value for w, each in zip(weights, shifts, strict=True)) / sum(weights)
        half = sum(weights) ** -0.5
        return Estimate(value, value - half, value + half, sum(each.of for each in shifts))

    def p_value(self, seed: int, are_copies: bool) -> float:
        """As that of a comparison, over the images of all."""
        gains = [each.gains(are_copies) for each in self.compared]
        joined = [
            np.concatenate(
                [w * units / units.size for w, units in zip(self._weights(), way, strict=True)]
            )
            for way in zip(*gains, strict=True)
        ]
        return max(sign_flip(each, seed) for each in joined)

    def _weights(self) -> list[float]:
        halves = (
            (shift.high - shift.low) / 2 for shift in (each.shift() for each in self.compared)
        )
        return [max(half, LEAST_HALF) ** -2 for half in halves]


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
