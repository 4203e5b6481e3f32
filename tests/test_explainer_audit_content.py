"""Content that images share is found wherever it lies, with its pixels and its carriers."""

import pytest
import torch

from explainer.audit import content, patterns, regions
from explainer.audit.content import Seed, Window
from explainer.audit.growth import Gallery, closed, grow, template
from explainer.audit.interventions import Fill, filled, moved
from explainer.audit.search import Searchable, Template

GRID = (8, 10)
CELL = 4
SIZE = (GRID[0] * CELL, GRID[1] * CELL)
CARRIERS, IMAGES, STRANGERS = 12, 30, 40
STICKER = 2 * CELL  # pixels across


def noise(images: int, seed: int = 0) -> torch.Tensor:
    """Smooth random colours, as photographs have; rising with the image's brightness."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(images, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def sticker(seed: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, STICKER, STICKER, generator=generator)


def planted(places: list[tuple[int, int]], alpha: float = 1.0) -> Gallery:
    """Images of a class, of which the first have a sticker at a place each; every second is found
    on."""
    images, badge = noise(IMAGES), sticker()
    for image, (top, left) in zip(images, places, strict=False):
        window = image[:, top : top + STICKER, left : left + STICKER]
        window += alpha * (badge - window)
    return Gallery(images, noise(STRANGERS, seed=1), torch.arange(IMAGES) % 2 == 0, CELL)


def scattered() -> list[tuple[int, int]]:
    generator = torch.Generator().manual_seed(4)
    down, across = (
        torch.randint(size - STICKER + 1, (CARRIERS,), generator=generator) for size in SIZE
    )
    return list(zip(down.tolist(), across.tolist(), strict=True))


def seed_at(places: list[tuple[int, int]]) -> Seed:
    windows = tuple(Window(image, *places[image]) for image in (0, 2, 4))
    return Seed("alike windows", STICKER, windows, 0.5)


def truth(places: list[tuple[int, int]]) -> torch.Tensor:
    masks = torch.zeros(IMAGES, *SIZE, dtype=torch.bool)
    for mask, (top, left) in zip(masks, places, strict=False):
        mask[top : top + STICKER, left : left + STICKER] = True
    return masks


def overlap(got: torch.Tensor, want: torch.Tensor) -> float:
    both, either = (got & want).flatten(1).sum(1), (got | want).flatten(1).sum(1)
    return float((both / either)[:CARRIERS].mean())


def test_windows_lie_on_the_grid_and_hold_their_cell():
    cells = torch.arange(GRID[0] * GRID[1])
    for side in (1, 2, 3, 6):
        masks = regions.windows(regions.around(cells, side, GRID), side, GRID)
        assert (masks.flatten(1).sum(1) == side * side).all()
        assert masks.flatten(1)[cells, cells].all()


def test_the_background_is_all_but_the_middle():
    background = regions.background((14, 14))
    assert not background[4:10, 4:10].any()
    assert int(background.sum()) == 14**2 - 6**2


def test_cells_become_pixels_and_pixels_cells_again():
    masks = torch.rand(5, *GRID, generator=torch.Generator().manual_seed(0)) < 0.4
    for size in (SIZE, (96, 120), (64, 90)):
        assert (regions.to_cells(regions.to_pixels(masks, size), GRID) == masks).all()


def test_a_thin_frame_has_cells():
    frame = torch.ones(1, 96, 96, dtype=torch.bool)
    frame[:, 3:-3, 3:-3] = False
    cells = regions.to_cells(frame, (8, 8))[0]
    assert int(cells.sum()) == 64 - 36
    assert not cells[1:-1, 1:-1].any()


def test_patches_are_all_windows_centred_and_of_norm_one():
    images, side = noise(3), 5
    got = content.patches(images, side)
    assert got.values.shape == (3, (SIZE[0] - 4) * (SIZE[1] - 4), 3 * side * side)
    values, contrast = got.at([Window(1, 7, 20), Window(2, 0, 3)])
    for value, spread, (image, top, left) in zip(
        values, contrast, ((1, 7, 20), (2, 0, 3)), strict=True
    ):
        window = images[image, :, top : top + side, left : left + side]
        centred = (window - window.mean((1, 2), keepdim=True)).flatten()
        assert spread == pytest.approx(float(centred.square().mean().sqrt()), abs=1e-5)
        assert torch.allclose(value, centred / centred.norm(), atol=1e-4)


def test_what_several_images_hold_comes_first_with_its_places():
    places = scattered()
    gallery = planted(places)
    mine, theirs = (content.patches(images, STICKER) for images in (gallery.mine, gallery.theirs))
    windows = [Window(20, 3, 3), Window(3, *places[3]), Window(21, 9, 11)]
    best, *others = content.seeds("alike windows", windows, STICKER, mine, theirs)
    assert best.windows[0] == windows[1]
    assert best.score > 0.3 > max(seed.score for seed in others)
    assert len(best.windows) == CARRIERS
    assert {window.image: (window.top, window.left) for window in best.windows} == dict(
        enumerate(places)
    )


def test_flat_windows_are_no_seeds():
    def found(contrast: float) -> int:
        plain = torch.full((4, 3, *SIZE), 0.4)
        faint = plain.clone()
        badge = sticker()
        faint[:, :, :STICKER, :STICKER] += contrast * (badge - badge.mean()) / badge.std()
        mine, theirs = (content.patches(images, STICKER) for images in (faint, plain))
        by_window = content.seeds("saliency", [Window(0, 0, 0)], STICKER, mine, theirs)
        return len(by_window) * len(content.aligned("alike at one place", STICKER, faint, plain))

    assert found(0.024) == 0
    assert found(0.04) > 0


def test_what_few_images_hold_at_one_place_comes_first_with_all_of_them():
    place = (STICKER, 3 * CELL)
    gallery = planted([place] * 4)
    best, *others = content.aligned("alike at one place", STICKER, gallery.mine, gallery.theirs)
    assert {(window.top, window.left) for window in best.windows} == {place}
    assert sorted(window.image for window in best.windows) == [0, 1, 2, 3]
    assert best.score > max(seed.score for seed in others)
    window = [images[..., 8:16, 12:20] for images in (gallery.mine, gallery.theirs)]
    mine, theirs = (w - w.mean((2, 3), keepdim=True) for w in window)
    mine, theirs = (w.flatten(1) / w.flatten(1).norm(dim=1)[:, None] for w in (mine, theirs))
    first = best.windows[0].image
    want = sorted((mine @ mine[first]).tolist())[-3] - sorted((theirs @ mine[first]).tolist())[-2]
    assert best.score == pytest.approx(want, abs=1e-3)


def test_what_lies_at_many_places_is_hardly_alike_at_one():
    scores = [
        content.aligned("alike at one place", STICKER, found.mine, found.theirs)[0].score
        for found in (planted(scattered()), planted([(8, 12)] * CARRIERS))
    ]
    assert scores[0] < scores[1] - 0.3


def test_of_seeds_that_overlap_in_two_images_the_first_is_kept():
    one = Seed("a", 8, (Window(0, 0, 0), Window(1, 5, 5), Window(2, 9, 9)), 0.9)
    same = Seed("a", 8, (Window(3, 0, 0), Window(1, 8, 5), Window(2, 9, 3)), 0.8)
    elsewhere = Seed("a", 8, (Window(4, 0, 0), Window(1, 20, 5), Window(2, 9, 20)), 0.7)
    assert content.distinct([one, same, elsewhere], 3) == [one, elsewhere]
    assert content.distinct([one, same, elsewhere], 1) == [one]


def test_a_moving_sticker_grows_to_its_pixels_and_its_carriers():
    places = scattered()
    grown = grow(seed_at(places), planted(places))
    assert grown is not None
    assert not grown.is_fixed
    assert grown.likeness.carriers.tolist() == [i < CARRIERS for i in range(IMAGES)]
    assert overlap(grown.masks, truth(places)) > 0.75
    centres = torch.tensor(places)[:, :] + STICKER / 2
    assert (grown.places[:CARRIERS] * CELL - centres).abs().max() <= 1.5


def test_what_lies_at_one_place_grows_over_the_whole_image():
    gallery = planted([])
    frame = torch.zeros(*SIZE, dtype=torch.bool)
    frame[:2], frame[-2:], frame[:, :2], frame[:, -2:] = True, True, True, True
    gallery.mine[:CARRIERS, :, frame] = torch.tensor([0.9, 0.1, 0.3])[:, None]
    windows = tuple(Window(image, 0, 0) for image in (0, 2, 4))
    grown = grow(Seed("occlusion", STICKER, windows, 0.5), gallery)
    assert grown is not None
    assert grown.is_fixed
    assert grown.likeness.carriers.tolist() == [i < CARRIERS for i in range(IMAGES)]
    both, either = (grown.masks[0] & frame).sum(), (grown.masks[0] | frame).sum()
    assert both / either > 0.9


def test_what_is_plain_is_told_by_its_place_where_windows_lie_there():
    """Patches of the same plain colour lie anywhere in all other images."""
    gallery, colour = planted([]), torch.tensor([0.9, 0.1, 0.3])[:, None, None]
    generator = torch.Generator().manual_seed(0)
    for images, first in ((gallery.mine, CARRIERS), (gallery.theirs, 0)):
        for image in images[first:]:
            top, left = torch.randint(0, SIZE[0] - 12, (2,), generator=generator).tolist()
            image[:, top : top + 6, left : left + 6] = colour
    gallery.mine[:CARRIERS, :, -6:, -6:] = colour
    chosen = [i for i in range(CARRIERS) if gallery.discovery[i]]
    assert len(chosen) >= 4
    windows = tuple(Window(image, SIZE[0] - 4, SIZE[1] - 4) for image in chosen)
    grown = grow(Seed("alike at one place", 4, windows, 0.5), gallery)
    assert grown is not None
    assert grown.is_fixed
    assert grown.likeness.carriers.tolist() == [i < CARRIERS for i in range(IMAGES)]
    assert grown.likeness.gap >= 0.3
    few = grow(Seed("alike at one place", 4, windows[:3], 0.5), gallery)
    assert few is None or few.likeness.carriers.sum() != CARRIERS


def test_what_is_not_shared_does_not_grow():
    windows = tuple(Window(image, 6, 6) for image in (0, 2, 4))
    assert grow(Seed("saliency", STICKER, windows, 0.0), planted([])) is None


def test_a_template_is_where_most_members_are_alike_and_others_are_not():
    members, others = noise(16), noise(60, seed=3)
    members[:, :, 4:20, 8:24] = noise(1, seed=5)[0, :, 4:20, 8:24]
    members[12:, :, 4:20, 8:24] = 0.5  # a quarter are none
    members[:, :, 24:30, 8:24] = others[:, :, 24:30, 8:24] = 0.7  # alike in all images
    want = torch.zeros(*SIZE, dtype=torch.bool)
    want[4:20, 8:24] = True
    got = template(members, others)
    assert (got.mask & want).sum() / (got.mask | want).sum() > 0.8
    assert not got.mask[24:30, 8:24].any()
    assert torch.equal(got.pixels[:, 10, 12], members[0, :, 10, 12])


def test_the_letters_of_a_tag_belong_to_it_and_the_inside_of_a_frame_does_not():
    tag, frame = torch.zeros(2, *SIZE, dtype=torch.bool)
    tag[0:9, 0:20], tag[3:6, 4:16] = True, False
    frame[:2], frame[-2:], frame[:, :2], frame[:, -2:] = True, True, True, True
    want = torch.zeros(*SIZE, dtype=torch.bool)
    want[0:9, 0:20] = True
    assert torch.equal(closed(tag), want)
    assert torch.equal(closed(frame), frame)


def test_correlation_is_what_a_loop_over_places_computes():
    images, window = noise(2), noise(1, seed=1)[0, :, 5:15, 9:19]
    got = patterns.correlation(window[None], images)[:, 0]
    assert got.shape == (2, SIZE[0] - 9, SIZE[1] - 9)
    for image in range(2):
        for top, left in ((0, 0), (3, 20), (20, 28)):
            place = images[image, :, top : top + 10, left : left + 10]
            parts = [x - x.mean((1, 2), keepdim=True) for x in (place, window)]
            want = (parts[0] * parts[1]).sum() / (parts[0].norm() * parts[1].norm())
            assert got[image, top, left] == pytest.approx(float(want), abs=1e-3)


@pytest.mark.parametrize("size", [SIZE, (7, 9)])
def test_distances_are_what_a_loop_over_places_computes(size):
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    pixels = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[1:4, 2:6] = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]])
    got = Searchable.of(images).distances(Template(pixels, mask))
    assert got.shape == (3, size[0] - 2, size[1] - 3)
    held = mask[1:4, 2:6]
    for image in range(3):
        for top in range(size[0] - 2):
            for left in range(size[1] - 3):
                place = images[image, :, top : top + 3, left : left + 4]
                want = (place - pixels[:, 1:4, 2:6])[:, held].square().mean()
                assert got[image, top, left] == pytest.approx(float(want), abs=1e-5)


def test_a_half_transparent_mark_is_found_by_its_pattern():
    place = (SIZE[0] - STICKER, SIZE[1] - STICKER)
    gallery = planted([place] * CARRIERS, alpha=0.6)
    gallery.mine[:CARRIERS] *= torch.linspace(0.4, 1.0, CARRIERS)[:, None, None, None]
    ((origin, grown),) = patterns.patterns([seed_at([place] * CARRIERS)], gallery)
    assert origin == "alike windows"
    assert grown.is_fixed
    assert grown.likeness.carriers.tolist() == [i < CARRIERS for i in range(IMAGES)]
    assert overlap(grown.masks, truth([place] * CARRIERS)) > 0.75


def random_pixels(images: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(images, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("ended", "is_shared"), [(2, True), (3, False)])
def test_cells_off_the_images_of_most_carriers_are_not_shared(ended, is_shared):
    images, badge = random_pixels(6), random_pixels(1, seed=1)[0, :, : 3 * CELL, : 3 * CELL]
    # Of the last carriers the badge's last column of cells lies off the image.
    lefts = [2, 3, 4, 5, 3, 2][: 6 - ended] + [GRID[1] - 2] * ended
    corners = torch.tensor([[CELL * (2 + i % 2), CELL * left] for i, left in enumerate(lefts)])
    for image, (top, left) in zip(images, corners.tolist(), strict=True):
        inside = image[:, top : top + 3 * CELL, left : left + 3 * CELL]
        inside[:] = badge[..., : inside.shape[-1]]
    shared = patterns.shared_cells(images, corners, cells=2, cell=CELL)
    want = torch.zeros(6, 6, dtype=torch.bool)
    want[2:5, 2 : 5 if is_shared else 4] = True
    assert (shared == want).all()


def test_reduced_images_are_small_whatever_the_grid():
    for grid, cell in (((8, 8), 4), ((14, 14), 4), ((24, 24), 2), ((37, 37), 2), ((64, 48), 1)):
        assert content.pixels_of_a_cell(grid) == cell
        crops = torch.zeros(1, 3, 8 * grid[0], 8 * grid[1], dtype=torch.uint8)
        for finer in (1, 2):
            reduced = content.reduced(crops, grid, finer * cell)
            assert reduced.shape[-2:] == (finer * cell * grid[0], finer * cell * grid[1])


def test_edits_change_nothing_outside_of_their_masks():
    crops = (random_pixels(4) * 255).to(torch.uint8)
    masks = torch.rand(4, *SIZE, generator=torch.Generator().manual_seed(1)) < 0.3
    others = 255 - crops
    for fill in Fill:
        got = filled(crops, masks, fill, others)
        assert (got == crops)[~masks[:, None].expand_as(crops)].all()
    assert (filled(crops, masks, Fill.OTHER_CLASS, others) == others)[
        masks[:, None].expand_as(crops)
    ].all()


def test_what_surrounds_a_hole_is_extended_into_it():
    down = torch.linspace(40, 200, SIZE[0])[:, None].expand(SIZE)
    crops = down.expand(1, 3, -1, -1).to(torch.uint8)
    masks = torch.zeros(1, *SIZE, dtype=torch.bool)
    masks[:, 10:20, 12:24] = True
    got = filled(crops, masks, Fill.SURROUND, crops)
    assert (got.int() - crops.int()).abs().max() <= 25
    frame = ~masks
    assert filled(crops, frame, Fill.SURROUND, crops)[0, :, 0, 0].float().mean() == pytest.approx(
        float(crops[0, 0, 10].float().mean()), abs=25
    )


def test_a_moved_mask_is_mirrored_where_that_leaves_its_place_and_else_shifted():
    masks = regions.to_pixels(
        regions.windows(torch.tensor([[0, 0], [2, 3], [3, 4]]), 2, GRID), SIZE
    )
    away = moved(masks, torch.Generator().manual_seed(0))
    assert (away.flatten(1).sum(1) == masks.flatten(1).sum(1)).all()
    assert not (away & masks).any()
    for mask, there in zip(masks[:2], away[:2], strict=True):
        assert any(there.equal(mask.flip(axes)) for axes in ((0,), (1,), (0, 1)))
    assert masks[2].equal(masks[2].flip((0, 1)))  # the middle has no mirror image elsewhere
