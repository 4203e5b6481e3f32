"""From a map of scores to a saliency map in [0, 1] and the numbers that describe it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class MapStatistics:
    """Where a saliency map looks, one number a map.

    `peak_row`, `peak_column`: cell of the largest saliency (the first in row-major order).
    `border_mass`: share of the map's mass in the outermost ring of cells.
    `entropy`: Shannon entropy of the map as a distribution over cells, divided by its largest
    possible value log(cells). A constant map, all zeros, has border mass 0 and entropy 0.
    """

    peak_row: Int[Tensor, "*maps"]
    peak_column: Int[Tensor, "*maps"]
    border_mass: Float[Tensor, "*maps"]
    entropy: Float[Tensor, "*maps"]


def normalise(scores: Float[Tensor, "*maps rows columns"]) -> Float[Tensor, "*maps rows columns"]:
    """Scale each map to [0, 1] by its own minimum and maximum; a constant map becomes all zeros."""
    low, high = scores.amin((-2, -1), keepdim=True), scores.amax((-2, -1), keepdim=True)
    span = high - low
    return torch.where(span > 0, (scores - low) / span, torch.zeros_like(scores))


def statistics(saliency: Float[Tensor, "*maps rows columns"]) -> MapStatistics:
    """Describe saliency maps that are normalised to [0, 1]."""
    rows, columns = saliency.shape[-2:]
    flat = saliency.flatten(-2)
    peak = flat.argmax(-1)
    mass = flat.sum(-1)
    inner = saliency[..., 1:-1, 1:-1].sum((-2, -1))
    share = flat / mass.clamp_min(torch.finfo(flat.dtype).tiny)[..., None]
    entropy = torch.special.entr(share).sum(-1) / torch.tensor(float(rows * columns)).log().to(flat)
    border = torch.where(mass > 0, 1 - inner / mass, torch.zeros_like(mass))
    return MapStatistics(peak // columns, peak % columns, border, entropy)
