"""Which images an evaluation looks at, which class of each, and in which shards."""

from collections.abc import Sequence
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

COLUMNS = ["row", "image_id", "status", "target_rank", "height", "width", "predicted", "label"]
LEAST_ROWS, MOST_ROWS = 4, 32


@dataclass(frozen=True)
class Sample:
    """Rows of the manifest in rising order, their images' names and sizes (height, width) as
    stored, and the class that is judged."""

    rows: NDArray[np.int64]
    names: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    targets: NDArray[np.int64]

    def only(self, chosen: NDArray[np.int64]) -> "Sample":
        """Some of the images, by their places."""
        return Sample(
            self.rows[chosen],
            [self.names[place] for place in chosen],
            [self.sizes[place] for place in chosen],
            self.targets[chosen],
        )

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
        return part.filter(pc.and_(chosen, pc.is_valid(part[target])))

    found = pa.concat_tables(in_order(read, sorted(run.committed()), READERS))
    order = random_order(found["row"].to_numpy(), seed)
    drawn = found.take(pa.array(np.sort(np.argsort(order, kind="stable")[:images])))
    rows, targets = (drawn[name].to_numpy().astype(np.int64) for name in ("row", target))
    sizes = list(zip(drawn["height"].to_pylist(), drawn["width"].to_pylist(), strict=True))
    return Sample(rows, drawn["image_id"].to_pylist(), sizes, targets)
