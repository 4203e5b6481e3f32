"""Metrics of maps equal published numbers, cases by hand, and loops over images and patches."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from explainer import VitClassifier, explain, faithfulness, load_model
from explainer.classes import ClassNames
from explainer.coverage import reduced
from explainer.faithfulness import Case, harmonic, localisation
from explainer.preprocess import Preprocessing
from explainer.sanity import pearson, randomised, spearman
from explainer.structure import Entering

FAMILIES = {
    "class token": "vit_tiny_patch16_224",
    "average": "vit_medium_patch16_gap_240",
    "distilled": "deit_tiny_distilled_patch16_224",
    "registers": "vit_small_patch14_reg4_dinov2",
    "norm before the blocks": "vit_base_patch16_clip_224",
}
ROWS, COLUMNS, PATCH, STEPS = 4, 7, 16, 5
CELLS = ROWS * COLUMNS
# A blur in float32 may round a pixel otherwise.
TOLERANCE = {"insertion": 1e-4}
CURVES, REMOVAL = {"insertion", "deletion"}, {"most_first", "least_first"}


@pytest.fixture(scope="module")
def build(enlivened) -> Callable[[str], VitClassifier]:
    """A small model of a family on a grid of 4 x 7."""

    def make(family: str) -> VitClassifier:
        arguments = {"img_size": (ROWS * PATCH, COLUMNS * PATCH), "patch_size": PATCH}
        arguments |= {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 6}
        return enlivened(load_model(FAMILIES[family], seed=0, model_args=arguments), scale=0.15)

    return make


@pytest.fixture(scope="module")
def subject_of(build, random_crops) -> Callable[..., Case]:
    """A family's model, crops and the classes that it predicts for them."""

    def make(family: str, batch: int = 3) -> Case:
        model = build(family)
        crops = random_crops(model, batch)
        return Case(model, crops, model.vit(model.normalise(crops)).argmax(1))

    return make


def random_maps(batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(batch, ROWS, COLUMNS, dtype=torch.float64, generator=generator)


def measured(subject: Case, maps: torch.Tensor) -> dict[str, torch.Tensor]:
    """All metrics of perturbed images, by name."""

    def again(crops: torch.Tensor) -> torch.Tensor:
        found = explain(subject.model, crops, target="label", labels=subject.targets)
        return found.saliency[:, 0]

    masked = faithfulness.adcc(subject, maps, again)
    areas = faithfulness.curves(subject, maps, STEPS)
    return vars(masked) | vars(areas) | vars(faithfulness.removal(subject, maps, STEPS))


class Loops:
    """The same for one image, patch by patch, in numpy and by timm's own forward pass."""

    def __init__(self, subject: Case, index: int, cells: np.ndarray) -> None:
        self.model, self.cells = subject.model, cells
        self.pixels = subject.crops[index].numpy().astype(float)
        self.target = subject.targets[index : index + 1]
        told = subject.model.preprocessing
        self.mean, self.std = (np.array(each)[:, None, None] for each in (told.mean, told.std))
        self.order = sorted(range(cells.size), key=lambda cell: -cells.flat[cell])

    def metrics(self) -> dict[str, float]:
        plain, masked = self.probability(self.pixels), self.masked()
        after, crop = self.probability(masked), torch.from_numpy(masked.astype(np.uint8))[None]
        again = explain(self.model, crop, target="label", labels=self.target).saliency[0, 0]
        counts = [round(step * CELLS / STEPS) for step in range(STEPS + 1)]
        blurred, grey = self.blurred(), np.rint(255 * self.mean) + 0 * self.pixels
        come = [self.mixed(blurred, self.pixels, self.order[:n]) for n in counts]
        go = [self.mixed(self.pixels, grey, self.order[:n]) for n in counts]
        most = [self.without(self.order[:n]) for n in counts[1:-1]]
        least = [self.without(self.order[::-1][:n]) for n in counts[1:-1]]
        return {
            "drop": max(0.0, plain - after) / plain,
            "increase": float(after > plain),
            "coherency": (np.corrcoef(self.cells.flat, again.flatten())[0, 1] + 1) / 2,
            "complexity": sum(self.cells.flat) / CELLS,
            "insertion": sum((a + b) / 2 for a, b in pairwise(come)) / STEPS,
            "deletion": sum((a + b) / 2 for a, b in pairwise(go)) / STEPS,
            "most_first": sum(most) / len(most),
            "least_first": sum(least) / len(least),
        }

    def probability(self, pixels: np.ndarray) -> float:
        logits = self.model.vit(torch.from_numpy((pixels / 255 - self.mean) / self.std)[None])[0]
        return float(logits[self.target].exp() / logits.exp().sum())

    def masked(self) -> np.ndarray:
        sides = zip(self.pixels.shape[1:], self.cells.shape, strict=True)
        down, across = (bilinear(pixels, cells) for pixels, cells in sides)
        share = down @ self.cells @ across.T
        return np.rint(255 * self.mean + share * (self.pixels - 255 * self.mean))

    def mixed(self, below: np.ndarray, above: np.ndarray, shown: list[int]) -> float:
        pixels = below.copy()
        for cell in shown:
            top, left = (PATCH * place for place in divmod(cell, COLUMNS))
            there = np.s_[:, top : top + PATCH, left : left + PATCH]
            pixels[there] = above[there]
        return self.probability(pixels)

    def blurred(self) -> np.ndarray:
        """11 pixels and a sigma of 5, where an image has 224, are 3 of 64 and 5 of 112."""
        pixels = self.pixels
        for axis, reach in ((1, 1), (2, 2)):
            side, sums, total = pixels.shape[axis], 0 * pixels, 0.0
            for offset in range(-reach, reach + 1):
                weight = math.exp(-0.5 * (offset / (5 * side / 224)) ** 2)
                mirrored = [side - 1 - abs(side - 1 - abs(k + offset)) for k in range(side)]
                sums, total = sums + weight * np.take(pixels, mirrored, axis), total + weight
            pixels = sums / total
        return np.rint(pixels)

    def without(self, gone: list[int]) -> float:
        """Tokens go where timm itself drops them."""
        vit = self.model.vit
        prefix = vit.num_prefix_tokens
        kept = [t for t in range(prefix + CELLS) if t - prefix not in gone]
        with vit.patch_drop.register_forward_hook(lambda *called: called[2][:, kept]):
            return self.probability(self.pixels)


def bilinear(pixels: int, cells: int) -> np.ndarray:
    """What each pixel has of each cell along one side."""
    shares = np.zeros((pixels, cells))
    for pixel in range(pixels):
        place = min(max((pixel + 0.5) * cells / pixels - 0.5, 0), cells - 1)
        before = math.floor(place)
        shares[pixel, before] += 1 - (place - before)
        shares[pixel, min(before + 1, cells - 1)] += place - before
    return shares


def by_loops(subject: Case, maps: torch.Tensor) -> list[dict[str, float]]:
    return [Loops(subject, i, maps[i].numpy()).metrics() for i in range(len(maps))]


def differing(found: dict[str, torch.Tensor], want: list[dict[str, float]]) -> set[str]:
    return {
        name
        for name, values in found.items()
        for value, of_image in zip(values.tolist(), want, strict=True)
        if not abs(value - of_image[name]) <= TOLERANCE.get(name, 1e-9)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_metrics_equal_loops_over_images_and_patches(family, subject_of):
    subject, maps = subject_of(family), random_maps()
    assert differing(measured(subject, maps), by_loops(subject, maps)) == set()


def in_versions(subject: Case, share: torch.Tensor) -> torch.Tensor:
    return share.unflatten(0, (-1, len(subject.crops)))[:, :, None]


MUTATIONS = {
    "the least salient first": ("_rank", lambda right: lambda maps: right(-maps), CURVES | REMOVAL),
    "rows and columns swapped": (
        "_rank",
        lambda right: lambda maps: right(maps.mT).reshape_as(maps),
        CURVES | REMOVAL,
    ),
    "a patch too few": (
        "_counts",
        lambda _: lambda _, steps: [step * CELLS // steps for step in range(steps + 1)],
        CURVES | REMOVAL,
    ),
    "no blur": ("_blurred", lambda _: property(lambda it: it.crops.float()), {"insertion"}),
    "a turned blur": (
        "gaussian_blur",
        lambda right: lambda crops, size, sigma: right(crops, size[::-1], sigma[::-1]),
        {"insertion"},
    ),
    "a mask of squares": ("enlarged", lambda _: faithfulness._on_pixels, {"drop", "coherency"}),
    "other tokens": (
        "tokens_entering",
        lambda right: lambda *given: Entering(right(*given).tokens.roll(1, 1), []),
        REMOVAL,
    ),
    "to black": (
        "scaled",
        lambda _: (
            lambda it, share: (it.crops * in_versions(it, share)).round().byte().flatten(0, 1)
        ),
        {"drop", "coherency", "deletion"},
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutated_metric_is_not_that_of_the_loops(monkeypatch, mutation, subject_of):
    name, mutate, metrics = MUTATIONS[mutation]
    where = Case if hasattr(Case, name) else faithfulness
    subject, maps = subject_of("distilled", 2), random_maps(2)
    want = by_loops(subject, maps)
    monkeypatch.setattr(where, name, mutate(getattr(where, name)))
    # An increase is 0 or 1, which may survive.
    assert differing(measured(subject, maps), want) - {"increase"} == metrics


def test_a_batch_equals_its_images_one_by_one(subject_of):
    subject, maps = subject_of("registers"), random_maps()
    together = measured(subject, maps)
    for i, one in enumerate((slice(0, 1), slice(1, 2), slice(2, 3))):
        of_one = Case(subject.model, subject.crops[one], subject.targets[one])
        for name, value in measured(of_one, maps[one]).items():
            torch.testing.assert_close(value[0], together[name][i], rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", ["class token", "average"])
def test_a_map_of_what_leaving_a_patch_out_costs_beats_its_negative(family, subject_of):
    subject = subject_of(family, 4)
    filled, taken = [], []
    for cell in range(CELLS):
        gone = torch.zeros(4, CELLS).index_fill(1, torch.tensor(cell), 1).view(4, ROWS, COLUMNS)
        share = 1 - gone.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
        filled.append(-subject.probability(subject.scaled(share))[0])
        others = [other for other in range(CELLS) if other != cell]
        taken.append(-subject.probability_of(torch.tensor([others] * 4)))
    pixels, tokens = (torch.stack(each, 1).view(4, ROWS, COLUMNS) for each in (filled, taken))
    good, bad = (
        vars(faithfulness.curves(subject, sign * pixels, STEPS))
        | vars(faithfulness.removal(subject, sign * tokens, STEPS))
        for sign in (1, -1)
    )
    for name, sign in {"insertion": 1, "deletion": -1, "most_first": -1, "least_first": 1}.items():
        assert sign * float((good[name] - bad[name]).mean()) > 0.1, name


def test_masking_scales_normalised_pixels_to_within_half_a_level(subject_of):
    subject = subject_of("distilled")
    share = faithfulness.enlarged(random_maps(), subject.crops)
    normalise = subject.model.normalise
    missed = normalise(subject.scaled(share)) - share[:, None] * normalise(subject.crops)
    levels = 255 * torch.tensor(subject.model.preprocessing.std)[:, None, None] * missed.abs()
    assert 0.4 < float(levels.max()) <= 0.5 + 1e-4
    assert torch.equal(subject.scaled(torch.ones_like(share)), subject.crops)
    assert subject.scaled(torch.zeros_like(share))[0, :, 0, 0].tolist() == [124, 116, 104]


def test_insertion_starts_blurred_where_images_are_small_too():
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8, generator=generator)
    subject = replace(white_image(0), crops=crops)
    nothing = subject.revealed(torch.zeros(1, 32, 32))
    assert (nothing.float() - crops).abs().mean() > 10


def test_versions_of_crops_are_those_of_each_alone(subject_of, monkeypatch):
    monkeypatch.setitem(faithfulness.AT_ONCE, "cpu", 2)
    subject = subject_of("class token")
    share = faithfulness.enlarged(random_maps(6), subject.crops.repeat(2, 1, 1, 1))
    for versions in (subject.scaled, subject.revealed):
        together = subject.probability(versions(share))
        alone = [subject.probability(versions(each))[0] for each in (share[:3], share[3:])]
        torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("drop", "coherency", "complexity", "published"),
    [
        (55.31, 79.41, 13.17, 64.53),
        (33.57, 70.22, 53.54, 59.03),
        (25.82, 88.61, 46.35, 69.11),
        (55.85, 80.67, 12.53, 64.54),
        (31.42, 67.62, 54.21, 58.58),
        (27.69, 84.58, 41.16, 70.34),
    ],
)
def test_published_adcc_is_that_of_its_published_parts(drop, coherency, complexity, published):
    """Table 1 of arXiv 2310.02588: Relevance, ViT-ReciproCAM 1x1 and 3x3; DeiT-B, then DeiT-S."""
    parts = torch.tensor([coherency, complexity, drop], dtype=torch.float64) / 100
    assert 100 * float(harmonic(*parts)) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_worst_part_makes_adcc_0(dtype):
    images = [[0, 0.5, 0.5], [1, 1, 0], [1, 0, 1], [0, 1, 1], [1, 0, 0], [0.5, 0.5, 0.5]]
    found = harmonic(*torch.tensor(images, dtype=dtype).T)
    assert found.dtype == dtype
    assert found.tolist() == pytest.approx([0, 0, 0, 0, 1, 0.5])


class Brightness(nn.Module):
    """The odds of class 0 are 9 to the power of an image's mean."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([9, 1], dtype=dtype).log(), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))[:, None] * self.gain


def white_image(target: int, dtype: torch.dtype = torch.float64) -> Case:
    """White is 1 when it is normalised, and the mean colour is a whole level, 102."""
    told = Preprocessing((4, 4), (0.4,) * 3, (0.6,) * 3, 1.0, "center", "bilinear")
    model = VitClassifier("brightness", Brightness(dtype), told, ClassNames(("light", "dark")))
    crops = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    return Case(model, crops, torch.tensor([target]))


LEFT, RIGHT, TOP = ([[1, 0], [1, 0]], [[0, 1], [0, 1]], [[1, 1], [0, 0]])
ONES, ZEROS = ([[value] * 2] * 2 for value in (1, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("target", "cells", "again", "want"),
    [  # drop, increase, coherency, complexity, ADCC; p is 9/10, 3/4 where half is left, 1/2 of none
        (0, LEFT, LEFT, (1 / 6, 0, 1, 1 / 2, 5 / 7)),
        (0, LEFT, TOP, (1 / 6, 0, 1 / 2, 1 / 2, 15 / 26)),
        (0, LEFT, RIGHT, (1 / 6, 0, 0, 1 / 2, 0)),
        (0, LEFT, ONES, (1 / 6, 0, 0, 1 / 2, 0)),
        (1, LEFT, LEFT, (0, 1, 1, 1 / 2, 3 / 4)),
        (0, ONES, LEFT, (0, 0, 0, 1, 0)),
        (0, ZEROS, ZEROS, (4 / 9, 0, 0, 0, 0)),
        (1, ZEROS, LEFT, (0, 1, 0, 0, 0)),
    ],
)
def test_adcc_by_hand(target, cells, again, want, dtype):
    maps, of_masked = (torch.tensor([each], dtype=dtype) for each in (cells, again))
    found = faithfulness.adcc(white_image(target, dtype), maps, lambda _: of_masked)
    parts = [*vars(found).values(), found.adcc]
    assert [float(part) for part in parts] == pytest.approx(want, abs=1e-6)


def test_curves_by_hand():
    found = faithfulness.curves(white_image(0), torch.tensor([[[0.4, 0.3], [0.2, 0.1]]]), 4)
    p = [9**share / (1 + 9**share) for share in (1, 0.75, 0.5, 0.25, 0)]
    assert float(found.insertion) == pytest.approx(0.9)  # a blur leaves white as it is
    assert float(found.deletion) == pytest.approx((p[0] / 2 + p[1] + p[2] + p[3] + p[4] / 2) / 4)


def test_a_class_of_probability_0_cannot_drop():
    subject, left = white_image(1), torch.tensor([LEFT], dtype=torch.float64)
    subject.model.vit.gain.mul_(500)
    assert float(subject.probability(subject.crops)) == 0
    assert float(faithfulness.adcc(subject, left, lambda _: left).drop) == 0


def test_localisation_by_hand():
    maps, cover = torch.zeros(2, 6, 2, 10)
    maps[0, 0, :2], maps[0, 1, 3], cover[0, 0, :2] = torch.tensor([0.8, 0.7]), 0.5, 1
    maps[1, 0, :2], cover[1, 0, 0] = torch.tensor([0.9, 0.3]), 0.25
    maps[2, 0, :2], cover[2, 0, 0], cover[2, 1, 9] = torch.tensor([0.6, 1]), 0.5, 1
    maps[3, 0, 0] = 1  # no region
    cover[4] = 1  # no map
    maps[5], cover[5] = 0.5, 1
    found = localisation(maps, cover)
    for name, want in {
        "pointing": [1, 1, 0, math.nan, 1, 1],
        "mass": [0.75, 0.75 * 0.25, 0.6 * 0.5 / 1.6, math.nan, 0, 1],
        "top_tenth": [1, 0.25 / 2, 0.5 / 2, math.nan, 1, 1],
    }.items():
        assert getattr(found, name).tolist() == pytest.approx(want, nan_ok=True), name


@pytest.mark.parametrize(("cells", "marked"), [(20, 2), (20, 3), (4, 1), (30, 5)])
def test_a_map_of_the_region_itself_lies_wholly_within(cells, marked):
    places = torch.rand(4, cells, generator=torch.Generator().manual_seed(0)).argsort(1)
    cover = torch.zeros(4, cells).scatter(1, places[:, :marked], 1.0).view(4, 2, -1)
    for name, values in vars(localisation(cover, cover)).items():
        assert values.tolist() == [1] * 4, name


@pytest.mark.parametrize("levels", [3, 10, 10**6])
def test_correlations_are_those_of_pandas_with_ties_too(levels):
    generator = torch.Generator().manual_seed(levels)
    first, second = torch.randint(levels, (2, 5, ROWS, COLUMNS), generator=generator).double()
    second = second + first // 2
    of_values, of_ranks = pearson(first.flatten(1), second.flatten(1)), spearman(first, second)
    for i in range(5):
        pair = pd.DataFrame({"first": first[i].flatten(), "second": second[i].flatten()})
        for found, method in ((of_values, "pearson"), (of_ranks, "spearman")):
            want = pair.corr(method=method).loc["first", "second"]
            assert float(found[i]) == pytest.approx(want, abs=1e-6), method
    rising = torch.arange(CELLS).double().view(1, ROWS, COLUMNS)
    assert float(spearman(rising, -(rising**3))) == pytest.approx(-1)
    assert float(pearson(rising.flatten(1), -(rising.flatten(1) ** 3))) > -0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0, 0.1, 1 / 3, 0.7, 1])
def test_nothing_correlates_with_a_constant(constant, dtype):
    """Nor with what is left of it when its mean, which is rounded, is subtracted."""
    for cells in (20, CELLS, 196, 576):
        flat = torch.full((1, 1, cells), constant, dtype=dtype)
        other = torch.rand(1, 1, cells, dtype=dtype, generator=torch.Generator().manual_seed(0))
        for first, second in ((flat, other), (other, flat), (flat, flat)):
            assert spearman(first, second).isnan().all()
            assert pearson(first[:, 0], second[:, 0]).isnan().all()


def reaches(stage: str, name: str) -> bool:
    """Whether a weight of a model of three blocks is to be shuffled."""
    top, number = [*name.split("."), ""][:2]
    upper = top in ("norm", "fc_norm") or (top == "blocks" and number in ("1", "2"))
    return stage == "all" or top in ("head", "head_dist") or (stage == "half" and upper)


@pytest.mark.parametrize("stage", ["head", "half", "all"])
@pytest.mark.parametrize(
    "model",
    [*FAMILIES, "vit_base_patch16_rope_mixed_224", "vit_srelpos_small_patch16_224"],
)
def test_randomising_shuffles_each_weight_that_a_stage_reaches(model, stage, build):
    original = build(model) if model in FAMILIES else reduced(model)
    digest = original.digest()
    shuffled = randomised(original, stage, 0)
    assert original.digest() == digest
    before, after = (dict(each.vit.named_parameters()) for each in (original, shuffled))
    several = {name for name in before if len(before[name].unique()) > 1}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in several if reaches(stage, name)}
    for name, weight in before.items():
        assert torch.equal(weight.flatten().sort().values, after[name].flatten().sort().values)
    assert randomised(original, stage, 0).digest() == shuffled.digest()
    assert randomised(original, stage, 1).digest() != shuffled.digest()
    assert replace(shuffled, vit=original.vit) == original


def test_cells_come_by_falling_salience_and_equal_ones_in_no_order_of_place():
    """Else a constant map would be one of the top, and favour what is there."""
    maps = torch.cat([random_maps(1), random_maps(1).round(), torch.zeros(1, ROWS, COLUMNS)])
    flat, rank = maps.flatten(1), faithfulness._rank(maps).flatten(1)
    order = rank.argsort(1)
    assert rank.sort(1).values.tolist() == [list(range(CELLS))] * 3
    assert (flat.gather(1, order).diff(dim=1) <= 0).all()
    assert rank[0].tolist() == (flat[0] > flat[0, :, None]).sum(1).tolist()
    assert pearson(order[2:].double(), torch.arange(CELLS).double()[None]).abs() < 0.4


@pytest.mark.parametrize("steps", [2, CELLS, 2 * CELLS + 4])
def test_a_patch_at_least_is_left(steps, subject_of):
    """The mean of no tokens is no number."""
    for values in vars(faithfulness.removal(subject_of("average"), random_maps(), steps)).values():
        assert values.isfinite().all()


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_rope_224", "vit_relpos_small_patch16_224", "beit_base_patch16_224"]
)
def test_tokens_are_not_taken_from_attention_with_positions(name, build, random_crops):
    assert faithfulness.can_remove(build("registers"))
    model = reduced(name)
    assert not faithfulness.can_remove(model)
    subject = Case(model, random_crops(model, 1), torch.tensor([0]))
    with pytest.raises(ValueError, match=f"cannot be taken away: {name}'s attention has positions"):
        faithfulness.removal(subject, torch.ones(1, 3, 4), 3)
