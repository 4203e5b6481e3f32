"""The classes of a run as the report tells them: maps, confusion, exemplars, numbers."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.report_scan import OfClass, Pair, Scan

MOST_CONFUSED = 6
Map = NDArray[np.float64]


@dataclass(frozen=True)
class Heatmap:
    """The mean map [rows, columns] of `count` images of a group."""

    mean: Map
    count: int


@dataclass(frozen=True)
class ClassView:
    """A class: its heatmaps by group (all, correct, incorrect), how its mean map differs from that
    of all other classes' images, and what the rows say of it.

    `images` are those labelled so, `right` of them predicted so; `taken_for` are the others by what
    they are called, `taken_from` those of other labels that are called so.
    """

    target: int
    name: str
    heatmaps: Mapping[str, Heatmap]
    difference: Map | None
    scanned: OfClass
    images: int
    right: int
    called: int
    taken_for: list[tuple[str, int]]
    taken_from: list[tuple[str, int]]

    @property
    def accuracy(self) -> float | None:
        """Share of the class's images that are predicted so; None where none is labelled so."""
        return self.right / self.images if self.images else None


@dataclass(frozen=True)
class Classes:
    """All classes that a run explains, from its class heatmaps and a scan of its rows."""

    heatmaps: pa.Table
    grid: tuple[int, int]
    scan: Scan

    @cached_property
    def by_group(self) -> dict[int, dict[str, Heatmap]]:
        """The heatmaps by class and group. A run has one kind of target."""
        found: dict[int, dict[str, Heatmap]] = {}
        for row in self.heatmaps.select(["target", "group", "count", "mean"]).to_pylist():
            mean = np.asarray(row["mean"], np.float64).reshape(self.grid)
            found.setdefault(row["target"], {})[row["group"]] = Heatmap(mean, row["count"])
        return found

    @cached_property
    def names(self) -> dict[int, str]:
        """Names of the classes that are explained or predicted."""
        table = self.heatmaps.select(["target", "target_name"]).to_pylist()
        return self.scan.names | {row["target"]: row["target_name"] for row in table}

    @property
    def means_by_name(self) -> dict[str, Map]:
        """Mean maps over all images by the names of classes, but of names that several share."""
        shared = Counter(self.names[target] for target in self.by_group)
        return {
            self.names[target]: groups["all"].mean
            for target, groups in self.by_group.items()
            if shared[self.names[target]] == 1
        }

    def views(self) -> Iterable[ClassView]:
        """Every class, by name."""
        everything = [groups["all"] for groups in self.by_group.values()]
        count = sum(each.count for each in everything)
        total = sum((each.mean * each.count for each in everything), np.zeros(self.grid))
        for target in sorted(self.by_group, key=lambda target: (self.names[target], target)):
            own = self.by_group[target]["all"]
            others = count - own.count
            pool = (total - own.mean * own.count) / others if others else None
            yield self._view(target, None if pool is None else own.mean - pool)

    def _view(self, target: int, difference: Map | None) -> ClassView:
        name = self.names[target]
        labelled = [(pair, n) for pair, n in self._of_label.get(target, [])]
        called = self._of_prediction.get(target, [])
        return ClassView(
            target=target,
            name=name,
            heatmaps=self.by_group[target],
            difference=difference,
            scanned=self.scan.classes.get(target, OfClass()),
            images=sum(n for _, n in labelled),
            right=sum(n for pair, n in labelled if pair.predicted == target),
            called=sum(n for _, n in called),
            taken_for=_largest(
                (self.names[pair.predicted], n) for pair, n in labelled if pair.predicted != target
            ),
            taken_from=_largest(
                (pair.label_name, n)
                for pair, n in called
                if pair.label != target and pair.label_name is not None
            ),
        )

    @cached_property
    def _of_label(self) -> dict[int, list[tuple[Pair, int]]]:
        found: dict[int, list[tuple[Pair, int]]] = {}
        for pair, images in self.scan.pairs.items():
            if pair.label is not None:
                found.setdefault(pair.label, []).append((pair, images))
        return found

    @cached_property
    def _of_prediction(self) -> dict[int, list[tuple[Pair, int]]]:
        found: dict[int, list[tuple[Pair, int]]] = {}
        for pair, images in self.scan.pairs.items():
            found.setdefault(pair.predicted, []).append((pair, images))
        return found

    @property
    def unexplained(self) -> list[tuple[str, int]]:
        """Classes that images are labelled with and no map explains, and how many images: all of
        these are predicted otherwise. The largest first."""
        found: Counter[str] = Counter()
        for pair, images in self.scan.pairs.items():
            if pair.label is not None and pair.label not in self.by_group:
                found[pair.label_name or ""] += images
        return sorted(found.items(), key=lambda of: (-of[1], of[0]))

    @property
    def accuracy(self) -> tuple[int, int]:
        """Images that are predicted as they are labelled, and all whose label is a class."""
        known = {pair: n for pair, n in self.scan.pairs.items() if pair.label is not None}
        right = sum(n for pair, n in known.items() if pair.label == pair.predicted)
        return right, sum(known.values())


def mean_maps(heatmaps: pa.Table) -> dict[int, NDArray[Any]]:
    """Each class's mean map [cells] over all of its images."""
    rows = heatmaps.select(["target", "group", "mean"]).to_pylist()
    return {row["target"]: np.asarray(row["mean"]) for row in rows if row["group"] == "all"}


def _largest(pairs: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:MOST_CONFUSED]
