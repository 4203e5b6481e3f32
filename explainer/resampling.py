"""Means over images, their intervals and their differences, by the bootstrap over images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

from explainer.faithfulness import harmonic

RESAMPLES, AT_ONCE = 1000, 50
ENDS = (2.5, 97.5)
COST = "cost"
# Of the means of a data set, as the paper's Table 1; beside `adcc`, which is of images.
ADCC_OF_MEANS = "adcc_of_means"
PARTS_OF_ADCC = ("coherency", "complexity", "drop")


@dataclass(frozen=True)
class Interval:
    """A number with the ends of its 95% interval, which are NaN where one image says nothing."""

    value: float
    low: float
    high: float
    images: int

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Score:
    """A method's metric over images, and by how much it exceeds that of the first method.

    `difference` is over the images that have both numbers, paired; None where none has.
    """

    method: str
    metric: str
    estimate: Interval
    difference: Interval | None


@dataclass(frozen=True)
class _Resampled:
    """A statistic of some images, and of each resample of them."""

    value: float
    again: Float[np.ndarray, " resamples"]
    images: int

    @property
    def interval(self) -> Interval:
        if self.images < 2:
            return Interval(self.value, np.nan, np.nan, self.images)
        low, high = np.nanpercentile(self.again, ENDS)
        return Interval(self.value, float(low), float(high), self.images)

    def minus(self, other: "_Resampled") -> "_Resampled":
        images = min(self.images, other.images)
        return _Resampled(self.value - other.value, self.again - other.again, images)


Numbers = Mapping[tuple[str, str], Float[np.ndarray, " images"]]


def scores(
    numbers: Numbers, methods: Sequence[str], batches: Int[np.ndarray, " images"], seed: int = 0
) -> list[Score]:
    """Means over images with 95% intervals (percentile bootstrap); of cost the median of batches.

    `numbers` holds by method and metric a number for each image, in one order, NaN where there is
    none; `batches` says which images were timed together. Adds ADCC_OF_MEANS. A metric without any
    number of a method has no score of it.
    """
    first = methods[0]
    columns = {key: values for key, values in numbers.items() if key[1] != COST}
    apart = {
        (method, metric): values - columns[first, metric]
        for (method, metric), values in columns.items()
        if (first, metric) in columns
    }
    means = _means(columns, seed)
    means |= _of_means(means, methods)
    differences = _means(apart, seed)
    costs = _costs(numbers, batches, seed)
    for metric, of_methods in ((ADCC_OF_MEANS, means), (COST, costs)):
        for method in methods:
            if (method, metric) in of_methods and (first, metric) in of_methods:
                each = of_methods[method, metric].minus(of_methods[first, metric])
                differences[method, metric] = each
    found = means | costs
    return [
        Score(*key, found[key].interval, differences[key].interval if key in differences else None)
        for key in sorted(found, key=lambda key: methods.index(key[0]))
    ]


def _means(numbers: Numbers, seed: int) -> dict[tuple[str, str], _Resampled]:
    """Of each column, over the images that have a number; all by the same resamples."""
    if not numbers:
        return {}
    table = np.stack(list(numbers.values()), axis=1)
    known = ~np.isnan(table)
    filled, counted = np.where(known, table, 0.0), known.astype(float)
    generator, images = np.random.default_rng(seed), len(table)
    again = []
    with np.errstate(invalid="ignore"):  # a resample without any number is NaN
        values = filled.sum(0) / counted.sum(0)
        for _ in range(RESAMPLES // AT_ONCE):
            counts = generator.multinomial(images, np.full(images, 1 / images), AT_ONCE)
            weights = counts.astype(float)
            again.append((weights @ filled) / (weights @ counted))
    resampled = np.concatenate(again)
    return {
        key: _Resampled(float(values[i]), resampled[:, i], int(known[:, i].sum()))
        for i, key in enumerate(numbers)
        if known[:, i].any()
    }


def _of_means(
    means: Mapping[tuple[str, str], _Resampled], methods: Sequence[str]
) -> dict[tuple[str, str], _Resampled]:
    found = {}
    for method in methods:
        parts = [means.get((method, part)) for part in PARTS_OF_ADCC]
        whole = [part for part in parts if part is not None]
        if len(whole) == len(PARTS_OF_ADCC):
            rows = torch.tensor(np.stack([np.append(part.again, part.value) for part in whole]))
            *again, value = harmonic(*rows.unbind()).tolist()
            found[method, ADCC_OF_MEANS] = _Resampled(value, np.array(again), whole[0].images)
    return found


def _costs(
    numbers: Numbers, batches: Int[np.ndarray, " images"], seed: int
) -> dict[tuple[str, str], _Resampled]:
    """Medians over batches, resampled alike for all methods."""
    _, firsts = np.unique(batches, return_index=True)
    drawn = np.random.default_rng(seed).integers(len(firsts), size=(RESAMPLES, len(firsts)))
    found = {}
    for (method, metric), values in numbers.items():
        if metric == COST:
            of_batches: NDArray[np.float64] = values[firsts]
            again = np.median(of_batches[drawn], axis=1)
            found[method, metric] = _Resampled(float(np.median(of_batches)), again, len(firsts))
    return found
