"""On a GPU maps are those of the CPU, and nothing waits for the GPU before a batch is done."""

import pytest
import torch

from explainer import ReciproCam, VitClassifier, explain
from explainer.coverage import reduced

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


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("block", [-1, -2])
@pytest.mark.parametrize("mask", ["3x3", "1x1"])
def test_nothing_waits_for_the_gpu_inside_a_batch(block, mask, build, random_crops):
    model = build("class token", torch.float32)
    model.vit.to("cuda")
    crops, method = random_crops(model).cuda(), ReciproCam(block, mask=mask)
    explain(model, crops, method=method)  # what is made once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        explain(model, crops, method=method)
    finally:
        torch.cuda.set_sync_debug_mode("default")
