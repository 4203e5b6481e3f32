"""Pictures of saliency: its colours, and a map laid over the image that it explains."""

from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from explainer.preprocess import Box

# Perceptually uniform: inferno for saliency, berlin for differences (Crameri, Scientific colour
# maps, 2018), whose middle is dark.
Scale = Literal["inferno", "berlin"]
STRENGTH, UNSEEN = 0.7, 0.35


def colours(values: Float[np.ndarray, "..."], scale: Scale = "inferno") -> UInt8[np.ndarray, "..."]:
    """Red, green and blue of values in [0, 1], on a new last axis; berlin's middle is 0.5."""
    import matplotlib  # takes half a second, and most that decode draw nothing

    return np.asarray(matplotlib.colormaps[scale](values, bytes=True)[..., :3])


def overlay(
    pixels: UInt8[np.ndarray, "height width 3"],
    saliency: Float[np.ndarray, "rows columns"],
    seen: Box,
) -> Image.Image:
    """An image with its saliency map in [0, 1] over the part that the model has seen.

    `pixels` is the whole image at any size, and `seen` that part of it in its pixels, such as
    Preprocessing.seen; what lies outside is darkened. Colour covers more where saliency is larger.
    """
    height, width = pixels.shape[:2]
    left, top, right, bottom = seen
    values = spread(saliency, (height, width), seen)
    alpha = (STRENGTH * values)[..., None]
    blended = (1 - alpha) * pixels + alpha * colours(values)
    down, across = np.arange(height) + 0.5, np.arange(width) + 0.5
    inside = ((down >= top) & (down < bottom))[:, None] & (across >= left) & (across < right)
    shown = np.where(inside[..., None], blended, UNSEEN * pixels)
    return Image.fromarray(shown.round().astype(np.uint8))


def spread(
    saliency: Float[np.ndarray, "rows columns"], size: tuple[int, int], seen: Box
) -> Float[np.ndarray, "height width"]:
    """A map at every pixel of an image of `size` (height, width), linear between the middles of its
    cells, which divide `seen`; beyond the outermost middles it goes on unchanged."""
    left, top, right, bottom = seen
    down = _weights(saliency.shape[0], size[0], top, bottom)
    across = _weights(saliency.shape[1], size[1], left, right)
    return np.asarray(down @ saliency @ across.T)


def _weights(
    cells: int, pixels: int, start: float, end: float
) -> Float[np.ndarray, "pixels cells"]:
    """What each cell adds to each pixel along one side; the weights of a pixel sum to 1."""
    places = (np.arange(pixels) + 0.5 - start) / (end - start) * cells - 0.5
    places = np.clip(places, 0, cells - 1)
    return np.clip(1 - np.abs(places[:, None] - np.arange(cells)), 0, 1)
