"""Maps over images: where a map lies, what it hides, and what was never seen."""

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from explainer import plot
from explainer.lettering import fitted, font, legible
from explainer.plot import (
    CELL,
    LETTERS,
    MARGIN,
    UNSEEN,
    beside,
    class_heatmaps,
    colours,
    difference,
    figure,
    heatmap,
    overlay,
    spread,
)
from explainer.preprocess import Preprocessing, decode, decode_whole

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


# What matplotlib or Pillow would obey, lack or stumble over.
HOSTILE = [
    "$x^",
    "$\\frac{1}",
    "日本\u202egpj",
    "a\nb\x1b[2J",
    "",
    "<b>&amp;",
    "x" * 5000,
    "\U0001f600",
]


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


def test_an_overlay_is_the_same_however_many_rows_are_made_at_once(monkeypatch):
    saliency, seen = np.random.default_rng(2).random((3, 5)), (10.0, -4.0, 50.0, 38.0)
    whole = np.asarray(overlay(NOISE, saliency, seen))
    for pixels in (1, 60, 7 * 60, 39 * 60):
        monkeypatch.setattr(plot, "PIXELS_AT_ONCE", pixels)
        assert (np.asarray(overlay(NOISE, saliency, seen)) == whole).all()


@pytest.mark.parametrize("size", [(40, 60), (400, 330), (900, 31), (40, 90), (2, 700)])
def test_a_picture_has_the_image_and_its_overlay_in_whole_pixels(size):
    height, width = size
    pixels = np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8)
    saliency, seen = np.random.default_rng(4).random((2, 3)), (0.0, 0.0, width / 2, float(height))
    picture = np.asarray(beside(pixels, saliency, seen, ["one", "two"], ("-1", "2")))
    factor = max(1, -(-320 // max(size)))
    large = pixels.repeat(factor, 0).repeat(factor, 1)
    high, wide = large.shape[:2]
    covered = overlay(large, saliency, (0.0, 0.0, factor * width / 2, float(factor * height)))
    left, top = (MARGIN, high + MARGIN) if width > 2 * height else (2 * MARGIN + wide, 0)
    foot = picture.shape[0] - MARGIN
    start = foot - high - top
    assert (picture[start : start + high, MARGIN : MARGIN + wide] == large).all()
    assert (picture[foot - high : foot, left : left + wide] == np.asarray(covered)).all()
    bar = picture[foot - high : foot, left + wide + MARGIN]
    assert (bar[0] == colours(np.ones(1))[0]).all()
    assert (bar[-1] == colours(np.zeros(1))[0]).all()
    assert (picture[: start - 1].min(-1) < 128).any()  # the caption


@pytest.mark.parametrize("text", HOSTILE)
def test_a_caption_whatever_it_says_stays_in_its_line(text):
    plain = np.asarray(beside(NOISE, np.ones((2, 2)), (0.0, 0.0, 60.0, 40.0), ["a", "b"]))
    told = np.asarray(beside(NOISE, np.ones((2, 2)), (0.0, 0.0, 60.0, 40.0), [text, "b"]))
    assert told.shape == plain.shape
    first_line = MARGIN + 3 * LETTERS // 2
    assert (told[first_line + 1 :] == plain[first_line + 1 :]).all()


def test_what_the_font_lacks_or_obeys_is_written_as_python_would():
    assert legible("naïve Ωж עברית") == "naïve Ωж עברית"
    assert legible("日\u202e\n\x1b\U0001fae8") == r"\u65e5\u202e\n\x1b\U0001fae8"
    cut = fitted("word " * 100, LETTERS, 200)
    assert cut.endswith("…")
    assert 180 < font(LETTERS).getlength(cut) <= 200
    assert fitted("word", LETTERS, 200) == "word"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_heatmap_shows_each_cell_and_the_scale(text):
    mean = np.random.default_rng(5).random((3, 4))
    picture = np.asarray(heatmap(mean, text))
    top = picture.shape[0] - MARGIN - 3 * CELL
    middles = picture[top + CELL // 2 :: CELL, MARGIN + CELL // 2 :: CELL][:3, :4]
    assert (middles == colours(mean)).all()
    bar = picture[top : top + 3 * CELL, 2 * MARGIN + 4 * CELL]
    assert (bar == colours(np.linspace(1, 0, 3 * CELL))).all()


def drawn(of: Figure) -> np.ndarray:
    """The figure's pixels; a warning while it is drawn is an error."""
    file = io.BytesIO()
    of.savefig(file, format="png")
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("text", HOSTILE)
def test_a_figure_has_a_row_an_image_and_a_panel_a_map(text):
    saliency = np.random.default_rng(6).random((2, 3, 4, 4))
    images = [NOISE, NOISE[:, :20]]
    seen = [(10.0, 0.0, 50.0, 40.0), (0.0, 0.0, 20.0, 40.0)]
    made = figure(images, saliency, [[text] * 4, ["a", "b", "c", "d"]], seen)
    panels = made.axes[:8]
    assert len(made.axes) == 9  # and the scale
    shown = [axes.images[0].get_array() for axes in panels]
    assert (shown[0] == NOISE).all()
    assert (shown[4] == NOISE[:, :20]).all()
    assert (shown[7] == np.asarray(overlay(images[1], saliency[1, 2], seen[1]))).all()
    assert [axes.get_title() for axes in panels[4:]] == ["a", "b", "c", "d"]
    assert drawn(made).std() > 10


def test_of_crops_all_is_seen_and_numbers_that_differ_are_refused():
    saliency = np.ones((1, 1, 4, 4))
    (_, panel, _) = figure([NOISE], saliency).axes
    wanted = overlay(NOISE, saliency[0, 0], (0.0, 0.0, 60.0, 40.0))
    assert (panel.images[0].get_array() == np.asarray(wanted)).all()
    with pytest.raises(ValueError, match=r"must be as many; got 2, 1, 1 and 2$"):
        figure([NOISE, NOISE], saliency)
    with pytest.raises(ValueError, match=r"^titles must be 2 an image"):
        figure([NOISE], saliency, [["one"]])


def test_class_heatmaps_share_one_scale_and_a_difference_is_dark_where_there_is_none():
    first, second = np.full((3, 3), 0.5), np.full((3, 3), 0.5)
    second[0, 0] = 0.2
    made = class_heatmaps({"all (9)": first, "$incorrect (2)": second})
    assert [axes.images[0].get_clim() for axes in made.axes[:2]] == [(0, 1), (0, 1)]
    assert drawn(made).std() > 10
    change = difference(first, second, "a - b")
    (image,) = change.axes[0].images
    assert image.get_clim() == pytest.approx((-0.3, 0.3))
    assert image.get_array()[0, 0] == pytest.approx(0.3)
    assert image.get_array()[1, 1] == 0
    assert drawn(change).std() > 10
    drawn(difference(first, first))


def test_no_figure_touches_the_state_of_pyplot():
    code = (
        "import sys, numpy as np\n"
        "from explainer.plot import class_heatmaps, difference, figure\n"
        "assert 'matplotlib' not in sys.modules\n"
        "m = np.ones((2, 2))\n"
        "for made in (class_heatmaps({'a': m}), difference(m, m),\n"
        "             figure([np.zeros((8, 8, 3), np.uint8)], m[None, None])):\n"
        "    made.savefig('/dev/null', format='png')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True)
