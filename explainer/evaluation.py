"""Judge methods on a batch: every metric of every method, and what it cost."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from explainer import faithfulness
from explainer.faithfulness import Case, Crops, Numbers, Saliency
from explainer.methods import Method, explain
from explainer.models import VitClassifier
from explainer.reciprocam import Explanation
from explainer.sanity import Stage, spearman

Result = TypeVar("Result")
STAGES: tuple[Stage, ...] = ("head", "half", "all")


@dataclass(frozen=True)
class Metric:
    """What a number says, and which way is better."""

    meaning: str
    better: Literal["higher", "lower"]


METRICS: Mapping[str, Metric] = {
    "drop": Metric("Average Drop: share of the probability lost under the map", "lower"),
    "increase": Metric("1 where the image under its map is more probable", "higher"),
    "coherency": Metric("likeness of the map and that of the image under it", "higher"),
    "complexity": Metric("the map's mean", "lower"),
    "adcc": Metric("harmonic mean of coherency, 1 - complexity, 1 - drop", "higher"),
    "insertion": Metric("area under the probability as salient patches come", "higher"),
    "deletion": Metric("area under the probability as salient patches go", "lower"),
    "most_first": Metric("mean probability as the most salient tokens are removed", "lower"),
    "least_first": Metric("mean probability as the least salient tokens are removed", "higher"),
    "like_head": Metric("rank correlation with the map of a shuffled classifier", "lower"),
    "like_half": Metric("the same, the later half of the blocks shuffled too", "lower"),
    "like_all": Metric("the same, all weights shuffled", "lower"),
    "pointing": Metric("1 where the peak lies in the image's region", "higher"),
    "mass": Metric("share of the map within the region", "higher"),
    "top_tenth": Metric("share of the most salient tenth within the region", "higher"),
    "cost": Metric("time of the map, in forward passes of the same batch", "lower"),
}


@dataclass(frozen=True)
class Judge:
    """Images of one batch and what methods are held against.

    `cover`: how much of each cell of the token grid lies in the image's region, or None where no
    regions are known. `randomised`: the model with weights shuffled up to each stage.
    """

    model: VitClassifier
    crops: Crops
    targets: Int[Tensor, " batch"]
    steps: int
    randomised: Mapping[Stage, VitClassifier]
    cover: Float[Tensor, "batch rows columns"] | None = None

    @cached_property
    def case(self) -> Case:
        """The images, with what all methods share."""
        return Case(self.model, self.crops, self.targets)

    def metrics(self, method: Method) -> dict[str, Numbers]:
        """Each of METRICS for each image, on the CPU; NaN where it says nothing of an image.

        That is so of all numbers of an image whose outputs or map are not finite. `cost` is the
        same for all images. Those of tokens and regions are left out where the model has positions
        in its attention, or no regions are known.
        """
        cost, explained = self._timed(method)
        saliency = explained.saliency[:, 0]
        masked = faithfulness.adcc(self.case, saliency, lambda crops: self.maps(method, crops))
        found = {**vars(masked), "adcc": masked.adcc}
        found |= vars(faithfulness.curves(self.case, saliency, self.steps))
        if faithfulness.can_remove(self.model):
            found |= vars(faithfulness.removal(self.case, saliency, self.steps))
        for stage, shuffled in self.randomised.items():
            again = _explained(shuffled, self.crops, self.targets, method).saliency[:, 0]
            found[f"like_{stage}"] = spearman(saliency, again)
        if self.cover is not None:
            found |= vars(faithfulness.localisation(saliency, self.cover))
        unknown = ~explained.is_finite
        numbers = {name: each.masked_fill(unknown, torch.nan) for name, each in found.items()}
        numbers["cost"] = torch.full((len(self.crops),), cost)
        return {name: values.double().cpu() for name, values in numbers.items()}

    def maps(self, method: Method, crops: Crops) -> Saliency:
        """The method's maps of other crops, as many, of the same targets."""
        return _explained(self.model, crops, self.targets, method).saliency[:, 0]

    def _timed(self, method: Method) -> tuple[float, Explanation]:
        """The maps, and how many forward passes of the batch their making took."""
        device = self.crops.device
        forward, _ = _seconds(lambda: self.case.probability(self.crops), device)
        seconds, explained = _seconds(
            lambda: _explained(self.model, self.crops, self.targets, method), device
        )
        return seconds / forward, explained


def _explained(
    model: VitClassifier, crops: Crops, targets: Int[Tensor, " batch"], method: Method
) -> Explanation:
    return explain(
        model, crops, target="label", labels=targets, method=method, allow_definition=True
    )


def _seconds(call: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    _wait(device)  # for what is not the call's
    started = time.perf_counter()
    result = call()
    _wait(device)
    return time.perf_counter() - started, result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
