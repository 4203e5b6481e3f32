"""From parts to class heatmaps: sums in float64 in the order of the parts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage import schema
from storage.runs import Run

COLUMNS = [
    "row", "target_rank", "status", "label", "predicted",
    "target", "target_name", "target_kind", "saliency", "score_min", "score_max",
]  # fmt: skip


Scores = NDArray[np.float32]


class Key(NamedTuple):
    """One class heatmap: the explained class and which of its images."""

    target_kind: str
    target: int
    group: str


@dataclass
class Sums:
    """Running sums of a class's maps; `ranges` are score_max - score_min of each."""

    cells: int
    count: int = 0
    total: NDArray[np.float64] = field(init=False)
    squares: NDArray[np.float64] = field(init=False)
    scores: NDArray[np.float64] = field(init=False)
    ranges: list[NDArray[np.float32]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.total, self.squares, self.scores = np.zeros((3, self.cells))

    def add(self, maps: NDArray[np.float64], low: Scores, high: Scores) -> None:
        """Add maps [images, cells] in [0, 1] and the range of their scores."""
        span = (high - low).astype(np.float64)
        self.count += len(maps)
        self.total += maps.sum(axis=0)
        self.squares += (maps**2).sum(axis=0)
        self.scores += (low[:, None] + maps * span[:, None]).sum(axis=0)
        self.ranges.append(high - low)

    @property
    def mean(self) -> NDArray[np.float64]:
        return self.total / self.count

    @property
    def std(self) -> NDArray[np.float64]:
        # Rounding can take a vanishing variance below zero.
        return np.sqrt(np.maximum(self.squares / self.count - self.mean**2, 0))


@dataclass
class Aggregate:
    """What all parts hold together; `names` are the classes' and `digest` is over every part's."""

    parts: int
    images: int
    statuses: Counter[str]
    heatmaps: dict[Key, Sums]
    names: dict[int, str]
    digest: str


def aggregate(run: Run, parts: Sequence[int], grid: tuple[int, int]) -> Aggregate:
    """Read `parts` in order and sum their maps by class and by whether the class was right."""
    digest = sha256()
    result = Aggregate(len(parts), 0, Counter(), {}, {}, "")
    for index in parts:
        table = run.read_part(index, COLUMNS)
        digest.update(table.schema.metadata[b"content_digest"])
        first = table.filter(pc.fill_null(pc.equal(table["target_rank"], 0), True))
        result.images += first.num_rows
        result.statuses.update(first["status"].to_pylist())
        _add_part(result, table.filter(pc.equal(table["status"], "ok")), grid[0] * grid[1])
    result.digest = digest.hexdigest()
    return result


def _add_part(result: Aggregate, explained: pa.Table, cells: int) -> None:
    if not explained.num_rows:
        return
    maps = schema.maps_to_numpy(explained["saliency"], (1, cells))[:, 0].astype(np.float64)
    low, high = (explained[name].to_numpy() for name in ("score_min", "score_max"))
    targets = explained["target"].to_numpy()
    kind = explained["target_kind"][0].as_py()
    for name, members in _groups(explained):
        for target in np.unique(targets[members]):
            chosen = members & (targets == target)
            sums = result.heatmaps.setdefault(Key(kind, int(target), name), Sums(cells))
            sums.add(maps[chosen], low[chosen], high[chosen])
    result.names.update(zip(targets.tolist(), explained["target_name"].to_pylist(), strict=True))


def _groups(explained: pa.Table) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """All rows, then those with a label by whether the model predicted it."""
    yield "all", np.ones(explained.num_rows, dtype=bool)
    agrees = pc.equal(explained["predicted"], explained["label"])
    for name, value in (("correct", True), ("incorrect", False)):
        members = pc.fill_null(pc.equal(agrees, value), False).to_numpy()
        if members.any():
            yield name, members


def class_heatmaps(result: Aggregate, grid: tuple[int, int]) -> pa.Table:
    """The table of class heatmaps, by target and group."""
    rows = [
        {
            "target_kind": key.target_kind,
            "target": key.target,
            "target_name": result.names[key.target],
            "group": key.group,
            "count": sums.count,
            "mean": sums.mean,
            "std": sums.std,
            "mean_score": sums.scores / sums.count,
            "median_range": float(np.median(np.concatenate(sums.ranges))),
        }
        for key, sums in sorted(result.heatmaps.items())
    ]
    return pa.Table.from_pylist(rows, schema=schema.class_heatmaps(grid))


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
