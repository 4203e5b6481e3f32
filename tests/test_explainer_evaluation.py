"""Scores of methods over images: means, intervals, paired differences, and the whole of a judge."""

import numpy as np
import pytest
import torch

from explainer.coverage import reduced
from explainer.evaluation import ADCC_OF_MEANS, METRICS, RESAMPLES, STAGES, Judge, scores
from explainer.faithfulness import harmonic, randomised
from explainer.methods import parse

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


def found(of_methods: dict[str, dict[str, np.ndarray]]) -> dict[tuple[str, str], object]:
    return {(score.method, score.metric): score for score in scores(of_methods)}


def test_a_score_is_the_mean_with_the_interval_of_resampled_means():
    values = numbers(60, 0)["drop"]
    score = found({"a": {"drop": values}})["a", "drop"]
    assert score.estimate.value == pytest.approx(values.mean())
    assert score.estimate.of == 60
    spread = values.std() / 60**0.5
    assert score.estimate.high - score.estimate.low == pytest.approx(2 * 1.96 * spread, rel=0.1)
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
    score = got["second", "drop"]
    assert score.difference.value == pytest.approx(0.01)
    # The same images in each resample: the difference does not vary, however much images do.
    assert score.difference.high - score.difference.low < 1e-6
    assert score.estimate.high - score.estimate.low > 0.05
    other = found({"first": base, "second": numbers(50, 4)})["second", "drop"]
    assert other.difference.high - other.difference.low > 0.05
    assert got["first", "drop"].difference.value == 0


def test_images_without_a_number_are_left_out_and_metrics_without_any_too():
    values = numbers(30, 5)["drop"]
    some = np.where(np.arange(30) % 3 == 0, np.nan, values)
    got = found({"a": {"drop": values, "mass": some, "pointing": np.full(30, np.nan)}})
    assert got["a", "mass"].estimate.value == pytest.approx(np.nanmean(some))
    assert got["a", "mass"].estimate.of == 20
    assert ("a", "pointing") not in got


def test_cost_is_the_median_over_batches():
    cost = np.repeat([2.0, 2.2, 100.0, 2.1, 1.9], [8, 8, 4, 8, 8])
    score = found({"a": {"drop": numbers(36, 6)["drop"], "cost": cost}})["a", "cost"]
    assert score.estimate.value == 2.1
    assert score.estimate.low >= 1.9


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
