"""Targets, log-odds that do not saturate, and the numbers that describe a map."""

import pytest
import torch

from explainer.maps import normalise, statistics
from explainer.scores import Target, class_scores, select_targets


@pytest.mark.parametrize("margin", [0.0, 5.0, 17.0, 40.0, 80.0])
def test_log_odds_keep_their_precision_where_the_probability_saturates(margin):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 50, 10, generator=generator)
    logits[..., 4] += margin
    targets = torch.arange(10).expand(3, 10)
    got = class_scores(logits, targets, "log_odds")
    exact = logits.double()
    for target in range(10):
        others = torch.cat([exact[..., :target], exact[..., target + 1 :]], dim=-1)
        want = exact[..., target] - others.logsumexp(-1)
        torch.testing.assert_close(got[..., target].double(), want, rtol=1e-5, atol=1e-5)


def test_targets_of_every_kind():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [9.0, 0.0, 5.0, 7.0]])
    labels = torch.tensor([2, 1])
    assert select_targets(logits, Target("predicted"), None).tolist() == [[1], [0]]
    assert select_targets(logits, Target("label"), labels).tolist() == [[2], [1]]
    assert select_targets(logits, Target("top", 2), None).tolist() == [[1, 3], [0, 3]]
    assert select_targets(logits, Target("all"), None).tolist() == [[1, 3, 2, 0], [0, 3, 2, 1]]


@pytest.mark.parametrize(
    "text", ["", "best", "top", "top:0", "top:-1", "top:x", "labels", "top: 3"]
)
def test_an_unknown_target_is_refused(text):
    with pytest.raises(ValueError, match=r"target must be predicted, label, top:K .* or all; got"):
        Target.parse(text)


def test_more_targets_than_classes_are_refused():
    with pytest.raises(
        ValueError, match=r"top:9 asks for more classes than the model's 4; use top:4"
    ):
        Target.parse("top:9").per_image(4)


def test_a_map_is_scaled_to_its_own_range_and_a_constant_map_is_zeros():
    maps = torch.tensor([[[-3.0, 1.0], [0.0, 5.0]], [[2.0, 2.0], [2.0, 2.0]]])
    want = torch.tensor([[[0.0, 0.5], [0.375, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(normalise(maps), want)


def test_statistics_of_known_maps():
    one_cell = torch.zeros(4, 5)
    one_cell[1, 3] = 1.0
    corner = torch.zeros(4, 5)
    corner[0, 0] = 1.0
    uniform = torch.ones(4, 5)
    constant = torch.zeros(4, 5)
    found = statistics(torch.stack([one_cell, corner, uniform, constant]))
    assert found.peak_row.tolist() == [1, 0, 0, 0]
    assert found.peak_column.tolist() == [3, 0, 0, 0]
    torch.testing.assert_close(found.border_mass, torch.tensor([0.0, 1.0, 14 / 20, 0.0]))
    torch.testing.assert_close(found.entropy, torch.tensor([0.0, 0.0, 1.0, 0.0]))
