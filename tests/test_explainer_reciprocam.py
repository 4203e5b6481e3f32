"""The fast forms equal the definition, on every family of models that is promised."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from explainer import (
    ReciproCam,
    VitClassifier,
    attention,
    closed_form,
    collapse,
    explain,
    load_model,
    masks,
    passes,
    reciprocam,
)
from explainer.coverage import reduced
from explainer.reciprocam import PrecisionError

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


@pytest.fixture(scope="module")
def build(enlivened):
    """A small model of a family on a 4 x 5 grid, its weights and biases large enough to matter."""

    def make(family: str, dtype: torch.dtype = torch.float64) -> VitClassifier:
        arguments = {
            "img_size": (32, 40),
            "patch_size": 8,
            "embed_dim": 48,
            "depth": 4,
            "num_heads": 3,
            "num_classes": CLASSES,
        }
        return enlivened(load_model(FAMILIES[family], seed=0, model_args=arguments), dtype, 0.2)

    return make


@pytest.mark.parametrize(
    "case",
    [(block, mask, torch.float64) for block in (-1, -2, -3) for mask in ("3x3", "1x1")]
    + [(block, "3x3", torch.float32) for block in (-1, -2)],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_fast_form_equals_the_definition(
    family, case, build, by_definition, random_crops, relative_error
):
    block, mask, dtype = case
    model = build(family, dtype)
    images = random_crops(model)
    residual = "kept" if block == -1 else "masked"
    logits = by_definition(model, images, ReciproCam(block, residual, mask))
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 0])
    for score in ("log_odds", "logit"):
        method = ReciproCam(block, residual, mask, score)
        assert method.form(model).name == ("closed form" if block == -1 else "collapse")
        for target in ("predicted", "label", "top:3", "all"):
            got = explain(model, images, target=target, labels=labels, method=method)
            assert relative_error(got, logits, score) <= TOLERANCE[dtype], (score, target)


@pytest.mark.parametrize("block", [-1, -2])
def test_both_residuals_agree_at_the_last_block_only(block, build, by_definition, random_crops):
    model = build("vit")
    images = random_crops(model)
    kept, masked = (
        by_definition(model, images, ReciproCam(block, residual)) for residual in ("kept", "masked")
    )
    agree = torch.allclose(kept, masked, rtol=0, atol=1e-12)
    assert agree == (block == -1)


def wrong_kernel(monkeypatch):
    kernel = [[1 / 16, 1 / 8, 1 / 16], [1 / 8, 1, 1 / 8], [1 / 16] * 3]
    monkeypatch.setitem(masks.KERNELS, "3x3", kernel)


def no_multiplicity(monkeypatch):
    monkeypatch.setattr(collapse, "math", SimpleNamespace(log=lambda _: 0.0))


def no_query_bias(monkeypatch):
    right = attention.Projection.__call__

    def unbiased(self, y):
        return right(replace(self, bias=torch.zeros_like(self.bias)), y)

    monkeypatch.setattr(attention.Projection, "__call__", unbiased)


def no_second_residual(monkeypatch):
    for module in (collapse, closed_form, attention):
        monkeypatch.setattr(module, "finish", lambda block, residual, attended: residual + attended)


def transposed_grid(monkeypatch):
    right = reciprocam.masks_of
    monkeypatch.setattr(reciprocam, "masks_of", lambda grid, *rest: right(grid[::-1], *rest))


MUTATIONS = (wrong_kernel, no_multiplicity, no_query_bias, no_second_residual, transposed_grid)


@pytest.mark.parametrize("block", [-1, -2])
@pytest.mark.parametrize("mutate", MUTATIONS)
def test_a_mutated_formula_fails(
    monkeypatch, mutate, block, build, by_definition, random_crops, relative_error
):
    model = build("vit")
    images = random_crops(model)
    logits = by_definition(model, images, ReciproCam(block))
    masks.masks_of.cache_clear()
    mutate(monkeypatch)
    got = explain(model, images, method=ReciproCam(block))
    masks.masks_of.cache_clear()
    assert relative_error(got, logits) > 1e-2


@pytest.mark.parametrize("block", [-1, -2])
def test_a_batch_equals_its_images_one_by_one(block, build, random_crops):
    model = build("deit distilled")
    images = random_crops(model)
    together = explain(model, images, target="top:2", method=ReciproCam(block))
    for i in range(len(images)):
        alone = explain(model, images[i : i + 1], target="top:2", method=ReciproCam(block))
        torch.testing.assert_close(alone.scores[0], together.scores[i], rtol=0, atol=1e-10)
        assert alone.targets[0].tolist() == together.targets[i].tolist()


@pytest.mark.parametrize(("block", "residual"), [(-1, "masked"), (-2, "masked"), (-2, "kept")])
def test_chunks_of_masks_do_not_change_the_maps(monkeypatch, block, residual, build, random_crops):
    model = build("vit")
    images, method = random_crops(model, 2), ReciproCam(block, residual)
    whole = explain(model, images, method=method, allow_definition=True)
    monkeypatch.setitem(passes.CHUNK_BYTES, "cpu", 1)
    one_by_one = explain(model, images, method=method, allow_definition=True)
    torch.testing.assert_close(one_by_one.scores, whole.scores, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", ["3x3", "1x1"])
def test_a_product_with_all_tokens_gives_the_maps_of_that_with_the_distinct_ones(
    monkeypatch, mask, build, random_crops, relative_error, by_definition
):
    model = build("dinov2 registers")
    images, method = random_crops(model), ReciproCam(-2, "masked", mask)
    monkeypatch.setattr(collapse, "DENSE", frozenset({"cpu"}))
    got = explain(model, images, target="all", method=method)
    logits = by_definition(model, images, method)
    assert relative_error(got, logits, "log_odds") <= TOLERANCE[torch.float64]


def test_logits_are_those_of_the_plain_forward_pass(build, random_crops):
    model = build("deit distilled")
    images = random_crops(model)
    with torch.inference_mode():
        plain = model.vit(model.normalise(images))
    for block in (-1, -2):
        got = explain(model, images, method=ReciproCam(block)).logits
        torch.testing.assert_close(got, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [-1, -2])
def test_a_head_that_ignores_patch_tokens_gives_constant_maps_of_zeros(block, build, random_crops):
    model = build("vit")
    for late in model.vit.blocks[-2:]:  # the class token reads nothing, but is still classified
        late.attn.proj.weight.zero_()
    explanation = explain(model, random_crops(model), method=ReciproCam(block))
    assert explanation.logits.std() > 0.1
    low, high = explanation.scores.aminmax(dim=-1)
    low, high = low.amin(-1), high.amax(-1)
    # Some processors round the last rows of a product otherwise than the others.
    assert (high - low <= 64 * torch.finfo(torch.float64).eps * high.abs()).all()
    alike = low == high
    assert alike.double().mean() > 0.5
    assert (explanation.saliency[alike] == 0).all()


@pytest.mark.parametrize("block", [-1, -2])
def test_permuting_attention_heads_changes_nothing(block, build, random_crops):
    model, permuted = build("vit"), build("vit")
    attn = permuted.vit.blocks[len(permuted.vit.blocks) + block].attn
    order = torch.arange(attn.attn_dim).unflatten(0, (attn.num_heads, -1))[[2, 0, 1]].flatten()
    rows = torch.cat([order + i * attn.attn_dim for i in range(3)])
    attn.qkv.weight.copy_(attn.qkv.weight[rows])
    attn.qkv.bias.copy_(attn.qkv.bias[rows])
    attn.proj.weight.copy_(attn.proj.weight[:, order])
    images = random_crops(model)
    got, want = (explain(m, images, method=ReciproCam(block)).scores for m in (permuted, model))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_scaling_the_logits_scales_logit_maps(build, random_crops):
    model = build("vit")
    images = random_crops(model)
    method = ReciproCam(score="logit")
    before = explain(model, images, target="all", method=method)
    model.vit.head.weight.mul_(3)
    model.vit.head.bias.mul_(3)
    after = explain(model, images, target="all", method=method)
    torch.testing.assert_close(after.scores, 3 * before.scores, rtol=0, atol=1e-10)


def test_the_model_is_bit_identical_after_explaining_and_after_an_error(build, random_crops):
    model = build("vit", torch.float32)
    before = model.digest()
    explain(model, random_crops(model))
    with pytest.raises(ValueError, match="no labels were given"):
        explain(model, random_crops(model), target="label")
    assert model.digest() == before
    assert not model.vit.training


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (ReciproCam(block=0), r"block counts from the end, -4 to -1 here; got 0"),
        (ReciproCam(block=-5), r"block counts from the end, -4 to -1 here; got -5"),
        (
            ReciproCam(block=-2, residual="kept"),
            r"vit_tiny_patch16_224 at block -2 has no cheap exact form, because with the kept "
            r"residual every masked token stays different from the others: by the definition an "
            r"image costs about 11 forward passes; allow the definition \(--allow-definition\), or "
            r"use block -2 with residual masked",
        ),
    ],
)
def test_a_method_without_a_fast_exact_form_is_refused(method, message, build, random_crops):
    model = build("vit")
    with pytest.raises(ValueError, match=message):
        explain(model, random_crops(model), method=method)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (2, 2), (3, 3)])
def test_grids_no_larger_than_the_window_are_exact(grid, enlivened, by_definition, random_crops):
    args = {"img_size": (8 * grid[0], 8 * grid[1]), "patch_size": 8, "embed_dim": 48, "depth": 3}
    args |= {"num_heads": 3, "num_classes": 3}
    model = enlivened(load_model("vit_tiny_patch16_224", seed=0, model_args=args))
    images, method = random_crops(model, 2), ReciproCam(score="logit")
    got = explain(model, images, target="all", method=method)
    want = by_definition(model, images, method).gather(
        -1, got.targets[:, None].expand(-1, 1, -1).expand(-1, model.patches, -1)
    )
    torch.testing.assert_close(got.scores.flatten(-2), want.transpose(1, 2), rtol=0, atol=1e-9)


def test_the_default_block_is_the_last_where_only_that_is_cheap():
    names = ("vit_tiny_patch16_224", "vit_base_patch16_rope_224", "eva02_tiny_patch14_224")
    resolved = [ReciproCam().resolved(reduced(name)).block for name in names]
    assert resolved == [-2, -1, -2]


def test_variants_are_the_papers_and_the_authors_conventions():
    assert ReciproCam.variant("paper") == ReciproCam(-1, "kept")
    assert ReciproCam.variant("authors") == ReciproCam(-2, "kept")
    assert ReciproCam.variant("default") == ReciproCam()


def test_what_overflows_mixed_precision_is_an_error_and_no_map(build, random_crops):
    model = build("vit", torch.float32)
    images = random_crops(model)
    model.vit.blocks[-1].mlp.fc1.weight.mul_(1e5)
    with pytest.raises(PrecisionError, match="beyond float16, which mixed precision computes in"):
        explain(model, images, precision="mixed")
    assert explain(model, images).scores.isfinite().all()


def test_an_overflow_of_the_unmasked_pass_alone_is_an_error_too(build, random_crops):
    """Pairs of patches that share no window meet only there: its class would be anyone's guess."""
    model = build("vit", torch.float32)
    images = random_crops(model)
    head = model.vit.head
    model.vit.head = torch.nn.Sequential(head, Overflowing())
    with pytest.raises(PrecisionError, match="beyond float16"):
        explain(model, images, precision="mixed")


class Overflowing(torch.nn.Module):
    """Gives NaN the first time that it is called: for the unmasked images."""

    calls = 0

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return logits * (float("nan") if self.calls == 1 else 1.0)


@pytest.mark.parametrize("block", [-1, -2])
def test_mixed_precision_ranks_like_the_models_own(block, build, random_crops):
    model = build("vit", torch.float32)
    images = random_crops(model)
    exact, mixed = (
        explain(model, images, method=ReciproCam(block), precision=precision)
        for precision in ("float32", "mixed")
    )
    assert mixed.scores.dtype == mixed.logits.dtype == torch.float32
    assert not torch.equal(exact.scores, mixed.scores)
    ranks = [each.scores.flatten(1).argsort().argsort().double() for each in (exact, mixed)]
    for i in range(len(images)):
        assert torch.corrcoef(torch.stack([each[i] for each in ranks]))[0, 1] > 0.95


def test_log_odds_of_a_model_with_one_class_are_refused(random_crops):
    args = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 1}
    model = load_model("vit_tiny_patch16_224", seed=0, model_args=args)
    with pytest.raises(ValueError, match="this model has one; use score logit"):
        explain(model, random_crops(model))
    assert (
        explain(model, random_crops(model), method=ReciproCam(score="logit")).targets.tolist()
        == [[0]] * 7
    )
