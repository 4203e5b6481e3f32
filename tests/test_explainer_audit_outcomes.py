"""What comes of interventions over many images: units, comparisons together, and one fill."""

from dataclasses import astuple

import numpy as np
import pytest
import torch

from explainer.audit.interventions import Control, Pasted
from explainer.audit.outcomes import Compared, Pooled, more_cost, more_kept, telling_fill
from explainer.audit.significance import Estimate


def compared(gains: np.ndarray, donors: np.ndarray) -> Compared:
    """A paste whose control gains nothing, of so many log-odds by rounds and recipients."""
    flips = torch.zeros(gains.shape, dtype=torch.bool)
    treated, control = (Pasted(flips, torch.from_numpy(each)) for each in (gains, 0 * gains))
    return Compared(treated, {Control.OTHER_CLASS: control}, donors)


def test_donors_that_differ_are_units_too():
    """What four of them do differently is no evidence, however many images they are given to."""
    gains = np.repeat([[2.0, 1.0, 0.5, 0.7]], 10, 1)
    donors = np.repeat([[5, 7, 8, 9]], 10, 1)
    assert compared(gains, donors).p_value(0, are_copies=True) < 1e-4
    assert compared(gains, donors).p_value(0, are_copies=False) == 2**-4


def test_comparisons_are_pooled_by_how_sure_they_are():
    random = np.random.default_rng(0)
    many, few = (random.normal(0.3, 1, (1, count)) for count in (160, 40))
    one, two = (compared(each, np.arange(each.size)[None]) for each in (many, few))
    shifts = [each.shift() for each in (one, two)]
    weights = [(each.high - each.low) ** -2 for each in shifts]
    got = Pooled([one, two]).shift()
    assert got.value == pytest.approx(np.average([each.value for each in shifts], weights=weights))
    assert got.of == 200
    assert got.high - got.low < min(each.high - each.low for each in shifts)
    alone = Pooled([one])
    assert astuple(alone.shift()) == pytest.approx(astuple(one.shift()))
    assert alone.p_value(0, are_copies=True) == one.p_value(0, are_copies=True)


def test_weak_gains_in_several_comparisons_are_one_strong_one():
    random = np.random.default_rng(1)
    donors = np.arange(50)[None]
    weak = [compared(random.normal(0.22, 1, (1, 50)), donors) for _ in range(3)]
    least = min(each.p_value(0, are_copies=True) for each in weak)
    assert Pooled(weak).p_value(0, are_copies=True) < least


@pytest.mark.parametrize("donors", [8, 20])
@pytest.mark.parametrize("of_donors", [0.0, 1.0])
def test_what_is_pooled_of_nothing_is_nothing_though_donors_do_the_same_in_all(donors, of_donors):
    random = np.random.default_rng(2)
    above = rejected = 0
    for _ in range(100):
        effects = random.normal(0, of_donors, donors)
        given = [np.resize(np.arange(donors), count)[None] for count in (24, 32, 56)]
        none = Pooled(
            [compared(effects[each] + random.normal(0, 0.5, each.shape), each) for each in given]
        )
        above += none.shift().low > 0
        rejected += none.p_value(0, are_copies=False) < 0.05
    assert above <= 7  # 2.5% of 100 are 2 or 3
    assert rejected <= 11


def test_outcomes_that_are_nearly_alike_have_a_p_value_above_0():
    random = np.random.default_rng(3)
    for spread in (0.1, 0.02, 1e-9, 0.0):
        for _ in range(20):
            alike = [
                compared(3 + random.normal(0, spread, (1, count)), np.arange(count)[None] % 8)
                for count in (24, 32, 56)
            ]
            assert Pooled(alike).p_value(0, are_copies=False) == 2**-8
            assert 0 < Pooled(alike).p_value(0, are_copies=True) < 2**-16


def test_shares_and_log_odds_are_of_the_fill_that_tells_most():
    others, carriers = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]), np.array([[1.0, 0], [0, 0]])
    assert telling_fill(others, carriers) == 1
    assert telling_fill(others[:, :0], carriers) == 0
    assert more_kept(others[1], carriers[1]).value == 1
    assert more_kept(others[0], carriers[0]).value == pytest.approx(2 / 3 - 1 / 2)
    assert more_kept(others[0, :0], carriers[0]) == Estimate(0.0, -1.0, 1.0, 0)
    assert more_cost(np.array([1.0, 2.0]), np.array([4.0, 6.0])).value == pytest.approx(3.5)
    assert more_cost(np.array([1.0]), np.array([4.0, 6.0])) is None
