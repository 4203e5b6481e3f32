"""Damaged image files, as hypothesis draws them: real encodings with edits, and bare signatures."""

import io
import itertools
import struct
import warnings
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from benchmarks.fuzz_edits import NUMBERS, edited, edits

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What Pillow writes only as a program, a document, or by a plugin that others provide.
_NOT_WRITTEN = {"BUFR", "EPS", "GRIB", "HDF5", "PDF", "WMF"}
_MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "I;16",
    "I",
    "F",
)
_OF_ONE_BIT = ("tiff_ccitt", "group3", "group4")
_OF_ANY = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd")
_LARGEST = 20_000  # bytes; an ICNS holds the picture blown up to 1024 x 1024
_SIGNATURES = (
    *(b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", PNG_SIGNATURE + b"\x00\x00\x00\rIHDR", b"GIF89a"),
    *(b"RIFF\x40\x00\x00\x00WEBPVP8 ", b"RIFF\x40\x00\x00\x00WEBPVP8X\n\0\0\0", b"BM"),
    *(b"II*\x00\x08\x00\x00\x00", b"MM\x00*\x00\x00\x00\x08", b"II+\x00\x08\x00\x00\x00"),
    *(b"P1\n9 9\n", b"P4\n9 9\n", b"P6\n9 9\n255\n", b"Pf\n9 9\n-1\n", b"\x00\x00\x01\x00\x01\x00"),
    *(b"\x00\x00\x02\x00\x01\x00", b"8BPS\x00\x01\0\0\0\0\0\0", b"icns\0\0\1\0", b"DDS \x7c\0\0\0"),
    *(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x0a\x05\x01\x08", b"BLP2", b"BLP1"),
    *(b"SIMPLE  =                    T", b"\x59\xa6\x6a\x95", b"\x01\xda\x01\x01\0\3", b"FTEX"),
    *(b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51", b"\0\0\0\x1cftypavif", b"qoif"),
    *(b"/* XPM */\n", b"#define a_width 9\n#define a_height 9\n", b"LinM", b"DanM", b"P7 332\n"),
    *(b"\0\0\0\x18\0\0\0\1GIMP", b"\xb1\x68\xde\x3a", b"\0\0\x01\xb3", b"Image type: L\r\n"),
)


def image_files() -> st.SearchStrategy[bytes]:
    """Image files with up to six edits, two spliced, and random bytes behind a signature."""
    whole = st.deferred(lambda: st.sampled_from(corpus()))
    damaged = st.builds(edited, whole, edits())
    spliced = st.builds(lambda a, b, at: a[: at % len(a)] + b[at % len(b) :], whole, whole, _places)
    starts = st.builds(bytes.__add__, st.sampled_from(_SIGNATURES), st.binary(max_size=600))
    mended = st.builds(mended_png, st.deferred(lambda: st.sampled_from(_pngs())), edits())
    return st.one_of(damaged, mended, sized_jpegs(), spliced, starts)


_places = st.integers(0, 2**16)


def sized_jpegs() -> st.SearchStrategy[bytes]:
    """JPEG files whose frame header claims other sizes and components."""

    def claim(data: bytes, height: int, width: int) -> bytes:
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]

    side = st.sampled_from([number & 0xFFFF for number in NUMBERS])
    jpegs = st.deferred(lambda: st.sampled_from([d for d in corpus() if d[:3] == b"\xff\xd8\xff"]))
    return st.builds(claim, jpegs, side, side)


def mended_png(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    """A PNG with edits inside its chunks, whose checksums and lengths are right again."""
    chunks = list(_chunks(data))
    for number, change in enumerate(changes):
        at = change[1] % len(chunks)
        kind, content = chunks[at]
        chunks[at] = (
            kind,
            edited(content, [change]) if number % 3 else _recompressed(content, change),
        )
    return PNG_SIGNATURE + b"".join(_chunk(kind, content) for kind, content in chunks)


def _recompressed(content: bytes, change: tuple[str, int, bytes]) -> bytes:
    try:
        return zlib.compress(edited(zlib.decompress(content), [change]))
    except zlib.error:
        return edited(content, [change])


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


@cache
def corpus() -> list[bytes]:
    """Small pictures in every format and mode that Pillow writes, and in more of the usual ones."""
    Image.init()
    formats = sorted(set(Image.SAVE) - _NOT_WRITTEN)
    with warnings.catch_warnings(action="ignore"):  # of formats that Pillow is to drop
        plain = [_saved(mode, name) for name, mode in itertools.product(formats, _MODES)]
        found = [*plain, *(_saved(mode, name, **options) for name, mode, options in _VARIANTS)]
    return [data for data in found if data is not None and len(data) < _LARGEST]


@cache
def _pngs() -> list[bytes]:
    return [data for data in corpus() if data.startswith(PNG_SIGNATURE)]


_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
_MORE = {"save_all": True}
_VARIANTS: tuple[tuple[str, str, dict[str, object]], ...] = (
    *(("JPEG", mode, {"progressive": True}) for mode in ("L", "RGB", "CMYK")),
    *(("JPEG", "RGB", {"subsampling": number, "quality": 60}) for number in range(3)),
    ("JPEG", "RGB", {"restart_marker_blocks": 2, "exif": _EXIF}),
    ("JPEG", "RGB", {"icc_profile": bytes(200), "comment": b"text", "optimize": True}),
    *(("TIFF", "1", {"compression": name}) for name in _OF_ONE_BIT),
    *(("TIFF", mode, {"compression": name}) for name in _OF_ANY for mode in ("1", "L", "RGB")),
    *(("TIFF", mode, {"compression": "jpeg"}) for mode in ("L", "RGB", "CMYK")),
    ("TIFF", "RGB", {"big_tiff": True}),
    *((name, "RGB", _MORE) for name in ("GIF", "MPO", "PNG", "TIFF", "WEBP", "AVIF")),
    *((name, "RGBA", _MORE) for name in ("GIF", "PNG", "WEBP", "AVIF")),
    *((name, "P", {"transparency": 3}) for name in ("GIF", "PNG")),
    ("PNG", "P", {"transparency": bytes(range(256))}),
    ("PNG", "RGB", {"transparency": (1, 2, 3), "exif": _EXIF[6:], "icc_profile": bytes(200)}),
    *(("PNG", "P", {"bits": bits}) for bits in (1, 2, 4)),
    ("WEBP", "RGB", {"lossless": True, "exif": _EXIF}),
    ("WEBP", "RGBA", {"lossless": True, "icc_profile": bytes(200)}),
    ("ICO", "RGBA", {"sizes": [(16, 16), (24, 18)], "bitmap_format": "bmp"}),
    ("TGA", "RGB", {"compression": "tga_rle"}),
    *(("DDS", "RGBA", {"pixel_format": name}) for name in ("DXT1", "DXT3", "DXT5", "BC2", "BC5")),
    *(("JPEG2000", "RGB", {"irreversible": flag, "tile_size": (16, 16)}) for flag in (True, False)),
    ("JPEG2000", "RGB", {"no_jp2": True}),
    ("SGI", "RGB", {"bpc": 2}),
    ("GIF", "L", {"interlace": True, "comment": b"text"}),
)


def _saved(mode: str, name: str, **options: object) -> bytes | None:
    """A picture of noise over a slope in a format; None where Pillow does not write the mode."""
    noise = np.random.default_rng(0).integers(0, 40, (18, 24, 3))
    slope = np.linspace(0, 200, 24)[None, :, None]
    colours = (noise + slope).astype(np.uint8)
    buffer = io.BytesIO()
    try:
        image = Image.fromarray(colours).convert("L" if mode == "I;16" else mode)
        image = image.convert("I;16") if mode == "I;16" else image
        frames = [image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), image]
        more = {"append_images": frames} if options.get("save_all") else {}
        image.save(buffer, name, **(options | more))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return buffer.getvalue()
