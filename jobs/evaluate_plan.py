"""Which images an evaluation looks at, which class of each, and in which shards."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.audit_plan import READERS, random_order
from jobs.plan import Shard, shards
from storage.parts import in_order
from storage.runs import Run

COLUMNS = ["row", "status", "target_rank", "predicted", "label"]
LEAST_ROWS, MOST_ROWS = 4, 32


@dataclass(frozen=True)
class Sample:
    """Rows of the manifest in rising order, and the class whose maps are judged on each."""

    rows: NDArray[np.int64]
    targets: NDArray[np.int64]

    def shards(self) -> list[Shard]:
        """The sample, cut: a 64th of it, and 4 to 32 images, as a method may cost much an image."""
        return shards(len(self.rows), min(max(len(self.rows) // 64, LEAST_ROWS), MOST_ROWS))


def draw(run: Run, images: int, seed: int, target: Literal["predicted", "label"]) -> Sample:
    """At most `images` of a run's explained ones, by `seed`, that have a class of the target.

    Raises StorageUnavailable.
    """

    def read(index: int) -> pa.Table:
        part = run.read_part(index, COLUMNS)
        chosen = pc.and_(pc.equal(part["status"], "ok"), pc.equal(part["target_rank"], 0))
        return part.filter(pc.and_(chosen, pc.is_valid(part[target]))).select(["row", target])

    found = pa.concat_tables(in_order(read, sorted(run.committed()), READERS))
    rows, targets = (column.to_numpy().astype(np.int64) for column in found.columns)
    chosen = np.sort(np.argsort(random_order(rows, seed), kind="stable")[:images])
    return Sample(rows[chosen], targets[chosen])
