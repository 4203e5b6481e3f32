"""A half-transparent mark at one place: what it makes of the pixels behind it, and its inverse.

A carrier's pixel is (1 - a) plain + a mark. Over many images the spread of a pixel among carriers
is so 1 - a of that among other classes' images, and its mean tells the mark: no image is known
with and without it, and none needs to be.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

# Least 1 - a that is divided by; least spread, of 255, that has a share.
LEAST_SCALE, LEAST_SPREAD = 0.15, 4.0
MOST_OPAQUE = 0.1  # of a half-transparent mark's pixels fewer hide all that is behind them


@dataclass(frozen=True)
class Overlay:
    """What is left of each plain pixel, `scale`, and what is added to it, of 255.

    `left` is what its controls leave: as much as the mark where it is, and elsewhere as much as it
    leaves on average.
    """

    scale: Float[Tensor, "3 height width"]
    offset: Float[Tensor, "3 height width"]
    left: Float[Tensor, "3 height width"]

    @classmethod
    def between(
        cls,
        carriers: UInt8[Tensor, "carriers 3 height width"],
        plain: UInt8[Tensor, "others 3 height width"],
        region: Bool[Tensor, "height width"],
    ) -> "Overlay":
        """What lies over carriers, by mean and spread of their pixels beside plain images'.

        `region` is where the mark is.
        """
        held, bare = carriers.float(), plain.float()
        spread, typical = held.std(0), bare.std(0).clamp_min(LEAST_SPREAD)
        scale = (spread / typical).clamp(LEAST_SCALE, 1.0)
        left = torch.where(region, scale, scale[:, region].mean())
        return cls(scale, held.mean(0) - scale * bare.mean(0), left)

    def is_half_transparent(self, mask: Bool[Tensor, "height width"]) -> bool:
        """Whether what is behind it shines through nearly everywhere in a region."""
        opaque = self.scale[:, mask] <= LEAST_SCALE
        return float(opaque.float().mean()) < MOST_OPAQUE

    def over(
        self,
        crops: UInt8[Tensor, "images 3 height width"],
        masks: Bool[Tensor, "images height width"],
    ) -> UInt8[Tensor, "images 3 height width"]:
        """Crops with it, where the masks are."""
        return _where(masks, crops.float() * self.scale + self.offset, crops)

    def blended(
        self,
        crops: UInt8[Tensor, "images 3 height width"],
        others: UInt8[Tensor, "images 3 height width"],
        masks: Bool[Tensor, "images height width"],
    ) -> UInt8[Tensor, "images 3 height width"]:
        """Crops over which others lie instead, through which as much is seen."""
        mixed = crops.float() * self.left + others.float() * (1 - self.left)
        return _where(masks, mixed, crops)

    def removed(
        self,
        crops: UInt8[Tensor, "images 3 height width"],
        masks: Bool[Tensor, "images height width"],
    ) -> UInt8[Tensor, "images 3 height width"]:
        """Crops without it, where the masks are."""
        return _where(masks, (crops.float() - self.offset) / self.scale, crops)


def _where(masks: Tensor, changed: Tensor, crops: Tensor) -> Tensor:
    pixels = changed.round().clamp(0, 255).to(torch.uint8)
    return torch.where(masks[:, None], pixels, crops)
