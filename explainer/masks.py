"""Which patches each mask keeps, and how much of each."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

Levels: TypeAlias = tuple[float, ...]
KERNELS = {
    "1x1": [[1.0]],
    "3x3": [[1 / 16, 1 / 8, 1 / 16], [1 / 8, 1 / 4, 1 / 8], [1 / 16, 1 / 8, 1 / 16]],
}


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks that keep equally many patches each; cells are numbers on the flattened grid.

    `centres`: the cell that each mask belongs to. `cells`, `weight`: what it keeps of which cells.
    `levels`: all weights that tokens get, ascending: 0 where masked, 1 for prefix tokens.
    """

    centres: Int[Tensor, " masks"]
    cells: Int[Tensor, "masks window"]
    weight: Float[Tensor, "masks window"]
    levels: Levels

    def __len__(self) -> int:
        return len(self.centres)

    @property
    def window(self) -> int:
        return self.cells.shape[1]

    def split(self, length: int) -> Iterator["Masks"]:
        """The same masks in chunks of at most `length`."""
        parts = (each.split(max(1, length)) for each in (self.centres, self.cells, self.weight))
        for centres, cells, weight in zip(*parts, strict=True):
            yield Masks(centres, cells, weight, self.levels)

    def over_tokens(self, prefix: int, tokens: int) -> Float[Tensor, "masks tokens"]:
        """What each mask multiplies each token by: 1 for prefix tokens, 0 for most patches."""
        weights = self.weight.new_zeros(len(self), tokens)
        weights[:, :prefix] = 1.0
        return weights.scatter_(1, self.cells + prefix, self.weight)


def _levels(mask: str) -> Levels:
    kept = {weight for row in KERNELS[mask] for weight in row}
    return tuple(sorted({0.0, 1.0} | kept))


@cache
def masks_of(
    grid: tuple[int, int],
    mask: Literal["3x3", "1x1"],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Masks, ...]:
    """One mask a patch, grouped by the size of their windows, the largest first.

    Windows are cropped at the borders and not renormalised: with 3x3 those of inner cells hold 9
    patches, of edges 6, of corners 4.
    """
    kernel = torch.tensor(KERNELS[mask], dtype=torch.float64).flatten()
    reach = len(KERNELS[mask]) // 2
    offsets = torch.arange(-reach, reach + 1)
    down, right = torch.meshgrid(offsets, offsets, indexing="ij")
    centres = torch.arange(grid[0] * grid[1])
    row = (centres // grid[1])[:, None] + down.flatten()
    column = (centres % grid[1])[:, None] + right.flatten()
    inside = (row >= 0) & (row < grid[0]) & (column >= 0) & (column < grid[1])
    sizes = inside.sum(1)
    groups = []
    for size in sizes.unique(sorted=True).flip(0).tolist():
        chosen = sizes == size
        kept = inside[chosen]
        cells = (row * grid[1] + column)[chosen][kept].view(-1, size)
        weight = kernel.expand(len(kept), -1)[kept].view(-1, size)
        on_device = centres[chosen].to(device), cells.to(device), weight.to(device, dtype)
        groups.append(Masks(*on_device, _levels(mask)))
    return tuple(groups)
