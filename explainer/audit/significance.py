"""Intervals and p-values of what interventions count, without a model of how images vary."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

Z_95 = 1.959964
RESAMPLES = 2000
Outcomes = Bool[np.ndarray, "donors recipients"] | Float[np.ndarray, "donors recipients"]
# Of so many units all 2^n assignments of signs are tried; of more, so many are drawn.
EXACT_UNITS = 16


@dataclass(frozen=True)
class Estimate:
    """A share or a difference of shares with its 95% interval; `of` says how many it rests on."""

    value: float
    low: float
    high: float
    of: int


def wilson(successes: int, trials: int) -> Estimate:
    """A share with Wilson's score interval (Wilson 1927); of no trials it is 0, from 0 to 1."""
    if trials == 0:
        return Estimate(0.0, 0.0, 1.0, 0)
    return _wilson(successes / trials, trials)


def _wilson(share: float, trials: int) -> Estimate:
    z = Z_95
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = share * (1 - share) / trials + z * z / (4 * trials * trials)
    half = z * spread**0.5 / (1 + z * z / trials)
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), trials)


def lift(
    treated: Outcomes,
    control: Outcomes,
    seed: int,
) -> Estimate:
    """How many more flips, or larger shares, the treatment causes: the wider of two 95% intervals.

    One is the bootstrap of `shift`; where all outcomes are alike it is empty, and the interval of
    `difference`, with the recipients as trials, is not.
    """
    resampled = shift(treated * 1.0, control * 1.0, seed)
    trials = treated.shape[1]
    shares = difference(float(treated.mean()), trials, float(control.mean()), trials)
    low, high = min(resampled.low, shares.low), max(resampled.high, shares.high)
    return Estimate(resampled.value, low, high, resampled.of)


def shift(
    treated: Float[np.ndarray, "donors recipients"],
    control: Float[np.ndarray, "donors recipients"],
    seed: int,
) -> Estimate:
    """How much larger the treatment's outcomes are, with a bootstrap over donors and recipients.

    Owen, The pigeonhole bootstrap, 2007.
    """
    differences = treated - control
    donors, recipients = differences.shape
    random = np.random.default_rng(seed)
    rows = random.integers(0, donors, (RESAMPLES, donors))
    columns = random.integers(0, recipients, (RESAMPLES, recipients))
    drawn = [differences[np.ix_(r, c)].mean() for r, c in zip(rows, columns, strict=True)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(differences.mean()), float(low), float(high), differences.size)


def difference(share: float, trials: int, other: float, of_other: int) -> Estimate:
    """A share less another with Newcombe's interval (1998, its method 10)."""
    one, two = _wilson(share, trials), _wilson(other, of_other)
    below = ((share - one.low) ** 2 + (two.high - other) ** 2) ** 0.5
    above = ((one.high - share) ** 2 + (other - two.low) ** 2) ** 0.5
    value = share - other
    return Estimate(value, value - below, value + above, trials + of_other)


def sign_flip(differences: Float[np.ndarray, " units"], seed: int) -> float:
    """One-sided p-value of a mean above 0, by flipping the signs of the units' differences.

    Exact up to EXACT_UNITS units: the least possible value is 2^-units.
    """
    units = len(differences)
    if units == 0:
        return 1.0
    signs = _signs(units, seed)
    means = signs @ differences
    return float((means >= differences.sum() - 1e-12).mean())


def _signs(units: int, seed: int) -> NDArray[np.float64]:
    if units <= EXACT_UNITS:
        codes = np.arange(2**units)[:, None] >> np.arange(units)[None, :]
        return np.where(codes & 1, -1.0, 1.0)
    drawn = np.random.default_rng(seed).choice([-1.0, 1.0], (2**EXACT_UNITS - 1, units))
    return np.concatenate([np.ones((1, units)), drawn])


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Each p-value's q-value: the false discovery rate at which it is just rejected (1995)."""
    count = len(p_values)
    order = np.argsort(p_values)
    ranked = np.asarray(p_values, dtype=np.float64)[order] * count / np.arange(1, count + 1)
    monotone = np.minimum.accumulate(ranked[::-1])[::-1].clip(max=1.0)
    result = np.empty(count)
    result[order] = monotone
    return result.tolist()
