"""Sums over saliency maps that can be added to others, and what is read off them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A float32 has 24 significant bits; ranges are counted at 11 of them, an error of at most 0.05%.
DROPPED_BITS = 13

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Ranges:
    """How often each range of scores occurs, at 11 significant bits: a median in bounded memory.

    A bin may stand in `bins` several times until there are more than `room`.
    """

    bins: NDArray[np.uint32]
    counts: NDArray[np.int64]
    room: int = 2048

    @classmethod
    def of(cls, ranges: Scores) -> "Ranges":
        """Count numbers that are not negative: they are ordered as their bits are."""
        half = np.uint32(1 << (DROPPED_BITS - 1))
        bins = (ranges.view(np.uint32) + half) >> np.uint32(DROPPED_BITS)
        return cls(bins, np.ones(len(bins), np.int64))

    def __add__(self, other: "Ranges") -> "Ranges":
        room = max(self.room, other.room)
        bins = np.concatenate([self.bins, other.bins])
        both = Ranges(bins, np.concatenate([self.counts, other.counts]), room)
        return both if len(bins) <= room else both._counted()

    def _counted(self) -> "Ranges":
        """Every bin once, sorted; from then on there is room for as many again."""
        order = np.argsort(self.bins, kind="stable")
        first = np.flatnonzero(np.diff(self.bins[order], prepend=np.uint32(0xFFFFFFFF)))
        bins, counts = self.bins[order][first], np.add.reduceat(self.counts[order], first)
        return Ranges(bins, counts, max(self.room, 2 * len(bins)))

    @property
    def median(self) -> float:
        counted = self._counted()
        total, up_to = counted.counts.sum(), counted.counts.cumsum()
        places = np.searchsorted(up_to, [(total - 1) // 2, total // 2], side="right")
        middle = (counted.bins[places] << np.uint32(DROPPED_BITS)).view(np.float32)
        return float(middle.mean(dtype=np.float64))


@dataclass(frozen=True)
class Sums:
    """Sums over `count` maps, float64 [cells] each: of maps, of their squares and of scores."""

    count: int
    maps: NDArray[np.float64]
    squares: NDArray[np.float64]
    scores: NDArray[np.float64]
    ranges: Ranges

    @classmethod
    def of(cls, maps: NDArray[np.float16], low: Scores, high: Scores) -> "Sums":
        """Sum maps [images, cells] in [0, 1], and the scores from `low` to `high` behind them."""
        wide, span = maps.astype(np.float64), high - low
        scores = low[:, None] + wide * span[:, None]
        return cls(len(maps), wide.sum(0), np.square(wide).sum(0), scores.sum(0), Ranges.of(span))

    @classmethod
    def nothing(cls) -> "Sums":
        """The sums of no maps, of any number of cells."""
        zero = np.zeros(1)
        return cls(0, zero, zero, zero, Ranges.of(np.empty(0, np.float32)))

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.count + other.count,
            self.maps + other.maps,
            self.squares + other.squares,
            self.scores + other.scores,
            self.ranges + other.ranges,
        )

    @property
    def mean(self) -> NDArray[np.float64]:
        return self.maps / self.count

    @property
    def std(self) -> NDArray[np.float64]:
        # Rounding can take a vanishing variance below zero.
        return np.sqrt(np.maximum(self.squares / self.count - self.mean**2, 0))
