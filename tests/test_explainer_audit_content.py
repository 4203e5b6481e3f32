"""Regions of the token grid, content that is found again, and edits of images that are exact."""

import numpy as np
import pytest
import torch

from explainer.audit import content, regions
from explainer.audit.content import PIXELS_OF_A_CELL
from explainer.audit.interventions import Fill, filled, moved

GRID = (6, 8)
SIZE = (GRID[0] * PIXELS_OF_A_CELL, GRID[1] * PIXELS_OF_A_CELL)


def noise(images: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(images, 3, *SIZE, generator=generator)


def test_windows_lie_on_the_grid_and_hold_their_cell():
    cells = torch.arange(GRID[0] * GRID[1])
    for side in (1, 2, 3, 6):
        masks = regions.windows(regions.around(cells, side, GRID), side, GRID)
        assert (masks.flatten(1).sum(1) == side * side).all()
        assert masks.flatten(1)[cells, cells].all()


def test_fixed_regions_are_the_border_and_nothing_of_the_middle():
    fixed = regions.fixed((14, 14))
    assert [int(mask.sum()) for mask in fixed.values()] == [9] * 4 + [28] * 4 + [14**2 - 10**2]
    assert torch.stack([*fixed.values()]).any(0).sum() == 14**2 - 8 * 8 - (10**2 - 8 * 8) + 4
    assert (regions.border((14, 14)) == torch.stack([*fixed.values()]).any(0)).all()
    assert not regions.background((14, 14))[4:10, 4:10].any()
    assert int(regions.background((14, 14)).sum()) == 14**2 - 6**2


def test_cells_become_pixels_and_pixels_cells_again():
    masks = torch.rand(5, *GRID, generator=torch.Generator().manual_seed(0)) < 0.4
    for size in (SIZE, (96, 128), (45, 60)):
        assert (regions.to_cells(regions.to_pixels(masks, size), GRID) == masks).all()


def test_correlation_is_what_a_loop_over_places_computes():
    images, template = noise(2), noise(1, seed=1)[0, :, 5:15, 9:19]
    got = content.correlation(template[None], images)[:, 0]
    assert got.shape == (2, SIZE[0] - 9, SIZE[1] - 9)
    for image in range(2):
        for top, left in ((0, 0), (3, 20), (38, 54)):
            place = images[image, :, top : top + 10, left : left + 10]
            parts = [x - x.mean((1, 2), keepdim=True) for x in (place, template)]
            want = (parts[0] * parts[1]).sum() / (parts[0].norm() * parts[1].norm())
            assert got[image, top, left] == pytest.approx(float(want), abs=1e-4)


def test_a_template_is_found_where_it_lies_whatever_the_light():
    images, sticker = noise(40), noise(1, seed=1)[0, :, :16, :16]
    random = np.random.default_rng(0)
    places = [(int(random.integers(32)), int(random.integers(48))) for _ in range(20)]
    for image, (top, left) in zip(images, places, strict=False):
        image[:, top : top + 16, left : left + 16] = 0.5 * sticker + 0.3
    (found,) = content.find(sticker[None], images)
    assert found.corners[:20].tolist() == [list(place) for place in places]
    assert found.similarity[:20].min() > 0.99
    assert found.similarity[20:].max() < 0.5


def test_flat_content_is_no_template_and_is_like_nothing():
    flat = torch.full((3, *SIZE), 0.4)
    assert content.cut(flat, torch.tensor([0, 0]), 2) is None
    template = content.cut(noise(1)[0], torch.tensor([3, 4]), 2)
    assert template is not None
    assert content.correlation(template[None], flat[None]).abs().max() < 1e-3


def test_what_carriers_share_grows_beyond_the_template_and_not_into_what_they_do_not():
    images, sticker = noise(9), noise(1, seed=1)[0, :, :24, :24]
    corners = torch.tensor([[8 * (i % 3), 8 * (i % 4) + 8] for i in range(9)])
    for image, (top, left) in zip(images, corners.tolist(), strict=True):
        image[:, top : top + 24, left : left + 24] = sticker
    shared = content.shared_cells(images, corners, cells=2, margin=2)
    want = torch.zeros(6, 6, dtype=torch.bool)
    want[2:5, 2:5] = True
    assert (shared == want).all()


@pytest.mark.parametrize(("ended", "is_shared"), [(2, True), (3, False)])
def test_cells_off_the_images_of_most_carriers_are_not_shared(ended, is_shared):
    images, sticker = noise(6), noise(1, seed=1)[0, :, :24, :24]
    # Of the last carriers the sticker's last column of cells lies off the image.
    lefts = [8, 16, 24, 32, 16, 8][: 6 - ended] + [48] * ended
    corners = torch.tensor([[8 * (i % 3), left] for i, left in enumerate(lefts)])
    for image, (top, left) in zip(images, corners.tolist(), strict=True):
        inside = image[:, top : top + 24, left : left + 24]
        inside[:] = sticker[..., : inside.shape[-1]]
    shared = content.shared_cells(images, corners, cells=2, margin=1)
    want = torch.zeros(4, 4, dtype=torch.bool)
    want[1:4, 1 : 4 if is_shared else 3] = True
    assert (shared == want).all()


def test_edits_change_nothing_outside_of_their_masks():
    crops = (noise(4) * 255).to(torch.uint8)
    masks = torch.rand(4, *SIZE, generator=torch.Generator().manual_seed(1)) < 0.3
    others = 255 - crops
    for fill in Fill:
        got = filled(crops, masks, fill, others)
        assert (got == crops)[~masks[:, None].expand_as(crops)].all()
    assert (filled(crops, masks, Fill.OTHER_CLASS, others) == others)[
        masks[:, None].expand_as(crops)
    ].all()


def test_a_moved_mask_keeps_its_size_and_leaves_its_place():
    masks = regions.to_pixels(
        regions.windows(torch.tensor([[0, 0], [2, 3], [4, 6]]), 2, GRID), SIZE
    )
    away = moved(masks, torch.Generator().manual_seed(0))
    assert (away.flatten(1).sum(1) == masks.flatten(1).sum(1)).all()
    assert not (away & masks).any()
