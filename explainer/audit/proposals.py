"""Where a class may cheat: windows proposed by maps, by occlusion, and by what images share.

A proposal is a hypothesis about one image. Maps are not the only trigger, since they can miss a
small tag that flips predictions (Sun et al., MICCAI 2023).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from explainer.audit import content, regions
from explainer.audit.content import Patches, Seed, Window
from explainer.audit.interventions import Fill, Laboratory, filled
from explainer.audit.sample import ClassSample
from explainer.reference import log_odds

# Of a class's images so many are looked at, and so many of other classes' beside them; of the
# former so many give windows, and so many are occluded window by window.
SCREENED, STRANGERS = 40, 32
LOOKED_AT, OCCLUDED = 20, 5
WORST_WINDOWS = 3
# Most seeds of one origin and one size of window.
MOST_SEEDS = 6
OCCLUSION, SALIENCY, ALIKE = "occlusion", "saliency", "alike windows"
ALIGNED = "alike at one place"


@dataclass(frozen=True)
class Proposer:
    """Proposes windows of a class's discovery half that several of its images hold alike."""

    lab: Laboratory
    sample: ClassSample
    generator: torch.Generator

    @property
    def cell(self) -> int:
        """Pixels across a token of a reduced image."""
        return content.pixels_of_a_cell(self.sample.grid)

    def seeds(
        self,
        mine: Float[Tensor, "images 3 height width"],
        theirs: Float[Tensor, "others 3 height width"],
    ) -> list[Seed]:
        """Seeds of all origins and of two sizes of window.

        `mine` and `theirs` are reduced images of the class and of others.
        """
        screened = self.sample.drawn(SCREENED, self.generator)
        order = torch.randperm(len(theirs), generator=self.generator)[:STRANGERS]
        sizes = _sizes(self.sample)
        occluded = self._occluded(screened[:OCCLUDED], max(sizes))
        found = aligned(self.sample, mine, theirs)
        for cells in sizes:
            side = cells * self.cell
            patches = content.patches(mine[screened], side)
            others = content.patches(theirs[order], side)
            for origin, windows in (
                (ALIKE, _everywhere(len(screened[:LOOKED_AT]), patches)),
                (SALIENCY, self._peaks(screened[:LOOKED_AT], cells)),
                (OCCLUSION, occluded),
            ):
                seeds = content.seeds(origin, windows, side, patches, others)
                found += [_of(seed, screened) for seed in content.distinct(seeds, MOST_SEEDS)]
        return found

    def _peaks(self, images: Int[Tensor, " images"], cells: int) -> list[Window]:
        """The window around the peak of each map."""
        peaks = self.sample.saliency[images].flatten(1).argmax(1)
        corners = regions.around(peaks, cells, self.sample.grid) * self.cell
        explained = self.sample.explained[images].tolist()
        return [
            Window(number, *corner)
            for number, (corner, has_map) in enumerate(
                zip(corners.tolist(), explained, strict=True)
            )
            if has_map
        ]

    def _occluded(self, images: Int[Tensor, " occluded"], cells: int) -> list[Window]:
        """The windows of each image whose occlusion costs the class most log-odds."""
        rows, columns = self.sample.grid
        corners = torch.tensor(
            [
                (row, column)
                for row in content.steps(rows - cells, cells)
                for column in content.steps(columns - cells, cells)
            ]
        )
        masks = regions.to_pixels(
            regions.windows(corners, cells, self.sample.grid), self.sample.size
        )
        found = []
        for number, image in enumerate(images.tolist()):
            crops = self.sample.crops[image].expand(len(masks), -1, -1, -1)
            without = filled(crops, masks, Fill.SURROUND, crops)
            kept = log_odds(self.lab.logits(without), self.sample.target)
            for worst in kept.argsort(stable=True)[:WORST_WINDOWS].tolist():
                top, left = (corners[worst] * self.cell).tolist()
                found.append(Window(number, top, left))
        return found


def aligned(
    sample: ClassSample,
    mine: Float[Tensor, "images 3 height width"],
    theirs: Float[Tensor, "others 3 height width"],
) -> list[Seed]:
    """Seeds of windows at one place, of both sizes, which ask neither maps nor model."""
    every, found = torch.nonzero(sample.discovery).flatten(), []
    for cells in _sizes(sample):
        side = cells * content.pixels_of_a_cell(sample.grid)
        seeds = content.aligned(ALIGNED, side, mine[every], theirs)
        found += [_of(seed, every) for seed in content.distinct(seeds, MOST_SEEDS)]
    return found


def _sizes(sample: ClassSample) -> tuple[int, int]:
    """Cells across windows."""
    largest = regions.window_side(sample.grid)
    return (largest - 1, largest)


def _everywhere(images: int, patches: Patches) -> list[Window]:
    """Windows of each image that overlap by half and more."""
    places, across = patches.values.shape[1], patches.across
    side = int((patches.values.shape[2] // 3) ** 0.5)
    step = max(3, side // 2)
    return [
        Window(image, top, left)
        for image in range(images)
        for top in range(0, places // across, step)
        for left in range(0, across, step)
    ]


def _of(seed: Seed, images: Int[Tensor, " screened"]) -> Seed:
    """A seed whose windows number the class's images, not the screened ones."""
    windows = tuple(Window(int(images[w.image]), w.top, w.left) for w in seed.windows)
    return Seed(seed.origin, seed.side, windows, seed.score)
