"""Interventions on images, and what the model makes of them: paste a cue, or remove it.

Sufficiency: pixels of a class's images, pasted into images of other classes, flip the prediction to
the class (SentiNet, arXiv 1812.00292; Neuhaus et al., ICCV 2023). Necessity: what is left of the
prediction where the cue is filled (SPIRE, TMLR 2022). Each only says something beside its matched
control (Control).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from explainer.models import VitClassifier
from explainer.reference import log_odds

PLACES = 8
MIRRORS = ((0,), (1,), (0, 1))
# Around a larger share of an image, and over it, there is no elsewhere that leaves the object out.
LARGE = 0.45
# Less of a reduced pixel than this is no pixel to extend.
LEAST_KNOWN = 0.3


class Control(StrEnum):
    """What a paste is compared with; each keeps all but one property of the cue."""

    NOISE = "noise"
    """Random pixels: same place and size, no content."""
    OTHER_CLASS = "other class"
    """The same region of images of other classes: same place and size."""
    ELSEWHERE = "elsewhere"
    """Another region of the same images, as large: same images."""
    CLASSMATE = "classmate"
    """The same region of another of the class's images without the cue: same class."""


class Fill(StrEnum):
    """What takes the place of what is removed."""

    SURROUND = "surround"
    """What surrounds it, extended smoothly: an edge stays none."""
    OTHER_CLASS = "other class"
    """The same place of another class's image."""


@dataclass(frozen=True)
class Images:
    """Images and the class of each, as an index of the model's outputs."""

    crops: UInt8[Tensor, "images 3 height width"]
    classes: Int[Tensor, " images"]

    @classmethod
    def joined(cls, parts: Sequence["Images"]) -> "Images":
        """Those of several."""
        return cls(
            torch.cat([part.crops for part in parts]), torch.cat([part.classes for part in parts])
        )

    def __len__(self) -> int:
        return len(self.crops)

    def only(self, chosen: Bool[Tensor, " images"] | Int[Tensor, " chosen"]) -> "Images":
        """Some of them."""
        return Images(self.crops[chosen], self.classes[chosen])


@dataclass
class Laboratory:
    """A model to ask, and how often it was asked: `passes` counts images.

    `batch_size` images go through the model at once, on its own device.
    """

    model: VitClassifier
    batch_size: int
    passes: int = field(default=0, init=False)

    @torch.inference_mode()
    def logits(
        self, crops: UInt8[Tensor, "images 3 height width"]
    ) -> Float[Tensor, "images classes"]:
        """The model's outputs for each crop, on the CPU in float32."""
        device = next(self.model.vit.parameters()).device
        self.passes += len(crops)
        return torch.cat(
            [
                self.model.vit(self.model.normalise(part.to(device))).float().cpu()
                for part in crops.split(self.batch_size)
            ]
        )

    def pasted(
        self, target: int, edited: Iterable[UInt8[Tensor, "recipients 3 height width"]]
    ) -> "Pasted":
        """What becomes of the recipients, edited in each round."""
        logits = torch.stack([self.logits(crops) for crops in edited])
        return Pasted(logits.argmax(-1) == target, log_odds(logits, target))


@dataclass(frozen=True)
class Pasted:
    """Whether recipients are predicted as the class, and its log-odds, each round.

    In each round a recipient holds the cue of another donor.
    """

    flips: Bool[Tensor, "rounds recipients"]
    log_odds: Float[Tensor, "rounds recipients"]


def own_log_odds(
    logits: Float[Tensor, "*any images classes"], classes: Int[Tensor, "*any images"]
) -> Float[Tensor, "*any images"]:
    """The log-odds of each image's own class; see log_odds."""
    own = classes[..., None]
    others = logits.scatter(-1, own, float("-inf")).logsumexp(-1)
    return logits.gather(-1, own)[..., 0] - others


def noise(
    crops: UInt8[Tensor, "images 3 height width"], generator: torch.Generator
) -> UInt8[Tensor, "images 3 height width"]:
    """As many pixels, each of a random colour."""
    return torch.randint(0, 256, crops.shape, dtype=torch.uint8, generator=generator)


def filled(
    crops: UInt8[Tensor, "images 3 height width"],
    masks: Bool[Tensor, "images height width"],
    fill: Fill,
    others: UInt8[Tensor, "images 3 height width"],
) -> UInt8[Tensor, "images 3 height width"]:
    """Crops without what the masks cover: what surrounds it, or `others`, instead."""
    source = others if fill is Fill.OTHER_CLASS else _extended(crops, masks)
    return torch.where(masks[:, None], source, crops)


def _extended(
    crops: UInt8[Tensor, "images 3 height width"], masks: Bool[Tensor, "images height width"]
) -> UInt8[Tensor, "images 3 height width"]:
    """What the masks leave, extended into them (push-pull, Gortler et al., The Lumigraph, 1996)."""
    known = 1 - masks[:, None].float()
    levels = [(crops.float() * known, known)]
    while min(levels[-1][0].shape[-2:]) > 1:
        levels.append((_halved(levels[-1][0]), _halved(levels[-1][1])))
    smooth = levels[-1][0] / levels[-1][1].clamp_min(1e-6)
    for colours, weights in reversed(levels[:-1]):
        size = tuple(colours.shape[-2:])
        coarse = functional.interpolate(smooth, size, mode="bilinear")
        smooth = torch.where(weights > LEAST_KNOWN, colours / weights.clamp_min(1e-6), coarse)
    return smooth.round().clamp(0, 255).to(torch.uint8)


def _halved(values: Tensor) -> Tensor:
    return functional.avg_pool2d(values, 2, ceil_mode=True, count_include_pad=False)


def have_elsewhere(masks: Bool[Tensor, "images height width"]) -> bool:
    """Whether most of the masks leave a place that is as large: not what surrounds an image."""
    return share(torch.stack([_has_elsewhere(mask) for mask in masks])) >= 0.5


def _has_elsewhere(mask: Bool[Tensor, "height width"]) -> Bool[Tensor, ""]:
    down, across = (torch.nonzero(mask.any(axis)).flatten() for axis in (1, 0))
    box = len(down) and int(down[-1] - down[0] + 1) * int(across[-1] - across[0] + 1)
    is_away = any(not (mask.flip(axes) & mask).any() for axes in MIRRORS)
    return torch.tensor(is_away or box <= LARGE * mask.numel())


def moved(
    masks: Bool[Tensor, "images height width"], generator: torch.Generator
) -> Bool[Tensor, "images height width"]:
    """Masks of the same size elsewhere.

    Mirrored, where that leaves their place: images are alike at places that are as far from the
    middle, where objects are. Else shifted to where they overlap themselves least, among a few
    random places; such a mask wraps around the image's border.
    """
    return torch.stack([_mirrored(mask, generator) for mask in masks])


def _mirrored(
    mask: Bool[Tensor, "height width"], generator: torch.Generator
) -> Bool[Tensor, "height width"]:
    mirrored = [mask.flip(axes) for axes in MIRRORS]
    away = [each for each in mirrored if not (each & mask).any()]
    if not away:
        return _shifted(mask, generator)
    return away[int(torch.randint(len(away), (), generator=generator))]


def _shifted(
    mask: Bool[Tensor, "height width"], generator: torch.Generator
) -> Bool[Tensor, "height width"]:
    shifts = torch.rand(PLACES, 2, generator=generator) * torch.tensor(mask.shape)
    places = [mask.roll((down, across), (0, 1)) for down, across in shifts.int().tolist()]
    overlaps = torch.stack([(place & mask).sum() for place in places])
    return places[int(overlaps.argmin())]


def share(outcomes: Bool[Tensor, "*any"]) -> float:
    """The share that is true; 0 of none."""
    values: Float[Tensor, "*any"] = outcomes.float()
    return float(values.mean()) if values.numel() else 0.0
