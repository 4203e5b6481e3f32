"""Interventions tell what a model goes by: known rules stand in for learned ones."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from explainer import VitClassifier, load_model
from explainer.audit import colours
from explainer.audit.classmates import Classmates, Mates
from explainer.audit.cues import Cue, background
from explainer.audit.evidence import ClassEvidence
from explainer.audit.examination import examine, promising, unlooked
from explainer.audit.extents import FIRST, SECOND, Extent
from explainer.audit.interventions import Control, Images, Laboratory, have_elsewhere
from explainer.audit.patterns import correlation
from explainer.audit.sample import ClassSample
from explainer.audit.significance import Estimate
from explainer.audit.stock import Stock
from explainer.audit.trial import Trial
from explainer.audit.verdict import PART_OF_THE_CLASS, TOO_FEW, Finding, findings
from explainer.audit.verdicts import Verdict

SIZE, GRID, PART = 96, (8, 8), 24  # pixels, tokens, and pixels across an object or a sticker
IMAGES, OTHERS = 80, 60
CLASS, TWIN, NOTHING = range(3)


class Rule(nn.Module):
    """Logits by a rule over images in [0, 1], in the place of a vision transformer."""

    def __init__(self, vit: nn.Module, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.patch_embed, self.rule = vit.patch_embed, rule

    def forward(self, images: Tensor) -> Tensor:
        return self.rule(images)


def by_rule(rule: Callable[[Tensor], Tensor]) -> VitClassifier:
    arguments = {"img_size": SIZE, "patch_size": 12, "embed_dim": 48, "depth": 1, "num_heads": 1}
    model = load_model("vit_tiny_patch16_224", model_args=arguments | {"num_classes": 3}, seed=0)
    plain = replace(model.preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return replace(model, vit=Rule(model.vit, rule), preprocessing=plain)


def backgrounds(images: int, seed: int) -> Tensor:
    """Smooth random colours, none of them as green as an object."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(images, 3, 6, 6, generator=generator)
    coarse[:, 1] *= 0.6
    return functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")


def places(images: int, seed: int, columns: range) -> list[tuple[int, int]]:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randint(0, SIZE - PART, (images,), generator=generator)
    across = torch.randint(columns.start, columns.stop - PART, (images,), generator=generator)
    return list(zip(down.tolist(), across.tolist(), strict=True))


def put(image: Tensor, what: Tensor, place: tuple[int, int]) -> Tensor:
    """Paste a square into an image; its region."""
    region = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    region[place[0] : place[0] + PART, place[1] : place[1] + PART] = True
    image[:, region] = what.expand(3, PART, PART).flatten(1)
    return region


GREEN = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
STICKER = torch.rand(3, PART, PART, generator=torch.Generator().manual_seed(7))


def has_object(images: Tensor) -> Tensor:
    green = images[:, 1] - images[:, [0, 2]].amax(1)
    return (functional.avg_pool2d(green, PART - 4, 2).flatten(1).amax(1) > 0.7).float()


def has_sticker(images: Tensor) -> Tensor:
    return (correlation(STICKER[None], images).flatten(1).amax(1) > 0.7).float()


def crops_of(images: Tensor) -> Tensor:
    return (255 * images).round().to(torch.uint8)


def cue_of(regions: Tensor, carriers: Tensor, *, is_fixed: bool) -> Cue:
    centres = torch.tensor(GRID).float().div(2).expand(len(carriers), -1)
    return Cue("content", "by hand", carriers.float(), 0.5, regions, centres, is_fixed)


def sample_of(model: VitClassifier, images: Tensor) -> ClassSample:
    crops = crops_of(images)
    maps = torch.rand(len(crops), *GRID, generator=torch.Generator().manual_seed(3))
    right = Laboratory(model, 64).logits(crops).argmax(-1) == CLASS
    return ClassSample(CLASS, crops, maps, right, torch.arange(len(crops)) % 2 == 0)


def strangers(of: slice = slice(None)) -> Images:
    crops = crops_of(backgrounds(OTHERS, seed=5))[of]
    return Images(crops, torch.full((len(crops),), NOTHING))


POOL, RIVALS = slice(0, None, 2), slice(1, None, 2)


def judged(model: VitClassifier, sample: ClassSample, cue: Cue) -> Finding:
    generator = torch.Generator().manual_seed(0)
    evidence = Trial(Laboratory(model, 64), Stock(sample, [strangers()], generator), seed=0).of(cue)
    lab = Laboratory(model, 64)
    of_class = examine(lab, sample, strangers(POOL), strangers(RIVALS), seed=0).evidence
    return findings([replace(of_class, cues=(evidence,))])[0]


def test_what_decides_only_beside_the_object_shows_where_it_is_put_back():
    """A sticker makes the class of an object and nothing of other images."""

    def rule(images: Tensor) -> Tensor:
        found, marked = has_object(images), has_sticker(images)
        return torch.stack([8 * found * marked, 8 * found * (1 - marked), 4 + 0 * found], 1)

    images = backgrounds(IMAGES, seed=1)
    carriers = torch.arange(IMAGES) % 5 < 3
    regions = torch.zeros(IMAGES, SIZE, SIZE, dtype=torch.bool)
    objects = places(IMAGES, 2, range(SIZE // 2))
    stickers = places(IMAGES, 3, range(SIZE // 2, SIZE))
    for i, image in enumerate(images):
        put(image, GREEN, objects[i])
        if carriers[i]:
            regions[i] = put(image, STICKER, stickers[i])
    model = by_rule(rule)
    sample = sample_of(model, images)
    assert sample.explained.equal(carriers)
    finding = judged(model, sample, cue_of(regions, carriers, is_fixed=False))
    assert finding.verdict is Verdict.SHORTCUT
    paste = finding.of_cue.paste
    assert paste.flips == 0
    assert paste.shift.value == pytest.approx(0, abs=1e-3)
    assert paste.restored.low > 4
    assert finding.of_cue.removal.without == 0


def test_a_place_that_others_need_as_much_holds_the_object():
    """All images have the object in the middle; half of them are taken for carriers of a cue."""

    def rule(images: Tensor) -> Tensor:
        found = has_object(images)
        return torch.stack([8 * found, 0 * found, 4 + 0 * found], 1)

    images, middle = backgrounds(IMAGES, seed=1), (SIZE - PART) // 2
    regions = torch.stack([put(image, GREEN, (middle, middle)) for image in images])
    carriers = torch.arange(IMAGES) % 4 < 2
    model = by_rule(rule)
    sample = sample_of(model, images)
    finding = judged(model, sample, cue_of(regions, carriers, is_fixed=True))
    assert finding.of_cue.removal.drop.value == pytest.approx(1)
    assert finding.of_cue.paste.restored.low > 4
    assert finding.of_cue.others.excess.value == pytest.approx(0)
    assert finding.verdict is Verdict.CLEARED
    # Content that moves may lie on the object; where it alone flips others, a person has to look.
    assert finding.of_cue.paste.lift.low > 0.25
    moving = replace(finding.of_cue, is_fixed=False)
    assert findings([replace(finding.evidence, cues=(moving,))])[0].verdict is Verdict.SHORTCUT
    weaker = replace(moving.paste, lift=replace(moving.paste.lift, low=0.2))
    weaker_cue = replace(moving, paste=weaker)
    assert findings([replace(finding.evidence, cues=(weaker_cue,))])[0].verdict is Verdict.CLEARED


@pytest.mark.parametrize("others", [10, OTHERS])
def test_no_recipient_counts_twice(others):
    images, carriers = backgrounds(IMAGES, seed=1), torch.ones(IMAGES, dtype=torch.bool)
    regions = torch.zeros(IMAGES, SIZE, SIZE, dtype=torch.bool)
    for image, region, place in zip(images, regions, places(IMAGES, 2, range(SIZE)), strict=True):
        region[:] = put(image, GREEN, place)

    def rule(given: Tensor) -> Tensor:
        found = has_object(given)
        return torch.stack([8 * found - 4, 0 * found, 0 * found], 1)

    model = by_rule(rule)
    sample = sample_of(model, images)
    strangers = Images(crops_of(backgrounds(others, seed=5)), torch.full((others,), NOTHING))
    trial = Trial(
        Laboratory(model, 64), Stock(sample, [strangers], torch.Generator().manual_seed(0)), 0
    )
    evidence = trial.of(cue_of(regions, carriers, is_fixed=False))
    assert evidence.paste.shift.of == min(others, FIRST.recipients)


def test_the_cues_of_few_carriers_go_into_few_images():
    many = Extent(80, 96, 70, 56, 176)
    assert many.of_few(8) == Extent(24, 16, 8, 24, 176)
    assert many.of_few(4) == Extent(16, 8, 4, 16, 176)  # 2^-16 is a small p-value
    assert SECOND.of_few(100) == SECOND


@pytest.mark.parametrize(("deciding", "tested"), [(1.0, FIRST.removed), (0.3, SECOND.removed)])
def test_more_images_are_tested_where_the_first_ones_leave_it_open(deciding, tested):
    """All images hold a sticker, which decides in some of them."""

    def rule(given: Tensor) -> Tensor:
        is_one = has_sticker(given) + (given[:, 2, 0, 0] > deciding)
        return torch.stack([8 * is_one.clamp(max=1) - 4, 0 * is_one, 0 * is_one], 1)

    images = backgrounds(2 * SECOND.removed, seed=1)
    images[:, 2, 0, 0] = torch.linspace(0, 1, len(images))
    place = (PART, 2 * PART)
    regions = torch.stack([put(image, STICKER, place) for image in images])
    model = by_rule(rule)
    sample, carriers = sample_of(model, images), torch.ones(len(images), dtype=torch.bool)
    trial = Trial(Laboratory(model, 64), Stock(sample, [strangers()], torch.Generator()), 0)
    removal = trial.of(cue_of(regions, carriers, is_fixed=True)).removal
    assert removal.images == tested
    assert removal.drop.value == pytest.approx(deciding, abs=0.1)


def test_log_odds_tell_what_the_filling_costs_carriers_alone():
    """The class is right with its sticker and without, but surer with it."""

    def rule(given: Tensor) -> Tensor:
        found = has_sticker(given)
        return torch.stack([8 * found + 4, 0 * found, 0 * found], 1)

    carriers, place = torch.arange(IMAGES) % 4 < 2, (PART, 2 * PART)
    images = backgrounds(IMAGES, seed=1)
    regions = torch.stack(
        [put(image if holds else image.clone(), STICKER, place)
         for image, holds in zip(images, carriers.tolist(), strict=True)]
    )  # fmt: skip
    model = by_rule(rule)
    stock = Stock(sample_of(model, images), [strangers()], torch.Generator())
    trial = Trial(Laboratory(model, 64), stock, 0)
    others = trial.of(cue_of(regions, carriers, is_fixed=True)).others
    assert others.excess_cost.value == pytest.approx(8, abs=1e-3)
    assert others.excess_cost.low > 7
    assert others.excess.value == pytest.approx(0)


def test_what_the_other_images_clear_is_neither_pasted_nor_removed():
    """Few carriers are as right without the sticker as the other images, but maybe less."""

    def rule(given: Tensor) -> Tensor:
        is_one = has_sticker(given) + (given[:, 2, 0, 0] > 0.1)
        return torch.stack([8 * is_one.clamp(max=1) - 4, 0 * is_one, 0 * is_one], 1)

    images, place = backgrounds(2 * SECOND.removed, seed=1), (PART, 2 * PART)
    images[:, 2, 0, 0] = torch.linspace(0, 1, len(images))
    carriers = torch.arange(len(images)) % 13 < 2
    regions = torch.stack(
        [put(image if holds else image.clone(), STICKER, place)
         for image, holds in zip(images, carriers.tolist(), strict=True)]
    )  # fmt: skip
    model = by_rule(rule)
    sample = sample_of(model, images)
    trial = Trial(Laboratory(model, 64), Stock(sample, [strangers()], torch.Generator()), 0)
    blurred = replace(cue_of(regions, carriers, is_fixed=True), threshold=0.8)
    assert not blurred.is_distinct
    evidence = trial.of(blurred)
    assert evidence.paste is None
    assert evidence.removal is None
    assert evidence.others.deficit.low < 0
    tested = int((carriers & ~sample.discovery).sum())
    assert evidence.others.deficit.of == tested + FIRST.compared < tested + SECOND.compared
    assert evidence.others.deficit.high >= 0.35  # so that more of them would tell no more
    (finding,) = findings([ClassEvidence(CLASS, 160, 90, 8, 500, (evidence,))])
    assert finding.verdict is Verdict.CLEARED
    assert finding.reason == TOO_FEW
    assert finding.q_value is None
    cut = replace(evidence, others=replace(evidence.others, deficit=Estimate(0.3, 0.1, 0.5, 44)))
    (finding,) = findings([ClassEvidence(CLASS, 160, 90, 8, 500, (cut,))])
    assert finding.reason == PART_OF_THE_CLASS


def reddened(images: Tensor, cast: Tensor) -> Tensor:
    red = torch.tensor([1.0, 0.1, 0.1])[:, None, None]
    return torch.where(cast[:, None, None, None], images + 0.5 * (red - images), images)


def by_redness(images: Tensor) -> Tensor:
    red = images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))
    return torch.stack([40 * (red - 0.3), 0 * red - 20, 0 * red], 1)


def test_a_cast_of_colour_is_context_and_its_carriers_are_those_that_have_it():
    cast = torch.arange(IMAGES) % 3 > 0
    model = by_rule(by_redness)
    sample = sample_of(model, reddened(backgrounds(IMAGES, seed=1), cast))
    lab = Laboratory(model, 64)
    examination = examine(lab, sample, strangers(POOL), strangers(RIVALS), seed=0)
    (number,) = (i for i, cue in enumerate(examination.cues) if cue.kind == "colours")
    assert (examination.cues[number].carriers == cast).float().mean() >= 0.9
    (finding,) = (f for f in findings([examination.evidence]) if f.cue == number)
    assert finding.verdict is Verdict.CONTEXT
    assert finding.of_cue.removal.drop.low > 0.5
    assert finding.of_cue.paste.gained == finding.of_cue.others.excess_cost  # on the same images


def test_beside_a_large_removal_stand_carriers_with_other_carriers_pixels():
    model = by_rule(by_redness)
    red = reddened(backgrounds(IMAGES, seed=1), torch.ones(IMAGES, dtype=torch.bool))
    sample = sample_of(model, red)
    trial = Trial(Laboratory(model, 64), Stock(sample, [strangers()], torch.Generator()), 0)
    removal = trial.of(background(sample)).removal
    assert removal.elsewhere == 1
    assert removal.without < 0.1
    assert removal.drop.low > 0.7


def test_images_as_others_in_colour_have_no_cast():
    model = by_rule(by_redness)
    sample = sample_of(model, backgrounds(IMAGES, seed=1))
    others = crops_of(backgrounds(OTHERS, seed=5))
    assert colours.cast(sample, colours.Side.of(sample, others)) is None
    few = reddened(backgrounds(IMAGES, seed=1), torch.arange(IMAGES) % 16 == 0)
    sample = replace(sample, crops=crops_of(few))
    assert colours.cast(sample, colours.Side.of(sample, others)) is None


def test_how_far_colours_tell_a_class_is_told_of_the_other_half_and_of_enough_strangers():
    model, others = by_rule(by_redness), crops_of(backgrounds(OTHERS, seed=5))
    plain = sample_of(model, backgrounds(IMAGES, seed=1))
    assert 0.35 < colours.Side.of(plain, others).apart(plain) < 0.65
    red = reddened(backgrounds(IMAGES, seed=1), torch.ones(IMAGES, dtype=torch.bool))
    sample = sample_of(model, red)
    assert colours.Side.of(sample, others).apart(sample) > 0.95
    assert colours.cast(sample, colours.Side.of(sample, others)) is not None
    few = colours.Side.of(sample, others[:-1])
    assert (few.apart(sample), colours.cast(sample, few)) == (0.5, None)


def test_a_texture_that_moves_is_a_shortcut_where_the_class_does_without():
    """Waves of four pixels around the middle make the class, and so does the object."""
    across = torch.arange(SIZE)
    around = torch.ones(SIZE, SIZE, dtype=torch.bool)
    around[PART:-PART, PART:-PART] = False

    def rule(given: Tensor) -> Tensor:
        spectra = torch.fft.rfft2(given.mean(1) - given.mean((1, 2, 3))[:, None, None]).abs()
        waves = (spectra[:, 0, SIZE // 4] > 150).float()
        is_one = (waves + (given[:, 1, SIZE // 2, SIZE // 2] > 0.8)).clamp(max=1)
        return torch.stack([8 * is_one - 4, 0 * is_one, 0 * is_one], 1)

    g = torch.Generator().manual_seed(3)
    noise = 0.02 * torch.randn(IMAGES, 3, SIZE, SIZE, generator=g)
    images, held = backgrounds(IMAGES, seed=1) + noise, torch.arange(IMAGES) % 4 < 2
    images[torch.arange(IMAGES) % 8 < 5, 1, SIZE // 2, SIZE // 2] = 1.0
    starts = torch.randint(0, 4, (IMAGES, 1), generator=g)
    lines = ((across + starts) % 4 < 2)[:, None] & around & held[:, None, None]
    model = by_rule(rule)
    images = torch.where(lines[:, None], images * 0.7, images).clamp(0, 1)
    sample = sample_of(model, images)
    lab, grain = Laboratory(model, 64), 0.02 * torch.randn(OTHERS, 3, SIZE, SIZE, generator=g)
    others = crops_of((backgrounds(OTHERS, seed=5) + grain).clamp(0, 1))
    pool, rivals = (Images(others[half], strangers(half).classes) for half in (POOL, RIVALS))
    examination = examine(lab, sample, pool, rivals, seed=0)
    (number,) = (i for i, cue in enumerate(examination.cues) if cue.kind == "texture")
    assert (examination.cues[number].carriers == held).float().mean() >= 0.95
    (finding,) = (f for f in findings([examination.evidence]) if f.cue == number)
    assert finding.verdict is Verdict.SHORTCUT
    assert finding.of_cue.others.excess.low > 0.1
    assert finding.of_cue.paste.gained == finding.of_cue.others.excess_cost


def test_what_whole_images_hold_is_given_to_others_beside_what_another_of_them_holds():
    """Carriers that are tested have green around the middle; others' blue tells whose it is.

    Missed carriers are green, too: if they were asked, or lent what they hold, the control would
    keep some. Carriers of the discovery half are not green.
    """
    around = boxed(0, 0, SIZE, SIZE, hole=PART)

    def rule(images: Tensor) -> Tensor:
        outside, inside = images[:, :, around].mean(2), images[:, :, ~around].mean(2)
        is_own = (outside[:, 2] - inside[:, 2]).abs() < 0.5 / 255
        right = (is_own | (outside[:, 1] > 0.5)).float()
        return torch.stack([8 * right, 4 - 8 * right, torch.zeros(len(images))], 1)

    count = 240
    images = torch.zeros(count, 3, SIZE, SIZE)
    images[:, 2] = (torch.arange(count) / 255)[:, None, None]
    kinds = torch.arange(count) % 6  # 0, 1: carriers, of which the even ones are discovery's
    green = (kinds == 1) | (kinds == 2)
    images[:, 1] = torch.where(green[:, None, None], around.float(), images[:, 1])
    likeness = torch.tensor([1.0, 1.0, 0.4, 0.0, 0.1, 0.2])[kinds]
    model = by_rule(rule)
    cue = replace(
        cue_of(around.expand(count, -1, -1), kinds < 2, is_fixed=False),
        kind="texture", likeness=likeness, absent=0.3,
    )  # fmt: skip
    stock = Stock(sample_of(model, images), [strangers()], torch.Generator().manual_seed(0))
    lab = Laboratory(model, 64)
    few = Extent(recipients=0, returns=0, removed=0, compared=20, given=0)
    mates = Classmates(lab, stock).of(cue, few)
    got = mates.others
    assert mates.gained.shift() == got.excess_cost
    assert got.right == 60
    assert lab.passes == 2 * 60 + 20
    assert got.excess.value == pytest.approx(1)
    assert got.excess_cost.value > 8
    assert got.deficit.value == pytest.approx(0)
    held, others = (torch.nonzero(each).flatten() for each in (kinds == 1, kinds > 3))
    gains = Classmates(lab, stock).gains(cue, held, others[:20])
    assert gains.shape == (20,)
    assert gains.min() > 8
    assert Classmates(lab, stock).of(replace(cue, absent=0.05), few).others.right == 40
    assert Classmates(lab, stock).of(replace(cue, absent=0.0), few) == Mates()


@pytest.mark.parametrize("gap", [0.5, 0.2])
@pytest.mark.parametrize("shows", ["in the return", "in the others alone", "nowhere"])
def test_content_is_given_to_the_other_images_where_no_other_shift_shows_it(shows, gap):
    """A tag adds to what the object says, unless the image holds a trace of a removal."""

    def rule(images: Tensor) -> Tensor:
        tag = images[:, :, :12, :12].mean((2, 3))
        marked = (tag[:, 0] > 0.9) & (tag[:, 1] < 0.1)
        was_carrier = images[:, 2, -1, -1] > 0.9
        helps = {"in the return": marked, "in the others alone": marked & ~was_carrier}
        gain = 3 * helps.get(shows, torch.zeros_like(marked)).float()
        log_odds = 9 * has_object(images) - 8 + gain * has_object(images)
        return torch.stack([log_odds, torch.zeros_like(gain), torch.zeros_like(gain)], 1)

    images, carriers = backgrounds(IMAGES, seed=1), torch.arange(IMAGES) % 5 < 2
    for i, (image, place) in enumerate(
        zip(images, places(IMAGES, 2, range(24, SIZE)), strict=True)
    ):
        put(image, GREEN, place)
        image[2, -1, -1] = float(carriers[i])
        if carriers[i]:
            image[:, :12, :12] = torch.tensor([1.0, 0.0, 0.5])[:, None, None]
    region = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    region[:12, :12] = True
    model = by_rule(rule)
    cue = cue_of(region.expand(IMAGES, -1, -1), carriers, is_fixed=True)
    cue = replace(cue, threshold=1 - gap)
    stock = Stock(sample_of(model, images), [strangers()], torch.Generator().manual_seed(0))
    trial = Trial(Laboratory(model, 64), stock, 0)
    assert cue.is_distinct == (gap >= 0.3)
    assert trial.is_held(cue)
    assert not trial.is_held(replace(cue, likeness=cue.likeness * (torch.arange(IMAGES) < 2)))
    paste = trial.of(cue).paste
    if shows == "in the return":
        assert paste.restored.low > 0
        assert paste.gained is None
    else:
        assert max(paste.shift.low, paste.restored.low) <= 0
        assert (paste.gained.low > 1) == (shows == "in the others alone")
        assert (paste.p_value < 0.01) == (shows == "in the others alone")
        assert (paste.p_value == 1) == (paste.gained.low <= 0)
        few = cue.likeness * (torch.arange(IMAGES) < IMAGES // 2)
        paste = trial.of(replace(cue, likeness=few)).paste
        assert (paste is None or paste.gained is None) == (gap < 0.3)
        all_but_few = torch.maximum(cue.likeness, (torch.arange(IMAGES) > 10).float())
        assert trial.of(replace(cue, likeness=all_but_few)).paste.gained is None


@pytest.mark.parametrize("has_others", [True, False])
def test_what_whole_images_hold_is_looked_at_in_the_other_images_if_there_are_any(has_others):
    """Other classes' surroundings cost all of the class's images the same."""
    around = boxed(0, 0, SIZE, SIZE, hole=PART)

    def rule(images: Tensor) -> Tensor:
        red = images[:, 0]
        looks_right = ((red[:, around].mean(1) < 0.1) & (red[:, ~around].mean(1) < 0.1)).float()
        return torch.stack([8 * looks_right, 4 + 0 * looks_right, 0 * looks_right], 1)

    images = backgrounds(IMAGES, seed=1)
    images[:, 0] = 0
    carriers = torch.arange(IMAGES) % (2 if has_others else 1) == 0
    discovery = torch.arange(IMAGES) % 4 < 2
    cue = cue_of(around.expand(IMAGES, -1, -1), carriers, is_fixed=False)
    cue = replace(cue, kind="texture")
    model = by_rule(rule)
    sample = replace(sample_of(model, images), discovery=discovery)
    stock = Stock(sample, [strangers()], torch.Generator().manual_seed(0))
    assert Trial(Laboratory(model, 64), stock, 0).is_promising(cue) == (not has_others)


def test_what_is_distinct_is_looked_at_before_what_more_images_hold_and_one_without_a_look():
    model = by_rule(lambda images: torch.tensor([[1.0, 0.0, 0.0]]).expand(len(images), -1))
    sample = sample_of(model, backgrounds(IMAGES, seed=1))
    stock = Stock(sample, [strangers()], torch.Generator().manual_seed(0))
    regions = boxed(0, 0, PART, PART).expand(IMAGES, -1, -1)
    distinct = cue_of(regions, torch.arange(IMAGES) % 20 < 4, is_fixed=True)
    others = [replace(distinct, threshold=0.9, rank=float(i)) for i in range(9, 4, -1)]
    assert distinct.is_distinct
    assert not others[0].is_distinct
    lab = Laboratory(model, 64)
    second = replace(distinct, rank=-1.0)
    trial = Trial(lab, stock, 0)
    sure = unlooked(trial, [*others, second, distinct])
    assert [cue is second for cue in sure] == [True]
    assert lab.passes == 0
    assert promising(trial, [*others, second, distinct], sure) == []  # nothing has an effect
    assert lab.passes > 0
    found_by_none = replace(distinct, likeness=distinct.likeness * ~sample.discovery)
    assert found_by_none.is_distinct
    assert unlooked(trial, [*others, found_by_none]) == []


@pytest.mark.parametrize(("share", "is_sure"), [(0.2, False), (0.4, True)])
def test_what_many_images_hold_is_tested_without_a_look_and_the_background_is_looked_at(
    share, is_sure
):
    """Other classes' surroundings make the class of any image, and its content is nothing to it."""
    around = boxed(0, 0, SIZE, SIZE, hole=PART)

    def rule(images: Tensor) -> Tensor:
        red = (images[:, 0][:, around].mean(1) > 0.9).float()
        return torch.stack([8 * red, 4 + 0 * red, 0 * red], 1)

    images = backgrounds(IMAGES, seed=1)
    images[:, 0] = torch.where(around, 1.0, images[:, 0])
    lab = Laboratory(by_rule(rule), 64)
    sample = sample_of(by_rule(rule), images)
    stock = Stock(sample, [strangers()], torch.Generator().manual_seed(0))
    trial = Trial(lab, stock, 0)
    inside = boxed(SIZE // 2 - 4, SIZE // 2 - 4, 8, 8).expand(IMAGES, -1, -1)
    held = torch.arange(IMAGES) % 20 < 20 * share
    cue = replace(cue_of(inside, held, is_fixed=True), threshold=0.8)
    assert not cue.is_distinct
    behind = background(sample)
    sure = unlooked(trial, [cue, behind])
    assert [each is cue for each in sure] == [True] * is_sure
    assert [each is behind for each in promising(trial, [cue, behind], sure)] == [True]


@pytest.mark.parametrize("extent", [FIRST, SECOND])
def test_many_of_the_others_stand_beside_carriers_of_which_there_are_fewer(extent):
    count = 600
    images, carriers = backgrounds(count, seed=1), torch.arange(count) % 3 == 0
    model = by_rule(lambda images: torch.tensor([[1.0, 0.0, 0.0]]).expand(len(images), -1))
    region = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    region[:12, :12] = True
    sample = replace(sample_of(model, images), discovery=torch.arange(count) % 2 == 0)
    stock = Stock(sample, [strangers()], torch.Generator().manual_seed(0))
    lab = Laboratory(model, 64)
    cue = cue_of(region.expand(count, -1, -1), carriers, is_fixed=True)
    others = Classmates(lab, stock).of(cue, extent).others
    assert others.right == extent.compared
    carriers = min(80, extent.compared)
    assert lab.passes == 3 * (extent.compared + carriers)  # filled twice, and as they are


@pytest.mark.parametrize("is_fixed", [True, False])
def test_what_moves_is_given_beside_other_classes_pixels_and_not_more_of_the_object(is_fixed):
    """The class is as sure as an image is green, and all of its images are."""

    def rule(images: Tensor) -> Tensor:
        green = images[:, 1].mean((1, 2))
        return torch.stack([100 * green, 0 * green, 0 * green], 1)

    images, carriers = torch.zeros(IMAGES, 3, SIZE, SIZE), torch.arange(IMAGES) % 2 == 0
    images[:, 1] = 0.8
    regions = torch.zeros(IMAGES, SIZE, SIZE, dtype=torch.bool)
    for i, place in enumerate(places(IMAGES, 2, range(SIZE // 2))):
        if carriers[i]:
            regions[i] = put(images[i], GREEN, place)
    model, cue = by_rule(rule), cue_of(regions, carriers, is_fixed=is_fixed)
    stock = Stock(sample_of(model, images), [strangers()], torch.Generator().manual_seed(0))
    mates = Classmates(Laboratory(model, 64), stock)
    got = mates.gained(cue, torch.nonzero(carriers).flatten(), 16)
    (name,) = got.controls
    assert name is (Control.CLASSMATE if is_fixed else Control.OTHER_CLASS)
    greener = 100 * (1.0 - 0.8) * (PART / SIZE) ** 2  # than the same images' own pixels
    if is_fixed:
        assert got.shift().value == pytest.approx(greener, rel=0.01)
    else:
        assert got.shift().low > 2 * greener


def test_a_channel_without_range_becomes_the_middle_of_what_is_wanted():
    plain = torch.full((1, 3, 20, 20), 255, dtype=torch.uint8)
    plain[0, :, 0, :2] = 0  # fewer pixels than levels leave out
    wanted = torch.tensor([[0.2, 0.2, 0.2, 0.8, 0.6, 0.4]])
    got = colours.recoloured(plain, wanted)[0, :, 5, 5]
    assert got.tolist() == [round(255 * middle) for middle in (0.5, 0.4, 0.3)]


def test_recoloured_images_have_the_levels_that_were_asked_for():
    crops, others = (crops_of(0.3 + 0.4 * backgrounds(8, seed=seed)) for seed in (1, 2))
    got = colours.levels(colours.recoloured(crops, colours.levels(others)))
    assert (got - colours.levels(others)).abs().max() <= 0.01
    assert colours.recoloured(crops, colours.levels(crops)).equal(crops)


def test_levels_are_ends_of_a_channel_but_for_a_hundredth_of_its_pixels():
    crops = torch.arange(200).to(torch.uint8).view(1, 1, 10, 20).expand(1, 3, 10, 20)
    assert (255 * colours.levels(crops)).round().tolist() == [[2, 2, 2, 197, 197, 197]]
    few = crops.clone()
    few[0, :, 0, :2] = 255  # two pixels of 200 change their ends by as many steps
    assert (255 * colours.levels(few)).round().tolist() == [[4, 4, 4, 199, 199, 199]]


def test_levels_take_a_cast_off_and_put_it_on():
    """A cast is a linear change of each channel, which another image's levels undo exactly."""
    plain = crops_of(backgrounds(8, seed=1))
    cast = (plain * 0.7 + 0.3 * torch.tensor([200.0, 120.0, 40.0])[:, None, None]).round()
    cast = cast.to(torch.uint8)
    off = colours.recoloured(cast, colours.levels(plain))
    assert (off.int() - plain.int()).abs().max() <= 2
    assert (colours.recoloured(plain, colours.levels(cast)).int() - cast.int()).abs().max() <= 2


def boxed(top: int, left: int, height: int, width: int, hole: int = 0) -> Tensor:
    """A box, or a frame as wide as half of what `hole` leaves of it."""
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    edge = (SIZE - hole) // 2
    mask[edge : edge + hole, edge : edge + hole] = False
    return mask


@pytest.mark.parametrize(
    ("mask", "has_one"),
    [
        (boxed(0, 0, 20, 20), True),
        (boxed(0, 0, SIZE, SIZE // 2), True),  # half an image, of which the other half is left
        (boxed(30, 30, 36, 36), True),  # in the middle; it can be shifted
        (boxed(14, 14, 68, 68), False),
        (boxed(0, 0, SIZE, SIZE, hole=80), False),  # a frame: shifted, it crosses the object
        (boxed(0, 0, SIZE, SIZE), False),
        (torch.zeros(SIZE, SIZE, dtype=torch.bool), True),
    ],
)
def test_what_surrounds_an_image_leaves_no_elsewhere(mask, has_one):
    assert have_elsewhere(mask[None]) == has_one
    corner = boxed(0, 0, 20, 20)
    assert have_elsewhere(torch.stack([mask, corner]))  # most of them
    assert have_elsewhere(torch.stack([mask, mask, corner])) == has_one
