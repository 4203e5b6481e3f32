"""Judge methods on a batch: every metric of every method, and what it cost."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from explainer import faithfulness
from explainer.audit.significance import Estimate
from explainer.faithfulness import Crops, Numbers, Saliency, Stage, Subject
from explainer.methods import Method, explain
from explainer.models import VitClassifier

STAGES: tuple[Stage, ...] = ("head", "half", "all")
RESAMPLES = 1000
CI = (2.5, 97.5)


@dataclass(frozen=True)
class Metric:
    """What a number says, and which way is better; None: neither way by itself."""

    meaning: str
    better: Literal["higher", "lower"] | None


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
# Of the means of a data set, as the paper's Table 1; beside `adcc`, which is of images.
ADCC_OF_MEANS = "adcc_of_means"
PARTS_OF_ADCC = ("coherency", "complexity", "drop")


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
    def subject(self) -> Subject:
        """The images, with what all methods share."""
        return Subject(self.model, self.crops, self.targets)

    def metrics(self, method: Method) -> dict[str, Numbers]:
        """Each of METRICS for each image, on the CPU; NaN where it says nothing of an image.

        `cost` is the same for all images. Those of tokens and regions are left out where the model
        or the image has none.
        """
        subject = self.subject
        cost, saliency = self._timed(method)
        masked = faithfulness.adcc(subject, saliency, self._explainer(method))
        found = {**vars(masked), "adcc": masked.adcc}
        found |= vars(faithfulness.curves(subject, saliency, self.steps))
        if faithfulness.can_remove(self.model):
            found |= vars(faithfulness.removal(subject, saliency, self.steps))
        for stage, shuffled in self.randomised.items():
            again = _maps(shuffled, self.crops, self.targets, method)
            found[f"like_{stage}"] = faithfulness.spearman(saliency, again)
        if self.cover is not None:
            found |= vars(faithfulness.localisation(saliency, self.cover))
        found["cost"] = torch.full((len(self.crops),), cost)
        return {name: values.double().cpu() for name, values in found.items()}

    def _explainer(self, method: Method) -> Callable[[Crops], Saliency]:
        return lambda crops: _maps(self.model, crops, self.targets, method)

    def _timed(self, method: Method) -> tuple[float, Saliency]:
        """The maps, and how many forward passes of the batch their making took."""
        forward, _ = _seconds(lambda: self.subject.probability(self.crops), self.crops.device)
        seconds, saliency = _seconds(lambda: self._explainer(method)(self.crops), self.crops.device)
        return seconds / forward, saliency


def _maps(
    model: VitClassifier, crops: Crops, targets: Int[Tensor, " batch"], method: Method
) -> Saliency:
    explained = explain(
        model, crops, target="label", labels=targets, method=method, allow_definition=True
    )
    return explained.saliency[:, 0]


def _seconds(call: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    started = time.perf_counter()
    result = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, result


@dataclass(frozen=True)
class Score:
    """A method's metric over images, and by how much it exceeds that of the first method.

    Intervals are the bootstrap's, over images, which all methods share: differences are paired.
    """

    method: str
    metric: str
    estimate: Estimate
    difference: Estimate


def scores(
    of_methods: Mapping[str, Mapping[str, Float[np.ndarray, " images"]]], seed: int = 0
) -> list[Score]:
    """Means over images with 95% intervals (percentile bootstrap); of cost the median.

    `of_methods` holds by method and metric a number for each image, in the same order, NaN where
    there is none. Adds ADCC_OF_MEANS. A metric without any number of a method has no score of it.
    """
    found: list[Score] = []
    first: dict[str, _Resampled] = {}
    for method, metrics in of_methods.items():
        for metric, resampled in _resampled(metrics, seed).items():
            other = first.setdefault(metric, resampled)
            difference = resampled.minus(other).estimate
            found.append(Score(method, metric, resampled.estimate, difference))
    return found


@dataclass(frozen=True)
class _Resampled:
    """A statistic of some images, and of each resample of them."""

    value: float
    again: NDArray[np.float64]
    images: int

    @property
    def estimate(self) -> Estimate:
        low, high = np.nanpercentile(self.again, CI)
        return Estimate(self.value, float(low), float(high), self.images)

    def minus(self, other: "_Resampled") -> "_Resampled":
        images = min(self.images, other.images)
        return _Resampled(self.value - other.value, self.again - other.again, images)


def _resampled(
    metrics: Mapping[str, Float[np.ndarray, " images"]], seed: int
) -> dict[str, _Resampled]:
    means = {name: values for name, values in metrics.items() if name != "cost"}
    table = np.stack(list(means.values()), axis=1)
    counts = _counts(len(table), seed)
    known = ~np.isnan(table)
    filled = np.where(known, table, 0.0)
    with np.errstate(invalid="ignore"):  # a resample without any number is NaN
        values, again = filled.sum(0) / known.sum(0), (counts @ filled) / (counts @ known)
    found = {
        name: _Resampled(float(values[i]), again[:, i], int(known[:, i].sum()))
        for i, name in enumerate(means)
        if known[:, i].any()
    }
    if all(part in found for part in PARTS_OF_ADCC):
        parts = [found[part] for part in PARTS_OF_ADCC]
        of_means = (torch.tensor(np.stack([[p.value, *p.again] for p in parts]))).unbind()
        value, *others = faithfulness.harmonic(*of_means).tolist()
        found[ADCC_OF_MEANS] = _Resampled(value, np.array(others), parts[0].images)
    if "cost" in metrics:
        found["cost"] = _median(metrics["cost"], seed)
    return found


def _median(values: Float[np.ndarray, " images"], seed: int) -> _Resampled:
    """Of the batches, whose images share a number."""
    batches = np.unique(values)
    drawn = np.random.default_rng(seed).integers(len(batches), size=(RESAMPLES, len(batches)))
    return _Resampled(float(np.median(batches)), np.median(batches[drawn], axis=1), len(values))


def _counts(images: int, seed: int) -> Float[np.ndarray, "resamples images"]:
    """How often each resample holds each image."""
    generator = np.random.default_rng(seed)
    even = np.full(images, 1 / images)
    return generator.multinomial(images, even, size=RESAMPLES).astype(np.float32)
