"""Intervals and p-values against published examples, slow re-implementations and simulations."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from explainer.audit.significance import (
    Estimate,
    benjamini_hochberg,
    between,
    difference,
    gain,
    lift,
    mcnemar,
    paired,
    shift,
    sign_flip,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_is_the_published_one(successes, trials, low, high):
    got = wilson(successes, trials)
    assert (got.value, got.of) == (successes / trials, trials)
    assert (got.low, got.high) == pytest.approx((low, high), abs=1e-4)


def test_of_nothing_everything_is_possible():
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("successes", "trials", "others", "of_others", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998) 873-890, table II, method 10.
    [
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (6, 7, 2, 7, 0.0582, 0.8062),
        (5, 56, 0, 29, -0.0381, 0.1926),
        (10, 10, 0, 10, 0.6075, 1.0),
    ],
)
def test_the_interval_of_a_difference_is_the_published_one(
    successes, trials, others, of_others, low, high
):
    got = difference(successes / trials, trials, others / of_others, of_others)
    assert got.value == pytest.approx(successes / trials - others / of_others)
    assert (got.low, got.high) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("both", "more", "fewer", "neither"),
    # The first two are examples of Fagerland, Lydersen and Laake, Statistical Analysis of
    # Contingency Tables (2017), chapter 8; all bounds are by the formula over counts that is there.
    [(1, 1, 7, 12), (59, 6, 16, 80), (0, 30, 0, 0), (10, 0, 0, 10)],
)
def test_the_interval_of_pairs_is_bonett_and_prices_of_their_counts(both, more, fewer, neither):
    pairs = both + more + fewer + neither
    differences = np.repeat([0.0, 1.0, -1.0, 0.0], [both, more, fewer, neither])
    one, other = (more + 1) / (pairs + 2), (fewer + 1) / (pairs + 2)
    half = 1.959964 * ((one + other - (one - other) ** 2) / (pairs + 2)) ** 0.5
    got = paired(differences)
    assert (got.value, got.of) == ((more - fewer) / pairs, pairs)
    assert (got.low, got.high) == pytest.approx((one - other - half, min(1, one - other + half)))


def test_the_interval_of_few_pairs_covers_the_truth_nineteen_times_of_twenty():
    random = np.random.default_rng(0)
    for rates in ((0.4, 0.1), (0.2, 0.2), (0.05, 0.0)):
        drawn = random.choice([1.0, -1.0, 0.0], (1000, 16), p=[*rates, 1 - sum(rates)])
        found = [paired(row) for row in drawn]
        assert np.mean([e.low <= rates[0] - rates[1] <= e.high for e in found]) >= 0.93


def by_row(outcomes: NDArray[Any]) -> NDArray[np.int64]:
    """Donors of rounds that have one each."""
    return np.broadcast_to(np.arange(len(outcomes))[:, None], outcomes.shape)


def test_a_shift_is_the_mean_difference_and_covers_it():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        noise = random.normal(0, 1, (4, 1)) * 0.2 + random.normal(0, 1, (1, 24))
        treated = 0.5 + noise + random.normal(0, 1, (4, 24))
        control = noise + random.normal(0, 1, (4, 24))
        got = shift(treated, control, by_row(treated))
        assert got.value == pytest.approx((treated - control).mean())
        covered += got.low <= 0.5 <= got.high
    assert covered >= 170


@pytest.mark.parametrize(("units", "others", "spread"), [(20, 20, 1.0), (40, 8, 3.0), (5, 30, 0.2)])
def test_the_difference_between_groups_is_covered_nineteen_times_of_twenty(units, others, spread):
    """Of groups of unequal sizes that vary unequally."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        treated, control = random.normal(0.5, 1, units), random.normal(0, spread, others)
        got = between(treated, control)
        assert got.value == pytest.approx(treated.mean() - control.mean())
        assert got.of == units + others
        covered += got.low <= 0.5 <= got.high
    assert 370 <= covered <= 390


def test_the_difference_between_groups_is_welchs():
    treated, control = np.array([1.0, 2.0, 4.0, 5.0]), np.array([0.0, 1.0, 1.0])
    got = between(treated, control)  # variances 10/3 and 1/3, 3.77 degrees of freedom, taken as 3
    half = 3.18245 * (10 / 12 + 1 / 9) ** 0.5
    assert (got.low, got.high) == pytest.approx((got.value - half, got.value + half), rel=0.01)
    alike = between(np.ones(3), np.zeros(3))
    assert (alike.low, alike.value, alike.high) == (1.0, 1.0, 1.0)


def test_the_variance_is_that_of_both_clusters_less_that_of_pairs():
    """Cameron, Gelbach and Miller's, as a sum over all pairs of outcomes that share a cluster."""
    random = np.random.default_rng(0)
    treated, control = random.normal(0.4, 1, (3, 16)), random.normal(0, 1, (3, 16))
    donors = random.integers(0, 9, (3, 16))
    errors = (treated - control - (treated - control).mean()).ravel()
    columns, givers = np.tile(np.arange(16), 3), donors.ravel()

    def over(alike: NDArray[np.bool_]) -> float:
        return float((np.outer(errors, errors) * alike).sum() / errors.size**2)

    by_recipient, by_donor = (np.equal.outer(each, each) for each in (columns, givers))
    clusters = len(np.unique(givers))
    parts = (
        over(by_recipient) * 16 / 15,
        over(by_donor) * clusters / (clusters - 1),
        over(np.eye(48, dtype=bool)) * 48 / 47,
    )
    variance = max(parts[0] + parts[1] - parts[2], *parts[:2])
    got = shift(treated, control, donors)
    assert got.high - got.value == pytest.approx(2.306 * variance**0.5, rel=2e-3)  # t of 8
    assert got.value - got.low == pytest.approx(got.high - got.value)


def test_without_shared_donors_recipients_alone_vary():
    random = np.random.default_rng(1)
    treated, control = random.normal(0.4, 1, (3, 16)), random.normal(0, 1, (3, 16))
    got = shift(treated, control, np.arange(48).reshape(3, 16))
    means = (treated - control).mean(0)
    assert got.high - got.value >= 2.131 * means.std(ddof=1) / 4 - 2e-3  # t of 15
    alone = shift(treated, control)
    assert alone.high - alone.value == pytest.approx(2.131 * means.std(ddof=1) / 4, rel=2e-3)


@pytest.mark.parametrize(("recipients", "quantile"), [(4, 3.182), (6, 2.571), (16, 2.131)])
def test_few_recipients_widen_the_interval_as_students_t_does(recipients, quantile):
    outcomes = np.random.default_rng(recipients).normal(0, 1, (1, recipients))
    got = shift(outcomes, np.zeros_like(outcomes))
    error = outcomes.std(ddof=1) / recipients**0.5
    assert (got.high - got.value) / error == pytest.approx(quantile, rel=0.01)


def test_a_lift_that_never_varies_has_an_interval_all_the_same():
    ones, zeros = np.ones((6, 16), bool), np.zeros((6, 16), bool)
    got = lift(ones, zeros)
    assert got.value == got.high == 1.0
    assert 0.6 < got.low < 0.9
    none = lift(zeros, zeros)
    assert none.low < 0.0 == none.value < none.high


def test_donors_that_differ_widen_the_interval_beyond_that_of_as_many_pastes():
    random = np.random.default_rng(0)
    by_donor = np.repeat(random.random((6, 1)) < 0.5, 200, axis=1)
    by_chance = random.random((6, 200)) < by_donor.mean()
    control = np.zeros_like(by_donor)
    alike, differing = (
        lift(treated, control, by_row(control)) for treated in (by_chance, by_donor)
    )
    assert differing.high - differing.low > 3 * (alike.high - alike.low)


def test_the_interval_of_a_lift_covers_the_truth_nineteen_times_of_twenty():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        donors, recipients = random.normal(0.5, 0.2, (6, 1)), random.normal(0, 0.2, (1, 16))
        treated = random.random((6, 16)) < (donors + recipients).clip(0, 1)
        control = random.random((6, 16)) < 0.1
        got = lift(treated, control, by_row(treated))
        covered += got.low <= 0.4 <= got.high
    assert covered >= 180


def test_flipping_signs_equals_trying_all_of_them():
    random = np.random.default_rng(0)
    for units in (1, 2, 5, 9):
        differences = random.normal(0.3, 1, units)
        signed = [np.dot(s, differences) for s in itertools.product((-1, 1), repeat=units)]
        want = np.mean(np.array(signed) >= differences.sum() - 1e-12)
        assert sign_flip(differences, seed=0) == pytest.approx(want)
    assert sign_flip(np.empty(0), seed=0) == 1.0
    assert sign_flip(np.ones(16), seed=0) == 2**-16
    assert sign_flip(np.ones(40), seed=0) <= 2**-15


def test_p_values_of_nothing_are_uniform():
    random = np.random.default_rng(3)
    p_values = [sign_flip(random.normal(0, 1, 12), seed=0) for _ in range(400)]
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=0.05)


def test_q_values_reject_what_the_step_up_procedure_rejects():
    random = np.random.default_rng(0)
    for count in (1, 2, 7, 30):
        p_values = np.concatenate([random.random(count), random.random(count) / 100])
        random.shuffle(p_values)
        q_values = np.array(benjamini_hochberg(p_values.tolist()))
        for level in (0.01, 0.05, 0.3):
            ranked = np.sort(p_values)
            below = ranked <= level * np.arange(1, len(ranked) + 1) / len(ranked)
            cut = ranked[np.flatnonzero(below)[-1]] if below.any() else -1.0
            np.testing.assert_array_equal(q_values <= level, p_values <= cut)
    assert benjamini_hochberg([]) == []


def test_a_p_value_of_many_units_is_less_than_draws_can_tell_and_none_too_small():
    """Of twenty-four alike the exact one is 2^-24; a thousand classes ask for 5e-5."""
    assert 2**-24 < sign_flip(np.ones(24), 0) < 1e-5
    uneven = np.random.default_rng(0).normal(0.8, 1, 20)
    codes = np.arange(2**20)[:, None] >> np.arange(20)[None]
    exact = (np.where(codes & 1, -1.0, 1.0) @ uneven >= uneven.sum() - 1e-12).mean()
    assert exact <= sign_flip(uneven, 0) + 3e-5
    assert sign_flip(-np.ones(24), 0) == 1
    assert sign_flip(np.zeros(24), 0) == 1


@pytest.mark.parametrize(("gained", "lost", "pairs"), [(5, 2, 20), (0, 0, 7), (3, 0, 3), (0, 9, 9)])
def test_a_gain_from_counts_is_that_of_the_pairs_themselves(gained, lost, pairs):
    differences = np.array([1.0] * gained + [-1.0] * lost + [0.0] * (pairs - gained - lost))
    want, got = paired(differences), gain(gained, lost, pairs)
    assert (got.value, got.low, got.high) == pytest.approx((want.value, want.low, want.high))
    assert got.of == want.of == pairs
    assert gain(0, 0, 0) == Estimate(0.0, -1.0, 1.0, 0)


def test_mcnemar_is_the_exact_binomial_test():
    for gained, lost in [(0, 0), (0, 1), (5, 0), (3, 9), (7, 7), (100, 140), (1000, 1150)]:
        both, fewer = gained + lost, min(gained, lost)
        ways = sum(math.comb(both, k) for k in range(fewer + 1))
        want = min(1.0, 2 * float(Fraction(ways, 2**both)))
        assert mcnemar(gained, lost) == pytest.approx(want, rel=1e-9)
        assert mcnemar(lost, gained) == mcnemar(gained, lost)
