"""Pixels of an image file without timm: decoded, resized, cut out of the middle, and summed up.

Arrays are uint8 [height, width, channels], where channels after the third are padding, until
`centred` makes a crop [3, height, width] of them.
"""

from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image

# Interpolations for which torch has an antialiased kernel that follows Pillow's.
KERNELS = ("bilinear", "bicubic")


def rgb_pixels(image: Image.Image, data: bytes) -> UInt8[np.ndarray, "height width channels"]:
    """The values of `image.convert("RGB")`; `data` is the file that `image` was opened from.

    Raises what Pillow raises on a damaged file.
    """
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        pixels = _jpeg_pixels(data)
        if pixels is not None and pixels.shape[:2] == (image.height, image.width):
            return pixels
    return np.array(image.convert("RGB"))


def _jpeg_pixels(data: bytes) -> UInt8[np.ndarray, "height width 4"] | None:
    """None where libjpeg-turbo refuses the file or warns of it: Pillow decides what it is."""
    try:
        # torch's kernels are faster on four channels than on three.
        return simplejpeg.decode_jpeg(data, "RGBX", strict=True)
    except ValueError:
        return None


def resized(
    pixels: UInt8[np.ndarray, "height width channels"], size: tuple[int, int], interpolation: str
) -> UInt8[np.ndarray, "new_height new_width channels"]:
    """Resize as Pillow does, to within 2 levels of 255.

    Raises ValueError for an empty `size`, and MemoryError.
    """
    if min(size) < 1:
        raise ValueError("height and width must be > 0")
    (height, width), (new_height, new_width) = pixels.shape[:2], size
    # Between its two passes Pillow rounds and clips to 8 bits, as torch does; which pass is the
    # first makes up to 30 levels. torch's is the horizontal one, Pillow's is not always:
    if 0 < height - new_height > 2 * (width - new_width):
        pixels = _interpolated(pixels, (new_height, width), interpolation)
    return _interpolated(pixels, size, interpolation)


def _interpolated(
    pixels: UInt8[np.ndarray, "height width channels"], size: tuple[int, int], interpolation: str
) -> UInt8[np.ndarray, "new_height new_width channels"]:
    if pixels.shape[:2] == size:
        return pixels
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    # With a stride for the batch of one image, torch sees that it is channels-last and does not
    # repack it (pytorch/pytorch#68430).
    batch = image.as_strided((1, *image.shape), (image.numel(), *image.stride()))
    try:
        result = F.interpolate(batch, size, mode=interpolation, antialias=True)
    except RuntimeError as error:  # torch's only reason here; the image is not to blame
        raise MemoryError(str(error)) from error
    return result[0].permute(1, 2, 0).numpy()


def centred(
    pixels: UInt8[np.ndarray, "height width channels"],
    size: tuple[int, int],
    fill: tuple[int, int, int],
) -> UInt8[np.ndarray, "3 crop_height crop_width"]:
    """The middle of an image, with `fill` around it where it is smaller than `size`."""
    crop = np.empty((3, *size), dtype=np.uint8)
    rows, columns = (_Overlap.of(*sides) for sides in zip(pixels.shape[:2], size, strict=True))
    if rows.is_short or columns.is_short:
        crop[:] = np.array(fill, dtype=np.uint8)[:, None, None]
    inside = pixels[rows.source, columns.source, :3]
    crop[:, rows.target, columns.target] = inside.transpose(2, 0, 1)
    return crop


def middles(resized: int, length: int, wanted: int) -> Float[np.ndarray, " wanted"]:
    """Where along one side of an image of `length` the pixels of a crop of `wanted` have their
    middles, once it is `resized` and cut as `centred` does; outside of it where it is shorter."""
    overlap = _Overlap.of(resized, wanted)
    first = overlap.source.start or 0
    places = np.arange(wanted) - (overlap.target.start or 0) + first
    return (places + 0.5) * (length / resized)


@dataclass(frozen=True)
class _Overlap:
    """Along one side: which pixels of the image go where in the crop."""

    source: slice
    target: slice
    is_short: bool

    @staticmethod
    def of(length: int, wanted: int) -> "_Overlap":
        """Rounded as torchvision's center_crop rounds."""
        if length < wanted:
            start = (wanted - length) // 2
            return _Overlap(slice(length), slice(start, start + length), True)
        start = round((length - wanted) / 2)
        return _Overlap(slice(start, start + wanted), slice(wanted), False)


@dataclass(frozen=True)
class Statistics:
    """Of a crop, in [0, 1] units: see Decoded."""

    mean: tuple[float, float, float]
    contrast: float
    sharpness: float


# ITU-R BT.601, as Pillow converts to grey.
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def statistics(crop: UInt8[np.ndarray, "3 height width"]) -> Statistics:
    """Means of the channels, and the spread of luminance and of its Laplacian.

    By einsum, as BLAS takes every core of the machine for one crop.
    """
    means = np.einsum("chw->ch", crop, dtype=np.uint32).sum(axis=1) / crop[0].size
    luminance = np.einsum("c,chw->hw", _LUMINANCE, crop)
    luminance -= np.float32((means * _LUMINANCE).sum())
    laplacian = _laplacian(luminance)
    laplacian -= np.einsum("hw->", laplacian) / np.float32(laplacian.size)
    red, green, blue = (float(mean) / 255 for mean in means)
    return Statistics(
        mean=(red, green, blue),
        contrast=_mean_square(luminance) ** 0.5 / 255,
        sharpness=_mean_square(laplacian) / 255**2,
    )


def _mean_square(values: Float[np.ndarray, "height width"]) -> float:
    return float(np.einsum("hw,hw->", values, values)) / values.size


def _laplacian(values: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "inner_h inner_w"]:
    """Four neighbours less four times the centre, where all four are inside.

    Taken along one line of memory, in which a row's ends have neighbours in other rows; they are
    left out of what is returned.
    """
    height, width = values.shape
    line = values.reshape(-1)
    result = np.float32(-4) * line[width:-width]
    result += line[: -2 * width]
    result += line[2 * width :]
    result += line[width - 1 : -width - 1]
    result += line[width + 1 : line.size - width + 1]
    return result.reshape(height - 2, width)[:, 1:-1]
