"""The fast forms equal the definition, on every family of models that is promised."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

import explainer.reciprocam as fast
from explainer import ReciproCam, VitClassifier, explain, load_model
from explainer.reference import log_odds, masked_logits

# Structural flags are the family's own; only sizes are reduced.
FAMILIES = {
    "vit": "vit_tiny_patch16_224",
    "deit": "deit_tiny_patch16_224",
    "deit distilled": "deit_tiny_distilled_patch16_224",
    "deit3 (LayerScale)": "deit3_small_patch16_224",
    "dinov2": "vit_small_patch14_dinov2",
    "dinov2 registers": "vit_small_patch14_reg4_dinov2",
    "clip": "vit_base_patch16_clip_224",
    "clip quickgelu": "vit_base_patch16_clip_quickgelu_224",
}
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
CLASSES = 6


def build(family: str, dtype: torch.dtype = torch.float64) -> VitClassifier:
    """A small model of `family` on a 4 x 5 grid, its weights and biases large enough to matter."""
    patch = 14 if "dinov2" in family else 16
    model = load_model(
        FAMILIES[family],
        seed=0,
        model_args={
            "img_size": (4 * patch, 5 * patch),
            "embed_dim": 48,
            "depth": 4,
            "num_heads": 3,
            "num_classes": CLASSES,
        },
    )
    generator = torch.Generator().manual_seed(1)
    model.vit.to(dtype)
    for name, parameter in model.vit.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        noise *= 4 if name.startswith("head") else 1
        parameter.copy_(parameter + 0.2 * noise.to(dtype))
    return model


def crops(model: VitClassifier, batch: int = 7) -> torch.Tensor:
    shape = (batch, 3, *model.preprocessing.input_size)
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )


def reference_scores(
    logits: torch.Tensor, targets: torch.Tensor, score: str, grid: tuple[int, int]
) -> torch.Tensor:
    of_class: Callable[..., torch.Tensor] = {
        "log_odds": log_odds,
        "logit": lambda values, target: values[..., target],
    }[score]
    maps = [
        torch.stack([of_class(logits[i], int(target)) for target in targets[i]])
        for i in range(len(targets))
    ]
    return torch.stack(maps).unflatten(-1, grid)


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest error over the reference map's range; a range under 1e-2 would prove nothing."""
    span = want.amax((-2, -1)) - want.amin((-2, -1))
    assert span.min() >= 1e-2
    return float(((got - want).abs().amax((-2, -1)) / span).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("mask", ["3x3", "1x1"])
@pytest.mark.parametrize("block", [-1, -2, -3])
@pytest.mark.parametrize("family", FAMILIES)
def test_fast_form_equals_the_definition(family, block, mask, dtype):
    model = build(family, dtype)
    images = crops(model)
    residual = "kept" if block == -1 else "masked"
    logits = masked_logits(
        model.vit, model.normalise(images), block=block, residual=residual, mask=mask
    )
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 0])
    for score in ("log_odds", "logit"):
        method = ReciproCam(block, residual, mask, score)
        for target in ("predicted", "label", "top:3", "all"):
            got = explain(model, images, target=target, labels=labels, method=method)
            want = reference_scores(logits, got.targets, score, model.grid)
            assert relative_error(got.scores, want) <= TOLERANCE[dtype], (score, target)


@pytest.mark.parametrize("block", [-1, -2])
def test_both_residuals_agree_at_the_last_block_only(block):
    model = build("vit")
    images = model.normalise(crops(model))
    kept, masked = (
        masked_logits(model.vit, images, block=block, residual=residual, mask="3x3")
        for residual in ("kept", "masked")
    )
    agree = torch.allclose(kept, masked, rtol=0, atol=1e-12)
    assert agree == (block == -1)


def wrong_kernel(monkeypatch):
    monkeypatch.setitem(
        fast.KERNELS, "3x3", [[1 / 16, 1 / 8, 1 / 16], [1 / 8, 1, 1 / 8], [1 / 16] * 3]
    )


def no_multiplicity(monkeypatch):
    monkeypatch.setattr(fast, "math", SimpleNamespace(log=lambda _: 0.0, inf=math.inf))


def no_bias(monkeypatch):
    monkeypatch.setattr(fast, "_qkv_bias", lambda attn: torch.zeros_like(attn.qkv.bias))


def no_second_residual(monkeypatch):
    monkeypatch.setattr(fast, "_finish", lambda block, residual, attended: residual + attended)


def transposed_grid(monkeypatch):
    right = fast.neighbourhoods
    monkeypatch.setattr(
        fast, "neighbourhoods", lambda grid, mask, device: right(grid[::-1], mask, device)
    )


COMMON_MUTATIONS = [wrong_kernel, no_bias, no_second_residual, transposed_grid]


@pytest.mark.parametrize(
    ("mutate", "block"),
    [(mutate, block) for block in (-1, -2) for mutate in COMMON_MUTATIONS]
    + [(no_multiplicity, -2)],
)
def test_a_mutated_formula_fails(monkeypatch, mutate, block):
    model = build("vit")
    images = crops(model)
    logits = masked_logits(
        model.vit, model.normalise(images), block=block, residual="masked", mask="3x3"
    )
    mutate(monkeypatch)
    got = explain(model, images, method=ReciproCam(block))
    want = reference_scores(logits, got.targets, "log_odds", model.grid)
    assert relative_error(got.scores, want) > 1e-2


@pytest.mark.parametrize("block", [-1, -2])
def test_a_batch_equals_its_images_one_by_one(block):
    model = build("deit distilled")
    images = crops(model)
    together = explain(model, images, target="top:2", method=ReciproCam(block))
    for i in range(len(images)):
        alone = explain(model, images[i : i + 1], target="top:2", method=ReciproCam(block))
        torch.testing.assert_close(alone.scores[0], together.scores[i], rtol=0, atol=1e-10)
        assert alone.targets[0].tolist() == together.targets[i].tolist()


@pytest.mark.parametrize("block", [-1, -2])
def test_chunks_of_masks_do_not_change_the_maps(monkeypatch, block):
    model = build("vit")
    images = crops(model, 2)
    whole = explain(model, images, method=ReciproCam(block))
    monkeypatch.setitem(fast.CHUNK_BYTES, "cpu", 1)
    one_by_one = explain(model, images, method=ReciproCam(block))
    torch.testing.assert_close(one_by_one.scores, whole.scores, rtol=0, atol=1e-12)


def test_logits_are_those_of_the_plain_forward_pass():
    model = build("deit distilled")
    images = crops(model)
    with torch.inference_mode():
        plain = model.vit(model.normalise(images))
    for block in (-1, -2):
        got = explain(model, images, method=ReciproCam(block)).logits
        torch.testing.assert_close(got, plain, rtol=0, atol=1e-12)


def test_a_head_that_ignores_the_input_gives_constant_maps_of_zeros():
    model = build("vit")
    model.vit.head.weight.zero_()
    explanation = explain(model, crops(model))
    assert (explanation.scores == explanation.scores[..., :1, :1]).all()
    assert (explanation.saliency == 0).all()


@pytest.mark.parametrize("block", [-1, -2])
def test_permuting_attention_heads_changes_nothing(block):
    model, permuted = build("vit"), build("vit")
    attn = permuted.vit.blocks[len(permuted.vit.blocks) + block].attn
    order = torch.arange(attn.attn_dim).unflatten(0, (attn.num_heads, -1))[[2, 0, 1]].flatten()
    rows = torch.cat([order + i * attn.attn_dim for i in range(3)])
    attn.qkv.weight.copy_(attn.qkv.weight[rows])
    attn.qkv.bias.copy_(attn.qkv.bias[rows])
    attn.proj.weight.copy_(attn.proj.weight[:, order])
    images = crops(model)
    got, want = (explain(m, images, method=ReciproCam(block)).scores for m in (permuted, model))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_scaling_the_logits_scales_logit_maps():
    model = build("vit")
    images = crops(model)
    method = ReciproCam(score="logit")
    before = explain(model, images, target="all", method=method)
    model.vit.head.weight.mul_(3)
    model.vit.head.bias.mul_(3)
    after = explain(model, images, target="all", method=method)
    torch.testing.assert_close(after.scores, 3 * before.scores, rtol=0, atol=1e-10)


def test_the_model_is_bit_identical_after_explaining_and_after_an_error():
    model = build("vit", torch.float32)
    before = model.digest()
    explain(model, crops(model))
    with pytest.raises(ValueError, match="no labels were given"):
        explain(model, crops(model), target="label")
    assert model.digest() == before
    assert not model.vit.training


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (ReciproCam(block=0), r"block counts from the end, -4 to -1 here; got 0"),
        (ReciproCam(block=-5), r"block counts from the end, -4 to -1 here; got -5"),
        (
            ReciproCam(block=-2, residual="kept"),
            r"every patch costs a pass of its own; use residual",
        ),
    ],
)
def test_a_method_without_a_fast_exact_form_is_refused(method, message):
    model = build("vit")
    with pytest.raises(ValueError, match=message):
        explain(model, crops(model), method=method)


def test_a_grid_smaller_than_the_window_is_refused_and_the_smallest_is_exact():
    def of_grid(rows, columns):
        args = {"img_size": (16 * rows, 16 * columns), "embed_dim": 48, "depth": 3, "num_heads": 3}
        return load_model("vit_tiny_patch16_224", seed=0, model_args=args | {"num_classes": 3})

    small = of_grid(2, 2)
    with pytest.raises(ValueError, match="need a grid of at least 9 patches; got 2 x 2"):
        explain(small, crops(small))
    least = of_grid(3, 3)
    least.vit.double()
    for parameter in least.vit.parameters():
        parameter.copy_(parameter + 0.2 * torch.randn_like(parameter))
    images = crops(least, 2)
    logits = masked_logits(
        least.vit, least.normalise(images), block=-2, residual="masked", mask="3x3"
    )
    got = explain(least, images)
    want = reference_scores(logits, got.targets, "log_odds", least.grid)
    assert relative_error(got.scores, want) <= 1e-9


def test_log_odds_of_a_model_with_one_class_are_refused():
    args = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 1}
    model = load_model("vit_tiny_patch16_224", seed=0, model_args=args)
    with pytest.raises(ValueError, match="this model has one; use score logit"):
        explain(model, crops(model))
    assert (
        explain(model, crops(model), method=ReciproCam(score="logit")).targets.tolist() == [[0]] * 7
    )
