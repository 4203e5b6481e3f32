"""Drift is what it is by hand and by a slow copy, and chance is what moves maps by chance."""

import itertools

import numpy as np
import pytest

from explainer.drift import correlations, heatmap_drift, maps_drift


def maps(seed: int, images: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).random((images, 4, 5)).astype(np.float32)


def test_correlations_are_numpys_and_nan_for_constant_maps():
    a, b = maps(0), maps(1)
    a[3], b[5], a[7] = 0, 1, b[7]
    got = correlations(a, b)
    assert np.isnan(got).nonzero()[0].tolist() == [3, 5]
    assert got[7] == pytest.approx(1)
    for number in (0, 1, 2, 39):
        want = np.corrcoef(a[number].ravel().astype(float), b[number].ravel().astype(float))[0, 1]
        assert got[number] == pytest.approx(want)
    assert correlations(a[:0], b[:0]).shape == (0,)


def test_heatmaps_by_hand():
    a, b = np.zeros((2, 3)), np.zeros((2, 3))
    a[0, 0], a[0, 1] = 3, 1
    b[0, 0], b[1, 2] = 1, 1
    found = heatmap_drift(a, b)
    assert found.moved == pytest.approx(0.5)  # shares 3/4, 1/4 and 1/2, 1/2
    assert (found.peak_a, found.peak_b) == ((0, 0), (0, 0))
    assert found.correlation == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert heatmap_drift(a, 5 * a).moved == 0
    nothing = heatmap_drift(a, np.zeros((2, 3)))
    assert nothing.correlation is None
    # Of zeros a sixth lies in each cell: 3/4 and 1/4 lose 7/12 and 1/12 to the other four.
    assert nothing.moved == pytest.approx(8 / 12)


def test_equal_maps_have_not_moved():
    found = maps_drift(maps(0), maps(0), seed=0)
    assert (found.moved, found.by_chance, found.p_value) == (0, 0, 1)
    assert abs(found.of_other_images) < 0.2


def test_one_image_tells_nothing():
    found = maps_drift(maps(0, 1), maps(1, 1), seed=0)
    assert found.moved > 0
    assert found.p_value == 1
    assert found.of_other_images is None


def test_the_p_value_is_that_of_all_exchanges():
    a, b = maps(0, 7), maps(1, 7)
    b[:, 0] += 0.4
    shares = [x.reshape(7, -1) / x.reshape(7, -1).sum(1, keepdims=True) for x in (a, b)]
    difference = (shares[0] - shares[1]).astype(np.float64)
    every = [
        np.abs((np.array(signs)[:, None] * difference).mean(0)).sum() / 2
        for signs in itertools.product((1, -1), repeat=7)
    ]
    want = np.mean(np.array(every) >= np.abs(difference.mean(0)).sum() / 2 - 1e-9)
    found = maps_drift(a, b, seed=0)
    assert found.moved == pytest.approx(np.abs(difference.mean(0)).sum() / 2)
    assert found.p_value == pytest.approx(want, rel=0.5)
    assert found.by_chance == pytest.approx(np.mean(every), rel=0.05)


def test_p_values_of_exchangeable_maps_are_uniform():
    p_values = np.array(
        [maps_drift(maps(2 * i), maps(2 * i + 1), seed=i).p_value for i in range(200)]
    )
    for level in (0.05, 0.2, 0.5):
        assert abs((p_values <= level).mean() - level) < 3 * (level * (1 - level) / 200) ** 0.5


def test_a_systematic_move_is_significant_and_the_same_seed_says_the_same():
    a, b = maps(0), maps(1)
    b[:, 0, 0] += 1
    found = maps_drift(a, b, seed=3)
    assert found.p_value == pytest.approx(1 / 2**16)
    assert found.moved > 2 * found.by_chance
    assert found == maps_drift(a, b, seed=3)
