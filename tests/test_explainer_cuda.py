"""On a GPU maps are those of the CPU, and nothing waits for the GPU before a batch is done."""

import warnings

import pytest
import torch

from explainer import ReciproCam, VitClassifier, explain
from explainer.coverage import reduced
from explainer.evaluation import Judge
from explainer.head import SplitClassifier
from explainer.methods import BASELINES, parse
from explainer.sanity import randomised

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

MODELS = {
    "class token": ("deit3_small_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "average-pooled": ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "attention-pooled": ("vit_base_patch16_siglip_224", {}),
}


@pytest.fixture(scope="module")
def build(enlivened):
    def make(kind: str, dtype: torch.dtype) -> VitClassifier:
        return enlivened(reduced(*MODELS[kind]), dtype, 0.2)

    return make


@pytest.mark.parametrize("block", [-1, -2])
@pytest.mark.parametrize("kind", MODELS)
def test_maps_are_those_of_the_cpu(kind, block, build, random_crops):
    model = build(kind, torch.float64)
    crops = random_crops(model)
    method = ReciproCam(block)
    expected = explain(model, crops, target="all", method=method, allow_definition=True)
    model.vit.to("cuda")
    got = explain(model, crops.cuda(), target="all", method=method, allow_definition=True)
    span = expected.scores.amax() - expected.scores.amin()
    assert span >= 1e-2
    assert (got.scores.cpu() - expected.scores).abs().max() <= 1e-9 * span


@pytest.mark.parametrize(("precision", "waits"), [("float32", 0), ("mixed", 1)])
@pytest.mark.parametrize("block", [-1, -2])
@pytest.mark.parametrize("mask", ["3x3", "1x1"])
def test_nothing_waits_for_the_gpu_inside_a_batch(
    block, mask, precision, waits, build, random_crops
):
    """Mixed precision waits once, at its end: for whether all scores are finite."""
    model = build("class token", torch.float32)
    model.vit.to("cuda")
    crops, method = random_crops(model).cuda(), ReciproCam(block, mask=mask)
    explain(model, crops, method=method, precision=precision)  # what is made once may wait
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            explain(model, crops, method=method, precision=precision)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing CUDA operation" in str(each.message) for each in caught) == waits


@pytest.mark.parametrize("block", [-1, -2])
@pytest.mark.parametrize("kind", MODELS)
def test_mixed_precision_ranks_like_the_models_own(kind, block, build, random_crops):
    model = build(kind, torch.float32)
    model.vit.to("cuda")
    crops, method = random_crops(model).cuda(), ReciproCam(block)
    exact, mixed = (
        explain(model, crops, method=method, precision=precision, allow_definition=True)
        for precision in ("float32", "mixed")
    )
    assert mixed.scores.dtype == mixed.logits.dtype == torch.float32
    ranks = [each.scores.flatten(1).argsort().argsort().double() for each in (exact, mixed)]
    centred = [each - each.mean(1, keepdim=True) for each in ranks]
    assert torch.cosine_similarity(*centred).median() >= 0.95


def test_a_split_classifier_rounds_its_weights_and_not_its_features():
    torch.manual_seed(0)
    linear = torch.nn.Linear(384, 100, device="cuda")
    features = torch.randn(50, 384, device="cuda")
    weight, bias = linear.weight.half().double(), linear.bias.double()
    expected = features.double() @ weight.T + bias
    with torch.inference_mode():
        got = SplitClassifier(linear, torch.float16)(features)
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("name", [*BASELINES, "rise:64"])
def test_other_methods_and_their_numbers_are_those_of_the_cpu(name, build, random_crops):
    model = build("class token", torch.float64)
    crops, targets = random_crops(model), torch.tensor([0, 1, 2])
    crops = crops[:3]
    expected = explain(model, crops, target="all", method=name).scores
    on_cpu = Judge(model, crops, targets, 4, {}).metrics(parse(name))
    model.vit.to("cuda")
    got = explain(model, crops.cuda(), target="all", method=name).scores
    assert (got.cpu() - expected).abs().max() <= 1e-7 * (expected.amax() - expected.amin())
    shuffled = {"all": randomised(model, "all", 0)}
    cover = torch.ones(3, *model.grid, device="cuda")
    judge = Judge(model, crops.cuda(), targets.cuda(), 4, shuffled, cover)
    on_gpu = judge.metrics(parse(name))
    for metric in on_cpu.keys() - {"cost", "coherency", "adcc"}:  # a level of 255 may round apart
        assert on_gpu[metric].tolist() == pytest.approx(on_cpu[metric].tolist(), abs=1e-3), metric
    assert all(values.device.type == "cpu" for values in on_gpu.values())


def test_what_was_begun_before_is_no_methods_cost(build, random_crops):
    model = build("class token", torch.float32)
    model.vit.to("cuda")
    judge = Judge(model, random_crops(model).cuda(), torch.zeros(7).long().cuda(), 4, {})
    judge.metrics(parse("center"))  # what a first call costs besides
    torch.cuda._sleep(10**9)  # cycles: half a second
    assert judge.metrics(parse("center"))["cost"].min() > 0.5
