"""Other methods equal slow loops over timm's own model, one image and one class at a time."""

import copy
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from timm.layers import GELU, GluMlp, LayerNorm, RmsNorm, SwiGLU
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

from explainer import ReciproCam, VitClassifier, methods, passes
from explainer.coverage import reduced
from explainer.gradients import trace
from explainer.methods import BASELINES, RULE, Baseline, explain, identity, parse

# Each on a grid of 3 x 4, and the tokens that its head reads.
CASES = {
    "class token": ("vit_tiny_patch16_224", slice(0, 1)),
    "LayerScale": ("deit3_small_patch16_224", slice(0, 1)),
    "registers": ("vit_small_patch14_reg4_dinov2", slice(0, 1)),
    "distilled": ("deit_tiny_distilled_patch16_224", slice(0, 2)),
    "average": ("vit_medium_patch16_gap_256", slice(0, 12)),
    "average without registers": ("vit_base_patch16_reg4_gap_256", slice(4, 16)),
    "rotary, SwiGLU of two layers": ("eva02_tiny_patch14_224", slice(1, 13)),
    "relative positions": ("beit_base_patch16_224", slice(1, 13)),
    "SwiGLU of one layer": ("vit_giant_patch14_dinov2", slice(0, 1)),
    "norm after attention": ("vit_base_patch16_rpn_224", slice(0, 12)),
    "MLP beside attention": ("vit_base_patch16_xp_224", slice(0, 1)),
}
EVERY = (*BASELINES, "rise:16")
READERS = ("rollout", "relevance", "legrad")
Refusal: TypeAlias = str | None


@pytest.fixture(scope="module")
def build(enlivened):
    """A small model of a name's structure, in float64: a copy of its own for each caller."""
    built: dict[str, VitClassifier] = {}

    def make(name: str, arguments: Mapping[str, Any] | None = None) -> VitClassifier:
        key = f"{name} {arguments or {}}"
        if key not in built:
            built[key] = enlivened(reduced(name, arguments))
        return replace(built[key], vit=copy.deepcopy(built[key].vit))

    return make


class Seen:
    """A forward pass of one image through timm's own model, and what hooks saw of it.

    `balanced`: with LibraGrad's rules, on what timm's own modules made.
    """

    def __init__(self, model: VitClassifier, crop: Tensor, *, balanced: bool = False) -> None:
        self.vit, self.prefix = copy.deepcopy(model.vit), model.prefix
        self.entering, self.leaving, self.attentions, self.read = ([] for _ in range(4))
        for block in self.vit.blocks:
            attn = getattr(block, "attn", block)
            attn.fused_attn = False
            after_softmax = attn.attn_drop.register_forward_hook
            after_softmax(lambda _m, _given, made: made.detach() if balanced else None)
            after_softmax(lambda _m, _given, made: self.attentions.append(made))
            block.register_forward_pre_hook(lambda _m, given: self.entering.append(given[0]))
            block.register_forward_hook(lambda _m, _given, made: self.leaving.append(made))
        last = self.vit.blocks[-1]
        if isinstance(last, ResPostBlock):  # its attention reads the very tokens that are added
            last.attn.register_forward_pre_hook(lambda _m, given: (given[0].clone(), *given[1:]))
            last.attn.register_forward_pre_hook(lambda _m, given: self.read.append(given[0]))
        else:
            norm = last.norm1 if hasattr(last, "norm1") else last.in_norm
            norm.register_forward_hook(lambda _m, _given, made: self.read.append(made))
        for module in self.vit.modules() if balanced else ():
            if isinstance(module, tuple(RULES)):
                module.register_forward_hook(RULES[type(module)])
            if isinstance(module, GluMlp | SwiGLU):
                for name in {"fc1", "fc1_g", "fc1_x"} & set(dict(module.named_children())):
                    getattr(module, name).register_forward_hook(halved)
        self.logits = self.vit(model.normalise(crop[None]).requires_grad_())[0]


def balanced_norm(norm: nn.LayerNorm, given: tuple[Tensor], made: Tensor) -> Tensor:
    centred = given[0] - given[0].mean(-1, keepdim=True)
    return centred * ((made - norm.bias) / centred).detach() + norm.bias


def times_a_constant(_module: nn.Module, given: tuple[Tensor], made: Tensor) -> Tensor:
    return given[0] * (made / given[0]).detach()


def halved(_linear: nn.Linear, _given: tuple[Tensor], made: Tensor) -> Tensor:
    return made / 2 + (made / 2).detach()


RULES = {LayerNorm: balanced_norm, nn.LayerNorm: balanced_norm, RmsNorm: times_a_constant}
RULES |= dict.fromkeys((nn.GELU, GELU, nn.SiLU), times_a_constant)


def slow_rollout(seen: Seen, _target: int, rows: slice) -> Tensor:
    """Abnar and Zuidema: A = (W + I) / 2 of the heads' mean W, and the product of all A."""
    product = torch.eye(seen.attentions[0].shape[-1], dtype=torch.float64)
    for attention in seen.attentions:
        mean = sum(attention[0, head] for head in range(attention.shape[1])) / attention.shape[1]
        product = (mean / 2 + torch.eye(len(mean)) / 2) @ product
    return product[rows].mean(0)[seen.prefix :]


def slow_relevance(seen: Seen, target: int, rows: slice) -> Tensor:
    """Chefer, Gur and Wolf: R <- R + mean over heads of (dlogit/dA * A)+ times R."""
    gradients = torch.autograd.grad(seen.logits[target], seen.attentions, retain_graph=True)
    relevances = torch.eye(seen.attentions[0].shape[-1], dtype=torch.float64)
    for attention, gradient in zip(seen.attentions, gradients, strict=True):
        heads = range(attention.shape[1])
        positive = [(gradient[0, head] * attention[0, head]).clamp(min=0) for head in heads]
        relevances = relevances + torch.stack(positive).mean(0) @ relevances
    return relevances[rows].mean(0)[seen.prefix :]


def slow_gradcam(seen: Seen, target: int, _rows: slice) -> Tensor:
    """Selvaraju et al.: channels weighed by their mean gradient over the patches."""
    (read,) = seen.read
    (gradient,) = torch.autograd.grad(seen.logits[target], read, retain_graph=True)
    patches, weights = read[0, seen.prefix :], gradient[0, seen.prefix :].mean(0)
    return torch.stack([(patch * weights).sum() for patch in patches]).clamp(min=0)


def slow_legrad(seen: Seen, target: int, _rows: slice) -> Tensor:
    """Bousselham et al.: the class of each block's mean token, by that block's attention."""
    total = torch.zeros(seen.attentions[0].shape[-1], dtype=torch.float64)
    for attention, tokens in zip(seen.attentions, seen.leaving, strict=True):
        features = seen.vit.fc_norm(seen.vit.norm(tokens[0].mean(0)))
        logits = seen.vit.head(features)
        if hasattr(seen.vit, "head_dist"):
            logits = (logits + seen.vit.head_dist(features)) / 2
        (gradient,) = torch.autograd.grad(logits[target], attention, retain_graph=True)
        for of_head in gradient[0].clamp(min=0):
            total += of_head.mean(0) / attention.shape[1]
    return total[seen.prefix :]


def slow_libragrad(seen: Seen, target: int, _rows: slice) -> Tensor:
    """Mehri et al., FullGrad+ without biases: tokens times gradient in front of each block."""
    total = torch.zeros(seen.entering[0].shape[1], dtype=torch.float64)
    for tokens in seen.entering:
        (gradient,) = torch.autograd.grad(seen.logits[target], tokens, retain_graph=True)
        total += (tokens * gradient)[0].sum(-1)
    return total[seen.prefix :]


SLOW: Mapping[str, Callable[[Seen, int, slice], Tensor]] = {
    "rollout": slow_rollout,
    "relevance": slow_relevance,
    "gradcam": slow_gradcam,
    "legrad": slow_legrad,
    "libragrad": slow_libragrad,
}


@pytest.mark.parametrize("method", SLOW)
@pytest.mark.parametrize("case", CASES)
def test_a_method_equals_loops_over_timms_own_model(case, method, build, random_crops):
    name, rows = CASES[case]
    model = build(name)
    crops = random_crops(model, 2)
    got = explain(model, crops, target="top:2", method=method)
    largest = float(got.scores.abs().max())
    assert (got.scores.amax((-2, -1)) - got.scores.amin((-2, -1))).max() > 0.01 * largest
    for crop, targets, maps in zip(crops, got.targets.tolist(), got.scores, strict=True):
        seen = Seen(model, crop, balanced=method == "libragrad")
        for target, scores in zip(targets, maps, strict=True):
            want = SLOW[method](seen, target, rows).detach()
            torch.testing.assert_close(scores.flatten(), want, rtol=0, atol=1e-9 * largest)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_medium_patch16_gap_256"])
def test_rise_equals_a_loop_over_masks_and_patches(name, build, random_crops):
    model, count = build(name), 9
    crops = random_crops(model, 2)
    got = explain(model, crops, target="all", method=f"rise:{count}")
    generator = torch.Generator().manual_seed(0)
    cells = (torch.rand(count, 7, 7, generator=generator) < 0.5).double().numpy()
    steps = [-(-side // 7) for side in (24, 32)]
    shifts = [torch.randint(0, step, (count,), generator=generator).tolist() for step in steps]
    rows, columns = ((np.arange(8 * step) + 0.5) * 7 / (8 * step) - 0.5 for step in steps)
    want = torch.zeros(2, model.classes, 3, 4, dtype=torch.float64)
    for mask, top, left in zip(cells, *shifts, strict=True):
        tall = np.stack([np.interp(rows, np.arange(7), column) for column in mask.T], axis=1)
        large = np.stack([np.interp(columns, np.arange(7), row) for row in tall])
        cut = torch.from_numpy(large[top : top + 24, left : left + 32])
        for i in range(2):
            probability = model.vit(model.normalise(crops[i : i + 1]) * cut).softmax(-1)[0]
            for row, column in np.ndindex(3, 4):
                kept = cut[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].mean()
                want[i, :, row, column] += probability[got.targets[i]] * kept / count / 0.5
    assert (want.amax((-2, -1)) - want.amin((-2, -1))).max() > 0.1
    torch.testing.assert_close(got.scores, want, rtol=0, atol=1e-12)


def test_random_is_drawn_by_the_image_alone(build, random_crops):
    model = build("vit_tiny_patch16_224")
    crops = random_crops(model, 3)
    got = explain(model, crops, target="top:2", method="random").scores
    for crop, maps in zip(crops, got, strict=True):
        generator = torch.Generator().manual_seed(zlib.crc32(crop.numpy().tobytes()))
        assert torch.equal(maps, torch.rand(3, 4, generator=generator).double().expand(2, -1, -1))
    assert len(got.flatten(1).unique(dim=0)) == 3


@pytest.mark.parametrize("grid", [(3, 4), (3, 5), (1, 4), (1, 1)])
def test_center_peaks_in_the_middle_of_every_image(grid, build, random_crops):
    model = build("vit_tiny_patch16_224", {"img_size": (8 * grid[0], 8 * grid[1])})
    got = explain(model, random_crops(model, 2), target="top:2", method="center").scores
    for place in np.ndindex(grid):
        sides = zip(place, grid, strict=True)
        squares = [(2 * at / (side - 1) - 1) ** 2 for at, side in sides if side > 1]
        assert (got[:, :, *place] + sum(squares)).abs().max() < 1e-6


# A name of each family, block, attention, position term and head that every method explains.
PLAIN = (
    *(name for name, _ in CASES.values()),
    "aimv2_large_patch14_224",
    "beit3_base_patch16_224",
    "eva02_enormous_patch14_clip_224",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch16_radio_v3",
    "vit_base_patch16_rope_mixed_224",
    "vit_base_patch16_sapiens2",
    "vit_pe_spatial_tiny_patch16_512",
    "vit_relpos_base_patch16_cls_224",
    "vit_relpos_base_patch16_rpn_224",
    "vit_small_patch16_dinov3",
    "vit_srelpos_small_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "naflexvit_base_patch16_gap",
    "naflexvit_base_patch16_parfac_gap",
)
VIT, NAFLEX, XP = "vit_tiny_patch16_224", "naflexvit_base_patch16_gap", "vit_base_patch16_xp_224"
SIGLIP, DIFF, TWICE = (
    "vit_base_patch16_siglip_224",
    "vit_dlittle_patch16_reg1_gap_256",
    "vit_small_patch16_18x2_224",
)
POOLS = "it reads a class token or a mean of tokens, and the head of {} pools otherwise"
BLOCK = "it reads one attention a block, and {} has"
NO_RULE = "for which there is no rule"
ACT, NORM = ("LibraGrad has no rule for the " + kind for kind in ("activation", "norm"))
GATED = "its attention is gated, for which LibraGrad has no rule"
# With what READERS and LibraGrad say to each.
FAMILIES: tuple[tuple[str, Mapping[str, Any], Refusal, Refusal], ...] = (
    *((name, {}, None, None) for name in PLAIN),
    (VIT, {"norm_layer": "rmsnorm", "act_layer": "silu"}, None, None),
    (VIT, {"scale_attn_norm": True, "scale_mlp_norm": True, "qk_norm": True}, None, None),
    (VIT, {"act_layer": "relu", "global_pool": "avg", "pool_include_prefix": True}, None, None),
    ("beit_base_patch16_224", {"swiglu_mlp": True, "scale_mlp": True}, None, None),
    (DIFF, {}, f"{BLOCK} DiffAttention", None),
    ("vit_dpwee_patch16_reg1_gap_256", {}, f"{BLOCK} DiffParallelScalingBlock", None),
    (TWICE, {}, f"{BLOCK} ParallelThingsBlock", None),
    (SIGLIP, {}, f"{POOLS} (map)", f"its head pools by map, {NO_RULE}"),
    ("test_vit3", {}, f"{POOLS} (map)", f"its head pools by map, {NO_RULE}"),
    ("vit_pe_core_tiny_patch16_384", {}, f"{POOLS} (map)", f"its head pools by map, {NO_RULE}"),
    ("naflexvit_base_patch16_siglip", {}, f"{POOLS} (map)", f"its head pools by map, {NO_RULE}"),
    (VIT, {"global_pool": "prr"}, f"{POOLS} (prr)", f"its head pools by prr, {NO_RULE}"),
    (VIT, {"global_pool": "max"}, f"{POOLS} (max)", f"its head pools by max, {NO_RULE}"),
    (NAFLEX, {"attn_gated": True, "attn_type": "rope"}, None, GATED),
    (VIT, {"act_layer": "mish"}, None, f"{ACT} Mish"),
    (XP, {"act_layer": "tanh"}, None, f"{ACT} Tanh"),
    (VIT, {"norm_layer": "simplenorm"}, None, f"{NORM} SimpleNorm"),
)


@pytest.mark.parametrize(("name", "arguments", "unread", "unbalanced"), FAMILIES)
def test_every_family_is_explained_or_refused_with_the_reason(
    name, arguments, unread, unbalanced, build, random_crops
):
    model = build(name, arguments)
    crops = random_crops(model, 2)
    plain = model.vit(model.normalise(crops))
    for method in EVERY:
        reason = unbalanced if method == "libragrad" else unread if method in READERS else None
        if reason:
            message = f"{method} cannot explain this model: {reason.format(name)}"
            with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
                explain(model, crops, method=method)
            continue
        parse(method).check(model)
        got = explain(model, crops, target="top:2", method=method)
        assert got.scores.shape == (2, 2, *model.grid)
        assert got.scores.isfinite().all()
        torch.testing.assert_close(got.logits, plain, rtol=1e-9, atol=1e-9)


def without_biases(model: VitClassifier) -> VitClassifier:
    for name, parameter in model.vit.named_parameters():
        if name.startswith(("blocks", "norm", "fc_norm", "head")) and name.endswith("bias"):
            parameter.zero_()
    return model


@pytest.mark.parametrize(("name", "arguments"), [each[:2] for each in FAMILIES if not each[3]])
def test_balanced_gradients_share_out_the_whole_logit_and_plain_ones_do_not(
    name, arguments, build, random_crops
):
    model = without_biases(build(name, arguments))
    crops = random_crops(model, 2)
    plain = model.vit(model.normalise(crops))
    errors = {}
    for balanced in (True, False):
        traced = trace(model, crops, balanced=balanced)
        torch.testing.assert_close(traced.logits.detach(), plain, rtol=1e-9, atol=1e-9)
        gradients = torch.autograd.grad(traced.logits[:, 1].sum(), traced.inputs)
        both = zip(traced.inputs, gradients, strict=True)
        shares = torch.stack([(tokens * each).sum((1, 2)).detach() for tokens, each in both])
        assert len(shares) == len(model.vit.blocks)
        errors[balanced] = float((shares / plain[:, 1] - 1).abs().max())
    assert errors[True] < 1e-9
    assert errors[False] > 1e-2


@pytest.mark.parametrize("method", EVERY)
def test_targets_logits_and_shapes_are_those_of_any_explanation(method, build, random_crops):
    model = build("deit_tiny_distilled_patch16_224")
    crops, labels = random_crops(model, 3), torch.tensor([3, 0, 2])
    plain = model.vit(model.normalise(crops))
    for target, count in (("predicted", 1), ("label", 1), ("top:3", 3), ("all", 4)):
        got = explain(model, crops, target=target, labels=labels, method=method)
        want = labels[:, None] if target == "label" else plain.topk(count).indices
        assert torch.equal(got.targets, want)
        assert got.scores.shape == (3, count, 3, 4)
        torch.testing.assert_close(got.logits, plain, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="no labels were given"):
        explain(model, crops, target="label", method=method)


@pytest.mark.parametrize("method", EVERY)
def test_neither_the_batch_nor_its_parts_change_a_map(monkeypatch, method, build, random_crops):
    model = build("vit_small_patch14_reg4_dinov2")
    crops, labels = random_crops(model, 3), torch.tensor([3, 0, 2])
    whole = explain(model, crops, target="label", labels=labels, method=method)
    for one in (slice(0, 1), slice(1, 2), slice(2, 3)):
        alone = explain(model, crops[one], target="label", labels=labels[one], method=method)
        torch.testing.assert_close(alone.scores, whole.scores[one], rtol=1e-9, atol=1e-12)
    monkeypatch.setitem(methods.GRAPH_BYTES, "cpu", 1)
    monkeypatch.setitem(passes.CHUNK_BYTES, "cpu", 1)
    sizes = set()
    model.vit.patch_embed.register_forward_pre_hook(lambda _m, given: sizes.add(len(given[0])))
    parts = explain(model, crops, target="label", labels=labels, method=method)
    assert sizes == {1}
    torch.testing.assert_close(parts.scores, whole.scores, rtol=1e-9, atol=1e-12)
    assert torch.equal(parts.targets, whole.targets)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", EVERY)
def test_a_map_is_the_same_where_gradients_are_off(method, around, build, random_crops):
    model = build(VIT)
    crops, labels = random_crops(model, 2), torch.tensor([1, 0])
    want = explain(model, crops, target="label", labels=labels, method=method)
    with around():
        crops, labels = crops.clone(), labels.clone()
        within = explain(model, crops, target="label", labels=labels, method=method)
    after = explain(model, crops, target="label", labels=labels, method=method)
    assert torch.equal(within.scores, want.scores)
    assert torch.equal(after.scores, want.scores)


@pytest.mark.parametrize("method", EVERY)
def test_the_model_is_left_as_it_was(method, build, random_crops):
    model = build("eva02_tiny_patch14_224")

    def state() -> tuple[Any, ...]:
        modules = [(id(m), m.training, len(m._forward_hooks)) for m in model.vit.modules()]
        return model.digest(), modules, [block.attn.fused_attn for block in model.vit.blocks]

    before = state()
    got = explain(model, random_crops(model, 2), target="top:2", method=method)
    assert state() == before
    assert not any(p.requires_grad or p.grad is not None for p in model.vit.parameters())
    assert not any(each.requires_grad for each in (got.scores, got.logits))


@pytest.mark.parametrize(
    ("text", "method", "known"),
    [
        *((name, Baseline(name), {"name": name}) for name in BASELINES),
        ("rise", Baseline("rise", 1000), {"name": "rise", "masks": 1000}),
        ("rise:16", Baseline("rise", 16), {"name": "rise", "masks": 16}),
        ("reciprocam", ReciproCam(), vars(ReciproCam())),
        ("reciprocam:log_odds:3x3:masked", ReciproCam(), vars(ReciproCam())),
        (
            "reciprocam:logit:1x1:kept:-12",
            ReciproCam(-12, "kept", "1x1", "logit"),
            {"block": -12, "residual": "kept", "mask": "1x1", "score": "logit"},
        ),
    ],
)
def test_a_method_is_read_from_its_name_and_options(text, method, known):
    assert parse(text) == method
    assert identity(method) == known


@pytest.mark.parametrize(
    "text",
    ["", "nope", "Rollout", "rollout:3", "rollout:", "rise:0", "rise:-1", "rise:", "rise:9:9"]
    + [f"reciprocam:{option}" for option in ("2", "0", "-0", "", "5x5", "-1:2")],
)
def test_an_unknown_method_is_refused_with_the_rule(text):
    rule = (
        "a method is reciprocam, rollout, relevance, gradcam, legrad, libragrad, random, center or "
        "rise, and may have options: reciprocam:-1:1x1:kept (block, mask, residual, logit), "
        "rise:4000 (masks)"
    )
    assert rule == RULE
    with pytest.raises(ValueError, match=f"^{re.escape(f'{rule}; got {text!r}')}$"):
        parse(text)


@pytest.mark.parametrize("method", EVERY)
def test_mixed_precision_is_refused(method, build, random_crops):
    model = build(VIT)
    message = f"^{parse(method).name} is computed in float32; mixed is for reciprocam alone$"
    with pytest.raises(ValueError, match=message):
        explain(model, random_crops(model, 1), method=method, precision="mixed")
