"""Some pairs of maps of every class, drawn by image_id: the same in whatever order rows come."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Maps = NDArray[np.float16]
# What all classes together may take, and how many pairs of a class are drawn.
MOST_BYTES = 2**28
LEAST, MOST = 8, 128


@dataclass(frozen=True)
class Drawn:
    """Pairs of one class, float16 [pairs, cells] each, and the number that each was drawn by."""

    draws: NDArray[np.uint64]
    a: Maps
    b: Maps

    def first(self, count: int) -> "Drawn":
        """Those with the smallest numbers, in their order."""
        chosen = np.argsort(self.draws, kind="stable")[:count]
        return Drawn(self.draws[chosen], self.a[chosen], self.b[chosen])

    def __add__(self, other: "Drawn") -> "Drawn":
        return Drawn(
            np.concatenate([self.draws, other.draws]),
            np.concatenate([self.a, other.a]),
            np.concatenate([self.b, other.b]),
        )


class MapSample:
    """Of each class the pairs with the smallest numbers; `size` of them, or all it has."""

    def __init__(self, classes: int, cells: int) -> None:
        # Up to twice as many are held of a class, two maps each, two bytes a cell.
        room = MOST_BYTES // (8 * max(cells, 1) * max(classes, 1))
        self.size = min(MOST, max(LEAST, room))
        self._drawn: dict[int, Drawn] = {}

    def add(self, targets: NDArray[np.int64], drawn: Drawn) -> None:
        """Add pairs, of which `targets` names the classes."""
        for target in np.unique(targets).tolist():
            mine = np.flatnonzero(targets == target)
            new = Drawn(drawn.draws[mine], drawn.a[mine], drawn.b[mine])
            known = self._drawn.get(target)
            both = new if known is None else known + new
            is_many = len(both.draws) > 2 * self.size
            self._drawn[target] = both.first(self.size) if is_many else both

    def of(self, target: int) -> Drawn | None:
        """A class's pairs, in the order of their numbers; None where there are none."""
        drawn = self._drawn.get(target)
        return None if drawn is None else drawn.first(self.size)


def maps_of(column: pa.ChunkedArray, cells: int) -> Maps:
    """Maps that are stored as bytes, none of them null, as float16 [maps, cells]."""
    data = b"".join(column.to_pylist())
    return np.frombuffer(data, np.float16).reshape(-1, cells)
