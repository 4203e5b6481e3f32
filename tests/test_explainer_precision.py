"""Lower precision ranks patches as float64 does, on photographs and with trained weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from explainer import Explanation, ReciproCam, VitClassifier, decode, explain, load_model
from explainer.checkpoints import read_checkpoint

DEMO = Path(__file__).resolve().parents[1] / "jobs" / "demo_model"


def demo_model() -> VitClassifier:
    weights, config = (DEMO / name for name in ("model.safetensors", "config.json"))
    checkpoint = read_checkpoint(weights.read_bytes(), weights.name, config.read_bytes())
    return load_model(checkpoint.config["architecture"], checkpoint=checkpoint)


@pytest.fixture(scope="module")
def crops(photos: Path) -> torch.Tensor:
    """Every fourth photograph, cropped for the demo's model."""
    preprocessing = demo_model().preprocessing
    paths = sorted(path for path in photos.rglob("*") if path.is_file())[::4]
    decoded = [decode(path.read_bytes(), preprocessing).crop for path in paths]
    return torch.from_numpy(np.stack([crop for crop in decoded if crop is not None]))


def spearman(found: Explanation, exact: Explanation) -> torch.Tensor:
    """Rank correlation of each image's map, ties at their mean rank."""
    ranks = [mean_ranks(each.scores.double().flatten(1)) for each in (found, exact)]
    centred = [each - each.mean(1, keepdim=True) for each in ranks]
    return torch.cosine_similarity(*centred)


def mean_ranks(scores: torch.Tensor) -> torch.Tensor:
    """How many scores of its row each is above, half of those that it ties with included."""
    above = (scores[:, :, None] > scores[:, None]).sum(-1)
    tied = (scores[:, :, None] == scores[:, None]).sum(-1)
    return above + tied / 2


@pytest.mark.parametrize("block", [-1, -2])
@pytest.mark.parametrize(("precision", "least"), [("float32", 0.999), ("mixed", 0.99)])
def test_maps_of_photographs_rank_like_those_of_float64(crops, precision, least, block):
    model, double = demo_model(), demo_model()
    double.vit.double()
    method = ReciproCam(block)
    exact = explain(double, crops, method=method)
    targets = exact.targets[:, 0]
    found = explain(
        model, crops, target="label", labels=targets, method=method, precision=precision
    )
    correlation = spearman(found, exact)
    confident = exact.logits.softmax(-1).amax(-1) >= 0.9
    assert confident.sum() >= 10
    assert correlation.median() >= least
    assert correlation[confident].median() >= least
