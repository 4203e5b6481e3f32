"""Statistics of maps and files: identities, slow re-implementations, and chance levels."""

import itertools

import numpy as np
import pytest

from explainer.audit.statistics import auc, class_statistics, largest_z, summary

RANDOM = np.random.default_rng(0)
SIZE = (6, 8)


def test_maps_that_are_alike_persist_and_scattered_ones_do_not():
    alike = np.repeat(RANDOM.random((1, *SIZE)), 20, axis=0)
    scattered = RANDOM.random((200, *SIZE))
    assert summary(alike).persistence == pytest.approx(1)
    assert summary(alike).dispersion == pytest.approx(0)
    assert abs(summary(scattered).persistence) < 0.1
    assert summary(scattered).occupancy < 0.25


def test_one_cell_of_mass_is_all_that_it_is():
    maps = np.zeros((10, *SIZE))
    maps[:, 0, 7] = 1
    got = summary(maps)
    assert (got.border_mass, got.corner_mass, got.occupancy) == pytest.approx((1, 1, 1))
    assert got.entropy == pytest.approx(0)
    assert got.gini == pytest.approx(1 - 1 / 48)
    maps[:, 0, 7], maps[:, 2, 3] = 0, 1
    assert summary(maps).border_mass == summary(maps).corner_mass == 0
    uniform = summary(np.ones((10, *SIZE)))
    assert (uniform.entropy, uniform.gini) == pytest.approx((1, 0))
    assert uniform.border_mass == pytest.approx(24 / 48)


def test_the_dispersion_is_that_of_the_centroids():
    maps = np.zeros((2, *SIZE))
    maps[0, 1, 1] = maps[1, 4, 5] = 3
    assert summary(maps).dispersion == pytest.approx(2.5)


def test_the_gini_is_half_the_mean_difference():
    maps = RANDOM.random((1, *SIZE))
    values = (maps / maps.sum()).ravel()
    pairs = [abs(a - b) for a, b in itertools.product(values, values)]
    alike = np.repeat(maps, 2, axis=0)
    assert summary(alike).gini == pytest.approx(np.mean(pairs) / (2 * values.mean()))


def test_a_part_of_the_class_makes_it_bimodal():
    shape, noise = RANDOM.random(SIZE), RANDOM.random((100, *SIZE))
    odd = np.concatenate([noise[:70] * 0.2 + shape, noise[70:]])
    assert summary(odd).bimodality > 0.7
    assert summary(noise * 0.2 + shape).bimodality < 0.5


def test_the_largest_z_is_found_and_chance_is_uniform():
    others = RANDOM.random((60, 48))
    mine = RANDOM.random((30, 48))
    mine[:, 17] += 0.6
    z, p_value = largest_z(mine, others, seed=0)
    assert z.argmax() == 17
    assert p_value == 1 / 1000
    every = np.concatenate([mine, others])
    difference = mine[:, 5].mean() - others[:, 5].mean()
    assert z[5] == pytest.approx(difference / every[:, 5].std() / np.sqrt(1 / 30 + 1 / 60))
    chance = [largest_z(*np.split(RANDOM.random((40, 48)), 2), seed=0)[1] for _ in range(100)]
    assert 0.4 < np.mean(chance) < 0.6
    assert np.mean(np.array(chance) <= 0.1) < 0.2


def test_the_auc_is_the_share_of_pairs():
    mine, others = RANDOM.integers(0, 5, 30).astype(float), RANDOM.integers(1, 7, 40).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(mine, others)]
    assert auc(mine, others) == pytest.approx(np.mean(pairs))
    with_gaps = np.append(mine, np.nan)
    assert auc(with_gaps, np.append(others, np.nan)) == auc(mine, others)
    assert auc(np.array([np.nan]), others) == 0.5


def test_a_tint_shows_in_the_properties_and_in_no_map():
    maps = RANDOM.random((80, *SIZE))
    tinted, others = RANDOM.normal(0.6, 0.05, 40), RANDOM.normal(0.4, 0.05, 40)
    got = class_statistics(maps[:40], maps[40:], {"mean_r": (tinted, others)}, seed=0)
    assert got.properties["mean_r"] > 0.95
    assert got.p_value > 0.05
