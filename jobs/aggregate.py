"""From parts to class heatmaps: sums in float64, part by part, the same whoever adds them up.

Of a part's columns `saliency` is nearly all that is read. The others are a few bytes a row:
`target`, `target_name` and `target_kind` say whose map it is, `label` and `predicted` whether the
model was right, `score_min` and `score_max` give the map its scale, and `status` and `target_rank`
count the images.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.sums import Sums
from storage import schema
from storage.runs import Run

COLUMNS = [
    "status", "label", "predicted", "target", "target_name", "target_kind", "target_rank",
    "saliency", "score_min", "score_max",
]  # fmt: skip
# Fewer parts are read by the driver itself, without Ray.
FEW_PARTS = 64
# Parts of a task, from the number of parts alone: another cut would round the sums differently.
LEAST_PARTS_OF_A_TASK, MOST_TASKS = 16, 512
OUTCOMES = ("unlabelled", "incorrect", "correct")
GROUPS = {"all": OUTCOMES, "correct": ("correct",), "incorrect": ("incorrect",)}


class Key(NamedTuple):
    """Maps that are summed together: of one explained class, with one outcome of OUTCOMES."""

    target_kind: str
    target: int
    outcome: str


@dataclass
class Aggregate:
    """What parts hold together; `names` are the classes', `digests` the parts', in their order."""

    images: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    sums: dict[Key, Sums] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    digests: list[bytes] = field(default_factory=list)

    def add(self, other: "Aggregate") -> None:
        """Add the parts that come after these."""
        self.images += other.images
        self.statuses.update(other.statuses)
        self.names.update(other.names)
        self.digests += other.digests
        for key, sums in other.sums.items():
            # Added to nothing they are arrays of our own: Ray's may lie in its object store.
            self.sums[key] = self.sums.get(key, Sums.nothing()) + sums

    @property
    def parts(self) -> int:
        return len(self.digests)

    @property
    def digest(self) -> str:
        """sha256, as hex, over the parts' content digests in order."""
        return sha256(b"".join(self.digests)).hexdigest()


# `map`, or what does the same on a cluster.
Map = Callable[[Callable[[Sequence[int]], Aggregate], list[Sequence[int]]], Iterable[Aggregate]]


def aggregate(
    run: Run, parts: Sequence[int], grid: tuple[int, int], map_in_order: Map = map
) -> Aggregate:
    """Sum the maps of `parts` by class and by whether the class was right.

    The result is the same to the last bit whatever `map_in_order`, and where, works on the tasks.
    Raises StorageUnavailable.
    """
    result = Aggregate()
    for of_task in map_in_order(partial(sum_parts, run, grid), tasks_of(parts)):
        result.add(of_task)
    return result


def tasks_of(parts: Sequence[int]) -> list[Sequence[int]]:
    """The parts, cut into what is summed by itself before the sums are added."""
    size = max(LEAST_PARTS_OF_A_TASK, -(-len(parts) // MOST_TASKS))
    return [parts[start : start + size] for start in range(0, len(parts), size)]


def sum_parts(run: Run, grid: tuple[int, int], parts: Sequence[int]) -> Aggregate:
    """What one task does: read consecutive parts and add them up in order."""
    result = Aggregate()
    for index in parts:
        result.add(sum_part(run.read_part(index, COLUMNS), grid))
    return result


def sum_part(table: pa.Table, grid: tuple[int, int]) -> Aggregate:
    """What one part's rows, with COLUMNS at least, add to an aggregate."""
    first = table.filter(pc.fill_null(pc.equal(table["target_rank"], 0), True))
    explained = table.filter(pc.equal(table["status"], "ok"))
    names = explained.select(["target", "target_name"]).group_by(["target", "target_name"])
    return Aggregate(
        images=first.num_rows,
        statuses=Counter(first["status"].to_pylist()),
        sums=_sums(explained, grid[0] * grid[1]),
        names={row["target"]: row["target_name"] for row in names.aggregate([]).to_pylist()},
        digests=[table.schema.metadata[schema.CONTENT_DIGEST.encode()]],
    )


def _sums(explained: pa.Table, cells: int) -> dict[Key, Sums]:
    """The sums of each class and outcome: rows are sorted by both, and summed run by run."""
    if not explained.num_rows:
        return {}
    maps = schema.maps_to_numpy(explained["saliency"], (1, cells))[:, 0]
    low, high = (explained[name].to_numpy() for name in ("score_min", "score_max"))
    kind = explained["target_kind"][0].as_py()
    agrees = pc.equal(explained["predicted"], explained["label"])
    outcomes = pc.fill_null(pc.add(agrees.cast(pa.int8()), 1), 0).to_numpy()
    keys = explained["target"].to_numpy().astype(np.int64) * len(OUTCOMES) + outcomes
    order = np.argsort(keys, kind="stable")
    changes = np.flatnonzero(np.diff(keys[order])) + 1
    result = {}
    for members in np.split(order, changes):
        target, outcome = divmod(int(keys[members[0]]), len(OUTCOMES))
        sums = Sums.of(maps[members], low[members], high[members])
        result[Key(kind, target, OUTCOMES[outcome])] = sums
    return result


def class_heatmaps(result: Aggregate, grid: tuple[int, int]) -> pa.Table:
    """The table of class heatmaps, by target and group."""
    rows = []
    for kind, target in sorted({(key.target_kind, key.target) for key in result.sums}):
        for group, outcomes in GROUPS.items():
            keys = [Key(kind, target, outcome) for outcome in outcomes]
            found = [result.sums[key] for key in keys if key in result.sums]
            if found:
                sums = sum(found, start=Sums.nothing())
                row = {"target_kind": kind, "target": target, "group": group}
                rows.append(row | {"target_name": result.names[target]} | _statistics(sums))
    return pa.Table.from_pylist(rows, schema=schema.class_heatmaps(grid))


def _statistics(sums: Sums) -> dict[str, Any]:
    return {
        "count": sums.count,
        "mean": sums.mean,
        "std": sums.std,
        "mean_score": sums.scores / sums.count,
        "median_range": sums.ranges.median,
    }


@dataclass(frozen=True)
class ClassHeatmap:
    """The mean saliency [cells] of `count` images explained as class `target`."""

    target: int
    name: str
    count: int
    mean: NDArray[np.float64]


def read_means(table: pa.Table) -> list[ClassHeatmap]:
    """Every class's heatmap over all of its images, from the table of class heatmaps."""
    rows = table.filter(pc.equal(table["group"], "all")).to_pylist()
    return [
        ClassHeatmap(row["target"], row["target_name"], row["count"], np.array(row["mean"]))
        for row in rows
    ]
