"""Intervals and p-values of what interventions count, without a model of how images vary."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

Z_95 = 1.959964
Outcomes = Bool[np.ndarray, "rounds recipients"] | Float[np.ndarray, "rounds recipients"]
Donors = Int[np.ndarray, "rounds recipients"]
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


def lift(treated: Outcomes, control: Outcomes, donors: Donors | None = None) -> Estimate:
    """How many more flips, or larger shares, the treatment causes: the wider of two 95% intervals.

    One is that of `shift`; where all outcomes are alike it is empty, and that of `paired`, with the
    recipients as pairs, is not.
    """
    found = shift(treated * 1.0, control * 1.0, donors)
    pairs = paired((treated * 1.0 - control).mean(0))
    return Estimate(found.value, min(found.low, pairs.low), max(found.high, pairs.high), found.of)


def paired(differences: Float[np.ndarray, " pairs"]) -> Estimate:
    """The mean of differences of two shares of the same, from -1 to 1.

    Its interval is Wald's with a pair more that differs each way (Bonett and Price, Adjusted Wald
    Confidence Interval for a Difference of Binomial Proportions Based on Paired Data, 2012), which
    Fagerland, Lydersen and Laake (2014) recommend.
    """
    with_two = np.append(differences, (1.0, -1.0))
    centre, half = with_two.mean(), Z_95 * with_two.std() / with_two.size**0.5
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return Estimate(float(differences.mean()), float(low), float(high), differences.size)


def gain(gained: int, lost: int, pairs: int) -> Estimate:
    """The difference of two shares of the same `pairs`, of which some are gained and some lost.

    That is `paired` of as many 1, -1 and 0; of no pairs it is 0, from -1 to 1.
    """
    value = (gained - lost) / pairs if pairs else 0.0
    with_two = pairs + 2
    centre = (gained - lost) / with_two
    half = Z_95 * (((gained + lost + 2) / with_two - centre**2) / with_two) ** 0.5
    return Estimate(value, max(-1.0, centre - half), min(1.0, centre + half), pairs)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value of as unequal a number of gains and losses (McNemar 1947)."""
    fewer, both = min(gained, lost), gained + lost
    steps = np.arange(1, fewer + 1)
    logarithms = np.append(0.0, np.log((both - steps + 1) / steps)).cumsum()
    tail = np.exp(logarithms - both * np.log(2.0)).sum()
    return float(min(1.0, 2 * tail))


def shift(
    treated: Float[np.ndarray, "rounds recipients"],
    control: Float[np.ndarray, "rounds recipients"],
    donors: Donors | None = None,
) -> Estimate:
    """How much larger the treatment's outcomes are; outcomes of one recipient may be alike.

    So may those of one donor, which `donors` number. The variance is that of Cameron, Gelbach and
    Miller, Robust Inference With Multiway Clustering, 2011, and Student's t has as many degrees of
    freedom as the fewer of recipients and donors less one.
    """
    differences = treated - control
    errors = (differences - differences.mean()).ravel()
    recipients = np.broadcast_to(np.arange(differences.shape[1]), differences.shape).ravel()
    ways = [recipients] if donors is None else [recipients, donors.ravel()]
    variances = [_clustered(errors, way) for way in ways]
    both = sum(variances) - (len(ways) - 1) * _clustered(errors, np.arange(errors.size))
    fewest = min(len(np.unique(way)) for way in ways)
    half = _student(fewest - 1) * max(both, *variances, 0.0) ** 0.5
    value = float(differences.mean())
    return Estimate(value, value - half, value + half, differences.size)


def between(
    treated: Float[np.ndarray, " units"], control: Float[np.ndarray, " others"]
) -> Estimate:
    """How much larger the mean of the treated is than that of other units (Welch 1947).

    There are two of each at least.
    """
    sizes = [len(treated), len(control)]
    one, two = (float(units.var(ddof=1)) / len(units) for units in (treated, control))
    spread = one**2 / (sizes[0] - 1) + two**2 / (sizes[1] - 1)
    freedom = int((one + two) ** 2 / spread) if spread else min(sizes) - 1
    value, half = float(treated.mean() - control.mean()), _student(freedom) * (one + two) ** 0.5
    return Estimate(value, value - half, value + half, sum(sizes))


def half_by(clusters: Int[np.ndarray, " all"], errors: Float[np.ndarray, " all"]) -> float:
    """Half of a sum's 95% interval, from errors that may be alike within a cluster; of one, 0."""
    sums = sums_by(clusters, errors)
    if len(sums) < 2:
        return 0.0
    return _student(len(sums) - 1) * float(len(sums) / (len(sums) - 1) * (sums**2).sum()) ** 0.5


def sums_by(
    clusters: Int[np.ndarray, " all"], values: Float[np.ndarray, " all"]
) -> Float[np.ndarray, " clusters"]:
    """The sum of each cluster's values."""
    _, number = np.unique(clusters, return_inverse=True)
    return np.bincount(number, values)


def _clustered(errors: NDArray[np.float64], clusters: NDArray[np.int64]) -> float:
    """The variance of a mean where errors within a cluster may be alike; of one cluster, 0."""
    sums = sums_by(clusters, errors)
    if len(sums) < 2:
        return 0.0
    correction = len(sums) / (len(sums) - 1)
    return float((sums**2).sum() / errors.size**2 * correction)


def _student(freedom: int) -> float:
    """Student's t at 0.975, to 1% from 3 degrees on (Abramowitz and Stegun, 26.7.5)."""
    z, n = Z_95, max(1, freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n**power for power, term in enumerate(terms, start=1))


def difference(share: float, trials: int, other: float, of_other: int) -> Estimate:
    """A share less another with Newcombe's interval (1998, its method 10)."""
    one, two = _wilson(share, trials), _wilson(other, of_other)
    below = ((share - one.low) ** 2 + (two.high - other) ** 2) ** 0.5
    above = ((one.high - share) ** 2 + (other - two.low) ** 2) ** 0.5
    value = share - other
    return Estimate(value, value - below, value + above, trials + of_other)


def sign_flip(differences: Float[np.ndarray, " units"], seed: int) -> float:
    """One-sided p-value of a mean above 0, by flipping the signs of the units' differences.

    Exact up to EXACT_UNITS units: the least possible value is 2^-units. Of more units flips that
    were drawn tell it, or Hoeffding's bound of it where that is less (Probability Inequalities for
    Sums of Bounded Random Variables, 1963): so few draws as there are would tell no cue alone
    among a thousand classes'.
    """
    units = len(differences)
    if units == 0:
        return 1.0
    signs = _signs(units, seed)
    total, rounding = differences.sum(), 1e-12 * np.abs(differences).sum()
    share = float((signs @ differences >= total - rounding).mean())
    if units <= EXACT_UNITS or total <= 0:
        return share
    return min(share, float(np.exp(-(total**2) / (2 * (differences**2).sum()))))


@lru_cache(2)  # a cue's paste and its controls share recipients; drawing costs most of a test
def _signs(units: int, seed: int) -> NDArray[np.float64]:
    if units <= EXACT_UNITS:
        codes = np.arange(2**units)[:, None] >> np.arange(units)[None, :]
        signs = np.where(codes & 1, -1.0, 1.0)
    else:
        drawn = np.random.default_rng(seed).choice([-1.0, 1.0], (2**EXACT_UNITS - 1, units))
        signs = np.concatenate([np.ones((1, units)), drawn])
    signs.flags.writeable = False
    return signs


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Each p-value's q-value: the false discovery rate at which it is just rejected (1995)."""
    count = len(p_values)
    order = np.argsort(p_values)
    ranked = np.asarray(p_values, dtype=np.float64)[order] * count / np.arange(1, count + 1)
    monotone = np.minimum.accumulate(ranked[::-1])[::-1].clip(max=1.0)
    result = np.empty(count)
    result[order] = monotone
    return result.tolist()
