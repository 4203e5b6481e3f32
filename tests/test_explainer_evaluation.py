"""Scores of methods over images: means, intervals, paired differences, and the whole of a judge."""

import numpy as np
import pytest
import torch

from explainer.coverage import reduced
from explainer.evaluation import METRICS, STAGES, Judge
from explainer.faithfulness import harmonic
from explainer.methods import parse
from explainer.resampling import ADCC_OF_MEANS, RESAMPLES, Score, scores
from explainer.sanity import randomised

LIKE = {"like_head", "like_half", "like_all"}
# What a model leaves out, whose attention counts on all positions or not.
REMOVABLE = {
    "vit_tiny_patch16_224": set(),
    "vit_small_patch16_rope_224": {"most_first", "least_first"},
}


def numbers(images: int, seed: int, **given: np.ndarray) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    parts = {name: random.uniform(0.2, 0.8, images) for name in ("coherency", "complexity", "drop")}
    return parts | given


def found(
    of_methods: dict[str, dict[str, np.ndarray]], batches: np.ndarray | None = None
) -> dict[tuple[str, str], Score]:
    flat = {(name, metric): v for name, of in of_methods.items() for metric, v in of.items()}
    images = len(next(iter(flat.values())))
    of_batches = np.arange(images) if batches is None else batches
    given = scores(flat, list(of_methods), of_batches)
    return {(score.method, score.metric): score for score in given}


def test_a_score_is_the_mean_with_the_interval_of_resampled_means():
    values = numbers(60, 0)["drop"]
    score = found({"a": {"drop": values}})["a", "drop"]
    assert score.estimate.value == pytest.approx(values.mean())
    assert score.estimate.images == 60
    spread = values.std() / 60**0.5
    assert 2 * score.estimate.half == pytest.approx(2 * 1.96 * spread, rel=0.1)
    random = np.random.default_rng(1)
    means = [random.choice(values, 60).mean() for _ in range(RESAMPLES)]
    assert score.estimate.low == pytest.approx(np.percentile(means, 2.5), abs=0.02)
    assert score.estimate.high == pytest.approx(np.percentile(means, 97.5), abs=0.02)


def test_adcc_of_means_is_the_papers_and_not_the_mean_of_images():
    given = numbers(40, 2)
    parts = [torch.from_numpy(given[name]) for name in ("coherency", "complexity", "drop")]
    of_images = harmonic(*parts)
    got = found({"a": given | {"adcc": of_images.numpy()}})
    assert got["a", ADCC_OF_MEANS].estimate.value == pytest.approx(
        3 / (1 / parts[0].mean() + 1 / (1 - parts[1].mean()) + 1 / (1 - parts[2].mean()))
    )
    assert got["a", "adcc"].estimate.value == pytest.approx(of_images.mean())
    assert got["a", "adcc"].estimate.value < got["a", ADCC_OF_MEANS].estimate.value


def test_differences_are_paired_by_image():
    base = numbers(50, 3)
    better = {name: values + 0.01 for name, values in base.items()}
    got = found({"first": base, "second": better})
    difference = got["second", "drop"].difference
    assert difference.value == pytest.approx(0.01)
    # The same images in each resample: the difference does not vary, however much images do.
    assert difference.half < 1e-6
    assert got["second", "drop"].estimate.half > 0.025
    assert found({"first": base, "second": numbers(50, 4)})["second", "drop"].difference.half > 0.02
    assert got["first", "drop"].difference.value == 0
    assert got["second", ADCC_OF_MEANS].difference.half < 0.01


def test_a_difference_is_over_the_images_that_have_both_and_to_the_first_method_alone():
    values = np.linspace(0, 1, 20)
    late = np.where(np.arange(20) < 10, np.nan, values + 0.5)
    none = np.full(20, np.nan)
    got = found(
        {
            "first": {"drop": values, "mass": none},
            "second": {"drop": late, "mass": values},
            "third": {"drop": none, "mass": values},
        }
    )
    assert got["second", "drop"].difference.value == pytest.approx(0.5)
    assert got["second", "drop"].difference.images == 10
    assert got["second", "mass"].difference is None
    assert got["third", "mass"].difference is None
    assert ("third", "drop") not in got


def test_images_without_a_number_are_left_out_and_metrics_without_any_too():
    values = numbers(30, 5)["drop"]
    some = np.where(np.arange(30) % 3 == 0, np.nan, values)
    got = found({"a": {"drop": values, "mass": some, "pointing": np.full(30, np.nan)}})
    assert got["a", "mass"].estimate.value == pytest.approx(np.nanmean(some))
    assert got["a", "mass"].estimate.images == 20
    assert ("a", "pointing") not in got
    alone = np.where(np.arange(30) == 3, values, np.nan)
    estimate = found({"a": {"drop": alone}})["a", "drop"].estimate
    assert (estimate.value, estimate.images) == (values[3], 1)
    assert np.isnan([estimate.low, estimate.high]).all()


def test_cost_is_the_median_over_batches_and_paired_by_them():
    batches = np.repeat([0, 1, 2, 3, 4], [8, 8, 4, 8, 8])
    drop = numbers(36, 6)["drop"]
    first, second = np.array([2.0, 2.2, 100.0, 2.1, 1.9]), np.array([3.0, 3.2, 101.0, 3.1, 2.9])
    got = found(
        {name: {"drop": drop, "cost": c[batches]} for name, c in (("a", first), ("b", second))},
        batches,
    )
    assert got["a", "cost"].estimate.value == 2.1
    assert got["b", "cost"].difference.value == pytest.approx(1)
    assert got["b", "cost"].difference.half < 1e-9
    assert got["b", "cost"].estimate.images == 5


def test_a_judge_gives_every_metric_that_the_model_and_the_image_allow(enlivened, random_crops):
    for name, leaves_out in REMOVABLE.items():
        model = enlivened(reduced(name))
        crops = random_crops(model, 3)
        shuffled = {stage: randomised(model, stage, 0) for stage in STAGES}
        targets = torch.tensor([0, 1, 2])
        judge = Judge(model, crops, targets, 4, shuffled, torch.ones(3, *model.grid))
        got = judge.metrics(parse("center"))
        assert set(got) == set(METRICS) - leaves_out
        assert all(values.shape == (3,) for values in got.values())
        assert got["mass"].tolist() == pytest.approx([1, 1, 1])
        assert got["like_all"].tolist() == pytest.approx([1, 1, 1])
        assert (got["cost"] > 0).all()
        assert set(Judge(model, crops, targets, 4, {}).metrics(parse("center"))) == (
            set(METRICS) - leaves_out - {"pointing", "mass", "top_tenth"} - LIKE
        )


def test_what_is_not_finite_has_no_number(enlivened, random_crops):
    model = enlivened(reduced("vit_tiny_patch16_224"))
    crops = random_crops(model, 3)
    judge = Judge(model, crops, torch.tensor([0, 1, 2]), 4, {})
    clean = judge.metrics(parse("reciprocam"))
    model.vit.head.bias.data[1] = torch.inf
    got = Judge(model, crops, torch.tensor([0, 1, 2]), 4, {}).metrics(parse("reciprocam"))
    assert clean["drop"].isfinite().all()
    assert all(values.isnan().all() for name, values in got.items() if name != "cost")
