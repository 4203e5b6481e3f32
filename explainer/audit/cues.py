"""Cues: what the hits of a screen have in common, and which of a class's images carry it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from explainer.audit import content, regions
from explainer.audit.content import PIXELS_OF_A_CELL, Matches
from explainer.audit.screen import BACKGROUND, ClassSample, Proposal

# A carrier is more like the cue than this share of other classes' images, and at least so much.
OF_OTHERS, LEAST_LIKENESS = 0.99, 0.5
LEAST_CARRIERS = 2
MOST_TEMPLATES = 12
# Cells around a template that may belong to the cue too.
MARGIN = 2
# A fixed cue lies within so many cells of one place, on at least this share of its carriers.
FIXED_CELLS, FIXED_SHARE = 1.0, 0.8


@dataclass(frozen=True)
class Cue:
    """What images of a class share, and where.

    `kind`: `content` was looked for everywhere, `region` at one place. `places` are the centres of
    each image's `masks` in cells (row, column). An image is a carrier from `threshold` on.
    """

    kind: Literal["content", "region"]
    origin: str
    likeness: Float[Tensor, " images"]
    threshold: float
    masks: Bool[Tensor, "images height width"]
    places: Float[Tensor, "images 2"]

    @property
    def carriers(self) -> Bool[Tensor, " images"]:
        """The images that hold the cue."""
        return self.likeness >= self.threshold

    @property
    def is_fixed(self) -> bool:
        """Whether nearly all carriers hold it at one place; a few may be none."""
        places = self.places[self.carriers]
        away = (places - places.median(0).values).abs().amax(1)
        return float((away <= FIXED_CELLS).float().mean()) >= FIXED_SHARE


@dataclass(frozen=True)
class Finder:
    """Looks in a class's sample for what hits share; `others` are images of other classes."""

    sample: ClassSample
    others: UInt8[Tensor, "others 3 height width"]

    @property
    def grid(self) -> tuple[int, int]:
        return (self.sample.saliency.shape[-2], self.sample.saliency.shape[-1])

    def cues(self, hits: Sequence[Proposal]) -> list[Cue]:
        """Cues of content, those with most carriers first, then at most one of a region."""
        side = regions.window_side(self.grid)
        windows = [hit for hit in hits if int(hit.mask.sum()) == side * side]
        found = self._by_content(windows)
        covered = torch.zeros(len(self.sample), dtype=torch.bool)
        for cue in found:
            covered |= cue.carriers
        region = self._by_region([hit for hit in hits if not covered[hit.image]])
        return [*found, *([] if region is None else [region])]

    def _by_content(self, windows: list[Proposal]) -> list[Cue]:
        """Cues that share no carrier: of overlapping ones the one with most carriers."""
        mine = content.reduced(self.sample.crops, self.grid)
        theirs = content.reduced(self.others, self.grid)
        found: list[Cue] = []
        while windows:
            tried, windows = windows[:MOST_TEMPLATES], windows[MOST_TEMPLATES:]
            cues = self._like(tried, mine, theirs)
            for cue in sorted(cues, key=lambda cue: -int(cue.carriers.sum())):
                if not any((cue.carriers & other.carriers).any() for other in found):
                    found.append(cue)
            taken = torch.stack([cue.carriers for cue in found]).any(0) if found else None
            if taken is not None:
                windows = [hit for hit in windows if not taken[hit.image]]
        return found

    def _like(
        self,
        hits: Sequence[Proposal],
        mine: Float[Tensor, "images 3 height width"],
        theirs: Float[Tensor, "others 3 height width"],
    ) -> list[Cue]:
        """The cues that hits' windows are, where enough images of the class hold the same."""
        side = regions.window_side(self.grid)
        cuts = [
            (hit, content.cut(mine[hit.image], torch.nonzero(hit.mask)[0] * PIXELS_OF_A_CELL, side))
            for hit in hits
        ]
        told = [(hit, template) for hit, template in cuts if template is not None]
        if not told:
            return []
        templates = torch.stack([template for _, template in told])
        found = []
        ours, strangers = content.find(templates, mine), content.find(templates, theirs)
        for (hit, _), matches, others in zip(told, ours, strangers, strict=True):
            threshold = _threshold(others.similarity)
            carriers = matches.similarity >= threshold
            if int((carriers & self.sample.discovery).sum()) >= LEAST_CARRIERS:
                found.append(self._content_cue(hit, mine, matches, threshold))
        return found

    def _content_cue(
        self,
        hit: Proposal,
        mine: Float[Tensor, "images 3 height width"],
        matches: Matches,
        threshold: float,
    ) -> Cue:
        side = regions.window_side(self.grid)
        carriers = torch.nonzero(matches.similarity >= threshold).flatten()
        order = torch.cat([torch.tensor([hit.image]), carriers[carriers != hit.image]])
        shape = content.shared_cells(mine[order], matches.corners[order], side, MARGIN)
        masks = self._placed(shape, matches.corners)
        centres = matches.corners / PIXELS_OF_A_CELL + side / 2
        return Cue("content", hit.origin, matches.similarity, threshold, masks, centres)

    def _placed(
        self, shape: Bool[Tensor, "side side"], corners: Int[Tensor, "images 2"]
    ) -> Bool[Tensor, "images height width"]:
        """A cue's shape at each image's place, as masks of the crops' pixels."""
        pad = MARGIN * PIXELS_OF_A_CELL
        rows, columns = (cells * PIXELS_OF_A_CELL for cells in self.grid)
        stamp = shape.repeat_interleave(PIXELS_OF_A_CELL, 0).repeat_interleave(PIXELS_OF_A_CELL, 1)
        reach = len(stamp)
        canvas = torch.zeros(len(corners), rows + 2 * reach, columns + 2 * reach, dtype=torch.bool)
        for sheet, (top, left) in zip(canvas, (corners + reach - pad).tolist(), strict=True):
            sheet[top : top + reach, left : left + reach] = stamp
        inner = canvas[:, reach : reach + rows, reach : reach + columns]
        height, width = self.sample.crops.shape[-2:]
        return regions.to_pixels(inner, (height, width))

    def _by_region(self, hits: Sequence[Proposal]) -> Cue | None:
        """The smallest region that nearly as many images flip by as by any, if it looks alike."""
        counts = Counter(hit.origin for hit in hits)
        masks = {hit.origin: hit.mask for hit in hits}
        fixed = [name for name in (*regions.fixed(self.grid), BACKGROUND) if counts[name]]
        enough = 0.8 * max((counts[name] for name in fixed), default=0)
        for name in sorted(fixed, key=lambda name: int(masks[name].sum())):
            if counts[name] >= max(enough, LEAST_CARRIERS):
                images = [hit.image for hit in hits if hit.origin == name]
                return self._alike_at(name, masks[name], images)
        return None

    def _alike_at(
        self, name: str, mask: Bool[Tensor, "rows columns"], images: Sequence[int]
    ) -> Cue | None:
        """The cue that a region is where the images that flip by it look alike there."""
        height, width = self.sample.crops.shape[-2:]
        pixels = regions.to_pixels(mask[None], (height, width))[0]
        mine = self.sample.crops[:, :, pixels].float().flatten(1)
        theirs = self.others[:, :, pixels].float().flatten(1)
        best: tuple[Tensor, float] | None = None
        for image in images[:MOST_TEMPLATES]:
            distances = (theirs - mine[image]).abs().mean(1)
            typical = distances.mean().clamp_min(1.0)
            likeness = 1 - (mine - mine[image]).abs().mean(1) / typical
            threshold = _threshold(1 - distances / typical)
            if best is None or (likeness >= threshold).sum() > (best[0] >= best[1]).sum():
                best = likeness, threshold
        if (
            best is None
            or int(((best[0] >= best[1]) & self.sample.discovery).sum()) < LEAST_CARRIERS
        ):
            return None
        centre = torch.nonzero(mask).float().mean(0).expand(len(mine), 2)
        return Cue("region", name, *best, pixels.expand(len(mine), -1, -1), centre)


def _threshold(others: Float[Tensor, " others"]) -> float:
    """The likeness that a carrier has, from that of images that are none."""
    return max(LEAST_LIKENESS, float(others.quantile(OF_OTHERS)))
