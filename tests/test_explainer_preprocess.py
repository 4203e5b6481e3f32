"""Crops are timm's own, to the bit or to two levels, and no bytes whatever end a shard."""

import importlib
import io
import math
import re
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from timm.data import create_transform, resolve_data_config, resolve_model_data_config

import explainer
from explainer import decode, load_model
from explainer.models import PreprocessingOverrides
from explainer.preprocess import Preprocessing

MEAN, STD = (0.48, 0.45, 0.4), (0.27, 0.26, 0.29)
PLAIN = Preprocessing((48, 48), MEAN, STD, 0.875, "center", "bicubic")
SHAPES = [(123, 97), (60, 200), (48, 48), (1, 1), (3, 2)]  # width, height
SIGNATURES = [
    b"",
    b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    b"GIF89a",
    b"RIFF\x40\x00\x00\x00WEBPVP8 ",
    b"BM",
    b"II*\x00\x08\x00\x00\x00",
    b"MM\x00*",
    b"P6\n9 9\n255\n",
    b"\x00\x00\x01\x00\x01\x00",
    b"8BPS\x00\x01",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
]


def picture(width, height, mode="RGB"):
    """Noise over a slope, the same for the same arguments."""
    generator = np.random.default_rng(width * 1000 + height)
    slope = np.linspace(0, 180, width)[None, :, None]
    noise = generator.integers(0, 76, (height, width, 3))
    if mode == "I;16":
        return Image.fromarray(((slope + noise)[..., 0] * 256).astype(np.uint16))
    image = Image.fromarray((slope + noise).astype(np.uint8)).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def timm_tensor(data, preprocessing):
    """What timm's evaluation transform makes of a file, normalised."""
    own = vars(preprocessing) | {"input_size": (3, *preprocessing.input_size)}
    transform = create_transform(**resolve_data_config(pretrained_cfg=own))
    return transform(Image.open(io.BytesIO(data)).convert("RGB"))


def facts(decoded):
    """All that is told of a file, without the crop and the crop's statistics."""
    statistics = {"crop": None, "mean": None, "contrast": None, "sharpness": None}
    return replace(decoded, **statistics)


def assert_as_timm(data, preprocessing):
    """The exact crop is timm's, bit for bit; the other one is near it and tells the same.

    Returns the differences between the two, in levels.
    """
    exact = decode(data, replace(preprocessing, exact=True))
    assert exact.status == "ok", exact.error
    assert exact.crop.flags.c_contiguous
    crop = torch.from_numpy(exact.crop)
    assert crop.dtype == torch.uint8
    got = preprocessing.normalise(crop[None], torch.float32)[0]
    want = timm_tensor(data, preprocessing)
    assert got.dtype == want.dtype == torch.float32
    assert torch.equal(got, want)
    fast = decode(data, replace(preprocessing, exact=False))
    assert facts(fast) == facts(exact)
    assert fast.crop.flags.c_contiguous
    difference = np.abs(fast.crop.astype(int) - exact.crop)
    assert difference.max() <= 2
    assert fast.mean == pytest.approx(exact.mean, abs=2 / 255)
    return difference


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(48, 48), (32, 80), (80, 32)])
@pytest.mark.parametrize(
    ("crop_mode", "crop_pct"),
    [("center", 0.875), ("center", 1.0), ("squash", 0.9), ("squash", 1.0), ("border", 0.9)],
)
def test_a_crop_is_timms(crop_mode, crop_pct, size, interpolation):
    preprocessing = Preprocessing(size, MEAN, STD, crop_pct, crop_mode, interpolation)
    for width, height in SHAPES:
        assert_as_timm(encoded(picture(width, height)), preprocessing)


def test_torch_resizes_what_it_has_a_kernel_for_unless_timms_bits_are_asked_for():
    for interpolation in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"):
        preprocessing = replace(PLAIN, interpolation=interpolation)
        torchs = interpolation in ("bilinear", "bicubic")
        assert preprocessing.resizer == ("torch" if torchs else "timm")
        assert replace(preprocessing, exact=True).resizer == "timm"
        data = encoded(picture(400, 300), "JPEG")
        assert assert_as_timm(data, preprocessing).any() == torchs


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_any_image_is_resized_to_the_size_that_timm_resizes_it_to(crop_mode):
    generator = np.random.default_rng(0)
    for _ in range(200):
        width, height = (int(side) for side in np.exp(generator.uniform(0, 7, 2)))
        down, across = (int(side) for side in generator.integers(8, 300, 2))
        across = down if generator.random() < 0.5 else across
        crop_pct = float(generator.choice([0.8, 0.875, 0.9, 0.95, 1.0, 1.15]))
        own = Preprocessing((down, across), MEAN, STD, crop_pct, crop_mode, "nearest")
        timms = create_transform(
            (3, down, across), crop_pct=crop_pct, crop_mode=crop_mode, interpolation="nearest"
        )
        if min(own.resized(height, width)) > 0 and math.prod(own.resized(height, width)) < 10**7:
            resized = timms.transforms[0](Image.new("L", (width, height)))
            assert own.resized(height, width) == (resized.height, resized.width)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_any_image_is_cropped_where_timm_crops_it(crop_mode):
    generator = np.random.default_rng(0)
    for _ in range(60):
        width, height = (int(side) for side in np.exp(generator.uniform(1, 5, 2)))
        down, across = (int(side) for side in generator.integers(8, 60, 2))
        across = down if generator.random() < 0.5 else across
        crop_pct = float(generator.choice([0.8, 0.875, 1.0, 1.15, 2.0]))
        interpolation = str(generator.choice(["bilinear", "bicubic"]))
        own = Preprocessing((down, across), MEAN, STD, crop_pct, crop_mode, interpolation)
        if min(own.resized(height, width)) > 0:
            assert_as_timm(encoded(picture(width, height)), own)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_what_surrounds_a_small_image_is_of_timms_colour(crop_mode):
    preprocessing = replace(PLAIN, crop_mode=crop_mode, crop_pct=2.0)
    for exact in (True, False):
        crop = decode(encoded(picture(90, 90)), replace(preprocessing, exact=exact)).crop
        assert tuple(crop[:, 0, 0]) == tuple(crop[:, -1, -1]) == preprocessing.fill
    assert preprocessing.fill == ((122, 115, 102) if crop_mode == "border" else (0, 0, 0))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("mode", "file_format"),
    [(mode, "PNG") for mode in ("RGB", "L", "P", "RGBA", "LA", "I;16", "1")]
    + [(mode, "JPEG") for mode in ("RGB", "L", "CMYK")]
    + [("CMYK", "TIFF"), ("I;16", "TIFF"), ("RGB", "TIFF"), ("P", "GIF"), ("RGB", "BMP")]
    + [("RGB", "WEBP"), ("RGBA", "WEBP"), ("RGB", "AVIF"), ("RGBA", "AVIF")],
)
def test_every_mode_is_converted_as_timm_does(mode, file_format, crop_mode):
    preprocessing = Preprocessing((32, 40), MEAN, STD, 0.9, crop_mode, "bicubic")
    data = encoded(picture(61, 47, mode), file_format)
    assert_as_timm(data, preprocessing)
    assert decode(data, preprocessing).mode == mode


def red_of(data):
    """The mean of a crop's red channel, in levels."""
    assert_as_timm(data, PLAIN)
    return 255 * decode(data, PLAIN).mean[0]


def plain(*colour, mode="RGB"):
    return Image.new(mode, (64, 48), colour if len(colour) > 1 else colour[0])


def test_transparency_is_dropped_and_what_lies_under_it_is_seen():
    assert red_of(encoded(plain(200, 9, 9, 0, mode="RGBA"))) == pytest.approx(200)
    assert red_of(encoded(plain(200, 0, mode="LA"))) == pytest.approx(200)
    palette = Image.new("P", (64, 48), 1)
    palette.putpalette([0, 0, 0, 200, 9, 9])
    assert red_of(encoded(palette, transparency=1)) == pytest.approx(200)


def test_sixteen_bits_of_grey_are_clipped_and_those_of_colour_are_cut():
    assert red_of(encoded(plain(200, mode="I;16"))) == pytest.approx(200)
    assert red_of(encoded(plain(51_400, mode="I;16"))) == pytest.approx(255)
    assert red_of(png(64, 48, struct.pack(">HHH", 51_400, 0, 0))) == pytest.approx(200)


def test_one_bit_is_black_or_white():
    assert red_of(encoded(plain(1, mode="1"))) == pytest.approx(255)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_of_several_frames_or_pages_the_first_is_seen(file_format):
    frames = [plain(200, 9, 9), plain(9, 9, 9), plain(0, 99, 0)]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert red_of(data) == pytest.approx(200, abs=3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF", "MPO", "TIFF"])
def test_exif_orientation_turns_no_image_but_a_tiff_which_pillow_turns(file_format):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    plain, turned = (
        encoded(picture(61, 47), file_format, **options) for options in ({}, {"exif": exif})
    )
    decoded = decode(turned, PLAIN)
    assert_as_timm(turned, PLAIN)
    if file_format == "TIFF":
        assert (decoded.width, decoded.height, decoded.has_exif) == (47, 61, False)
    else:
        assert (decoded.width, decoded.height, decoded.has_exif) == (61, 47, True)
        assert np.array_equal(decoded.crop, decode(plain, PLAIN).crop)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colour_profiles_are_ignored(file_format):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    data = encoded(picture(61, 47), file_format, icc_profile=profile)
    assert "icc_profile" in Image.open(io.BytesIO(data)).info
    assert_as_timm(data, PLAIN)
    assert np.array_equal(
        decode(data, PLAIN).crop, decode(encoded(picture(61, 47), file_format), PLAIN).crop
    )


def test_a_progressive_jpeg():
    assert_as_timm(encoded(picture(61, 47), "JPEG", progressive=True), PLAIN)


def test_a_heic_file_is_none_that_pillow_reads():
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    assert failure(heic) == ("undecodable", "no image format that Pillow reads")


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("shape", [(4000, 60), (60, 4000)])
def test_very_elongated_images(crop_mode, shape):
    preprocessing = Preprocessing((48, 48), MEAN, STD, 0.9, crop_mode, "bilinear")
    assert_as_timm(encoded(picture(*shape)), preprocessing)


@pytest.mark.parametrize(
    ("name", "size"), [("vit_tiny_patch16_224", 224), ("vit_base_patch16_clip_224", 240)]
)
def test_photographs_under_a_models_own_configuration(photos, name, size):
    model = load_model(
        name,
        seed=0,
        model_args={
            "depth": 1,
            "embed_dim": 12,
            "num_heads": 1,
            "img_size": size,
            "num_classes": 2,
        },
    )
    files = [next(iter(sorted(folder.glob("*.jpg")))) for folder in sorted(photos.iterdir())]
    transform = create_transform(
        **resolve_model_data_config(model.vit) | {"input_size": (3, size, size)}
    )
    assert len(files) >= 4
    differences = []
    for file in files:
        differences.append(assert_as_timm(file.read_bytes(), model.preprocessing))
        exact = decode(file.read_bytes(), replace(model.preprocessing, exact=True))
        want = transform(Image.open(file).convert("RGB"))
        assert torch.equal(model.normalise(torch.from_numpy(exact.crop)[None])[0], want), file.name
    assert 0 < np.mean(differences) < 0.01


def test_load_model_gives_timms_bits_where_they_are_asked_for():
    arguments = {"depth": 1, "embed_dim": 12, "num_heads": 1, "num_classes": 2}
    exact, fast = (
        load_model("vit_tiny_patch16_224", seed=0, model_args=arguments, overrides=overrides)
        for overrides in (PreprocessingOverrides(exact=True), PreprocessingOverrides())
    )
    assert (exact.preprocessing.exact, fast.preprocessing.exact) == (True, False)
    assert replace(exact.preprocessing, exact=False) == fast.preprocessing


def test_what_the_file_tells_is_of_the_file_before_conversion():
    def told(data):
        decoded = decode(data, PLAIN)
        return decoded.width, decoded.height, decoded.format, decoded.mode, decoded.has_exif

    assert told(encoded(picture(61, 47, "P"))) == (61, 47, "PNG", "P", False)
    assert told(encoded(picture(61, 47, "CMYK"), "JPEG")) == (61, 47, "JPEG", "CMYK", False)
    assert told(encoded(picture(9, 300, "I;16"), "TIFF")) == (9, 300, "TIFF", "I;16", False)
    assert told(encoded(picture(9, 300, "LA"))) == (9, 300, "PNG", "LA", False)
    icon = bytearray(encoded(picture(61, 47), "ICO", sizes=[(61, 47)]))
    assert told(bytes(icon)) == (61, 47, "ICO", "RGB", False)
    icon[6:8] = 99, 99  # in its directory, of which Pillow warns; the image has its own size
    assert told(bytes(icon)) == (61, 47, "ICO", "RGB", False)
    with pytest.warns(UserWarning, match="not the expected size"):
        assert_as_timm(bytes(icon), PLAIN)


@pytest.mark.parametrize("quality", range(30, 100, 5))
def test_jpeg_quality_is_found_again(quality):
    colour = decode(encoded(picture(64, 48), "JPEG", quality=quality), PLAIN)
    grey = decode(encoded(picture(64, 48, "L"), "JPEG", quality=quality), PLAIN)
    assert abs(colour.jpeg_quality - quality) <= 1
    assert abs(grey.jpeg_quality - quality) <= 1


def test_jpeg_quality_of_several_frames_and_of_other_formats():
    two = [picture(64, 48), picture(64, 48)]
    frames = encoded(two[0], "MPO", save_all=True, append_images=two[1:], quality=70)
    decoded = decode(frames, PLAIN)
    assert decoded.format == "MPO"
    assert abs(decoded.jpeg_quality - 70) <= 1
    assert decode(encoded(two[0], "PNG"), PLAIN).jpeg_quality is None
    assert decode(encoded(two[0], "WEBP"), PLAIN).jpeg_quality is None


def test_a_jpeg_without_a_first_table_is_decoded():
    grey = encoded(picture(64, 48, "L"), "JPEG", quality=80)
    table, frame = grey.index(b"\xff\xdb") + 4, grey.index(b"\xff\xc0")
    renumbered = bytearray(grey)
    renumbered[table] |= 1  # the table's own number, then what the component refers to
    renumbered[frame + 12] = 1
    decoded = decode(bytes(renumbered), PLAIN)
    assert (decoded.status, decoded.jpeg_quality) == ("ok", None)
    assert np.array_equal(decoded.crop, decode(grey, PLAIN).crop)


def test_statistics_equal_a_slow_reimplementation():
    decoded = decode(
        encoded(picture(31, 23)), Preprocessing((9, 12), MEAN, STD, 1.0, "squash", "bicubic")
    )
    red, green, blue = (channel.tolist() for channel in decoded.crop)
    rows, columns = range(9), range(12)
    grey = [
        [(0.299 * red[r][c] + 0.587 * green[r][c] + 0.114 * blue[r][c]) / 255 for c in columns]
        for r in rows
    ]
    means = [sum(map(sum, channel)) / (9 * 12 * 255) for channel in (red, green, blue)]
    everything = [value for row in grey for value in row]
    centre = sum(everything) / len(everything)
    contrast = math.sqrt(sum((value - centre) ** 2 for value in everything) / len(everything))
    laplacian = [
        grey[r - 1][c] + grey[r + 1][c] + grey[r][c - 1] + grey[r][c + 1] - 4 * grey[r][c]
        for r in rows[1:-1]
        for c in columns[1:-1]
    ]
    middle = sum(laplacian) / len(laplacian)
    sharpness = sum((value - middle) ** 2 for value in laplacian) / len(laplacian)
    assert decoded.mean == pytest.approx(means, rel=1e-6)
    assert decoded.contrast == pytest.approx(contrast, rel=1e-5)
    assert decoded.sharpness == pytest.approx(sharpness, rel=1e-5)


def test_statistics_of_one_colour():
    decoded = decode(encoded(Image.new("RGB", (50, 50), (255, 51, 0))), PLAIN)
    assert decoded.mean == pytest.approx((1.0, 0.2, 0.0))
    assert decoded.contrast == pytest.approx(0.0, abs=1e-6)
    assert decoded.sharpness == pytest.approx(0.0, abs=1e-6)


def failure(data, preprocessing=PLAIN):
    """Status and message of bytes that do not decode: one line, no addresses, both ways alike."""
    decoded = decode(data, preprocessing)
    assert decoded == decode(data, replace(preprocessing, exact=True))
    assert decoded.status in ("truncated", "undecodable", "too_large")
    assert decoded.crop is None
    assert decoded.error
    assert "\n" not in decoded.error
    assert not re.search(r"0x[0-9a-f]{6}", decoded.error)
    return decoded.status, decoded.error


def test_files_that_are_no_images():
    assert failure(b"") == ("truncated", "the file is empty (0 bytes)")
    text = b"this is a text file that somebody named dog.jpg\n" * 9
    assert failure(text) == ("undecodable", "no image format that Pillow reads")
    program = SIGNATURES[-1] + b"%%EndComments\nshowpage\n"
    assert failure(program) == ("undecodable", "EPS is a program, and none is run")


def test_a_jpeg_cut_anywhere_has_a_status():
    data = encoded(picture(120, 90), "JPEG", quality=85)
    header = data.index(b"\xff\xda")
    cuts = {*range(1, len(data), 61), *range(1, header, 7), *range(len(data) - 12, len(data))}
    failures = {cut: failure(data[:cut]) for cut in cuts}
    for cut, (status, message) in failures.items():
        if cut > header + 20:
            assert status == "truncated", cut
            assert re.fullmatch(
                r"OSError: image file is truncated \(\d+ bytes not processed\)", message
            )
    assert decode(data, PLAIN).status == "ok"


def test_a_photograph_cut_in_the_middle_is_truncated(photos):
    data = next(photos.rglob("*.jpg")).read_bytes()
    assert failure(data[: len(data) // 2])[0] == "truncated"


def test_a_png_cut_anywhere_has_a_status():
    data = encoded(picture(120, 90))
    for cut in {*range(1, 200, 5), *range(200, len(data) - 16, 499)}:
        status, _ = failure(data[:cut])
        assert cut < 40 or status == "truncated", cut


def png(width, height, pixel):
    """A PNG of one colour, 16 bits a channel, which Pillow cannot write."""
    return png_of(width, height, 16, (b"\0" + pixel * width) * height)


def bomb(width, height):
    """A PNG of a few bytes whose header promises width x height pixels."""
    return png_of(width, height, 8, bytes(100))


def png_of(width, height, bits, rows):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_too_large():
    status, message = failure(bomb(50_000, 50_000))
    assert status == "too_large"
    assert "Image size (2500000000 pixels) exceeds limit of 178956970 pixels" in message


def test_what_resizing_would_blow_up_is_too_large():
    status, message = failure(encoded(Image.new("RGB", (100_000, 1))))
    assert status == "too_large"
    assert "100000 x 1 pixels would be resized to" in message
    squash = Preprocessing((48, 48), MEAN, STD, 0.9, "squash", "bicubic")
    assert decode(encoded(Image.new("RGB", (100_000, 1))), squash).status == "ok"


def test_what_resizing_would_leave_nothing_of_is_undecodable():
    border = Preprocessing((48, 48), MEAN, STD, 0.9, "border", "bicubic")
    status, message = failure(encoded(Image.new("RGB", (100_000, 1))), border)
    assert (status, message) == ("undecodable", "ValueError: height and width must be > 0")


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(SIGNATURES), st.binary(max_size=400))
def test_random_bytes_have_a_status(signature, content):
    assert_alike(signature + content)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_files_have_a_status(file_format, damage):
    data = bytearray(encoded(picture(40, 30), file_format))
    for position, value in damage:
        data[position % len(data)] = value
    assert_alike(bytes(data))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_damaged_jpeg_tells_the_same_whoever_decodes_it(mode, progressive):
    options = {"progressive": progressive, "quality": 80, "restart_marker_blocks": 3}
    whole = encoded(picture(40, 30, mode), "JPEG", **options)
    generator = np.random.default_rng(0)
    spoilt = set()
    for number in range(200):
        data, at = bytearray(whole), int(generator.integers(len(whole)))
        length = len(data) if number % 5 == 0 else int(generator.integers(4))
        data[at : at + length] = generator.bytes(int(generator.integers(4)))
        spoilt.add(assert_alike(bytes(data)))
    assert {"ok", "truncated", "undecodable"} <= spoilt


def assert_alike(data):
    """The status of a file, which is the same both ways, as are the message and the pixels."""
    decoded = decode(data, PLAIN)
    if decoded.status != "ok":
        return failure(data)[0]
    exact = decode(data, replace(PLAIN, exact=True))
    assert facts(decoded) == facts(exact)
    assert np.abs(decoded.crop.astype(int) - exact.crop).max() <= 2
    return decoded.status


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0II*\0\xff\xff\xff\xffjunk",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\xff\0",
    ],
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_corrupt_exif_does_not_spoil_an_image(file_format, exif):
    plain, spoilt = (
        decode(encoded(picture(64, 48), file_format, **options), PLAIN)
        for options in ({}, {"exif": exif})
    )
    assert (spoilt.status, spoilt.error, spoilt.has_exif) == ("ok", None, True)
    assert np.array_equal(spoilt.crop, plain.crop)


def test_what_pillow_only_warns_of_is_decoded():
    palette = encoded(picture(64, 48, "P"), transparency=bytes(range(256)))
    with pytest.warns(UserWarning, match="Transparency expressed in bytes"):
        Image.open(io.BytesIO(palette)).convert("RGB")
    assert decode(palette, PLAIN).status == "ok"


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("std", (0.5, 0.0, 0.5), "std must be three numbers above 0; got (0.5, 0.0, 0.5)"),
        ("crop_pct", 0.0, "crop_pct must be above 0; got 0.0"),
        ("crop_mode", "middle", "crop_mode must be one of center, squash, border; got 'middle'"),
        ("interpolation", "cubic", "lanczos; got 'cubic'"),
        ("interpolation", "random", "lanczos; got 'random'"),
    ],
)
def test_a_preprocessing_that_fits_no_image_is_refused(field, value, rule):
    with pytest.raises(ValueError, match=re.escape(rule)):
        Preprocessing(**vars(PLAIN) | {field: value})


def test_the_package_has_the_names_that_it_lists_and_no_others():
    assert sorted(explainer.__all__) == sorted(explainer._HOMES)
    for name in explainer.__all__:
        home = importlib.import_module(explainer._HOMES[name])
        assert getattr(explainer, name) is getattr(home, name)
        assert getattr(getattr(home, name), "__module__", home.__name__) in (
            home.__name__,
            "typing",
            "types",  # a union
        )
    with pytest.raises(AttributeError, match="module 'explainer' has no attribute 'explane'"):
        _ = explainer.explane


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize(("width", "height"), [(120, 90), (90, 120), (200, 60), (64, 64), (30, 50)])
def test_boxes_lie_in_the_crop_where_their_pixels_do(crop_mode, width, height):
    preprocessing = Preprocessing((48, 64), MEAN, STD, 0.8, crop_mode, "nearest")
    boxes = [
        (0.1 * width, 0.3 * height, 0.6 * width, 0.9 * height),
        (0.7 * width, 0.0, 1.0 * width, 0.2 * height),
    ]
    canvas = np.zeros((height, width, 3), np.uint8)
    for left, top, right, bottom in boxes:
        canvas[round(top) : round(bottom), round(left) : round(right)] = 255
    crop = decode(encoded(Image.fromarray(canvas)), preprocessing).crop
    covered = preprocessing.covered(boxes, height, width)
    assert covered.shape == (48, 64)
    assert 0.02 < covered.mean() < 0.9
    # Half a pixel of the image is rounded away at an edge, which may be a line of the crop.
    assert (covered != (crop[0] > 127)).mean() < 0.05
    assert not preprocessing.covered([], height, width).any()
