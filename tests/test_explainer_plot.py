"""Maps over images: where a map lies, what it hides, and what was never seen."""

import io

import numpy as np
import pytest
from PIL import Image

from explainer.plot import UNSEEN, colours, overlay, spread
from explainer.preprocess import Preprocessing, decode, decode_whole

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def preprocessing(mode: str = "center", crop_pct: float = 1.0, side: int = 32) -> Preprocessing:
    half = (0.5, 0.5, 0.5)
    return Preprocessing((side, side), half, half, crop_pct, mode, "bicubic")


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_what_is_seen_is_what_the_crop_shows():
    exact = preprocessing(side=40)  # 40 x 60 is not resized: the crop is a window
    left, top, right, bottom = exact.seen(40, 60)
    assert (left, top, right, bottom) == (10, 0, 50, 40)
    crop = decode(png(NOISE), exact).crop
    assert (crop.transpose(1, 2, 0) == decode_whole(png(NOISE))[0:40, 10:50]).all()


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
@pytest.mark.parametrize("size", [(40, 60), (90, 50), (20, 20)])
def test_a_box_of_what_is_seen_covers_the_crop_and_a_smaller_one_does_not(mode, crop_pct, size):
    how = preprocessing(mode, crop_pct)
    left, top, right, bottom = how.seen(*size)
    assert how.covered([(left, top, right, bottom)], *size).all()
    step = (right - left) / 32
    assert not how.covered([(left + step, top, right, bottom)], *size)[:, 0].any()
    assert not how.covered([(left, top, right, bottom - step)], *size)[-1].any()


def test_a_squashed_image_is_seen_whole_and_a_padded_one_beyond_its_borders():
    assert preprocessing("squash").seen(40, 60) == (0, 0, 60, 40)
    left, top, right, bottom = preprocessing("border").seen(40, 60)
    assert (left, right) == (0, 60)
    assert top < 0
    assert bottom > 40


def test_a_map_is_spread_as_a_slow_loop_spreads_it():
    saliency = np.random.default_rng(1).random((3, 5))
    seen = (10.0, -4.0, 50.0, 38.0)
    left, top, right, bottom = seen
    slow = np.zeros((40, 60))
    for y in range(40):
        for x in range(60):
            row = min(max((y + 0.5 - top) / (bottom - top) * 3 - 0.5, 0), 2)
            column = min(max((x + 0.5 - left) / (right - left) * 5 - 0.5, 0), 4)
            up, west = min(int(row), 1), min(int(column), 3)
            for i, j in ((up, west), (up, west + 1), (up + 1, west), (up + 1, west + 1)):
                slow[y, x] += (1 - abs(row - i)) * (1 - abs(column - j)) * saliency[i, j]
    assert spread(saliency, (40, 60), seen) == pytest.approx(slow)


def test_where_nothing_is_salient_the_image_shows_and_what_is_unseen_is_dark():
    shown = np.asarray(overlay(NOISE, np.zeros((4, 4)), (10.0, 0.0, 50.0, 40.0))).astype(int)
    assert (shown[:, 10:50] == NOISE[:, 10:50]).all()
    assert np.abs(shown[:, :10] - UNSEEN * NOISE[:, :10]).max() <= 0.5
    assert np.abs(shown[:, 50:] - UNSEEN * NOISE[:, 50:]).max() <= 0.5


def test_the_peak_is_coloured_in_its_own_cell():
    saliency = np.zeros((4, 4))
    saliency[1, 2] = 1
    difference = np.abs(
        np.asarray(overlay(NOISE, saliency, (10.0, 0.0, 50.0, 40.0))).astype(int) - NOISE
    )
    changed = difference[:, 10:50].sum(-1)
    assert changed[10:20, 20:30].min() > 0
    far = np.ones((40, 40), bool)
    far[5:25, 15:35] = False
    assert not changed[far].any()


def test_colours_grow_lighter_and_differences_are_darkest_in_the_middle():
    luminance = colours(np.linspace(0, 1, 11)) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    both = colours(np.linspace(0, 1, 11), "berlin") @ [0.2126, 0.7152, 0.0722]
    assert both.argmin() == 5
    assert colours(np.zeros((2, 3))).shape == (2, 3, 3)


@pytest.mark.parametrize("data", [b"", b"no image", png(NOISE)[:200]])
def test_a_file_that_cannot_be_shown_says_why_in_a_line(data):
    with pytest.raises(ValueError, match=r"^\w+: .+$"):
        decode_whole(data)
