"""Every architecture of timm's plain-ViT modules is explained exactly, or refused with its cost."""

import re
from pathlib import Path

import pytest
import torch

from explainer import ReciproCam, explain, load_model
from explainer.collapse import collapsed
from explainer.coverage import entry, markdown, plain_names, reduced
from explainer.masks import masks_of
from explainer.reciprocam import Explanation
from explainer.structure import tokens_entering

DOCS = Path(__file__).resolve().parents[1] / "docs" / "coverage.md"
FULL_SIZE = ("deit_tiny_distilled_patch16_224", "vit_base_patch16_siglip_224", "test_vit2")


@pytest.fixture(scope="module")
def built():
    """Entries of the table, of models that a test has built already."""
    return {}


@pytest.fixture
def entries(built):
    return {name: built.get(name) or entry(reduced(name)) for name in plain_names()}


@pytest.mark.parametrize("name", plain_names())
def test_every_name_equals_the_definition(
    name, built, by_definition, enlivened, random_crops, relative_error
):
    model = enlivened(reduced(name))
    built[name] = entry(model)
    images, method = random_crops(model, 2), ReciproCam()
    if method.form(model).name == "definition":
        cost = r"by the definition an image costs about \d+ forward passes; allow the definition"
        with pytest.raises(ValueError, match=f"has no cheap exact form, because .*: {cost}"):
            explain(model, images)
    got = explain(model, images, target="all", method=method, allow_definition=True)
    assert relative_error(got, by_definition(model, images, method)) <= 1e-9


def test_the_table_in_the_docs_is_that_of_the_registry(entries):
    assert DOCS.read_text() == markdown(list(entries.values()))


def test_nearly_all_names_are_cheap_and_none_is_left_out(entries):
    assert len(entries) == 293
    forms = [each.form for each in entries.values()]
    assert sum(form.name != "definition" for form in forms) == 245
    assert sum(form.name == "collapse" and form.block == -2 for form in forms) == 212


# One name for each way in which structures differ, at every block and in both conventions.
STRUCTURES = (
    "vit_tiny_patch16_224",
    "vit_medium_patch16_gap_256",
    "vit_base_patch16_reg4_gap_256",
    "vit_base_patch16_siglip_224",
    "test_vit3",  # attention pooling over prefix tokens too
    "beit3_base_patch16_224",
    "vit_base_patch16_xp_224",
    "vit_small_patch16_18x2_224",
    "vit_dlittle_patch16_reg1_gap_256",
    "vit_dpwee_patch16_reg1_gap_256",
    "vit_base_patch16_rpn_224",
    "eva02_enormous_patch14_clip_224",
    "vit_base_patch16_rope_mixed_224",
    "vit_base_patch16_sapiens2",
    "vit_small_patch16_dinov3",
    "eva02_tiny_patch14_224",
    "vit_pe_core_tiny_patch16_384",
    "vit_relpos_base_patch16_cls_224",
    "vit_srelpos_small_patch16_224",
    "beit_base_patch16_224",
    "naflexvit_base_patch16_map",
)


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_at_every_block_in_both_conventions(
    name, by_definition, enlivened, random_crops, relative_error
):
    model = enlivened(reduced(name))
    images = random_crops(model, 2)
    for block, residual, mask in (
        (-1, "masked", "3x3"),
        (-1, "kept", "1x1"),
        (-2, "masked", "1x1"),
        (-2, "kept", "3x3"),
        (-3, "masked", "3x3"),
    ):
        method = ReciproCam(block, residual, mask)
        got = explain(model, images, target="top:2", method=method, allow_definition=True)
        assert relative_error(got, by_definition(model, images, method)) <= 1e-9, method


# What no registered name has, but a checkpoint's arguments may.
OPTIONS = (
    ("vit_tiny_patch16_224", {"global_pool": "avg", "pool_include_prefix": True}),
    ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False}),
    ("vit_tiny_patch16_224", {"global_pool": "max"}),
    ("vit_tiny_patch16_224", {"global_pool": "prr"}),
    ("vit_tiny_patch16_224", {"qk_norm": True}),
    ("vit_tiny_patch16_224", {"attn_layer": "diff", "qk_norm": True}),
    ("vit_tiny_patch16_224", {"scale_attn_norm": True, "scale_mlp_norm": True}),
    ("vit_tiny_patch16_224", {"pos_embed": "none", "class_token": False, "global_pool": "avg"}),
    ("vit_base_patch16_siglip_224", {"class_token": True}),
    ("eva_giant_patch14_224", {"global_pool": "map"}),
    ("vit_small_patch16_dinov3", {"global_pool": "map"}),
    ("vit_small_patch16_dinov3", {"global_pool": "token"}),
    ("vit_base_patch16_sapiens2", {"num_kv_heads": 1}),
    ("beit_base_patch16_224", {"global_pool": "token", "use_shared_rel_pos_bias": True}),
    ("vit_relpos_base_patch16_cls_224", {"rel_pos_type": "bias"}),
    ("naflexvit_base_patch16_map", {"rope_type": "axial", "attn_type": "rope"}),
    ("naflexvit_base_patch16_map", {"attn_gated": True, "attn_type": "rope"}),
)


@pytest.mark.parametrize(("name", "arguments"), OPTIONS)
def test_structures_that_arguments_make_are_exact_too(
    name, arguments, by_definition, enlivened, random_crops, relative_error
):
    model = enlivened(reduced(name, arguments))
    images = random_crops(model, 2)
    for block in (-1, -2):
        method = ReciproCam(block)
        got = explain(model, images, target="top:2", method=method, allow_definition=True)
        assert relative_error(got, by_definition(model, images, method)) <= 1e-9, block


# timm's RMS norm has no fused kernel for the float16 that a convolution gives it, and says so.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize(
    "name", [*STRUCTURES, "vit_relpos_base_patch16_rpn_224", "naflexvit_base_patch16_siglip"]
)
def test_mixed_precision_keeps_residuals_and_scores_in_the_models_own(
    name, enlivened, random_crops
):
    model = enlivened(reduced(name), torch.float32, 0.05)
    images = random_crops(model, 2)
    exact, mixed = (
        explain(model, images, precision=precision, allow_definition=True)
        for precision in ("float32", "mixed")
    )
    assert mixed.scores.dtype == mixed.logits.dtype == torch.float32
    torch.testing.assert_close(mixed.logits, exact.logits, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("arguments", "grid"),
    [({"dynamic_img_size": True, "dynamic_img_pad": True}, (4, 5)), ({}, (3, 4))],
)
def test_an_input_that_cuts_patches_has_the_grid_that_timm_makes(
    arguments, grid, by_definition, enlivened, random_crops, relative_error
):
    model = enlivened(reduced("vit_tiny_patch16_224", arguments | {"img_size": (26, 34)}))
    assert model.grid == grid
    images, method = random_crops(model, 2), ReciproCam()
    got = explain(model, images, method=method)
    assert relative_error(got, by_definition(model, images, method)) <= 1e-9


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_base_patch16_rope_224"])
def test_collapsing_a_model_with_positions_in_its_attention_fails(
    name, by_definition, enlivened, random_crops, relative_error
):
    """What the refusal guards against: biased queries make masked tokens differ by their place."""
    model = enlivened(reduced(name))
    images = random_crops(model, 2)
    with torch.inference_mode():
        entering = tokens_entering(model.vit, model.normalise(images), len(model.vit.blocks) - 1)
        groups = masks_of(model.grid, "3x3", torch.float64, images.device)
        passes = collapsed(model, entering, groups)
        targets = passes.unmasked.topk(1).indices
        scores = torch.empty(2, 1, model.patches, dtype=torch.float64)
        for part in passes.masked:
            chosen = part.logits.gather(-1, targets[:, None].expand(-1, len(part.centres), -1))
            scores[:, :, part.centres] = chosen.transpose(1, 2)
    wrong = Explanation(passes.unmasked, targets, scores.unflatten(-1, model.grid))
    logits = by_definition(model, images, ReciproCam(-1))
    assert relative_error(wrong, logits, "logit") > 1e-2


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_few_at_their_own_size(
    name, request, by_definition, enlivened, random_crops, relative_error
):
    if not request.config.getoption("--full-size"):
        pytest.skip("minutes long: pytest --full-size")
    model = enlivened(load_model(name, seed=0, model_args={"num_classes": 5}), scale=0.05)
    images, method = random_crops(model, 1), ReciproCam()
    got = explain(model, images, target="all", method=method)
    assert relative_error(got, by_definition(model, images, method)) <= 1e-9


def test_a_hierarchical_model_is_refused():
    message = "swin_tiny_patch4_window7_224 cannot be explained: it is a SwinTransformer, and the"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_model("swin_tiny_patch4_window7_224", seed=0)
