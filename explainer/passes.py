"""What every form of the method yields: logits of the unmasked images, then of their masks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

# Of a chunk's largest intermediate: what a core's cache holds, or what fills any accelerator.
CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 2**30}
WHOLE_BATCH = slice(None)


@dataclass(frozen=True)
class MaskLogits:
    """Logits of some of the images under some of the masks.

    `images`: which of the batch. `centres`: the masks' cells on the flattened grid.
    """

    images: slice
    centres: Int[Tensor, " masks"]
    logits: Float[Tensor, "batch masks classes"]


@dataclass(frozen=True)
class Passes:
    """Logits of the unmasked images, and a stream of those under every mask, in chunks."""

    unmasked: Float[Tensor, "batch classes"]
    masked: Iterator[MaskLogits]


def at_once(each_bytes: int, like: Tensor) -> int:
    """How many masks, or images, are worked on together that need `each_bytes` each."""
    budget = CHUNK_BYTES["cpu" if like.device.type == "cpu" else "cuda"]
    return max(1, budget // max(1, each_bytes))


def evenly(count: int, most: int) -> int:
    """The length of as few equal parts of `count` as have at most `most` each."""
    return math.ceil(count / math.ceil(count / most))
