import io

import numpy as np
import pytest
from PIL import Image

from jobs.pictures import (
    CLASS_NAMES,
    PLANT_RATES,
    SIZE,
    STICKERED,
    WATERMARKED,
    Picture,
    Region,
    draw,
    jpeg,
)


def changed(first: Picture, second: Picture) -> Region:
    """The smallest rectangle that holds every pixel in which two pictures differ."""
    rows, columns = np.nonzero((first.pixels != second.pixels).any(axis=2))
    top, left = int(rows.min()), int(columns.min())
    return Region(top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left)


def inside(inner: Region, outer: Region) -> bool:
    return (
        outer.top <= inner.top
        and outer.left <= inner.left
        and inner.top + inner.height <= outer.top + outer.height
        and inner.left + inner.width <= outer.left + outer.width
    )


def test_class_names_are_eight_and_sorted() -> None:
    assert len(CLASS_NAMES) == 8
    assert list(CLASS_NAMES) == sorted(set(CLASS_NAMES))
    assert {WATERMARKED, STICKERED} <= set(CLASS_NAMES)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_a_class_and_a_seed_give_the_same_bytes(name: str) -> None:
    first, second = draw(name, 7), draw(name, 7)
    assert first.pixels.shape == (SIZE, SIZE, 3)
    assert first.pixels.dtype == np.uint8
    assert first.pixels.tobytes() == second.pixels.tobytes()
    assert jpeg(first) == jpeg(second)
    assert first.pixels.tobytes() != draw(name, 8).pixels.tobytes()


def test_the_same_seed_gives_each_class_another_scene() -> None:
    corners = {draw(name, 3, planted=False).pixels[:8, :8].tobytes() for name in CLASS_NAMES}
    assert len(corners) == len(CLASS_NAMES)


@pytest.mark.parametrize("name", [WATERMARKED, STICKERED])
def test_without_its_plant_a_picture_differs_only_inside_the_plant(name: str) -> None:
    for seed in range(12):
        planted, bare = draw(name, seed, planted=True), draw(name, seed, planted=False)
        assert planted.plant is not None
        assert bare.plant is None
        assert inside(planted.plant, Region(0, 0, SIZE, SIZE))
        assert inside(changed(planted, bare), planted.plant)


@pytest.mark.parametrize("name", [WATERMARKED, STICKERED])
def test_the_own_rate_chooses_between_the_planted_and_the_bare_picture(name: str) -> None:
    for seed in range(12):
        own = draw(name, seed)
        forced = draw(name, seed, planted=own.plant is not None)
        assert own.plant == forced.plant
        assert own.pixels.tobytes() == forced.pixels.tobytes()


@pytest.mark.parametrize("name", [name for name in CLASS_NAMES if name not in PLANT_RATES])
def test_clean_classes_never_carry_a_plant(name: str) -> None:
    assert all(draw(name, seed).plant is None for seed in range(20))


def test_the_watermark_keeps_its_place_and_the_sticker_moves() -> None:
    stamps = {draw(WATERMARKED, seed, planted=True).plant for seed in range(20)}
    badges = [draw(STICKERED, seed, planted=True).plant for seed in range(20)]
    assert len(stamps) == 1
    assert len(set(badges)) > 15
    assert len({(badge.height, badge.width) for badge in badges if badge}) == 1


@pytest.mark.parametrize("name", [WATERMARKED, STICKERED])
def test_plants_come_at_the_stated_rate(name: str) -> None:
    share = np.mean([draw(name, seed).plant is not None for seed in range(100)])
    assert share == pytest.approx(PLANT_RATES[name], abs=0.15)  # three standard deviations


def test_a_plant_on_a_clean_class_is_refused() -> None:
    with pytest.raises(ValueError, match="only pentagon and flower can carry a plant") as refusal:
        draw("heart", 0, planted=True)
    assert "got planted=True for heart; leave planted out" in str(refusal.value)
    assert draw("heart", 0, planted=False).plant is None


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"class_name is one of arrow, .*; got 'circle'"):
        draw("circle", 0)


def test_jpeg_stays_close_to_the_drawn_pixels() -> None:
    picture = draw(WATERMARKED, 2)
    decoded = np.asarray(Image.open(io.BytesIO(jpeg(picture))))
    assert decoded.shape == picture.pixels.shape
    assert np.abs(decoded.astype(float) - picture.pixels).mean() < 4
