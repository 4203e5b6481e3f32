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
MOST_SEARCHED = 8  # images whose border flips, in which the part that does is looked for
REGION_TRIES = 2
BACKGROUND = "background"


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
    """Screens one class: which proposals flip other classes' images.

    `recipients` are groups of these; a proposal is tried in each, and tried on where it flips.
    """

    lab: Laboratory
    sample: ClassSample
    recipients: Sequence[Images]
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
        """Fixed regions: where the border of an image flips, which part of it; the background."""
        parts = regions.fixed(self.grid)
        borders = [Proposal("border", int(i), regions.border(self.grid)) for i in images]
        behind = [Proposal(BACKGROUND, int(i), regions.background(self.grid)) for i in images]
        found: dict[tuple[str, int], Proposal] = {}
        for group in self.recipients:
            flipping = _chosen(borders, self._once(borders, group))[:MOST_SEARCHED]
            tried = [
                Proposal(name, b.image, mask) for b in flipping for name, mask in parts.items()
            ]
            tried += _chosen(behind, self._once(behind, group))[:MOST_SEARCHED]
            if tried:
                tries = torch.stack([self._once(tried, group) for _ in range(REGION_TRIES)])
                found |= {(hit.origin, hit.image): hit for hit in _chosen(tried, tries.all(0))}
        return list(found.values())

    def _flipping(self, proposals: Sequence[Proposal]) -> list[Proposal]:
        """The proposals that flip one recipient of a group, and most of TRIES others of it."""
        found: dict[int, Proposal] = {}
        for group in self.recipients:
            once = _chosen(proposals, self._once(proposals, group))
            if not once:
                continue
            flips = torch.stack([self._once(once, group) for _ in range(TRIES)]).sum(0)
            found |= {hit.image: hit for hit in _chosen(once, flips >= LEAST_FLIPS)}
        return list(found.values())

    def _once(self, proposals: Sequence[Proposal], group: Images) -> Bool[Tensor, " proposals"]:
        """Whether each proposal flips a recipient of a group, drawn at random."""
        if not proposals:
            return torch.zeros(0, dtype=torch.bool)
        drawn = torch.randint(len(group), (len(proposals),), generator=self.generator)
        images = torch.tensor([p.image for p in proposals])
        masks = regions.to_pixels(torch.stack([p.mask for p in proposals]), self.size)
        return self.lab.flips_by_pairs(
            self.sample.target, group.crops[drawn], self.sample.crops[images], masks
        )


def _chosen(proposals: Sequence[Proposal], chosen: Bool[Tensor, " proposals"]) -> list[Proposal]:
    return [proposal for proposal, is_one in zip(proposals, chosen, strict=True) if is_one]


def _steps(cells: int, side: int) -> list[int]:
    """Where windows begin that cover an axis, the last at its end."""
    return [*range(0, cells - side, side), cells - side]
