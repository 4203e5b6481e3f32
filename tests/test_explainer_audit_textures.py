"""Fine waves of one direction and length are found wherever they lie, and nothing else is."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from explainer.audit.sample import ClassSample
from explainer.audit.textures import frequencies, peaks, texture, waves

SIZE, GRID, IMAGES, OTHERS = 96, (8, 8), 120, 100


def papers(images: int, seed: int) -> Tensor:
    """Smooth random colours with as much grain as photographs have."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(images, 3, 6, 6, generator=generator)
    grain = 0.02 * torch.randn(images, 3, SIZE, SIZE, generator=generator)
    return functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear") + grain


def hatched(images: Tensor, held: Tensor, where: Tensor, seed: int) -> Tensor:
    """Images of which some hold waves of five pixels in a region, which begin anywhere."""
    starts = 2 * math.pi * torch.rand(len(images), generator=torch.Generator().manual_seed(seed))
    down, across = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    along = 0.6 * down + 0.8 * across
    lines = (2 * math.pi * along / 5 + starts[:, None, None]).sin() > 0
    return torch.where((lines & where & held[:, None, None])[:, None], images * 0.6, images)


def crops_of(images: Tensor) -> Tensor:
    return (255 * images.clamp(0, 1)).round().to(torch.uint8)


def sample_of(images: Tensor) -> ClassSample:
    crops, count = crops_of(images), len(images)
    right = torch.ones(count, dtype=torch.bool)
    return ClassSample(0, crops, torch.zeros(count, *GRID), right, torch.arange(count) % 2 == 0)


AROUND = torch.ones(SIZE, SIZE, dtype=torch.bool)
AROUND[24:-24, 24:-24] = False
STRANGERS = crops_of(papers(OTHERS, seed=5))


@pytest.mark.parametrize("every", [1, 2, 4])
def test_carriers_are_those_that_hold_the_waves_and_the_region_is_where_they_are(every: int):
    held = torch.arange(IMAGES) % (2 * every) < 2  # both halves hold some
    cue = texture(sample_of(hatched(papers(IMAGES, seed=1), held, AROUND, seed=2)), STRANGERS)
    assert cue.kind == "texture"
    assert not cue.is_fixed
    assert (cue.carriers == held).float().mean() >= 0.98
    masks = cue.masks[held]
    overlap = (masks & AROUND).flatten(1).sum(1) / (masks | AROUND).flatten(1).sum(1)
    assert overlap.mean() >= 0.75


def test_images_as_others_have_no_texture_nor_have_few():
    plain = papers(IMAGES, seed=1)
    assert texture(sample_of(plain), STRANGERS) is None
    few = torch.arange(IMAGES) % 12 < 2
    none = hatched(plain, few & (torch.arange(IMAGES) < 40), AROUND, seed=2)
    assert texture(sample_of(none), STRANGERS) is None


def test_waves_that_other_classes_hold_as_well_tell_nothing():
    every = torch.ones(IMAGES, dtype=torch.bool)
    mine = hatched(papers(IMAGES, seed=1), every, AROUND, seed=2)
    theirs = hatched(papers(OTHERS, seed=5), every[:OTHERS], AROUND, seed=3)
    assert texture(sample_of(mine), crops_of(theirs)) is None


def test_waves_in_the_middle_are_the_object_s_own_and_few_strangers_tell_nothing():
    every = torch.ones(IMAGES, dtype=torch.bool)
    mine = sample_of(hatched(papers(IMAGES, seed=1), every, ~AROUND, seed=2))
    assert texture(mine, STRANGERS) is None
    around = sample_of(hatched(papers(IMAGES, seed=1), every, AROUND, seed=2))
    assert texture(around, STRANGERS[:60]) is not None
    assert texture(around, STRANGERS[:59]) is None
    over = sample_of(hatched(papers(IMAGES, seed=1), every, AROUND | ~AROUND, seed=2))
    assert texture(over, STRANGERS) is not None  # a scanner's pattern knows no object


def test_the_peak_of_a_wave_is_at_its_own_frequency():
    across = torch.arange(SIZE).expand(3, SIZE, SIZE)
    wave = 0.5 + 0.2 * (2 * math.pi * across / 8).sin()
    got = peaks(crops_of(wave[None] + papers(1, seed=1) - 0.5))[0]
    assert got.shape == frequencies((SIZE, SIZE)).shape == (SIZE, SIZE // 2 + 1)
    assert frequencies((SIZE, SIZE)).flatten()[got.argmax()] == pytest.approx(1 / 8, abs=0.02)


def test_waves_are_where_they_were_drawn_whatever_the_size():
    wide = torch.zeros(1, 3, 64, 90)
    wide[..., :40] = 0.4 * (torch.arange(40) % 4 < 2)
    top = frequencies((64, 90)).sub(0.25).abs()[0].argmin()[None]  # along the rows
    found = waves(crops_of(0.3 + wide), top, 8)[0]
    assert found[:, 4:36].all()
    assert not found[:, 50:].any()
