"""Where a class may cheat: regions proposed by maps, by occlusion and by place, then screened.

A proposal is a hypothesis about one image. It is pasted into one image of another class, and where
that flips, into a few more: what flips most of them is a hit. Maps are not the only trigger, since
they can miss a small tag that flips predictions (Sun et al., MICCAI 2023).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from explainer.audit import regions
from explainer.audit.interventions import Fill, Images, Laboratory, filled
from explainer.reference import log_odds

# Most images of a class that a screen looks at, and of those most that are occluded cell by cell.
SCREENED, OCCLUDED = 48, 4
# A hit flips so many of the recipients that it is tried on once its first paste has flipped one.
TRIES, LEAST_FLIPS = 4, 3
MOST_SEARCHED = 8  # images whose background flips, in which the region that does is looked for
REGION_TRIES = 2


@dataclass(frozen=True)
class ClassSample:
    """A class's images as the audit samples them.

    `saliency` are maps of the class for images that are predicted as it, `explained`; only these
    are screened. `discovery` is the half that cues are found in; the other tests them.
    """

    target: int
    crops: UInt8[Tensor, "images 3 height width"]
    saliency: Float[Tensor, "images rows columns"]
    explained: Bool[Tensor, " images"]
    discovery: Bool[Tensor, " images"]

    def __len__(self) -> int:
        return len(self.crops)


@dataclass(frozen=True)
class Proposal:
    """A region of one image, as a mask on the token grid, and what proposed it."""

    origin: str
    image: int
    mask: Bool[Tensor, "rows columns"]


@dataclass
class Screen:
    """Screens one class: which proposals flip other classes' images."""

    lab: Laboratory
    sample: ClassSample
    recipients: Images
    generator: torch.Generator

    @property
    def grid(self) -> tuple[int, int]:
        return self.lab.model.grid

    @property
    def size(self) -> tuple[int, int]:
        return (self.sample.crops.shape[-2], self.sample.crops.shape[-1])

    def hits(self) -> list[Proposal]:
        """Windows at peaks of maps and of occlusion, and fixed regions, that flip predictions."""
        chosen = torch.nonzero(self.sample.explained & self.sample.discovery).flatten()
        images = chosen[torch.randperm(len(chosen), generator=self.generator)][:SCREENED]
        found = [
            *self._flipping(self._peaks(images)),
            *self._flipping(self._occluded(images[:OCCLUDED])),
            *self._regions(images),
        ]
        return found

    def _peaks(self, images: Int[Tensor, " screened"]) -> list[Proposal]:
        cells = self.sample.saliency[images].flatten(1).argmax(1)
        return self._windows("saliency", images, cells)

    def _windows(
        self, origin: str, images: Int[Tensor, " n"], cells: Int[Tensor, " n"]
    ) -> list[Proposal]:
        side = regions.window_side(self.grid)
        masks = regions.windows(regions.around(cells, side, self.grid), side, self.grid)
        return [
            Proposal(origin, int(image), mask) for image, mask in zip(images, masks, strict=True)
        ]

    def _occluded(self, images: Int[Tensor, " occluded"]) -> list[Proposal]:
        """The window of each image whose occlusion costs the class most log-odds."""
        side = regions.window_side(self.grid)
        rows, columns = self.grid
        corners = torch.tensor([(r, c) for r in _steps(rows, side) for c in _steps(columns, side)])
        masks = regions.windows(corners, side, self.grid)
        pixels = regions.to_pixels(masks, self.size)
        found = []
        for image in images.tolist():
            crops = self.sample.crops[image].expand(len(masks), -1, -1, -1)
            without = filled(crops, pixels, Fill.BLUR, crops)
            kept = log_odds(self.lab.logits(without), self.sample.target)
            worst = int(kept.argmin())
            found.append(Proposal("occlusion", image, masks[worst]))
        return found

    def _regions(self, images: Int[Tensor, " screened"]) -> list[Proposal]:
        """Fixed regions: where the background of an image flips, which part of it does."""
        everything = regions.background(self.grid)
        proposals = [Proposal("background", int(image), everything) for image in images]
        flipping = [p for p, flips in zip(proposals, self._once(proposals), strict=True) if flips]
        found = []
        for flipped in flipping[:MOST_SEARCHED]:
            parts = [
                Proposal(name, flipped.image, mask)
                for name, mask in (*regions.fixed(self.grid).items(), ("background", everything))
            ]
            all_flip = torch.stack([self._once(parts) for _ in range(REGION_TRIES)]).all(0)
            found += [part for part, flips in zip(parts, all_flip, strict=True) if flips]
        return found

    def _flipping(self, proposals: Sequence[Proposal]) -> list[Proposal]:
        """The proposals that flip one recipient, and most of TRIES others."""
        once = [p for p, flips in zip(proposals, self._once(proposals), strict=True) if flips]
        if not once:
            return []
        flips = torch.stack([self._once(once) for _ in range(TRIES)]).sum(0)
        return [p for p, count in zip(once, flips, strict=True) if count >= LEAST_FLIPS]

    def _once(self, proposals: Sequence[Proposal]) -> Bool[Tensor, " proposals"]:
        """Whether each proposal flips a recipient drawn at random."""
        drawn = torch.randint(len(self.recipients), (len(proposals),), generator=self.generator)
        if not len(drawn):
            return torch.zeros(0, dtype=torch.bool)
        images = torch.tensor([p.image for p in proposals])
        masks = regions.to_pixels(torch.stack([p.mask for p in proposals]), self.size)
        return self.lab.flips_by_pairs(
            self.sample.target, self.recipients.crops[drawn], self.sample.crops[images], masks
        )


def _steps(cells: int, side: int) -> list[int]:
    """Where windows begin that cover an axis, the last at its end."""
    return [*range(0, cells - side, side), cells - side]
