"""What the evidence on a cue looks like: its carriers, the same without it, and pastes of it."""

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from explainer.audit.content import widened
from explainer.audit.cues import Cue
from explainer.audit.edits import edit_of, removal_of
from explainer.audit.sample import ClassSample

COLUMNS, GAP, CAPTION = 6, 4, 16
LEAST_SIDE = 112
OUTLINE = (255, 40, 200)


def png(sample: ClassSample, cue: Cue, recipients: Tensor) -> bytes:
    """A PNG of three rows: carriers, the cue outlined; without it; `recipients` with it given.

    It is taken and given as the trial does.
    """
    carriers = torch.nonzero(cue.carriers).flatten()[:COLUMNS]
    crops, masks = sample.crops[carriers], cue.masks[carriers]
    others = recipients[torch.linspace(0, len(recipients) - 1, len(carriers)).long()]
    regions = widened(masks, sample.grid)
    without = next(removal_of(cue, regions).take(crops, regions, others))
    pasted = next(edit_of(cue).give(others, crops, regions))
    rows = [
        (
            "carriers, the cue outlined",
            [_outlined(crop, mask) for crop, mask in zip(crops, masks, strict=True)],
        ),
        ("without the cue", [_pixels(each) for each in without]),
        ("other classes with the cue", [_pixels(each) for each in pasted]),
    ]
    file = io.BytesIO()
    _sheet(rows).save(file, "PNG", optimize=True)
    return file.getvalue()


def _sheet(rows: list[tuple[str, list[NDArray[np.uint8]]]]) -> Image.Image:
    height, width = rows[0][1][0].shape[:2]
    scale = max(1, -(-LEAST_SIDE // min(height, width)))
    height, width = height * scale, width * scale
    deep = height + CAPTION + GAP
    sheet = Image.new("RGB", (GAP + COLUMNS * (width + GAP), GAP + len(rows) * deep), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (caption, images) in enumerate(rows):
        top = GAP + row * deep
        pen.text((GAP, top), caption, "black")
        for column, pixels in enumerate(images):
            image = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(image, (GAP + column * (width + GAP), top + CAPTION))
    return sheet


def _pixels(crop: Tensor) -> NDArray[np.uint8]:
    return crop.permute(1, 2, 0).numpy()


def _outlined(crop: Tensor, mask: Tensor) -> NDArray[np.uint8]:
    """A crop with the border of a mask in colour."""
    held = mask.numpy()
    padded = np.pad(held, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    pixels = _pixels(crop).copy()
    pixels[held & ~inner] = OUTLINE
    return pixels
