"""The report's pictures, as data URLs: cells of maps, and images with a map that can be lifted."""

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from explainer.plot import STRENGTH, Scale, colours
from explainer.preprocess import Box, Preprocessing, decode_whole

QUALITY = 82
LARGEST_SIDE = 16_383  # that WebP can have
TRIES = 4


@dataclass(frozen=True)
class Photo:
    """An image in the page: the picture, and the layer of its map on `box`.

    `box` is left, top, width and height in percent of the picture; `reduced` says whether it is
    smaller than the image, which is `width` x `height`.
    """

    url: str
    layer: str
    box: tuple[float, float, float, float]
    width: int
    height: int
    reduced: bool


def cells_url(values: NDArray[np.floating], scale: Scale = "inferno") -> str:
    """A map [rows, columns] in [0, 1], a pixel a cell."""
    picture = Image.fromarray(colours(values, scale))
    return _url(_encoded(picture.quantize(256), "PNG"), "png")


def layer_url(saliency: NDArray[np.floating]) -> str:
    """A map [rows, columns] in [0, 1], a pixel a cell, that covers more where it is larger."""
    alpha = (255 * STRENGTH * saliency[..., None]).round().astype(np.uint8)
    picture = Image.fromarray(np.concatenate([colours(saliency), alpha], axis=-1), "RGBA")
    return _url(_encoded(picture, "PNG"), "png")


def photo(
    data: bytes, saliency: NDArray[np.floating], how: Preprocessing, side: int | None, most: int
) -> Photo:
    """An image file with its map: no side longer than `side`, about `most` bytes at most.

    Encoded anew, so that nothing of the file but its pixels is in the page. Raises ValueError where
    it cannot be decoded.
    """
    pixels = decode_whole(data)
    height, width = pixels.shape[:2]
    picture = Image.fromarray(pixels)
    largest = min(side or LARGEST_SIDE, LARGEST_SIDE)
    picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    encoded, picture = within(picture, most)
    return Photo(
        url=_url(encoded, "webp"),
        layer=layer_url(saliency),
        box=_percent(how.seen(height, width), width, height),
        width=width,
        height=height,
        reduced=picture.size != (width, height),
    )


def sheet_url(png: bytes, most: int) -> str:
    """A picture of evidence, in about `most` bytes at most."""
    with Image.open(io.BytesIO(png)) as sheet:
        return _url(within(sheet.convert("RGB"), most)[0], "webp")


def within(picture: Image.Image, most: int) -> tuple[bytes, Image.Image]:
    """A picture as WebP, made smaller until it takes about `most` bytes; what it has become."""
    encoded = _encoded(picture, "WEBP")
    for _ in range(TRIES):
        if len(encoded) <= most:
            break
        factor = 0.95 * math.sqrt(most / len(encoded))
        size = (max(1, int(picture.width * factor)), max(1, int(picture.height * factor)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        encoded = _encoded(picture, "WEBP")
    return encoded, picture


def _percent(seen: Box, width: int, height: int) -> tuple[float, float, float, float]:
    left, top, right, bottom = seen
    shares = (left / width, top / height, (right - left) / width, (bottom - top) / height)
    across, down, wide, high = (round(100 * share, 3) for share in shares)
    return across, down, wide, high


def _encoded(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "WEBP":
        picture.save(file, kind, quality=QUALITY, method=4)
    else:
        picture.save(file, kind, optimize=True)
    return file.getvalue()


def _url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
