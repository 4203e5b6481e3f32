"""Pictures of evidence show what the trial did: fills and pastes, or other images' colours."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from explainer.audit.colours import levels, recoloured
from explainer.audit.content import widened
from explainer.audit.cues import Cue
from explainer.audit.interventions import Fill, filled
from explainer.audit.sample import ClassSample
from jobs.audit_pictures import CAPTION, COLUMNS, GAP, png

IMAGES, SIZE, GRID = COLUMNS, 112, (14, 14)


def pictures(file: bytes) -> torch.Tensor:
    """[rows, columns, 3, SIZE, SIZE] of a sheet, whose pictures are as large as the crops."""
    sheet = torch.from_numpy(np.array(Image.open(io.BytesIO(file)))).permute(2, 0, 1)
    tops = [GAP + row * (SIZE + CAPTION + GAP) + CAPTION for row in range(3)]
    lefts = [GAP + column * (SIZE + GAP) for column in range(COLUMNS)]
    return torch.stack(
        [torch.stack([sheet[:, t : t + SIZE, x : x + SIZE] for x in lefts]) for t in tops]
    )


@pytest.mark.parametrize("kind", ["content", "background", "texture", "colours"])
def test_the_rows_are_what_the_trial_takes_and_gives(kind):
    generator = torch.Generator().manual_seed(0)
    shape = (IMAGES, 3, SIZE, SIZE)
    crops, others = (
        torch.randint(low, low + 100, shape, dtype=torch.uint8, generator=generator)
        for low in (0, 120)
    )
    masks = torch.ones(IMAGES, SIZE, SIZE, dtype=torch.bool)
    if kind == "content":
        masks[:, :40] = masks[:, 60:] = masks[:, :, :40] = masks[:, :, 60:] = False
    if kind in ("background", "texture"):
        masks[:, 40:60, 40:60] = False
    held = torch.ones(IMAGES)
    cue = Cue(kind, "by hand", held, 0.5, masks, torch.zeros(IMAGES, 2), is_fixed=True)
    sample = ClassSample(0, crops, torch.zeros(IMAGES, *GRID), held > 0, held > 0)
    _, without, given = pictures(png(sample, cue, others))
    if kind == "content":
        wide = widened(masks, GRID)
        assert without.equal(filled(crops, wide, Fill.SURROUND, crops))
        assert given.equal(torch.where(wide[:, None], crops, others))
    elif kind != "colours":  # which leaves no elsewhere
        wide = widened(masks, GRID)
        assert without.equal(torch.where(wide[:, None], others, crops))
        assert given.equal(torch.where(wide[:, None], crops, others))
    else:
        assert without.equal(recoloured(crops, levels(others)))
        assert given.equal(recoloured(others, levels(crops)))
