"""What a class's maps and files are like, beside those of other classes: hints, never verdicts.

Maps are compared with those of other classes and never with a uniform map, since photographs are
centred. Map statistics alone separated no planted class from clean ones (docs/audit.md); what is
on the whole image, such as a tint, shows in properties only.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

PERMUTATIONS = 999
TOP_SHARE = 0.1
CORNER_SHARE = 0.22

Maps = Float[np.ndarray, "images rows columns"]


@dataclass(frozen=True)
class MapSummary:
    """Some maps in numbers; a map counts as a distribution over its cells.

    `persistence`: mean correlation of each map with the mean of the others. `occupancy`: share of
    images whose top tenth of cells holds the cell that most of them hold. `border_mass`,
    `corner_mass`: shares of the mean map in the outermost ring and in the four corners.
    `dispersion`: root mean square distance of the maps' centroids from their mean, in cells.
    `gini`, `entropy`: of the mean map, the latter by its largest possible value. `bimodality`:
    Sarle's coefficient of the maps' correlations with the mean, 1/3 if normal, 1 if two values.
    """

    persistence: float
    occupancy: float
    border_mass: float
    corner_mass: float
    dispersion: float
    gini: float
    entropy: float
    bimodality: float


@dataclass(frozen=True)
class ClassStatistics:
    """A class's maps and those of other classes, the cell that differs most, and file properties.

    `largest_z`: how many standard errors the class's mean map exceeds the others' in that cell, and
    `p_value`: how often classes drawn at random have a cell that exceeds by as much. `properties`:
    probability that an image of the class has a larger value than one of another class, ties
    counting half: 0.5 tells nothing, 0 and 1 everything.
    """

    of_class: MapSummary
    of_others: MapSummary
    largest_z: float
    largest_cell: int
    p_value: float
    properties: Mapping[str, float]


def class_statistics(
    mine: Maps,
    others: Maps,
    properties: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    seed: int,
) -> ClassStatistics:
    """Statistics of maps [0, 1] of a class beside those of other classes, at least two of each.

    `properties` are by name a number an image of the class, and one an image of others; NaN where
    an image has none.
    """
    shares, strangers = as_shares(mine), as_shares(others)
    z, p_value = largest_z(shares, strangers, seed)
    return ClassStatistics(
        of_class=summary(mine),
        of_others=summary(others),
        largest_z=float(z.max()),
        largest_cell=int(z.argmax()),
        p_value=p_value,
        properties={name: auc(*values) for name, values in properties.items()},
    )


def summary(maps: Maps) -> MapSummary:
    """Some maps in numbers."""
    rows, columns = maps.shape[1:]
    shares = as_shares(maps)
    mean = shares.mean(0).reshape(rows, columns)
    correlations = _with_the_others(shares)
    down, across = np.divmod(np.arange(rows * columns), columns)
    centroids = shares @ np.stack([down, across], 1)
    top = max(1, round(TOP_SHARE * rows * columns))
    threshold = np.partition(shares, -top, axis=1)[:, -top][:, None]
    side = max(1, round(CORNER_SHARE * min(rows, columns)))
    in_corner = np.zeros((rows, columns), bool)
    in_corner[np.ix_(_ends(rows, side), _ends(columns, side))] = True
    return MapSummary(
        persistence=float(correlations.mean()),
        occupancy=float((shares >= threshold).mean(0).max()),
        border_mass=float(mean.sum() - mean[1:-1, 1:-1].sum()),
        corner_mass=float(mean[in_corner].sum()),
        dispersion=float(np.sqrt(((centroids - centroids.mean(0)) ** 2).sum(1).mean())),
        gini=_gini(mean.ravel()),
        entropy=float(_entropy(mean.ravel()) / np.log(mean.size)),
        bimodality=_sarle(correlations),
    )


def largest_z(
    mine: Float[np.ndarray, "images cells"], others: Float[np.ndarray, "others cells"], seed: int
) -> tuple[NDArray[np.float64], float]:
    """Each cell's z of the class's mean, and the p-value of the largest, over all cells at once.

    The null: labels of class and others at random (max-statistic permutation, Nichols and Holmes
    2002), so that many cells make no difference likely by themselves.
    """
    every = np.concatenate([mine, others])
    count = len(mine)
    spread = every.std(0) + 1e-12
    error = spread * np.sqrt(1 / count + 1 / len(others))
    random = np.random.default_rng(seed)
    members = np.zeros((PERMUTATIONS + 1, len(every)))
    members[0, :count] = 1
    for row in members[1:]:
        row[random.permutation(len(every))[:count]] = 1
    means = members @ every / count
    rest = (every.sum(0) - members @ every) / len(others)
    z = (means - rest) / error
    largest = z.max(1)
    return z[0], float((largest >= largest[0] - 1e-9).mean())


def auc(mine: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Probability that a value of `mine` exceeds one of `others`, ties half; 0.5 of nothing."""
    mine, others = mine[~np.isnan(mine)], np.sort(others[~np.isnan(others)])
    if not len(mine) or not len(others):
        return 0.5
    below = np.searchsorted(others, mine, "left")
    up_to = np.searchsorted(others, mine, "right")
    return float(((below + up_to) / 2).mean() / len(others))


def as_shares(maps: Maps) -> NDArray[np.float64]:
    """Maps as distributions over cells; a map of zeros is uniform."""
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    mass = flat.sum(1, keepdims=True)
    return np.where(mass > 0, flat / np.where(mass > 0, mass, 1), 1 / flat.shape[1])


def _with_the_others(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Correlation of each map with the mean of the others."""
    rest = (shares.sum(0) - shares) / (len(shares) - 1)
    a, b = (values - values.mean(1, keepdims=True) for values in (shares, rest))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products: NDArray[np.float64] = (a * b).sum(1) / np.where(norms > 0, norms, 1)
    return products


def _ends(size: int, side: int) -> list[int]:
    return sorted({*range(side), *range(size - side, size)})


def _gini(shares: NDArray[np.float64]) -> float:
    ranked, count = np.sort(shares), len(shares)
    weights = 2 * np.arange(1, count + 1) - count - 1
    return float((weights * ranked).sum() / (count * ranked.sum()))


def _entropy(shares: NDArray[np.float64]) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def _sarle(values: NDArray[np.float64]) -> float:
    centred = values - values.mean()
    spread = float((centred**2).mean())
    if spread < 1e-24:
        return 0.0
    skewness = (centred**3).mean() / spread**1.5
    kurtosis = (centred**4).mean() / spread**2
    return float((skewness**2 + 1) / kurtosis)
