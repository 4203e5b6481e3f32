"""From an image file's bytes to the uint8 crop that the model sees, with what the file tells.

The crop is timm's own evaluation transform up to, but not including, normalisation: crops travel as
uint8 and are normalised on the device, which is bit-identical to timm's float32 transform on a CPU.
What `exact` decides, and how far the two ways are apart: docs/images.md.
"""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from explainer.pixels import KERNELS, centred, middles, resized, rgb_pixels, statistics

CROP_MODES = ("center", "squash", "border")
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class Preprocessing:
    """timm's data configuration of a model; sizes in pixels, `mean` and `std` in [0, 1] units.

    `exact` makes crops timm's bit for bit; else a pixel may be 2 levels of 255 away, much sooner.
    """

    input_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    crop_mode: str
    interpolation: str
    exact: bool = False

    def __post_init__(self) -> None:
        """Refuse what would make every image of a run fail. Raises ValueError."""
        rules = {
            "mean": (len(self.mean) == 3, "three numbers"),
            "std": (len(self.std) == 3 and min(self.std) > 0, "three numbers above 0"),
            "crop_pct": (self.crop_pct > 0, "above 0"),
            "crop_mode": (self.crop_mode in CROP_MODES, f"one of {', '.join(CROP_MODES)}"),
            "interpolation": (
                self.interpolation in INTERPOLATIONS,
                f"one of {', '.join(INTERPOLATIONS)}",
            ),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"{name} must be {rule}; got {getattr(self, name)!r}")

    @property
    def fill(self) -> tuple[int, int, int]:
        """Red, green and blue around an image that is smaller than the crop."""
        if self.crop_mode != "border":
            return 0, 0, 0
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue

    @property
    def resizer(self) -> Literal["timm", "torch"]:
        """What resizes and crops: timm's transform, or torch's kernels with timm's geometry."""
        return "timm" if self.exact or self.interpolation not in KERNELS else "torch"

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """To which height and width timm's transform resizes an image before it crops it."""
        down, across = (math.floor(side / self.crop_pct) for side in self.input_size)
        if self.crop_mode == "squash":
            return down, across
        if self.crop_mode == "center" and down == across:  # timm leaves this to torchvision
            longer = int(down * max(height, width) / min(height, width))
            return (down, longer) if height <= width else (longer, across)
        ratios = height / down, width / across
        ratio = max(ratios) if self.crop_mode == "border" else min(ratios)
        return round(height / ratio), round(width / ratio)

    def covered(
        self, boxes: Sequence[Box], height: int, width: int
    ) -> Bool[np.ndarray, "crop_height crop_width"]:
        """Which pixels of the crop lie within boxes of an image of `height` and `width`.

        Boxes are (left, top, right, bottom) in pixels of that image; a pixel is in a box where its
        middle is.
        """
        down, across = self._places(height, width)
        inside = np.zeros(self.input_size, bool)
        for left, top, right, bottom in boxes:
            rows, columns = (down >= top) & (down < bottom), (across >= left) & (across < right)
            inside |= rows[:, None] & columns
        return inside

    def cropped_mask(
        self, mask: Bool[np.ndarray, "height width"]
    ) -> Bool[np.ndarray, "crop_height crop_width"]:
        """A mask of an image at the crop's pixels: what is beyond the image is not in it."""
        height, width = mask.shape
        down, across = self._places(height, width)
        rows, columns = (np.floor(each).astype(int) for each in (down, across))
        there = ((rows >= 0) & (rows < height))[:, None] & (columns >= 0) & (columns < width)
        near = mask[np.clip(rows, 0, height - 1)][:, np.clip(columns, 0, width - 1)]
        return near & there

    def seen(self, height: int, width: int) -> Box:
        """The part of an image of `height` and `width` that the crop shows, in its pixels: left,
        top, right, bottom. It reaches beyond an image that is padded."""
        top, bottom, left, right = (
            float(end)
            for middle in self._places(height, width)
            for end in (1.5 * middle[0] - middle[1] / 2, 1.5 * middle[-1] - middle[-2] / 2)
        )
        return left, top, right, bottom

    def _places(self, height: int, width: int) -> list[Float[np.ndarray, " side"]]:
        """Where the middles of the crop's pixels are in an image, down and across."""
        sides = zip(self.resized(height, width), (height, width), self.input_size, strict=True)
        return [middles(*side) for side in sides]

    def normalise(
        self, crops: UInt8[Tensor, "batch 3 height width"], dtype: torch.dtype
    ) -> Float[Tensor, "batch 3 height width"]:
        """Scale to [0, 1], subtract the mean and divide by the standard deviation."""
        mean = _channels(self.mean, dtype, crops.device)
        std = _channels(self.std, dtype, crops.device)
        return (crops.to(dtype) / 255 - mean) / std


@cache
def _channels(
    values: tuple[float, float, float], dtype: torch.dtype, device: torch.device
) -> Float[Tensor, "3 1 1"]:
    """Kept on the device: a copy from the host would make each batch wait."""
    return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


@dataclass(frozen=True)
class Decoded:
    """One image: its crop, or why there is none.

    `status`: ok, truncated, undecodable or too_large; `error` says more, on one line.
    `width` to `jpeg_quality`: the file as stored, EXIF orientation not applied. `jpeg_quality` is
    the libjpeg quality (1 to 100) whose luminance table is nearest to the file's.
    `mean` (red, green, blue), `contrast` (standard deviation of luminance) and `sharpness`
    (variance of luminance's Laplacian) are those of the crop, in [0, 1] units.
    """

    status: str
    error: str | None = None
    crop: UInt8[np.ndarray, "3 height width"] | None = field(default=None, repr=False)
    width: int | None = None
    height: int | None = None
    format: str | None = None
    mode: str | None = None
    has_exif: bool | None = None
    jpeg_quality: int | None = None
    mean: tuple[float, float, float] | None = None
    contrast: float | None = None
    sharpness: float | None = None


def decode(data: bytes, preprocessing: Preprocessing) -> Decoded:
    """Decode an image file and crop it as the model's evaluation transform does.

    Never raises for what the bytes hold: a file that cannot be read has a status and no crop.
    Not for several threads of a process at once, as Python's warnings are silenced meanwhile.
    """
    if not data:
        return Decoded("truncated", "the file is empty (0 bytes)")
    try:
        # Pillow warns of what it reads on regardless, without saying in which file.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            if image.format == "EPS":
                return Decoded("undecodable", "EPS is a program, and none is run")
            _refuse_elongated(image, preprocessing)
            return _decoded(image, data, preprocessing)
    except UnidentifiedImageError:
        return Decoded("undecodable", "no image format that Pillow reads")
    except Image.DecompressionBombError as error:
        return Decoded("too_large", _one_line(error))
    except MemoryError:
        raise
    # Pillow's format plugins raise whatever their parsers run into (OSError, SyntaxError,
    # ValueError, struct.error, ...), and a bad file must become a row, never end a shard.
    except Exception as error:  # noqa: BLE001
        message = _one_line(error)
        status = "truncated" if "truncated" in message.lower() else "undecodable"
        return Decoded(status, message)


def decode_whole(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """All pixels of an image file, lying as stored: what `decode` crops. Raises ValueError."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            if image.format == "EPS":
                raise ValueError("EPS is a program, and none is run")
            return np.ascontiguousarray(rgb_pixels(image, data)[..., :3])
    except MemoryError:
        raise
    except Exception as error:  # as in `decode`: Pillow's plugins raise anything
        raise ValueError(_one_line(error)) from error


def decode_mask(data: bytes, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """The mask in an image file of that size: what is not 0 is in it. Raises ValueError."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (width, height):
                got = f"{image.width} x {image.height}"
                raise ValueError(f"a mask is as large as its image, {width} x {height}; got {got}")
            pixels = np.asarray(image.convert("RGBA" if "A" in image.mode else "RGB"))
    except (Image.DecompressionBombError, UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"a mask is a PNG image; {_one_line(error)}") from error
    return np.asarray(pixels[..., :3].any(-1))


def _refuse_elongated(image: Image.Image, preprocessing: Preprocessing) -> None:
    """Hold the size to which an image is resized against Pillow's limit for an opened image.

    In crop mode center a line of 1 x 50,000 pixels would be resized to 256 x 12,800,000.
    """
    if Image.MAX_IMAGE_PIXELS is None:
        return
    pixels = math.prod(preprocessing.resized(image.height, image.width))
    if pixels > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(
            f"{image.width} x {image.height} pixels would be resized to {pixels} pixels, more than "
            f"{2 * Image.MAX_IMAGE_PIXELS}"
        )


def _decoded(image: Image.Image, data: bytes, preprocessing: Preprocessing) -> Decoded:
    stored = image.mode  # what image.convert loads can change it
    crop = _crop(image, data, preprocessing)
    about = statistics(crop)
    return Decoded(
        status="ok",
        crop=crop,
        width=image.width,
        height=image.height,
        format=image.format,
        mode=stored,
        has_exif="exif" in image.info,
        jpeg_quality=_jpeg_quality(image),
        mean=about.mean,
        contrast=about.contrast,
        sharpness=about.sharpness,
    )


def _crop(
    image: Image.Image, data: bytes, preprocessing: Preprocessing
) -> UInt8[np.ndarray, "3 height width"]:
    if preprocessing.resizer == "timm":
        return np.ascontiguousarray(_timm_transform(preprocessing)(image.convert("RGB")))
    pixels = rgb_pixels(image, data)
    size = preprocessing.resized(*pixels.shape[:2])
    pixels = resized(pixels, size, preprocessing.interpolation)
    return centred(pixels, preprocessing.input_size, preprocessing.fill)


@cache
def _timm_transform(preprocessing: Preprocessing) -> Callable[[Image.Image], Tensor]:
    """timm's evaluation transform without normalisation: a PIL image to a uint8 tensor."""
    from timm.data import create_transform  # takes seconds, and most loading tasks need none

    return create_transform(
        (3, *preprocessing.input_size),
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        mean=preprocessing.mean,
        std=preprocessing.std,
        normalize=False,
    )


# Sum of the luminance table of the JPEG standard (ITU-T T.81, Annex K.1), which libjpeg scales.
_LUMINANCE_SUM = 3688


def _jpeg_quality(image: Image.Image) -> int | None:
    """libjpeg's quality, inverted from the sum of the luminance table; None for other formats."""
    luminance = getattr(image, "quantization", {}).get(0)  # MPO files, which phones write, too
    if not luminance:
        return None
    percent = 100 * sum(luminance) / _LUMINANCE_SUM
    quality = (200 - percent) / 2 if percent <= 100 else 5000 / percent
    return int(min(100, max(1, round(quality))))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
