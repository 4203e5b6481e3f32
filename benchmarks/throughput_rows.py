"""Whether two systems explained the same images alike, row by row."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

MAPS = ("saliency", "score_min", "score_max")
# Computed in another order by another batch, not copied: near, not equal.
NEAR = {"probability", "target_probability", "peak_row", "peak_col", "border_mass", "entropy"}
ITS_OWN = {"run", "uri"}
MOST_OF_RANGE, MOST_PREDICTIONS = 0.01, 0.001


@dataclass(frozen=True)
class Comparison:
    """`exact`: columns with equal values; `unequal`: those that should be, and are not.

    `predictions`: share of images with another prediction, which near ties of random weights allow.
    `of_range`: the largest difference of a score, in shares of its map's range.
    """

    rows: int
    exact: int
    unequal: list[str]
    predictions: float
    of_range: float

    @property
    def same(self) -> bool:
        """Whether they agree within the tolerances."""
        return (
            not self.unequal
            and self.predictions <= MOST_PREDICTIONS
            and self.of_range <= MOST_OF_RANGE
        )

    @property
    def told(self) -> str:
        """A line."""
        verdict = "the same rows" if self.same else "DIFFERENT rows"
        wrong = f"; unequal: {', '.join(self.unequal)}" if self.unequal else ""
        return (
            f"{verdict}: {self.rows} rows, {self.exact} columns equal, {self.predictions:.2%} "
            f"other predictions, scores within {self.of_range:.4f} of a map's range{wrong}"
        )


def compare(ours: Path, theirs: Path) -> Comparison:
    """Compare the columns that both have, image by image."""
    one, other = (pq.read_table(path).sort_by("image_id") for path in (ours, theirs))
    if not one["image_id"].equals(other["image_id"]):
        return Comparison(len(one), 0, ["image_id"], 1.0, 1.0)
    alike = one["predicted"].to_numpy() == other["predicted"].to_numpy()
    one, other = one.filter(pa.array(alike)), other.filter(pa.array(alike))
    names = set(one.column_names) & set(other.column_names) - ITS_OWN - NEAR - set(MAPS)
    unequal = sorted(
        name for name in names if not one[name].cast(other[name].type).equals(other[name])
    )
    return Comparison(
        rows=len(alike),
        exact=len(names) - len(unequal),
        unequal=unequal,
        predictions=1 - float(np.mean(alike)),
        of_range=_difference(one, other),
    )


def _difference(one: pa.Table, other: pa.Table) -> float:
    a, b = _scores(one), _scores(other)
    if not len(a):
        return 1.0
    span = np.maximum(np.ptp(a, axis=1), np.finfo(np.float32).tiny)
    return float((np.abs(a - b).max(axis=1) / span).max())


def _scores(table: pa.Table) -> NDArray[np.float64]:
    """The scores (images, cells), as the schema says they are stored."""
    saliency = table["saliency"].combine_chunks()
    maps = saliency.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    low, high = (table[name].to_numpy()[:, None] for name in ("score_min", "score_max"))
    scores: NDArray[np.float64] = low + maps.astype(np.float64) * (high - low)
    return scores
