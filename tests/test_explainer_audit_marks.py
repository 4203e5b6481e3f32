"""Marks at one place are found by mean edges, and taken off and put on by moments of pixels."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from explainer.audit import cues, marks
from explainer.audit.content import widened
from explainer.audit.edits import cover, edit_of, removal_of
from explainer.audit.growth import Gallery
from explainer.audit.interventions import Fill, filled
from explainer.audit.overlays import Overlay
from explainer.audit.sample import ClassSample

SIZE, GRID, CELL = (48, 60), (8, 10), 6
IMAGES, STRANGERS = 120, 120
GLYPH = (slice(30, 42), slice(44, 58))


def papers(images: int, seed: int) -> torch.Tensor:
    """Smooth random colours, [images, 3, *SIZE] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(images, 3, 7, 7, generator=generator)
    return functional.interpolate(coarse, SIZE, mode="bilinear")


def alpha(strength: float) -> torch.Tensor:
    """A ring with a bar in it, in the lower right corner."""
    glyph = torch.zeros(12, 14)
    glyph[:2] = glyph[-2:] = glyph[:, :2] = glyph[:, -2:] = glyph[5:7] = strength
    opacity = torch.zeros(SIZE)
    opacity[GLYPH] = glyph
    return opacity


def marked(images: torch.Tensor, strength: float, every: int) -> torch.Tensor:
    """White lies over each `every`th image."""
    over = images.clone()
    over[::every] += alpha(strength) * (1 - images[::every])
    return over


def gallery(images: torch.Tensor) -> Gallery:
    return Gallery(images, papers(STRANGERS, 1), torch.arange(IMAGES) % 4 < 2, CELL)


@pytest.mark.parametrize(("strength", "every"), [(0.5, 1), (0.5, 3), (1.0, 3), (0.3, 1)])
def test_a_mark_is_found_with_its_carriers_and_its_region(strength, every):
    found = marks.mark(gallery(marked(papers(IMAGES, 0), strength, every)))
    carriers = torch.arange(IMAGES) % every == 0
    assert (found.likeness.carriers == carriers).float().mean() >= 0.97
    region = torch.zeros(SIZE, dtype=torch.bool)
    region[GLYPH] = True
    assert (found.masks == found.masks[0]).all()
    overlap = (found.masks[0] & region).sum() / (found.masks[0] | region).sum()
    assert overlap >= 0.6
    assert found.is_fixed
    assert found.places[0].tolist() == pytest.approx([36 / CELL, 51 / CELL], abs=0.5)


def test_other_classes_images_that_hold_the_mark_hide_none_of_its_carriers():
    theirs = papers(STRANGERS, 1)
    theirs[:6] = marked(theirs[:6], 0.5, every=1)
    images = marked(papers(IMAGES, 0), 0.5, every=2)
    found = marks.mark(replace(gallery(images), theirs=theirs))
    assert (found.likeness.carriers == (torch.arange(IMAGES) % 2 == 0)).float().mean() >= 0.97


def test_an_opaque_marks_carriers_are_told_where_what_is_behind_is_lighter_or_darker():
    """Its edges then have either sign, and those of images of one sign look like no carrier's."""
    number = torch.arange(IMAGES)
    light, carriers = number % 5 == 0, number % 8 != 0
    images = papers(IMAGES, 0) * 0.4 + 0.6 * light[:, None, None, None]
    tag = torch.tensor([0.6, 0.5, 0.6])[:, None, None].expand(-1, 12, 14)
    images[(carriers, slice(None), *GLYPH)] = tag
    assert (marks.mark(gallery(images)).likeness.carriers == carriers).all()


@pytest.mark.parametrize(("strength", "every"), [(0.3, 2), (1.0, 2), (0.5, 3)])
def test_a_plain_background_behind_a_mark_is_no_mark(strength, every):
    """Products on white: between a mark's strokes they are alike, whether they hold it or not."""
    white = 0.95 + 0.03 * papers(IMAGES, 0)
    inked = white.clone()
    inked[::every] -= alpha(strength) * white[::every]
    carriers = torch.arange(IMAGES) % every == 0
    found = marks.mark(gallery(inked)).likeness.carriers
    assert (found == carriers).float().mean() >= 0.97


def test_images_without_a_mark_have_none():
    assert marks.mark(gallery(papers(IMAGES, 0))) is None
    assert marks.mark(gallery(marked(papers(IMAGES, 0), 0.5, every=60))) is None


def test_edges_and_their_distance_are_what_a_loop_computes():
    mine, theirs = (marks.edges(papers(5, seed)[:, :, :6, :7]) for seed in (0, 1))
    assert mine[0, 1, 2, 3] == pytest.approx(
        float(papers(5, 0)[0, 1, 2, 4] - papers(5, 0)[0, 1, 2, 3])
    )
    assert mine[0, 4, 2, 3] == pytest.approx(
        float(papers(5, 0)[0, 1, 3, 3] - papers(5, 0)[0, 1, 2, 3])
    )
    assert (mine[:, :3, :, -1] == 0).all()
    assert (mine[:, 3:, -1] == 0).all()
    squares = torch.zeros(6, 7)
    for row in range(6):
        for column in range(7):
            for edge in range(6):
                a, b = mine[:, edge, row, column], theirs[:, edge, row, column]
                error = a.var() / 5 + b.var() / 5 + marks.RIDGE**2
                squares[row, column] += (a.mean() - b.mean()) ** 2 / error
    got = marks.chi_square(mine, theirs)
    assert got[3, 3] == pytest.approx(float(squares[2:5, 2:5].mean()), rel=1e-4)
    assert got[0, 6] == pytest.approx(float(squares[:2, 5:].mean()), rel=1e-4)


def as_crops(images: torch.Tensor) -> torch.Tensor:
    return (255 * images).round().to(torch.uint8)


def test_an_overlay_is_what_was_put_over_the_images_and_comes_off_again():
    plain = papers(IMAGES, 0)
    carriers = as_crops(marked(plain, 0.5, every=1))
    everywhere = torch.ones(SIZE, dtype=torch.bool)
    overlay = Overlay.between(carriers, as_crops(papers(STRANGERS, 1)), everywhere)
    opacity = alpha(0.5)
    assert overlay.scale.mean(0).sub(1 - opacity).abs().mean() <= 0.04
    assert overlay.offset[:, opacity > 0].mean() == pytest.approx(0.5 * 255, rel=0.1)
    masks = (opacity > 0).expand(IMAGES, -1, -1)
    bare = overlay.removed(carriers, masks)
    assert (bare[:, :, ~masks[0]] == carriers[:, :, ~masks[0]]).all()
    before, after = (
        each.float().sub(255 * plain)[:, :, masks[0]].abs().mean() for each in (carriers, bare)
    )
    assert after <= before / 3
    again = overlay.over(bare, masks)  # but where a level is cut
    assert again.float().sub(carriers.float()).abs().mean() <= 0.1


def sample_of(images: torch.Tensor) -> ClassSample:
    count = len(images)
    half = torch.arange(count) % 4 < 2
    return ClassSample(0, as_crops(images), torch.zeros(count, *GRID), torch.ones(count) > 0, half)


def test_a_half_transparent_mark_is_taken_alone_and_an_opaque_one_with_its_pixels():
    strangers = as_crops(papers(STRANGERS, 1))
    for strength, is_overlay in ((0.5, True), (1.0, False)):
        images = marked(papers(IMAGES, 0), strength, every=1)
        solid = images.clone()
        if not is_overlay:
            solid[(slice(None), slice(None), *GLYPH)] = 1.0
        cue = cues.of_mark(sample_of(solid), marks.mark(gallery(solid)), strangers)
        assert (cue.overlay is not None) == is_overlay
        crops, others = as_crops(solid)[:6], strangers[:6]
        assert not cue.masks.stride(0)  # memory of one mask, not of one an image
        masks, edit = cue.masks[:6], edit_of(cue)
        given = next(edit.give(others, crops, masks))
        if is_overlay:
            assert given.equal(cue.overlay.over(others, masks))
            assert next(edit.take(crops, masks, others)).equal(cue.overlay.removed(crops, masks))
        else:
            assert given.equal(torch.where(masks[:, None], crops, others))
        put = next(edit.put(others, crops, masks))
        if is_overlay:
            assert put.equal(cue.overlay.blended(others, crops, masks))
            # As much is left as by the mark where it is, and as by all of it on average elsewhere.
            (region,) = widened(cue.masks[:1], GRID)
            typical = cue.overlay.scale[:, region].mean()
            assert cue.overlay.left[:, region].equal(cue.overlay.scale[:, region])
            assert cue.overlay.left[:, ~region].unique().item() == pytest.approx(typical)
            assert 0.5 < typical < 0.9
            spared = next(edit.spare(crops, masks, others, torch.Generator()))
            assert spared.equal(cue.overlay.over(cue.overlay.removed(crops, masks), masks))
            again = next(removal_of(cue, masks).spare(crops, masks, others, torch.Generator()))
            assert again.equal(spared)  # though there is an elsewhere
        else:
            assert put.equal(torch.where(masks[:, None], crops, others))


def test_what_is_blended_hides_as_much_as_the_mark_wherever_it_lies():
    region = torch.zeros(SIZE, dtype=torch.bool)
    region[:10] = True
    carriers = torch.where(region, 50 + torch.arange(8)[:, None, None, None], 100)
    plain = torch.where(region, 50 + 2 * torch.arange(8)[:, None, None, None], 100)
    carriers, plain = (each.expand(-1, 3, -1, -1).to(torch.uint8) for each in (carriers, plain))
    overlay = Overlay.between(carriers, plain, region)
    assert overlay.left.flatten().tolist() == pytest.approx([0.5] * overlay.left.numel(), rel=0.01)
    images = torch.full((2, 3, *SIZE), 100, dtype=torch.uint8)
    others = torch.full((2, 3, *SIZE), 40, dtype=torch.uint8)
    for masks in (region.expand(2, -1, -1), region.flip(0).expand(2, -1, -1)):
        got = overlay.blended(images, others, masks).movedim(1, -1)
        assert got[masks].unique().tolist() == [70]
        assert got[~masks].unique().tolist() == [100]


@pytest.mark.parametrize("is_fixed", [True, False])
@pytest.mark.parametrize("kind", ["pixels", "overlay", "colours"])
def test_what_leaves_no_elsewhere_stands_beside_carriers_that_keep_it(kind, is_fixed):
    generator = torch.Generator().manual_seed(0)
    crops, others = as_crops(papers(6, 0)), as_crops(papers(6, 1))
    frame = torch.ones(6, *SIZE, dtype=torch.bool)
    frame[:, 4:-4, 4:-4] = False
    half = torch.full((3, *SIZE), 0.5)
    overlay = Overlay(half, torch.full((3, *SIZE), 100.0), half)
    cue = cues.Cue(
        "colours" if kind == "colours" else "content",
        "by hand",
        torch.ones(6),
        0.5,
        frame,
        torch.zeros(6, 2),
        is_fixed,
        overlay=overlay if kind == "overlay" else None,
    )
    plain, removal = edit_of(cue), removal_of(cue, frame)
    if kind == "colours" or (kind == "pixels" and not is_fixed):  # carriers hold it elsewhere
        assert removal.spare is plain.spare
        return
    (taken,) = removal.take(crops, frame, others)
    (spared,) = removal.spare(crops, frame, others, generator)
    if kind == "overlay":
        assert taken.equal(overlay.removed(crops, frame))
        assert spared.equal(overlay.over(taken, frame))
        return
    extended, covered = cover(crops, frame, others)  # what the class's others cost least by
    assert taken.equal(torch.where(frame[:, None], others, crops))
    assert covered.equal(taken)
    assert extended.equal(filled(crops, frame, Fill.SURROUND, others))
    assert spared.equal(torch.where(frame[:, None], crops.roll(1, 0), crops))
