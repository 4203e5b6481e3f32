"""A class's images as the audit samples them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class ClassSample:
    """Some images of a class.

    `saliency` are maps of the class for images that are predicted as it, `explained`. `discovery`
    is the half that cues are found in; the other tests them.
    """

    target: int
    crops: UInt8[Tensor, "images 3 height width"]
    saliency: Float[Tensor, "images rows columns"]
    explained: Bool[Tensor, " images"]
    discovery: Bool[Tensor, " images"]

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return (self.saliency.shape[-2], self.saliency.shape[-1])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the crops."""
        return (self.crops.shape[-2], self.crops.shape[-1])

    @property
    def middles(self) -> Float[Tensor, "images 2"]:
        """The middle of each image, in cells: where what has no place of its own lies."""
        return torch.tensor(self.grid).float().div(2).expand(len(self), -1)

    def least_share(self, held: Bool[Tensor, " images"]) -> float:
        """The share that holds something, in the half of fewer."""
        return min(float(held[half].float().mean()) for half in (self.discovery, ~self.discovery))

    def drawn(self, most: int, generator: torch.Generator) -> Int[Tensor, " drawn"]:
        """At most so many of the discovery half in a random order, explained ones first."""
        chosen = torch.nonzero(self.discovery).flatten()
        chosen = chosen[torch.randperm(len(chosen), generator=generator)]
        return chosen[(~self.explained[chosen]).long().argsort(stable=True)][:most]
