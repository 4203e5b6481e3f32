"""How far maps can be trusted: what becomes of a class's probability where they point.

Perturbed images are images again: pixels go towards the model's mean colour, which is 0 after
normalisation (as in aimagelab/ADCC), and are rounded to uint8, so that the method under test can
explain them. Maps are in [0, 1] on the token grid. Every metric is one number an image.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from explainer.models import VitClassifier
from explainer.sanity import pearson
from explainer.structure import position_term, tokens_entering

Crops: TypeAlias = UInt8[Tensor, "batch 3 height width"]
Versions: TypeAlias = UInt8[Tensor, "several_batch 3 height width"]
Saliency: TypeAlias = Float[Tensor, "batch rows columns"]
Numbers: TypeAlias = Float[Tensor, " batch"]

# RISE starts insertion at a blur of 11 pixels and a sigma of 5, on images of 224 pixels.
BLUR_KERNEL, BLUR_SIGMA, BLUR_SIDE = 11, 5.0, 224
TOP_SHARE = 0.1
# Perturbed images that go through the model at once: a core's cache holds few.
AT_ONCE = {"cpu": 8, "cuda": 256}


@dataclass(frozen=True)
class Case:
    """A model and crops of one batch; of each, `targets` is the class whose map is judged.

    What does not depend on a map is kept, for all methods that are judged on these crops.
    """

    model: VitClassifier
    crops: Crops
    targets: Int[Tensor, " batch"]

    @torch.inference_mode()
    def probability(self, crops: Versions) -> Float[Tensor, "several batch"]:
        """The softmax probability of each image's target, in one or several versions of all crops,
        one after the other."""
        parts = [
            self.model.vit(self.model.normalise(part)).softmax(-1)
            for part in crops.split(self._at_once)
        ]
        return self._of_targets(torch.cat(parts))

    def groups(self, counts: Sequence[int]) -> Iterator[Sequence[int]]:
        """Counts in turns whose versions of all crops go through the model together."""
        length = max(1, self._at_once // len(self.crops))
        yield from (counts[i : i + length] for i in range(0, len(counts), length))

    @torch.inference_mode()
    def probability_of(self, kept: Int[Tensor, "batch patches"]) -> Numbers:
        """The same where only the `kept` patch tokens, and those before them, enter the blocks."""
        vit, prefix = self.model.vit, self.model.prefix
        patches = self._embedded[:, prefix:]
        chosen = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[-1]))
        tokens = torch.cat([self._embedded[:, :prefix], chosen], 1)
        for block in vit.blocks:
            tokens = block(tokens)
        return self._of_targets(vit.forward_head(vit.norm(tokens)).softmax(-1))[0]

    def scaled(self, share: Float[Tensor, "several_batch height width"]) -> Versions:
        """Versions of the crops times `share` in normalised units: 0 is the mean colour."""
        mean = 255 * torch.tensor(self.model.preprocessing.mean, device=self.crops.device)
        return self._blended(mean[:, None, None].expand_as(self.crops), share)

    def revealed(self, share: Float[Tensor, "several_batch height width"]) -> Versions:
        """Versions of the crops where `share` is 1, and blurred where it is 0."""
        return self._blended(self._blurred, share)

    @cached_property
    def plain(self) -> Numbers:
        """The targets' probabilities in the crops as they are."""
        return self.probability(self.crops)[0]

    @cached_property
    def blurred(self) -> Numbers:
        """The same in the crops that insertion starts from."""
        return self.probability(self.revealed(self._nothing))[0]

    @cached_property
    def blank(self) -> Numbers:
        """The same where nothing is left but the mean colour."""
        return self.probability(self.scaled(self._nothing))[0]

    @property
    def _at_once(self) -> int:
        return AT_ONCE["cpu" if self.crops.device.type == "cpu" else "cuda"]

    @property
    def _nothing(self) -> Float[Tensor, "batch height width"]:
        return torch.zeros_like(self.crops[:, 0], dtype=torch.float32)

    @cached_property
    def _embedded(self) -> Float[Tensor, "batch tokens width"]:
        return tokens_entering(self.model.vit, self.model.normalise(self.crops), 0).tokens

    @cached_property
    def _blurred(self) -> Float[Tensor, "batch 3 height width"]:
        """RISE's blur, in proportion to the image."""
        across, down = self.crops.shape[-1] / BLUR_SIDE, self.crops.shape[-2] / BLUR_SIDE
        kernel = [max(3, 2 * round((BLUR_KERNEL * r - 1) / 2) + 1) for r in (across, down)]
        return gaussian_blur(self.crops.float(), kernel, [BLUR_SIGMA * across, BLUR_SIGMA * down])

    def _blended(
        self,
        below: Float[Tensor, "batch 3 height width"],
        share: Float[Tensor, "several_batch height width"],
    ) -> Versions:
        shares = share.unflatten(0, (-1, len(self.crops)))[:, :, None]
        mixed = below + shares * (self.crops - below)
        return mixed.round().clamp(0, 255).to(torch.uint8).flatten(0, 1)

    def _of_targets(
        self, probabilities: Float[Tensor, "several_batch classes"]
    ) -> Float[Tensor, "several batch"]:
        several = probabilities.unflatten(0, (-1, len(self.targets)))
        index = self.targets[None, :, None].expand(len(several), -1, -1)
        return several.gather(-1, index)[..., 0]


@dataclass(frozen=True)
class Adcc:
    """Average Drop, Coherency, Complexity and ADCC of each image, all in [0, 1].

    Of Poppi et al., Revisiting the Evaluation of Class Activation Mapping (CVPRW 2021), checked
    against aimagelab/ADCC. `increase`: 1 where the masked image is more probable than the image.
    """

    drop: Numbers
    increase: Numbers
    coherency: Numbers
    complexity: Numbers

    @property
    def adcc(self) -> Numbers:
        """The harmonic mean of coherency, 1 - complexity and 1 - drop; see `harmonic`."""
        return harmonic(self.coherency, self.complexity, self.drop)


def harmonic(coherency: Tensor, complexity: Tensor, drop: Tensor) -> Tensor:
    """ADCC of its three parts, images' or a data set's means; 0 where one of them is worst."""
    parts = torch.stack([coherency, 1 - complexity, 1 - drop])
    worst = (parts <= 0).any(0)
    inverse = parts.clamp_min(torch.finfo(parts.dtype).tiny).pow(-1)
    return torch.where(worst, 0.0, 3 / inverse.sum(0))


def adcc(case: Case, saliency: Saliency, explain: Callable[[Crops], Saliency]) -> Adcc:
    """Mask each image by its map, and see what the model and the method make of it.

    The masked image is image * map, the map enlarged bilinearly. `explain` gives the same target's
    map of other crops. Coherency is (1 + Pearson's r) / 2 of the two maps on the token grid, and 0
    where one of them is constant; complexity is the map's mean.
    """
    masked = case.scaled(enlarged(saliency, case.crops))
    before, after = case.plain, case.probability(masked)[0]
    again = explain(masked)
    correlation = pearson(saliency.flatten(1), again.flatten(1))
    return Adcc(
        drop=torch.where(before == 0, 0.0, (before - after).clamp(min=0) / before),
        increase=(after > before).to(before),
        coherency=torch.where(correlation.isnan(), 0.0, (correlation + 1) / 2),
        complexity=saliency.mean((1, 2)),
    )


@dataclass(frozen=True)
class Curves:
    """Areas under the target's probability: as the most salient patches come, and as they go.

    RISE (Petsiuk, Das and Saenko, BMVC 2018). `insertion`: high is good; from a blurred image.
    `deletion`: low is good; to the mean colour.
    """

    insertion: Numbers
    deletion: Numbers


def curves(case: Case, saliency: Saliency, steps: int) -> Curves:
    """Both curves, at shares 0, 1/steps, ..., 1 of the patches, by the trapezoidal rule."""
    rank = _rank(saliency)
    come, go = [case.blurred[None]], [case.plain[None]]
    for counts in case.groups(_counts(saliency, steps)[1:-1]):
        there = torch.cat([_on_pixels(rank < count, case.crops) for count in counts])
        come.append(case.probability(case.revealed(there)))
        go.append(case.probability(case.scaled(1 - there)))
    come.append(case.plain[None])
    go.append(case.blank[None])
    return Curves(*(torch.trapezoid(torch.cat(each), dx=1 / steps, dim=0) for each in (come, go)))


@dataclass(frozen=True)
class Removal:
    """Mean probability of the target as patch tokens are taken away, in steps short of all.

    No fill is needed. `most_first`: the most salient first, low is good; `least_first`: high is.
    """

    most_first: Numbers
    least_first: Numbers


def can_remove(model: VitClassifier) -> bool:
    """Whether tokens can be taken away: not where attention counts on all positions."""
    return position_term(model.vit) is None


def removal(case: Case, saliency: Saliency, steps: int) -> Removal:
    """Both means, over 1/steps, ..., (steps - 1)/steps of the patches taken away.

    Raises ValueError for a model whose attention has a position term; see `can_remove`.
    """
    if not can_remove(case.model):
        raise ValueError(
            f"tokens cannot be taken away: {case.model.name}'s attention has positions"
        )
    order = _rank(saliency).flatten(1).argsort(1)
    counts = _counts(saliency, min(steps, order.shape[1]))[1:-1]
    most = [case.probability_of(order[:, count:]) for count in counts]
    least = [case.probability_of(order[:, : order.shape[1] - count]) for count in counts]
    return Removal(torch.stack(most).mean(0), torch.stack(least).mean(0))


@dataclass(frozen=True)
class Localisation:
    """How a map lies to a region that is known to matter, 0 to 1; NaN where there is no region.

    `pointing`: 1 where the peak's cell meets the region (Zhang et al., ECCV 2016, without their
    tolerance: a cell has one). `mass`: share of the map within. `top_tenth`: share of the most
    salient tenth of the cells that lies within.
    """

    pointing: Numbers
    mass: Numbers
    top_tenth: Numbers


def localisation(saliency: Saliency, cover: Float[Tensor, "batch rows columns"]) -> Localisation:
    """`cover`: how much of each cell lies within the image's region; nowhere any: no region."""
    flat, inside = saliency.flatten(1), cover.flatten(1).to(saliency)
    order = _rank(saliency).flatten(1).argsort(1)
    top = order[:, : max(1, round(TOP_SHARE * flat.shape[1]))]
    total = flat.sum(1)
    found = Localisation(
        pointing=(inside.gather(1, order[:, :1])[:, 0] > 0).to(flat),
        mass=torch.where(total > 0, (flat * inside).sum(1) / total, 0.0),
        top_tenth=inside.gather(1, top).mean(1),
    )
    nowhere = inside.sum(1) == 0
    return Localisation(*(each.masked_fill(nowhere, torch.nan) for each in vars(found).values()))


def enlarged(saliency: Saliency, like: Crops) -> Float[Tensor, "batch height width"]:
    """A map at the size of the crops, bilinearly."""
    size = (like.shape[-2], like.shape[-1])
    return F.interpolate(saliency[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _on_pixels(cells: Tensor, like: Crops) -> Float[Tensor, "batch height width"]:
    """Cells of the token grid as squares of pixels."""
    size = (like.shape[-2], like.shape[-1])
    return F.interpolate(cells[:, None].float(), size=size, mode="nearest-exact")[:, 0]


def _rank(saliency: Saliency) -> Int[Tensor, "batch rows columns"]:
    """0 for the most salient cell; ties in an order that is drawn once, not from left to right."""
    flat = saliency.flatten(1)
    drawn = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0))
    drawn = drawn.to(flat.device)
    order = drawn[flat[:, drawn].argsort(dim=1, descending=True, stable=True)]
    return order.argsort(1).view_as(saliency)


def _counts(saliency: Saliency, steps: int) -> list[int]:
    """How many cells are 0, 1/steps, ..., 1 of them."""
    cells = saliency.shape[1] * saliency.shape[2]
    return [round(step * cells / steps) for step in range(steps + 1)]
