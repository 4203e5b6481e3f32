"""How far maps moved from one model to another, and how far they would have moved by chance."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from explainer.audit.statistics import as_shares

# Exchanges that are drawn for a p-value: no more once so many were as large as what was found
# (Besag and Clifford, Sequential Monte Carlo p-values, 1991), and so many at most.
ENOUGH_EXCEEDED, MOST_EXCHANGES = 10, 2**16 - 1
_BLOCK = 1024
_EPSILON = 1e-6  # of a map's mass: sums in float32 are off by less

Maps = Float[np.ndarray, "images rows columns"]
Map = Float[np.ndarray, "rows columns"]


@dataclass(frozen=True)
class HeatmapDrift:
    """What lies between two mean maps.

    `correlation` of their cells, None where one is constant; `moved`: the share of the mass that
    lies in other cells, from 0 to 1 (total variation distance); the cells (row, column) with the
    largest value.
    """

    correlation: float | None
    moved: float
    peak_a: tuple[int, int]
    peak_b: tuple[int, int]


@dataclass(frozen=True)
class MapsDrift:
    """What lies between two models' maps of the same images.

    `moved` is that of the two mean maps, `by_chance` its mean where each image's two maps are
    exchanged or not at random, and `p_value` how often it is then as large as it is: the null is
    that the models' maps differ image by image, and on average not. `of_other_images` is the median
    correlation of an image's map of the first model with another image's of the second: what maps
    have in common that are no more of the same image; None where all are constant.
    """

    moved: float
    by_chance: float
    p_value: float
    of_other_images: float | None


def correlations(a: Maps, b: Maps) -> Float[np.ndarray, " images"]:
    """Each map's correlation with its counterpart; NaN where one of the two is constant."""
    cells = a.shape[1] * a.shape[2]
    flat = [maps.reshape(len(maps), cells).astype(np.float64) for maps in (a, b)]
    one, other = (maps - maps.mean(1, keepdims=True) for maps in flat)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    constant = np.ptp(flat[0], axis=1) * np.ptp(flat[1], axis=1) == 0
    products: NDArray[np.float64] = (one * other).sum(1) / np.where(constant, 1, norms)
    return np.where(constant, np.nan, products.clip(-1, 1))


def heatmap_drift(a: Map, b: Map) -> HeatmapDrift:
    """What lies between two mean maps, at least 0 each; one of zeros counts as uniform."""
    shares = as_shares(np.stack([a, b]))
    correlation = float(correlations(a[None], b[None])[0])
    return HeatmapDrift(
        correlation=None if np.isnan(correlation) else correlation,
        moved=_moved(shares[0] - shares[1]),
        peak_a=_peak(a),
        peak_b=_peak(b),
    )


def maps_drift(a: Maps, b: Maps, seed: int) -> MapsDrift:
    """What lies between two models' maps of the same images, at least one."""
    differences = as_shares(a) - as_shares(b)
    moved = _moved(differences.mean(0))
    by_chance, p_value = _exchanged(differences, moved, seed)
    strangers = correlations(a, np.roll(b, 1, axis=0)) if len(a) > 1 else np.empty(0)
    strangers = strangers[~np.isnan(strangers)]
    median = float(np.median(strangers)) if len(strangers) else None
    return MapsDrift(moved, by_chance, p_value, median)


def _exchanged(
    differences: Float[np.ndarray, "images cells"], moved: float, seed: int
) -> tuple[float, float]:
    """The mean share that moves where signs are drawn at random, and how often `moved` or more."""
    random = np.random.default_rng(seed)
    narrow = differences.astype(np.float32)
    exceeded, drawn, by_chance = 0, 0, 0.0
    while drawn < MOST_EXCHANGES and exceeded < ENOUGH_EXCEEDED:
        count = min(_BLOCK, MOST_EXCHANGES - drawn)
        signs = random.integers(0, 2, (count, len(narrow)), np.int8).astype(np.float32) * 2 - 1
        shares = np.abs(signs @ narrow).sum(1) / (2 * len(narrow))
        if drawn == 0:
            by_chance = float(shares.mean())
        exceeded += int((shares >= moved - _EPSILON).sum())
        drawn += count
    return by_chance, (exceeded + 1) / (drawn + 1)


def _moved(differences: NDArray[np.float64]) -> float:
    return float(np.abs(differences).sum() / 2)


def _peak(mean: Map) -> tuple[int, int]:
    row, column = np.unravel_index(int(mean.argmax()), mean.shape)
    return int(row), int(column)
