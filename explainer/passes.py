"""What every form of the method yields: logits of the unmasked images, then of their masks."""

from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 2**30}  # of a chunk of masks' largest intermediate


@dataclass(frozen=True)
class MaskLogits:
    """Logits under some of the masks; `centres` are their cells on the flattened grid."""

    centres: Int[Tensor, " masks"]
    logits: Float[Tensor, "batch masks classes"]


@dataclass(frozen=True)
class Passes:
    """Logits of the unmasked images, and a stream of those under every mask, in chunks."""

    unmasked: Float[Tensor, "batch classes"]
    masked: Iterator[MaskLogits]


def masks_at_once(mask_bytes: int, like: Tensor) -> int:
    """How many masks go through the network together, each with intermediates of `mask_bytes`."""
    return max(1, CHUNK_BYTES[like.device.type] // max(1, mask_bytes))
