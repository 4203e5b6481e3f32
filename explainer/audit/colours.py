"""A cast of colour as a cue: it tells a class's images as wholes, with no place and no pattern.

It is told by the mean, the spread and the range of each channel. What is changed is the range
alone, as by a photo editor's levels: a cast narrows and moves it, and an image that is given
another's stays what it was in all else.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from explainer.audit.cues import LEAST_STRANGERS, Cue
from explainer.audit.outcomes import numbers
from explainer.audit.sample import ClassSample
from explainer.audit.statistics import auc

COLOURS = "colours"
# A carrier's colours are farther on the class's side than this share of other classes' images; no
# cue where fewer of the class's images are, in either half.
OF_OTHERS, LEAST_SHARE = 0.98, 0.15
RIDGE = 1e-4  # so much is added to the covariance
# Pixels of a channel, of 1, beyond its levels at either end; a lesser range is none to stretch.
BEYOND, LEAST_RANGE = 0.01, 0.05
PART = 64  # images that are described at once


def colours(
    crops: UInt8[Tensor, "images 3 height width"],
) -> Float[Tensor, "images 6"]:
    """Mean and standard deviation of each channel, in [0, 1]."""
    pixels = crops.flatten(2).float() / 255
    return torch.cat([pixels.mean(2), pixels.std(2)], 1)


def described(
    crops: UInt8[Tensor, "images 3 height width"],
) -> Float[Tensor, "images 12"]:
    """Colours, and the least and the largest value of each channel, in [0, 1].

    A cast narrows their range, whatever an image holds: black is black no longer.
    """
    return torch.cat([_described(part) for part in crops.split(PART)])


def _described(crops: UInt8[Tensor, "images 3 height width"]) -> Float[Tensor, "images 12"]:
    least, largest = crops.amin((2, 3)), crops.amax((2, 3))
    return torch.cat([colours(crops), least / 255, largest / 255], 1)


def levels(
    crops: UInt8[Tensor, "images 3 height width"],
) -> Float[Tensor, "images 6"]:
    """The dark and the bright end of each channel but for its extreme pixels, in [0, 1]."""
    pixels = crops.flatten(2).float() / 255
    beyond = 1 + int(BEYOND * pixels.shape[2])
    ends = (beyond, pixels.shape[2] + 1 - beyond)
    return torch.cat([pixels.kthvalue(each, 2).values for each in ends], 1)


def recoloured(
    crops: UInt8[Tensor, "images 3 height width"], wanted: Float[Tensor, "#images 6"]
) -> UInt8[Tensor, "images 3 height width"]:
    """Crops whose channels are stretched to the levels that are wanted, then cut."""
    own, wanted = (each.unflatten(1, (2, 3, 1, 1)) for each in (levels(crops), wanted))
    scale = (wanted[:, 1] - wanted[:, 0]) / (own[:, 1] - own[:, 0]).clamp_min(LEAST_RANGE)
    result = (crops.float() / 255 - own.mean(1)) * scale + wanted.mean(1)
    return (255 * result).round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Side:
    """How far each image's colours are on the class's side, and those of other classes' images.

    The side is found on the class's discovery half (Fisher's linear discriminant).
    """

    mine: Float[Tensor, " images"]
    theirs: Float[Tensor, " others"]

    @classmethod
    def of(cls, sample: ClassSample, others: UInt8[Tensor, "others 3 height width"]) -> "Side":
        """The side of a class, by other classes' crops."""
        mine, theirs = described(sample.crops), described(others)
        spread = torch.cov(theirs.T) + RIDGE * torch.eye(mine.shape[1])
        towards = torch.linalg.solve(
            spread, mine[sample.discovery].median(0).values - theirs.median(0).values
        )
        return cls(mine @ towards, theirs @ towards)

    def apart(self, sample: ClassSample) -> float:
        """Whether colours tell the half that it was not found on: an AUC, about 0.5 if not."""
        if len(self.theirs) < LEAST_STRANGERS:
            return 0.5
        return auc(numbers(self.mine[~sample.discovery]), numbers(self.theirs))


def cast(sample: ClassSample, side: Side) -> Cue | None:
    """The colours that tell images of a class from others, or None where few images have them."""
    if len(side.theirs) < LEAST_STRANGERS:
        return None
    threshold = float(side.theirs.quantile(OF_OTHERS))
    if sample.least_share(side.mine >= threshold) < LEAST_SHARE:
        return None
    return Cue(
        kind="colours",
        origin=COLOURS,
        likeness=side.mine,
        threshold=threshold,
        masks=torch.ones(len(sample), *sample.size, dtype=torch.bool),
        places=sample.middles,
        is_fixed=True,
    )
