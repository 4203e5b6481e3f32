"""What both halves of a class show is tested in each half by what the other half shows of it."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from explainer.audit import content, cues
from explainer.audit.crossing import ENOUGH, crossed
from explainer.audit.cues import Cue
from explainer.audit.growth import Gallery
from explainer.audit.interventions import Images
from explainer.audit.overlays import Overlay
from explainer.audit.proposals import aligned
from explainer.audit.sample import ClassSample
from explainer.audit.stock import Stock

SIZE, GRID, CELL = 96, (8, 8), 4
IMAGES, STRANGERS = 160, 120
TAG = (slice(4, 28), slice(60, 88))


def papers(images: int, seed: int) -> torch.Tensor:
    """Smooth random colours with grain, [images, 3, SIZE, SIZE] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(images, 3, 9, 9, generator=generator)
    smooth = functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    return (smooth + 0.02 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def as_crops(images: torch.Tensor) -> torch.Tensor:
    return (255 * images).round().to(torch.uint8)


def sample_of(carriers: torch.Tensor) -> ClassSample:
    """A class some of whose images have a tag; every second one is found on."""
    images, badge = papers(IMAGES, 0), papers(1, 9)[0, :, *TAG]
    images[(carriers, slice(None), *TAG)] = badge
    half = torch.arange(IMAGES) % 2 == 0
    maps, right = torch.zeros(IMAGES, *GRID), torch.ones(IMAGES, dtype=torch.bool)
    return ClassSample(0, as_crops(images), maps, right, half)


def gallery_of(sample: ClassSample) -> Gallery:
    mine, theirs = (
        content.reduced(crops, GRID, CELL)
        for crops in (sample.crops, as_crops(papers(STRANGERS, 1)))
    )
    return Gallery(mine, theirs, sample.discovery, CELL)


def first(sample: ClassSample, gallery: Gallery) -> Cue:
    return cues.found(sample, gallery, aligned(sample, gallery.mine, gallery.theirs), None)[0]


HELD = torch.arange(IMAGES) % 16 < 2  # twenty, as many of either half


@pytest.fixture(scope="module")
def tagged() -> tuple[ClassSample, Gallery, Cue]:
    sample = sample_of(HELD)
    gallery = gallery_of(sample)
    return sample, gallery, first(sample, gallery)


def test_each_half_is_told_by_what_the_other_half_holds(tagged):
    sample, gallery, cue = tagged
    assert cue.is_distinct
    other = replace(sample, discovery=~sample.discovery)
    twin = first(other, replace(gallery, discovery=other.discovery))
    got = crossed(cue, sample, gallery)
    assert got.is_crossed
    assert got.carriers.equal(HELD)
    for half, told in ((sample.discovery, twin), (~sample.discovery, cue)):
        assert got.masks[half].equal(told.masks[half])
        assert got.carriers[half].equal(told.carriers[half])
        lead = told.likeness[half] - told.threshold
        assert (got.likeness[half] - got.threshold).sub(lead).abs().max() < 1e-6
    assert not cue.likeness.equal(twin.likeness)
    by_model = replace(cue, origin="occlusion", masks=cue.masks.roll(1, 1))
    again = crossed(by_model, sample, gallery)
    assert again.origin == cue.origin  # what asks the model is looked for again without it
    assert again.masks.equal(got.masks)
    stock = Stock(
        sample, [Images(sample.crops, torch.ones(IMAGES, dtype=torch.long))], torch.Generator()
    )
    assert stock.tested(got).equal(HELD)
    assert stock.tested(cue).equal(HELD & ~sample.discovery)


@pytest.mark.parametrize("is_found_in", [True, False])
def test_what_an_image_holds_has_no_say_in_what_it_is_tested_with(tagged, is_found_in):
    """Half of a carrier's tag is hidden: its half is tested as before, and the other may not be."""
    sample, _, cue = tagged
    half = sample.discovery == is_found_in
    carrier = int(torch.nonzero(HELD & half).flatten()[0])
    crops = sample.crops.clone()
    crops[carrier, :, *TAG][:, :12] = 0
    changed = replace(sample, crops=crops)
    want, got = (crossed(cue, each, gallery_of(each)) for each in (sample, changed))
    assert want.is_crossed
    assert got.is_crossed
    rest = half & (torch.arange(IMAGES) != carrier)
    assert got.masks[half].equal(want.masks[half])
    leads = [each.likeness[rest] - each.threshold for each in (got, want)]
    assert leads[0].sub(leads[1]).abs().max() < 1e-6
    others = [each.likeness[~half] - each.threshold for each in (got, want)]
    assert not others[0].equal(others[1])


@pytest.mark.parametrize("why", ["one half alone", "enough", "moves", "not distinct", "overlay"])
def test_others_stay_as_they_are(tagged, why):
    half = torch.arange(IMAGES) % 2 == 0
    sample, gallery, cue = tagged
    held = {"one half alone": HELD & half, "enough": torch.ones(IMAGES) > 0}.get(why)
    if held is not None:
        sample = sample_of(held)
        gallery = gallery_of(sample)
        cue = first(sample, gallery)
        assert int(cue.carriers.sum()) == int(held.sum())
    assert ENOUGH == IMAGES / 2
    changes = {
        "moves": {"is_fixed": False},
        "not distinct": {"threshold": cue.threshold + cue.gap - 0.2},
        "overlay": {"overlay": Overlay(*torch.ones(3, 3, SIZE, SIZE))},
    }
    cue = replace(cue, **changes.get(why, {}))
    assert crossed(cue, sample, gallery) is cue
