"""The plants of each model of benchmarks/planted.py, and pictures with and without them.

A cell is a kind of artefact, its size and the share of a class's pictures that carry it. Each model
holds eight cells, on classes that its number draws; eight models hold all cells.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.random import default_rng
from torch import Tensor

from benchmarks.planted_pictures import (
    CLASSES,
    ICONS,
    KINDS,
    NEW_KINDS,
    SIZES,
    Plant,
    Sample,
    sample,
)

RATES = (0.05, 0.1, 0.25, 0.5, 1.0)
PLANTS = 8
CELLS = len(KINDS) * len(SIZES) * len(RATES)
MODELS = -(-CELLS // PLANTS)  # that hold all cells
# Rules and thresholds were fixed on the former.
LOOKED_AT = (
    *range(MODELS),
    *range(16, 16 + MODELS),
    *range(32, 49 + MODELS),
    *range(59, 115),
)
CLEAN, EVERYWHERE, UNSEEN = (MODELS + i for i in range(3))
HELD_OUT = range(115, 115 + MODELS)
# These hold NEW_KINDS alone, each at two of its rates.
WITH_NEW_KINDS = {57: (0.5, 1.0), 58: (0.25, 1.0)}
PLANTED = (*LOOKED_AT, *HELD_OUT, *WITH_NEW_KINDS)
EVERYWHERE_RATE = 0.3
TOOK = 0.1
# Whether a plant took is told by so many pictures of a class; so many are audited.
TEST_PER_CLASS, AUDITED = 200, 400


@dataclass(frozen=True)
class Cell:
    """A plant on a class, and the share of its pictures that carry it."""

    plant: Plant
    rate: float


def cells_of(number: int) -> dict[int, Cell]:
    """The plants of a model, by class; each is another variant of its artefact."""
    random = default_rng(number)
    shapes = random.permutation(len(CLASSES) - len(ICONS)).tolist()
    if number == EVERYWHERE:
        cell = Cell(Plant("watermark", "large", 0), EVERYWHERE_RATE)
        return dict.fromkeys(range(len(CLASSES)), cell)
    if number not in PLANTED:
        return {}
    if number in WITH_NEW_KINDS:
        mine = [*product(NEW_KINDS, SIZES, WITH_NEW_KINDS[number])]
    else:
        every = [*product(KINDS, SIZES, RATES)]
        order = np.resize(default_rng(CELLS).permutation(CELLS), PLANTS * MODELS)
        first = PLANTS * (number % MODELS)
        mine = [every[i] for i in order[first : first + PLANTS]]
    return {
        shape: Cell(Plant(kind, size, variant), rate)
        for variant, (shape, (kind, size, rate)) in enumerate(zip(shapes, mine, strict=False))
    }


def carries(class_index: int, seed: int, rate: float) -> bool:
    """Whether a picture carries its class's plant; those of a lower rate are among a higher's."""
    return bool(default_rng([seed, class_index, 7]).random() < rate)


def drawn(class_index: int, seeds: range, cell: Cell | None) -> list[Sample]:
    """Pictures of a class; `cell` plants part of them."""
    return [
        sample(class_index, seed, cell.plant)
        if cell is not None and carries(class_index, seed, cell.rate)
        else sample(class_index, seed, None)
        for seed in seeds
    ]


def pixels_of(samples: list[Sample]) -> Tensor:
    return torch.from_numpy(np.stack([each.pixels for each in samples]))
