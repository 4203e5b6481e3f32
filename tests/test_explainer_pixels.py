"""Pixels without timm: decoded as Pillow decodes, resized to within two levels, cut, summed up."""

import hashlib
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from explainer.pixels import centred, resized, rgb_pixels, statistics

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def noise(height, width, kind="noise", seed=0):
    """Noise, or black and white alone, where filters overshoot most."""
    generator = np.random.default_rng([seed, height, width])
    if kind == "noise":
        return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return generator.integers(0, 2, (height, width, 3), dtype=np.uint8) * np.uint8(255)


def smooth(height, width):
    """A picture that JPEG keeps."""
    coarse = Image.fromarray(noise(max(2, height // 8), max(2, width // 8)))
    return np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))


def jpeg(pixels, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def both(data):
    """A file's pixels by `rgb_pixels` and by Pillow alone."""
    with Image.open(io.BytesIO(data)) as image:
        got = rgb_pixels(image, data)
    with Image.open(io.BytesIO(data)) as image:
        return got, np.asarray(image.convert("RGB"))


# simplejpeg's pixels have a fourth channel of padding, Pillow's have not.
BY_SIMPLEJPEG, BY_PILLOW = 4, 3


def assert_decoded(data, decoder):
    got, want = both(data)
    assert got.shape == (*want.shape[:2], decoder)
    assert np.array_equal(got[..., :3], want)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("size", [(1, 1), (7, 300), (93, 127), (160, 64)])
def test_a_jpeg_is_decoded_bit_for_bit_as_pillow_does(size, subsampling, progressive):
    for quality in (10, 75, 100):
        options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
        assert_decoded(jpeg(smooth(*size), **options), BY_SIMPLEJPEG)
    assert_decoded(jpeg(noise(*size), "L", progressive=progressive), BY_SIMPLEJPEG)


@pytest.mark.parametrize("subsampling", ["440", "411"])
def test_rare_subsamplings(subsampling):
    data = simplejpeg.encode_jpeg(smooth(93, 127), 85, "RGB", subsampling)
    assert_decoded(data, BY_SIMPLEJPEG)


def test_a_progressive_jpeg_of_which_scans_are_missing():
    data = jpeg(smooth(93, 127), progressive=True, quality=80)
    starts = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    assert len(starts) >= 6
    for start in starts[1:]:
        assert_decoded(data[:start] + b"\xff\xd9", BY_SIMPLEJPEG)


def test_colours_that_are_stored_as_they_are():
    stored_as_rgb = jpeg(smooth(93, 127), keep_rgb=True)
    assert_decoded(stored_as_rgb, BY_SIMPLEJPEG)
    got, _ = both(stored_as_rgb)
    assert np.abs(got[..., :3].astype(int) - smooth(93, 127)).mean() < 20
    marked = jpeg(smooth(93, 127), subsampling="4:4:4")
    for transform in range(3):  # Adobe's marker instead of JFIF's says how colours are stored
        adobe = b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(4) + bytes([transform])
        got, want = both(marked[:2] + adobe + marked[20:])
        assert np.array_equal(got[..., :3], want)


@pytest.mark.parametrize("mode", ["CMYK", "YCCK"])
def test_four_inks_are_left_to_pillow(mode):
    data = jpeg(smooth(93, 127), "CMYK")
    if mode == "YCCK":
        at = data.index(b"Adobe") + 11
        data = data[:at] + b"\x02" + data[at + 1 :]
    assert_decoded(data, BY_PILLOW)


def test_the_first_of_several_frames():
    frames = [Image.fromarray(noise(93, 127, seed=seed)) for seed in (1, 2)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "MPO", save_all=True, append_images=frames[1:])
    with Image.open(buffer) as image:
        assert image.format == "MPO"
    assert_decoded(buffer.getvalue(), BY_SIMPLEJPEG)


def test_what_follows_the_image_is_ignored():
    data = jpeg(smooth(93, 127))
    assert_decoded(data + b"junk" * 99, BY_SIMPLEJPEG)
    assert_decoded(data + jpeg(noise(30, 20)), BY_SIMPLEJPEG)


def test_a_jpeg_of_which_libjpeg_warns_is_left_to_pillow():
    data = bytearray(jpeg(smooth(93, 127)))
    middle = (data.index(b"\xff\xda") + len(data)) // 2
    data[middle : middle + 2] = b"\xff\xd3"  # a restart marker where none is expected
    assert_decoded(bytes(data), BY_PILLOW)


def test_a_size_that_the_header_does_not_tell_is_left_to_pillow():
    data, other = jpeg(smooth(93, 127)), jpeg(smooth(64, 64))
    with Image.open(io.BytesIO(data)) as image:
        assert rgb_pixels(image, other).shape == (93, 127, BY_PILLOW)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("kind", ["noise", "black and white"])
def test_resizing_is_pillows_to_within_two_levels(kind, interpolation):
    generator = np.random.default_rng(0)
    mean = []
    for _ in range(150):
        height, width = (int(side) for side in np.exp(generator.uniform(0, 6.3, 2)))
        scale = np.exp(generator.uniform(-2.5, 0.7, 2))
        new_height, new_width = max(1, int(height * scale[0])), max(1, int(width * scale[1]))
        pixels = noise(height, width, kind)
        got = resized(pixels, (new_height, new_width), interpolation)
        want = Image.fromarray(pixels).resize((new_width, new_height), FILTERS[interpolation])
        difference = np.abs(got.astype(int) - np.asarray(want))
        assert difference.max() <= 2, (height, width, new_height, new_width)
        mean.append(difference.mean())
    assert np.mean(mean) < 0.01


# Pillow takes the vertical pass first where the height shrinks by more than twice what the width
# shrinks by, and rounds to 8 bits in between: 100 x 100 to 60 x 80 is just not such a case.
@pytest.mark.parametrize("size", [(60, 80), (59, 80), (60, 81), (99, 100), (101, 103), (99, 130)])
def test_the_passes_of_resizing_come_in_pillows_order(size):
    pixels = noise(100, 100, "black and white")
    got = resized(pixels, size, "bicubic").astype(int)
    image, cubic = Image.fromarray(pixels), Image.Resampling.BICUBIC
    assert np.abs(got - np.asarray(image.resize(size[::-1], cubic))).max() <= 2
    orders = [
        np.asarray(image.resize(first, cubic).resize(size[::-1], cubic)).astype(int)
        for first in ((size[1], 100), (100, size[0]))
    ]
    assert np.abs(orders[0] - orders[1]).max() > 9 or 100 in size


def test_padding_channels_change_nothing_and_no_size_no_pixels():
    pixels = noise(93, 127)
    padded = np.concatenate([pixels, noise(93, 127, seed=1)[..., :1]], axis=2)
    small = resized(padded, (40, 60), "bicubic")
    assert np.array_equal(small[..., :3], resized(pixels, (40, 60), "bicubic"))
    assert resized(pixels, (93, 127), "bicubic") is pixels
    with pytest.raises(ValueError, match="height and width must be > 0"):
        resized(pixels, (0, 60), "bicubic")


def test_too_little_memory_is_no_property_of_an_image():
    with pytest.raises(MemoryError, match="allocate"):
        resized(noise(3, 3), (10**8, 10**8), "bicubic")


PRINT_DIGEST = """
import hashlib, sys
import numpy as np, torch
from explainer.pixels import resized
digest = hashlib.sha256(torch.backends.cpu.get_cpu_capability().encode())
generator = np.random.default_rng(0)
for channels in (3, 4):
    pixels = generator.integers(0, 256, (300, 401, channels), dtype=np.uint8)
    for mode in ("bicubic", "bilinear"):
        digest.update(np.ascontiguousarray(resized(pixels, (124, 170), mode)))
print(digest.hexdigest(), [name for name in ("timm", "torchvision") if name in sys.modules])
"""


def test_a_processor_without_avx2_resizes_to_the_same_bits_and_nothing_waits_for_timm():
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, "-c", PRINT_DIGEST]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    digest = hashlib.sha256(b"DEFAULT")
    generator = np.random.default_rng(0)
    for channels in (3, 4):
        pixels = generator.integers(0, 256, (300, 401, channels), dtype=np.uint8)
        for mode in ("bicubic", "bilinear"):
            digest.update(np.ascontiguousarray(resized(pixels, (124, 170), mode)))
    assert printed.stdout.split(maxsplit=1) == [digest.hexdigest(), "[]\n"]


@pytest.mark.parametrize("size", [(4, 4), (5, 4), (4, 5), (9, 6), (6, 9), (12, 12)])
def test_the_middle_is_cut_out_or_padded(size):
    pixels = noise(6, 9)
    crop = centred(pixels, size, (1, 2, 3))
    assert crop.shape == (3, *size)
    assert crop.flags.c_contiguous
    # torchvision's rule for each side alone: padded half and half, the odd pixel at the end; cut
    # with the start rounded half to even.
    starts = [
        -((new - old) // 2) if new > old else round((old - new) / 2)
        for old, new in zip((6, 9), size, strict=True)
    ]
    for row in range(size[0]):
        for column in range(size[1]):
            y, x = row + starts[0], column + starts[1]
            inside = 0 <= y < 6 and 0 <= x < 9
            want = pixels[y, x].tolist() if inside else [1, 2, 3]
            assert crop[:, row, column].tolist() == want


def test_statistics_of_a_large_crop_keep_their_digits():
    crop = np.ascontiguousarray(smooth(700, 900).transpose(2, 0, 1))
    grey = np.tensordot([0.299, 0.587, 0.114], crop.astype(float), axes=1) / 255
    inner = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    got = statistics(crop)
    assert got.mean == pytest.approx(crop.mean((1, 2)) / 255, rel=1e-6)
    assert got.contrast == pytest.approx(grey.std(), rel=1e-6)
    assert got.sharpness == pytest.approx((inner - 4 * grey[1:-1, 1:-1]).var(), rel=1e-5)
